"""What a loader finds before its first answer: each planted fault in a sentence of its own, in Python."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from edgekit.bundle.golden import GOLDEN
from edgekit.workspace import file_sha256
from tests.bundle.test_golden import pack_golden
from tests.bundle.test_load import shipped

Plant = Callable[[Path], object]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_golden(tmp_path_factory.mktemp("check")).bundle


def flip(path: Path) -> None:
    """One bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def keep_hash(folder: Path, name: str) -> None:
    """The manifest says what a file is now: what only golden answers find."""
    path = folder / "bundle.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    file = folder / name
    table["files"][name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    path.write_text(json.dumps(table), encoding="utf-8")


def other_golden(folder: Path, **changes: Any) -> None:
    """golden.json with another first row, as the manifest has it."""
    content = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
    content["rows"][0] |= changes
    (folder / GOLDEN).write_text(json.dumps(content), encoding="utf-8")
    keep_hash(folder, GOLDEN)


def swap_tokens(folder: Path) -> None:
    """Another tokenizer, of the same words."""
    path = folder / "tokenizer.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    words = table["model"]["vocab"]
    words["on"], words["off"] = words["off"], words["on"]
    path.write_text(json.dumps(table, indent=4), encoding="utf-8")


def mix(folder: Path, other: Path) -> None:
    shutil.copyfile(other / "model.onnx", folder / "model.onnx")


def swap_tokens_quietly(folder: Path) -> None:
    swap_tokens(folder)
    keep_hash(folder, "tokenizer.json")


FAULTS: dict[str, tuple[Plant, str]] = {
    "a flipped bit": (lambda folder: flip(folder / "model.onnx"), r"model\.onnx: not the file that was verified"),
    "truncated": (
        lambda folder: (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-9]),
        r"model\.onnx: \d+ of \d+ bytes: cut off, or another bundle's; copy it again",
    ),
    "missing": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        r"tokenizer\.json: missing; copy the whole bundle",
    ),
    "another tokenizer": (swap_tokens, r"tokenizer\.json: not the file that was verified; is it another bundle's\?"),
    "another tokenizer, unnoticed": (
        swap_tokens_quietly,
        r"golden answer to '.*': .* when it was verified: this machine or",
    ),
    "a wrong label": (lambda folder: other_golden(folder, label="play_music"), r"golden answer to '.*': .*play_music"),
    "a wrong score": (lambda folder: other_golden(folder, score=0.2), r"golden answer to '.*': .*, and .* 0\.2 when"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(bundle: Path, tmp_path: Path, fault: str) -> None:
    plant, said = FAULTS[fault]
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    opened = shipped(copy)
    plant(copy)
    with pytest.raises(RuntimeError, match=said):
        opened.Bundle(copy)


def test_two_bundles_are_not_mixed(bundle: Path, tmp_path: Path) -> None:
    other = pack_golden(tmp_path / "other", scale=2.0).bundle
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    mix(copy, other)
    with pytest.raises(RuntimeError, match=r"model\.onnx: not the file that was verified; is it another bundle's\?"):
        shipped(copy).Bundle(copy)


def test_an_older_runtime_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.9.0")
    with pytest.raises(RuntimeError, match=r"onnxruntime 1\.9\.0 is too old for this bundle: it needs 1\.18"):
        shipped(bundle).Bundle(bundle)


def test_cold_is_told_from_warm(bundle: Path) -> None:
    times = shipped(bundle).Bundle(bundle).times
    assert set(times) == {"cold", "warm"}
    assert all(ms > 0 for ms in times.values())
    assert shipped(bundle).Bundle(bundle, check=False).times == {}


def test_an_embedding_is_held_by_its_cosine(tmp_path: Path) -> None:
    made = pack_golden(tmp_path, output="embedding").bundle
    rows = json.loads((made / GOLDEN).read_text(encoding="utf-8"))["rows"]
    first = rows[0]["embedding"]
    other_golden(made, embedding=[2 * value for value in first])
    assert shipped(made).Bundle(made).times
    other_golden(made, embedding=[-value for value in first])
    with pytest.raises(RuntimeError, match=r"an embedding 2\.0000 away \(1 - cosine\), and at most 0\.05 when"):
        shipped(made).Bundle(made)
