"""Targets: every packaged one is complete and sourced, a bad one is named with its key, a new one is a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.cli.options import measured_as
from edgekit.errors import EdgekitError
from edgekit.pipeline import check_target
from edgekit.recipe import packaged
from edgekit.target import Measure, check_targets, find_targets, load_target

PACKAGED = sorted(packaged("targets").glob("*.toml"))
PROMISED = {
    *("laptop-gpu", "laptop-cpu", "arm-cpu", "mobile", "raspberrypi", "raspberrypi4", "raspberrypizero2w", "orangepi5"),
    *("jetson-orin-nano", "intel-n100", "intel-laptop", "android-midrange", "iphone", "apple-silicon", "browser"),
}
GOOD = """title = "A board"

[hardware]
arch = "aarch64"
cpu = "Cortex-A55"
cores = 4
features = ["asimd", "asimddp"]
memory_mb = 1024
sources = ["its data sheet"]

[export.text-classification]
format = "onnx"
scheme = "auto"

[budget]
memory_mb = 200

[budget.text-classification]
p95_ms = 40
sequence = 32
"""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good target file in ./targets of an empty folder."""
    monkeypatch.chdir(tmp_path)
    path = Path("targets/board.toml")
    path.parent.mkdir()
    path.write_text(GOOD, encoding="utf-8")
    return path


def test_promised_targets_are_packaged() -> None:
    assert {path.stem for path in PACKAGED} >= PROMISED


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_packaged_target_is_complete_and_sourced(path: Path) -> None:
    target = load_target(str(path))
    assert check_targets([str(path)], check_target) == {str(path): None}
    assert target.name == path.stem
    assert target.title
    assert target.runtime["onnxruntime"]["provider"].endswith("ExecutionProvider")
    assert target.device == {"kind": "local"}
    hardware = target.hardware
    assert all(len(source) > 10 for source in hardware.sources)
    assert hardware.arch in {"x86_64", "aarch64", "wasm32"}
    assert hardware.features
    assert hardware.cores >= target.runtime["onnxruntime"]["threads"]
    assert hardware.usable_mb is not None
    assert hardware.usable_mb <= hardware.memory_mb
    for task in ("text-classification", "feature-extraction"):
        assert target.export_for(task)["format"] == "onnx"
        budget = target.budget_for(task)
        assert budget.p95_ms is not None
        assert budget.memory_mb is not None
        assert budget.memory_mb <= hardware.usable_mb
        assert budget.bytes is not None
    assert target.budget_for("text-classification").sequence < target.budget_for("feature-extraction").sequence


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_reduced_range_exactly_where_the_isa_saturates(path: Path) -> None:
    from edgekit.runtimes.machine import saturates

    target = load_target(str(path))
    for table in target.export.values():
        if (table["format"], table["scheme"]) == ("onnx", "auto"):
            assert table["reduce_range"] is saturates(target.hardware.arch, target.hardware.features)


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_a_floor_states_what_a_machine_is_compared_with(path: Path) -> None:
    hardware = load_target(str(path)).hardware
    if hardware.generic:
        assert None not in (hardware.bandwidth_gbs, hardware.int8_gops, hardware.fp32_gflops)


def test_new_file_is_a_new_target(board: Path) -> None:
    assert find_targets()["board"] == board
    target = load_target("board")
    assert (target.name, target.path) == ("board", board)
    assert target.budget_for("text-classification").p95_ms == 40
    assert target.budget_for("text-classification").memory_mb == 200
    assert target.budget_for("feature-extraction").sequence == 64
    assert set(find_targets()) > PROMISED


def test_how_much_is_measured_is_asked_for_by_the_target_and_by_options(board: Path) -> None:
    assert load_target("board").measure == Measure()
    board.write_text(board.read_text() + "\n[measure]\nsustained_s = 600\nprocesses = 16\n")
    target = load_target("board")
    assert target.measure == Measure(sustained_s=600, processes=16)
    asked = measured_as(target, None, 30.0, sweep=True).measure
    assert asked == Measure(sustained_s=30.0, processes=16, sweep=True)
    board.write_text(board.read_text().replace("processes = 16", "processes = 3"))
    with pytest.raises(EdgekitError, match=r"board\.toml: measure\.processes: "):
        load_target("board")


def test_file_in_targets_stands_before_the_packaged_one(board: Path) -> None:
    board.rename(board.with_name("raspberrypi.toml"))
    assert load_target("raspberrypi").title == "A board"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cores = 4", "cores = 4\ncolour = 1", ("hardware.colour: unknown key", "known: ")),
        ("cores = 4", "coers = 4", ("hardware.coers: unknown key (did you mean cores?)",)),
        ("cores = 4", 'cores = "four"', ("hardware.cores: ", "integer", "'four'")),
        ("cores = 4\n", "", ("hardware.cores: missing key",)),
        ('features = ["asimd", "asimddp"]', "features = 1", ("hardware.features: ", "list")),
        ('sources = ["its data sheet"]', "sources = []", ("hardware.sources: empty",)),
        ("[hardware]", "[hardwear]", ("hardwear: unknown key (did you mean hardware?)",)),
        ("memory_mb = 200", "memroy_mb = 200", ("budget.memroy_mb: unknown key (did you mean memory_mb?)",)),
        ("p95_ms = 40", 'p95_ms = "fast"', ("budget.p95_ms: ", "number", "'fast'")),
        ("p95_ms = 40", "p95 = 40", ("budget.p95: unknown key (did you mean p95_ms?)",)),
        ("cores = 4", "cores = 0", ("hardware.cores: ", "greater than or equal to 1, got 0")),
        ("memory_mb = 1024", "memory_mb = 0", ("hardware.memory_mb: ", "greater than 0, got 0")),
        ("cores = 4", "cores = 4\nusable_mb = -1", ("hardware.usable_mb: ", "greater than 0, got -1")),
        ("cores = 4", "cores = 4\nclock_ghz = 0.0", ("hardware.clock_ghz: ", "greater than 0, got 0.0")),
        ("cores = 4", "cores = 4\nbandwidth_gbs = 0", ("hardware.bandwidth_gbs: ", "greater than 0")),
        ("cores = 4", "cores = 4\nint8_gops = -3", ("hardware.int8_gops: ", "greater than 0")),
        ("cores = 4", "cores = 4\nfp32_gflops = 0", ("hardware.fp32_gflops: ", "greater than 0")),
        ("memory_mb = 200", "memory_mb = 0", ("budget.memory_mb: ", "greater than 0")),
        ("memory_mb = 200", "p50_ms = 0", ("budget.p50_ms: ", "greater than 0")),
        ("memory_mb = 200", "bytes = 0", ("budget.bytes: ", "greater than 0")),
        ("p95_ms = 40", "p95_ms = -1", ("budget.p95_ms: ", "greater than 0, got -1")),
        ("sequence = 32", "sequence = 0", ("budget.sequence: ", "greater than or equal to 1, got 0")),
        ("[budget]", "[runtime.onnxruntime]\nthreads = 0\n[budget]", ("runtime.onnxruntime.threads: should be at least 1, got 0; without it",)),
        ("[budget]", '[runtime.onnxruntime]\nthreads = "2"\n[budget]', ("runtime.onnxruntime.threads: ", "integer")),
        ("[export.text-classification]", "[export]", ("export.format: ", "object")),
        ('scheme = "auto"', 'scheme = "int7"', ("export.text-classification.scheme: ", "int7")),
        ('[export.text-classification]\nformat = "onnx"\nscheme = "auto"', "[export]", ("export: empty; name a task",)),
        ('title = "A board"', 'name = "board"', ("name: ", "set by edgekit")),
        ('title = "A board"', "title = ", ("not valid TOML", "line 1")),
    ],
)  # fmt: skip
def test_bad_file_is_named_with_its_key(board: Path, old: str, new: str, said: tuple[str, ...]) -> None:
    assert old in GOOD
    board.write_text(GOOD.replace(old, new), encoding="utf-8")
    problem = check_targets([str(board)], check_target)[str(board)]
    assert problem is not None
    assert str(board) in problem
    assert "\n" not in problem
    for part in said:
        assert part in problem


def test_missing_file_and_unknown_name(board: Path) -> None:
    none = str(Path("targets/none.toml"))
    assert check_targets([none], check_target) == {none: f"{none}: no such file"}
    with pytest.raises(EdgekitError, match=r"'raspberypi': unknown \(did you mean raspberrypi\?\)"):
        load_target("raspberypi")


def test_task_that_a_target_cannot_build(board: Path) -> None:
    with pytest.raises(EdgekitError, match=r"export.text-generation: missing.*has: text-classification"):
        load_target("board").export_for("text-generation")
