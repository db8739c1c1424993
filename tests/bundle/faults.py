"""FAULTS: what can be wrong with a bundle, how it is planted in a real one, and the sentence that each loader says of it.

A fault is planted in a copy of a bundle's folder. In C, which Kotlin calls, what was verified is compiled in (bundle.c, beside the
folder `bundle`): where a fault changes what the manifest says, the same is changed there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgekit.bundle.compact import compact_tokenizer
from edgekit.bundle.golden import GOLDEN
from edgekit.bundle.manifest import MANIFEST_FORMAT, digest_of
from edgekit.schema import dump_json
from edgekit.workspace import file_sha256

Plant = Callable[[Path], object]
# Why a loader cannot meet a fault. "llama" is one over llama.cpp, "decoder" one that writes over onnxruntime.
_COMPILED = {"c": "the manifest and golden answers are compiled in (bundle.c); the folder's are not read"}
_WHOLE = {"llama": "model.gguf holds the tokenizer, and has no labels"}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault: how it is planted in a folder, and what a loader says of it.

    said: a regular expression; others: those of loaders that say it otherwise, and not_met: why a loader cannot meet it, both by
    a part of its name ("c-llama": the loader in C over llama.cpp).
    """

    plant: Plant
    said: str
    others: Mapping[str, str] = field(default_factory=dict)
    not_met: Mapping[str, str] = field(default_factory=dict)

    def sentence(self, loader: str) -> str | None:
        """What a loader says; None where it cannot meet the fault."""
        parts = (loader, *loader.split("-"))
        if any(name in parts for name in self.not_met):
            return None
        return next((said for name, said in self.others.items() if name in parts), self.said)


def table_of(folder: Path) -> dict[str, Any]:
    """What bundle.json says."""
    found: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    return found


def seal(folder: Path, **changes: Any) -> None:
    """Have the manifest say something else, as if it had been written so: with its digest."""
    table = {key: value for key, value in (table_of(folder) | changes).items() if key != "digest"}
    (folder / "bundle.json").write_text(dump_json(table | {"digest": digest_of(table)}), encoding="utf-8")


def write_sealed(folder: Path, table: Mapping[str, Any]) -> Path:
    """bundle.json of what lies in a folder: what a table says, the files with their hashes, and the digest."""
    paths = [path for path in folder.iterdir() if path.is_file() and path.name != "bundle.json"]
    files = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in paths}
    whole = {"format_version": MANIFEST_FORMAT, "tokenizer": None, **table, "files": files}
    (folder / "bundle.json").write_text(dump_json(whole), encoding="utf-8")
    seal(folder)
    return folder


def model_of(folder: Path) -> Path:
    """The model's file."""
    return folder / str(table_of(folder)["model"])


def keep_hash(folder: Path, change: Plant, *names: str) -> None:
    """Have what was verified be what a change makes of some files: what only golden answers and runtimes find."""
    files, source = table_of(folder)["files"], folder.parent / "bundle.c"
    before = {name: file_sha256(folder / name) for name in names if (folder / name).exists()}
    change(folder)
    for name, sha256 in before.items():
        entry = {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        if name in files:
            files[name] = entry
        if source.exists():
            change_text(source, {sha256: str(entry["sha256"])})
    seal(folder, files=files)


def change_text(path: Path, changes: Mapping[str, str]) -> None:
    """Put other texts in a file's place of some that it may have."""
    text = path.read_text(encoding="utf-8")
    for before, after in changes.items():
        text = text.replace(before, after, 1)
    path.write_text(text, encoding="utf-8")


def flip(path: Path) -> None:
    """One bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Without its last bytes."""
    path.write_bytes(path.read_bytes()[:-9])


def link_nowhere(folder: Path) -> None:
    """A link in the model's place, to no file."""
    file = model_of(folder)
    file.unlink()
    file.symlink_to("nowhere")


def replace_by_folder(path: Path) -> None:
    """A folder of a file's name."""
    path.unlink()
    path.mkdir()


def change_golden(folder: Path, **changes: Any) -> None:
    """golden.json with another first row, as what was verified has it."""

    def change(folder: Path) -> None:
        content = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
        content["rows"][0] |= changes
        (folder / GOLDEN).write_text(json.dumps(content), encoding="utf-8")

    keep_hash(folder, change, GOLDEN)


def swap_tokens(folder: Path) -> None:
    """Another tokenizer, of the same words."""
    path, compact = folder / "tokenizer.json", folder / "tokenizer.bin"
    table = json.loads(path.read_text(encoding="utf-8"))
    words = table["model"]["vocab"]
    one, other = ("on", "off") if "off" in words else ("Ġon", "Ġthe")
    words[one], words[other] = words[other], words[one]
    path.write_text(json.dumps(table, indent=4), encoding="utf-8")
    if compact.exists():
        compact.write_bytes(compact_tokenizer(path))


def scale_model(folder: Path, factor: float = 2.0) -> None:
    """The model of another bundle, of the same size: other weights."""
    file = model_of(folder)
    if file.suffix == ".gguf":
        content = bytearray(file.read_bytes())
        content[-4:] = bytes(reversed(content[-4:]))
        file.write_bytes(content)
        return
    weights = max(onnx.load(str(file)).graph.initializer, key=lambda one: len(one.raw_data))
    scaled = numpy_helper.to_array(weights) * np.float32(factor)
    file.write_bytes(file.read_bytes().replace(weights.raw_data, scaled.tobytes(), 1))


def spoil_model(folder: Path) -> None:
    """A model of a version of the operators that no runtime has yet; of GGUF, of an architecture that none has."""
    file = model_of(folder)
    if file.suffix == ".gguf":
        file.write_bytes(file.read_bytes().replace(b"llama", b"lhama"))
        return
    model = onnx.load(str(file))
    model.opset_import[0].version = 99
    onnx.save(model, str(file))


def compute_nothing(folder: Path) -> None:
    """A model whose weights are no numbers."""
    file = model_of(folder)
    if file.suffix == ".gguf":
        file.write_bytes(file.read_bytes()[:-64] + b"\xff" * 64)
    else:
        scale_model(folder, float("nan"))


def rename_outside(folder: Path) -> None:
    """The model beside the folder, where the manifest now has it."""
    file = model_of(folder)
    name = f"../outside-{folder.name}{file.suffix}"
    file.rename(folder / name)
    files = table_of(folder)["files"]
    seal(folder, model=name, files={(name if key == file.name else key): entry for key, entry in files.items()})


def leave_out(folder: Path) -> None:
    """A manifest that tells no hash of its model."""
    table = table_of(folder)
    seal(folder, files={name: entry for name, entry in table["files"].items() if name != table["model"]})


def rewrite(change: Callable[[str], str]) -> Plant:
    """bundle.json with another text."""

    def plant(folder: Path) -> None:
        path = folder / "bundle.json"
        before = path.read_text(encoding="utf-8")
        path.write_text(change(before), encoding="utf-8")
        assert path.read_text(encoding="utf-8") != before

    return plant


def need_newer(folder: Path) -> None:
    """A bundle for a runtime of tomorrow."""
    runtime, source = table_of(folder)["runtime"], folder.parent / "bundle.c"
    if source.exists():
        minimum = source.read_text(encoding="utf-8").split(".minimum = ")[1].split(",")[0]
        change_text(source, {f".minimum = {minimum}": '.minimum = "99.1"'})
    seal(folder, runtime=runtime | {"minimum": "99.1"})


def drop_label(folder: Path) -> None:
    """A manifest with fewer labels than its model gives scores."""
    if (source := folder.parent / "bundle.c").exists():
        change_text(source, {".label_count = 3": ".label_count = 2"})
    seal(folder, labels=table_of(folder)["labels"][:-1])


def answer_otherwise(folder: Path) -> None:
    """A golden answer that the model never gave."""
    row = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))["rows"][0]
    if (source := folder.parent / "bundle.c").exists():
        tokens, label = ".tokens = (const int32_t[]){", '.label = "light_on"'
        change_text(source, {tokens: f"{tokens}1", label: '.label = "play_music"'})
    elif "tokens" in row:
        change_golden(folder, tokens=[row["tokens"][0] + 1, *row["tokens"][1:]])
    else:
        change_golden(folder, label="play_music" if row["label"] != "play_music" else "light_on")


def score_otherwise(folder: Path) -> None:
    """A golden answer of another score."""
    if (source := folder.parent / "bundle.c").exists():
        change_text(source, {".score = ": ".score = 0.5 * "})
    else:
        change_golden(folder, score=0.2)


def mix(folder: Path) -> None:
    """The manifest of one bundle, the files of another."""
    file = model_of(folder)
    content = file.read_bytes()
    keep_hash(folder, scale_model, file.name)
    file.write_bytes(content)


def spoil_tokenizer(folder: Path) -> None:
    """A tokenizer that was cut before the hashes were written."""
    for path in folder.glob("tokenizer.*"):
        cut(path)


def spoil_golden(folder: Path) -> None:
    """golden.json that was cut before the hashes were written."""
    keep_hash(folder, lambda folder: cut(folder / GOLDEN), GOLDEN)


def date_golden(folder: Path) -> None:
    """golden.json of tomorrow."""

    def change(folder: Path) -> None:
        content = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
        (folder / GOLDEN).write_text(json.dumps(content | {"format": 2}), encoding="utf-8")

    keep_hash(folder, change, GOLDEN)


def quietly(change: Plant) -> Plant:
    """A change of model or tokenizer that the hashes were written after."""
    return lambda folder: keep_hash(folder, change, model_of(folder).name, "tokenizer.json", "tokenizer.bin")


_MODEL, _TOKENIZER = r"model\.(onnx|gguf)", r"tokenizer\.(json|bin)"
_OTHER = r": not the file that was verified; is it another bundle's\? Copy it again"
_CHANGED = r"bundle\.json: changed after it was written \(its digest is another\); copy it again"
_CUT = r"\d+ of \d+ bytes: cut off, or another bundle's; copy it again"
_GOLDEN = r"golden answer to .{6,}when it was verified: this machine or runtime computes something else"
# What pages and programs in C say of files.
_STATUS = {"web": r": status 404; is the whole bundle there\?"}
_OTHER_C = {
    "c": r": is not the file that was verified: its sha256 is \w{12}\.\.\., not \w{12}\.\.\.; copy or fetch it anew"
}
_GOLDEN_C = {
    "c": r'".{3,}" (gives|comes) .+ golden answer (is|has) .+: another engine.+ computes something else than what'
}


def _missing(plant: Plant, not_met: Mapping[str, str] | None = None) -> Fault:
    absent = r": cannot be read \(No such file or directory\): copy the whole bundle"
    said = r"\.(json|onnx|gguf): missing; copy the whole bundle"
    return Fault(plant=plant, said=said, others={**_STATUS, "c": absent}, not_met=not_met or {})


FAULTS: dict[str, Fault] = {
    "no model": _missing(lambda folder: model_of(folder).unlink()),
    "an empty model": Fault(plant=lambda folder: model_of(folder).write_bytes(b""), said=_CUT, others=_OTHER_C),
    "a cut model": Fault(plant=lambda folder: cut(model_of(folder)), said=_MODEL + ": " + _CUT, others=_OTHER_C),
    "a flipped bit": Fault(plant=lambda folder: flip(model_of(folder)), said=_MODEL + _OTHER, others=_OTHER_C),
    "another bundle's model": Fault(plant=scale_model, said=_MODEL + _OTHER, others=_OTHER_C),
    "another bundle's manifest": Fault(plant=mix, said=_MODEL + _OTHER, others=_OTHER_C),
    "a folder in a model's place": Fault(
        plant=lambda folder: replace_by_folder(model_of(folder)),
        said=_MODEL + r": cannot be read \((Is a directory|EISDIR)\); copy the whole bundle",
        others=_STATUS | {"c": _MODEL + ": cannot be read to its end: copy it again"},
    ),
    "a link into nothing": _missing(link_nowhere),
    "a file that may not be read": Fault(
        plant=lambda folder: model_of(folder).chmod(0),
        said=_MODEL + r": cannot be read \((Permission denied|EACCES)\)[;:] copy the whole bundle",
        not_met={"web": "a page is told a status, by its server"},
    ),
    "no tokenizer": _missing(lambda folder: any(map(Path.unlink, folder.glob("tokenizer.*"))), _WHOLE),
    "another tokenizer": Fault(plant=swap_tokens, said=_TOKENIZER + _OTHER, others=_OTHER_C, not_met=_WHOLE),
    "a tokenizer that was cut before it was hashed": Fault(
        plant=quietly(spoil_tokenizer),
        said=r"tokenizer\.json: cannot be opened \(.+\): install a newer runtime, or copy it again",
        others={"c": r"the tokenizer's file is cut or damaged"},
        not_met=_WHOLE,
    ),
    "no manifest": _missing(lambda folder: (folder / "bundle.json").unlink(), _COMPILED),
    "a cut manifest": Fault(
        plant=rewrite(lambda text: text[:-40]),
        said=r"bundle\.json: no JSON: cut off, or something else; copy it again",
        not_met=_COMPILED,
    ),
    "a manifest that is no object": Fault(
        plant=rewrite(lambda _: "[1, 2]\n"),
        said=r"bundle\.json: not what edgekit writes there; copy it again",
        not_met=_COMPILED,
    ),
    "a manifest that is no text": Fault(
        plant=lambda folder: (folder / "bundle.json").write_bytes(b"\xff\xfe{\x00}\x00"),
        said=r"bundle\.json: no JSON: cut off, or something else; copy it again",
        not_met=_COMPILED,
    ),
    "an edited manifest": Fault(
        plant=rewrite(lambda text: text.replace('"name": "', '"name": "x')), said=_CHANGED, not_met=_COMPILED
    ),
    "a manifest without a digest": Fault(
        plant=rewrite(lambda text: re.sub(r'  "digest": .*\n', "", text)), said=_CHANGED, not_met=_COMPILED
    ),
    "a manifest of tomorrow": Fault(
        plant=lambda folder: seal(folder, format_version=3),
        said=r"bundle\.json: of format 3, this loader reads 2: use the one that ships with the bundle",
        not_met=_COMPILED,
    ),
    "a path out of the bundle": Fault(
        plant=rename_outside,
        said=r"bundle\.json: names a file outside the bundle, \.\./outside-.*; do not use this bundle",
        not_met=_COMPILED,
    ),
    "a model of which no hash is told": Fault(
        plant=leave_out,
        said=rf"bundle\.json: tells no sha256 of {_MODEL}; do not use this bundle",
        not_met=_COMPILED,
    ),
    "no golden answers": _missing(lambda folder: (folder / GOLDEN).unlink(), _COMPILED),
    "golden answers that were cut before they were hashed": Fault(
        plant=spoil_golden,
        said=r"golden\.json: no JSON: cut off, or something else; copy it again",
        not_met=_COMPILED,
    ),
    "golden answers of tomorrow": Fault(
        plant=date_golden,
        said=r"golden\.json: of format 2, this loader reads 1: use the one that ships with the bundle",
        not_met=_COMPILED,
    ),
    "a wrong golden answer": Fault(plant=answer_otherwise, said=_GOLDEN, others=_GOLDEN_C),
    "a wrong golden score": Fault(
        plant=score_otherwise,
        said=_GOLDEN,
        others=_GOLDEN_C,
        not_met=dict.fromkeys(("llama", "decoder"), "golden answers of tokens have no scores"),
    ),
    "another tokenizer, hashed": Fault(plant=quietly(swap_tokens), said=_GOLDEN, others=_GOLDEN_C, not_met=_WHOLE),
    "a model that computes no numbers": Fault(plant=quietly(compute_nothing), said=_GOLDEN, others=_GOLDEN_C),
    "a model that the runtime does not know": Fault(
        plant=quietly(spoil_model),
        said=_MODEL + r": cannot be opened \(.+\): install a newer [\w.]+, or copy it again",
    ),
    "fewer labels than scores": Fault(
        plant=drop_label,
        said=r"the model gives 3 scores for 2 labels: copy the whole bundle",
        others={"c": r"the model gives 3 numbers, not 2 of float32"},
        not_met=_WHOLE | {"decoder": "tokens have no labels"},
    ),
    "a runtime that is too old": Fault(
        plant=need_newer,
        said=r"[-\w(). ]+ [\d.]+ is too old for this bundle: it needs 99\.1",
        not_met={
            "web-llama": "wllama tells no version to compare",
            "node-llama": "its own minimum is what was compared",
            "electron-llama": "its own minimum is what was compared",
        },
    ),
}
