"""Where a gate fails: what is proposed, and what --recover makes of it, on a classifier that int8 breaks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgekit import pipeline
from edgekit.errors import DeviceFailed, EdgekitError
from edgekit.evidence import Check, Report
from edgekit.pipeline import ladder as climbing
from edgekit.pipeline.looks import row_hashes
from edgekit.pipeline.origin import texts_read
from edgekit.pipeline.plan import Listener
from edgekit.pipeline.rungs import Change
from edgekit.recipe import Data, load_recipe
from edgekit.runtimes import neighbours
from edgekit.target import load_target
from edgekit.workspace import Workspace, open_product
from tests.cli.test_json import VALIDATOR
from tests.conftest import Answer
from tests.pipeline.fragile import make_fragile
from tests.verify.verify_folders import hardware_here

ROWS = {"train": 200, "calibrate": 40, "verify": 200}


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's folder, whose finished steps its tests share."""
    folder = tmp_path_factory.mktemp("fragile")
    make_fragile(folder, ROWS)
    return folder


@pytest.fixture
def build(fragile: Path, command: Callable[..., Answer]) -> Callable[..., Answer]:
    """A build of it; each test has looks of its own."""

    def run(*arguments: str | Path, target: str = "target") -> Answer:
        places = ("-r", fragile / "recipe.toml", "-t", fragile / f"{target}.toml", "--cache", fragile / "cache")
        return command("build", *places, *arguments)

    return run


def bundle_of(answer: Answer) -> dict[str, Any]:
    found = json.loads(answer.out)
    VALIDATOR.validate(found)
    return dict(found["bundles"][0])


def test_a_failed_gate_proposes_what_suits_it(build: Callable[..., Answer]) -> None:
    """Quantization took the accuracy: no other student is proposed, the cheapest comes first, and the page says the same."""
    told = build()
    assert told.code == 3
    assert "recovery: quantization takes more accuracy than it may" in told.out
    assert "-> the same command with: --export float_layers=4" in told.out
    bundle = bundle_of(build("--json"))
    recovery = bundle["recovery"]
    assert recovery["failures"] == ["quantization"]
    names = [rung["name"] for rung in recovery["rungs"]]
    assert names == ["smoothing", "keep the worst layers float", "scheme w8", "train on the grid"]
    assert [rung["seconds"] for rung in recovery["rungs"]] == sorted(rung["seconds"] for rung in recovery["rungs"])
    assert "ladder" not in recovery
    page = Path(bundle["report"]).with_suffix(".html").read_text(encoding="utf-8")
    assert all(name in page for name in names)


def test_recovery_goes_on_where_it_was_killed_and_ships_what_passes(
    build: Callable[..., Answer], fragile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the first rung was exported and not yet judged; then the choice is kept with what is printed."""
    judged: list[Path] = []
    rehearse = climbing.rehearse

    def killed(plan: Any, artifact: Any, *others: Any) -> Any:
        if judged:
            raise KeyboardInterrupt
        judged.append(artifact.folder)
        return rehearse(plan, artifact, *others)

    with monkeypatch.context() as patch:
        patch.setattr(climbing, "rehearse", killed)
        with pytest.raises(KeyboardInterrupt):
            build("--recover", "5")
    exported = len(list(fragile.glob("cache/export/*/export.json")))
    answer = build("--recover", "5", "--json")
    assert len(list(fragile.glob("cache/export/*/export.json"))) == exported
    bundle = bundle_of(answer)
    assert (answer.code, bundle["verdict"]) == (0, "pass")
    ladder = bundle["recovery"]["ladder"]
    assert (ladder["chosen"], [entry["name"] for entry in ladder["tried"]]) == ("smoothing", ["smoothing"])
    assert ladder["start"]["loss"] > 0.3
    assert ladder["tried"][0]["loss"] <= 0.025
    # Its export was kept, and judging it took its time.
    assert ladder["tried"][0]["seconds"] > 0.3
    assert ladder["stopped"] == "stopped at 'smoothing', which passes there"
    report = json.loads(Path(bundle["report"]).read_text())
    assert (report["look"]["index"], report["recovery"]["ladder"]["prompts"]) == (2, 100)
    again = bundle_of(build(*ladder["keep"], "--json"))
    assert (again["sha256"], again["archive_sha256"]) == (bundle["sha256"], bundle["archive_sha256"])


def test_verify_prompts_choose_nothing(build: Callable[..., Answer], fragile: Path) -> None:
    """With other verify prompts each rung is seen to do the same, and nothing that was tried has read a prompt of the split."""
    tried = []
    path = fragile / "data" / "verify.jsonl"
    whole = path.read_text(encoding="utf-8")
    try:
        for lines in (slice(0, 200), slice(0, 100)):
            path.write_text("".join(whole.splitlines(keepends=True)[lines]), encoding="utf-8")
            ladder = bundle_of(build("--recover", "5", "--json"))["recovery"]["ladder"]
            timeless = [{**entry, "seconds": 0} for entry in (ladder["start"], *ladder["tried"])]
            tried.append((timeless, ladder["chosen"], ladder["keep"]))
    finally:
        path.write_text(whole, encoding="utf-8")
    assert tried[0] == tried[1]
    gathered = [open_product(path.parent, "prompts") for path in fragile.glob("cache/prompts/*/prompts.json")]
    prompts = next(product for product in gathered if "recover" in product.facts["rows"])
    held = {digest[:8] for digest in row_hashes(prompts, "recover")}
    assert len(held) == 100
    for manifest in fragile.glob("cache/export/*/export.json"):
        read = texts_read(open_product(manifest.parent, "export"))
        assert not any(held & texts for texts in read.values())


def test_what_is_hopeless_ends_within_its_time(build: Callable[..., Answer], fragile: Path) -> None:
    """No scheme is as small as this target wants: what is too long for the time is not begun."""
    text = (fragile / "target.toml").read_text(encoding="utf-8")
    (fragile / "hopeless.toml").write_text(f"{text}\n[budget]\nbytes = 1000\n", encoding="utf-8")
    answer = build("--recover", "0.9", "--json", target="hopeless")
    bundle = bundle_of(answer)
    assert (answer.code, bundle["archive"]) == (3, None)
    recovery, ladder = bundle["recovery"], bundle["recovery"]["ladder"]
    assert "scheme w8" not in [rung["name"] for rung in recovery["rungs"]]
    assert "size" in recovery["failures"]
    assert ladder["chosen"] is None
    assert ladder["stopped"].startswith("the time was spent, and none passes there")
    assert any((entry["reason"] or "").startswith("not begun: ") for entry in ladder["tried"])
    assert ladder["start"]["seconds"] + sum(entry["seconds"] for entry in ladder["tried"]) < 54


def test_speed_that_fails_is_judged_on_the_split(
    build: Callable[..., Answer], fragile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed is judged however short the time is; then no rung begins."""
    export = (fragile / "target.toml").read_text(encoding="utf-8").partition("[export")[2]
    export = export.replace("float_layers = 0", "float_layers = 4")
    text = f'title = "Here"\n[hardware]\n{hardware_here()}\nsources = ["measured"]\n[export{export}'
    (fragile / "speed.toml").write_text(f"{text}\n[budget]\np95_ms = 0.0001\n", encoding="utf-8")
    # Other tests beside this one make the machine busy.
    monkeypatch.setattr(neighbours, "disturbances", lambda *_: [])
    answer = build("--recover", "0.001", "--json", target="speed")
    recovery = bundle_of(answer)["recovery"]
    ladder, names = recovery["ladder"], [rung["name"] for rung in recovery["rungs"]]
    assert (answer.code, recovery["failures"]) == (3, ["speed"])
    assert (ladder["start"]["check"], ladder["start"]["holds"]) == ("p95_ms", False)
    assert ladder["start"]["measured"] > 0.0001
    assert "n-grams" in names
    assert [entry["name"] for entry in ladder["tried"]] == names
    assert all(entry["reason"].startswith("not begun: ") for entry in ladder["tried"])
    assert ladder["stopped"].startswith("the time was spent, and none passes there")


@pytest.mark.parametrize(
    ("place", "name", "passing", "tried"),
    [(climbing, "rehearse", 0, []), (climbing, "rehearse", 1, []), (pipeline, "verify", 1, ["smoothing"])],
    ids=["start", "rung", "gate"],
)
def test_what_fails_after_the_verdict_does_not_cost_it(
    place: Any,
    name: str,
    passing: int,
    tried: list[str],
    build: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device that fails while the ladder or the gate judges again: the first report is written, with why it ended."""
    judge, calls = getattr(place, name), list[int]()

    def judged(*given: Any, **more: Any) -> Any:
        calls.append(len(calls))
        if len(calls) > passing:
            raise DeviceFailed("pi: connection lost")
        return judge(*given, **more)

    monkeypatch.setattr(place, name, judged)
    answer = build("--recover", "5", "--json")
    bundle = bundle_of(answer)
    assert (answer.code, bundle["verdict"]) == (3, "fail")
    recovery = json.loads(Path(bundle["report"]).read_text())["recovery"]
    ladder = recovery["ladder"]
    assert recovery["rungs"][0]["name"] == "smoothing"
    assert [entry["name"] for entry in ladder["tried"]] == tried
    assert (ladder["chosen"], ladder["keep"]) == (None, [])
    assert "pi: connection lost" in ladder["stopped"]


def test_a_session_that_recovers_needs_a_split_to_choose_by(fragile: Path, tmp_path: Path) -> None:
    """It is refused before anything is made."""
    recipe = replace(load_recipe(fragile / "recipe.toml", ()), data=Data(path="data"))
    session = pipeline.Session(workspace=Workspace(tmp_path / "cache"), out=tmp_path / "dist", recover=1.0)
    with pytest.raises(EdgekitError, match=r"data\.recover: missing key"):
        pipeline.build(recipe, [load_target(str(fragile / "target.toml"))], session)
    assert not (tmp_path / "cache" / "record").exists()


@pytest.fixture
def only_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other rung is found."""
    half = Change(name="half", gain="", options={"scheme": "fp16"})
    monkeypatch.setattr(climbing, "find_changes", lambda *_: [half])


@pytest.mark.usefixtures("only_fp16")
def test_what_fails_the_gate_again_is_reported_by_its_own_name(build: Callable[..., Answer]) -> None:
    """It loses nothing that is seen, and 200 prompts do not prove so small a limit."""
    small = ("--set", "accuracy.student_margin=0.001", "--set", "accuracy.teacher_margin=0.001")
    answer = build("--scheme", "int8-dynamic", "--strict", "--recover", "5", "--json", *small)
    bundle = bundle_of(answer)
    assert (answer.code, bundle["scheme"], bundle["verdict"], bundle["archive"]) == (3, "fp16", "not proven", None)
    assert bundle["report"].endswith("-fp16.report.json")
    report = json.loads(Path(bundle["report"]).read_text())
    assert (report["artifact"]["scheme"], report["recovery"]["ladder"]["chosen"]) == ("fp16", "half")


@pytest.mark.usefixtures("only_fp16")
def test_no_rung_takes_the_place_of_another_bundle(build: Callable[..., Answer]) -> None:
    """Of the same build."""
    answer = build("--scheme", "int8-dynamic", "--scheme", "fp16", "--recover", "5", "--json")
    first, second = json.loads(answer.out)["bundles"]
    [tried] = first["recovery"]["ladder"]["tried"]
    assert tried["reason"].endswith("-fp16: is another bundle of this build")
    assert [(one["scheme"], one["verdict"]) for one in (first, second)] == [("int8-dynamic", "fail"), ("fp16", "pass")]
    assert first["report"] != second["report"]


def test_a_step_that_begins_when_the_time_is_spent_is_stopped() -> None:
    """And one that is running; only a training goes on where it was."""
    for step, told in (("distill", "goes on from there"), ("verify", "begins that step anew")):
        running = (watched := climbing._Watched(Listener(), time.monotonic() + 60)).begin(step)
        running(1, 2, "")
        watched._until = 0.0
        with pytest.raises(climbing.TimeSpentError, match=f"stopped in {step}: .* {told}"):
            running(2, 2, "")
        with pytest.raises(climbing.TimeSpentError):
            watched.begin(step)


def test_the_worst_check_is_the_one_that_keeps_a_rung_from_passing() -> None:
    """A size that is proven costs nothing, however near to its limit: of two rungs the one that loses less is chosen."""
    size = Check(name="bytes", measured=950, limit=1000, verdict="pass")
    less, more = (
        Check(name="accuracy_vs_student", measured=0.9, limit=0.05, verdict="not proven", loss=loss)
        for loss in (0.03, 0.04)
    )
    seen = [
        climbing._seen(name, 1.0, cast("Report", SimpleNamespace(checks=checks)))
        for name, checks in (("more", (more, size)), ("less", (less,)))
    ]
    assert [(entry.check, entry.holds, entry.within) for entry in seen] == [("accuracy_vs_student", False, True)] * 2
    assert climbing._choose(seen, ran_out=False)[0] == "less"
