"""`edgekit compare`: what a side may be, a real difference found on this machine and over SSH, and answers that are no answers."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from device_compare import write_chain

import edgekit.compare as compare_module
from edgekit.bundle.manifest import FileEntry, read_manifest
from edgekit.cli.compare import show
from edgekit.compare import Compared, SideTimes, compare, read_side
from edgekit.devices import Finished, LocalDevice, SshDevice
from edgekit.errors import DeviceFailed, EdgekitError
from edgekit.schema import read_json
from edgekit.verify.paired import verdict
from edgekit.workspace import file_sha256
from tests.bundle.test_bundle import pack
from tests.cli.test_json import read
from tests.conftest import Answer
from tests.devices.sshd import Reachable

Command = Callable[..., Answer]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of two artifacts, "one" of them half the work of "two"."""
    folder = tmp_path_factory.mktemp("bundles")
    for name, links in (("one", 6), ("two", 12)):
        made = pack(folder / f"made-{name}", folder / "out").bundle
        shutil.copytree(made, folder / name)
        write_chain(folder / name / "model.onnx", links, width=128)
        path = folder / name / "bundle.json"
        manifest = read_manifest(read_json(path), str(path))
        model = folder / name / "model.onnx"
        entry = FileEntry(bytes=model.stat().st_size, sha256=file_sha256(model))
        artifact = dataclasses.replace(manifest.artifact, bytes=entry.bytes, sha256=entry.sha256)
        changed = dataclasses.replace(manifest, artifact=artifact)
        path.write_text(changed.with_files({**(manifest.files or {}), "model.onnx": entry}).to_json())
    return folder


def test_a_side_is_a_bundle_and_what_differs(bundles: Path) -> None:
    path = str(bundles / "one")
    own = read_side(path)
    assert (own.runtime, own.options["threads"]) == ("onnxruntime", 1)
    more = read_side(f"{path}:threads=2,disabled_optimizers=[]")
    assert (more.options["threads"], more.options["disabled_optimizers"]) == (2, [])
    assert read_side(":threads=3", like=f"{path}:threads=2").options["threads"] == 3
    other = read_side(f"{path}:runtime=openvino")
    assert (other.runtime, other.options["threads"]) == ("openvino", 1), "as many threads as the bundle's own runtime"


def test_a_path_may_have_a_colon(bundles: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a:threads=2"
    shutil.copytree(bundles / "one", odd)
    assert read_side(str(odd)).options["threads"] == 1
    assert read_side(f"{odd}:threads=2").options["threads"] == 2


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (":thread=2", "thread: unknown key"),
        (":threads=two", "threads"),
        (":runtime=tflite", "runtime"),
        (":runtime=llama-cpp", "llama-cpp does not run onnx files; take one of onnxruntime, openvino"),
        (":threads=2,fast", "'fast': write options as key=value"),
        ("-none", "no such bundle"),
    ],
)
def test_what_is_no_side_is_refused(bundles: Path, tail: str, message: str) -> None:
    with pytest.raises(EdgekitError, match=re.escape(message)):
        read_side(f"{bundles / 'one'}{tail}")


def test_the_first_token_is_a_decoders(bundles: Path) -> None:
    side = read_side(str(bundles / "one"))
    with LocalDevice({}) as device, pytest.raises(EdgekitError, match="writes no tokens"):
        compare(side, side, device, first=True)


def test_a_real_difference_is_found(bundles: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the work is faster, on a machine that does other things besides."""
    monkeypatch.setattr(compare_module, "ROUNDS", 3)
    one, two = str(bundles / "one"), str(bundles / "two")
    found = read(command("compare", two, one, "--pairs", "60", "--json"))
    assert (found["verdict"], found["pairs"], found["what"]) == ("faster", 60, "a call of 8 tokens")
    assert 1 < found["interval"][0] <= found["ratio"] <= found["interval"][1]
    assert found["a"]["p50_ms"] > found["b"]["p50_ms"]
    assert found["a"]["sha256"] == file_sha256(bundles / "two" / "model.onnx")


@pytest.mark.parametrize(
    ("ratio", "interval", "words"),
    [
        (1.31, (1.27, 1.35), "B is 1.31x faster [1.27, 1.35]"),
        (0.8, (0.75, 0.90), "B is 1.25x slower [1.11, 1.33]"),
        (1.01, (0.98, 1.03), "no difference found: A takes 0.980 to 1.030 times as long as B"),
    ],
)
def test_the_result_in_words(
    ratio: float, interval: tuple[float, float], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    side = SideTimes(
        name="dist/one", format="onnx", scheme="w8", sha256="0", bytes=1, runtime="onnxruntime", version="1.31", options={}, p50_ms=1.5
    )  # fmt: skip
    found = Compared(
        ratio=ratio, interval=interval, pairs=400, verdict=verdict(interval), what="a call of 64 tokens", a=side, b=side,
        device="ssh pi", cpu="Cortex-A76", disturbed=("heat lowered its clock",),
    )  # fmt: skip
    assert found.sentence == words
    show(found)
    out = capsys.readouterr().out
    assert words in out
    assert "a call of 64 tokens, 400 pairs on ssh pi (Cortex-A76)" in out
    assert "disturbed: heat lowered its clock" in out


def test_over_ssh(bundles: Path, stand_in: Reachable, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{stand_in.commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(compare_module, "ROUNDS", 2)
    monkeypatch.setattr(SshDevice, "python", property(lambda _: stand_in.python))
    found = read(
        command("compare", str(bundles / "one"), ":threads=2", "--device", "ssh://stand-in", "--pairs", "20", "--json")
    )
    assert found["device"] == "ssh://stand-in"
    assert (found["a"]["options"]["threads"], found["pairs"]) == (1, 20)


class Says(LocalDevice):
    """This machine, of whose answer a part is replaced."""

    def __init__(self, old: str, new: str, code: int = 0) -> None:
        super().__init__({})
        self.change, self.code = (old, new), code

    def run(self, command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Finished:
        request = Path(command[-1])
        assert json.loads(request.read_text())["pairs"] == 40
        files = [file_sha256(Path(side["file"])) for side in json.loads(request.read_text())["sides"]]
        side = {"runtime": "onnxruntime", "version": "1", "threads": 1, "load_ms": 1.0}
        lines: list[dict[str, object]] = [
            {"event": "device", "seq": 0},
            {"event": "side a", "seq": 1, **side},
            {"event": "side b", "seq": 2, **side},
            {"event": "turns", "seq": 3, "ms": [[1.0, 2.0]], "neighbours": []},
            {"event": "done", "seq": 4, "protocol": 1, "files": files, "request": file_sha256(request)},
        ]
        text = "\n".join(map(json.dumps, lines)).replace(*self.change)
        return Finished(returncode=self.code, stdout=text, stderr="")


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ('"seq": 3', '"seq": 4', 0, "garbled or cut"),
        ('{"event": "done"', '{"event', 0, "garbled or cut"),
        ('"protocol": 1', '"protocol": 2', 0, "garbled or cut"),
        ('"request": "', '"request": "0', 0, "other files ran there"),
        ('"files": ["', '"files": ["0', 0, "other files ran there"),
        ("", "", 137, "the system killed the probe, most likely for want of memory"),
    ],
)
def test_what_is_no_answer_counts_for_nothing(bundles: Path, old: str, new: str, code: int, message: str) -> None:
    side = read_side(str(bundles / "one"))
    with pytest.raises(DeviceFailed, match=message):
        compare(side, side, Says(old, new, code))
