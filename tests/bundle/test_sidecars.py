"""SIDECARS and LOADERS: one conformance test for each table, and entries that are dropped in."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle import package as package_module
from edgekit.bundle.loaders import LOADERS
from edgekit.bundle.manifest import read_manifest
from edgekit.bundle.open import open_bundle
from edgekit.bundle.package import Packaged
from edgekit.bundle.sidecars import SIDECARS, Packing
from edgekit.errors import EdgekitError
from edgekit.evidence import read_report
from edgekit.formats import FORMATS
from edgekit.pipeline import run
from edgekit.runtimes import RUNTIMES
from edgekit.workspace import file_sha256, fingerprint
from tests.bundle.test_bundle import pack
from tests.bundle.test_chat import RUNTIME

# What pip calls otherwise than Python.
MODULES = {"llama-cpp-python": "llama_cpp"}


@pytest.fixture
def packed(tmp_path: Path) -> Packaged:
    return pack(tmp_path / "made", tmp_path / "out")


def packing(packed: Packaged, artifact: Path, arch: str = "aarch64", **changes: Any) -> Packing:
    """What the sidecars of a bundle were made from, with another manifest."""
    manifest = json.loads((packed.bundle / "bundle.json").read_text(encoding="utf-8"))
    given = read_manifest(manifest | changes, "bundle.json")
    return Packing(artifact=artifact, manifest=given, report=read_report(packed.report), arch=arch)


@pytest.mark.parametrize("name", SIDECARS)
def test_a_sidecar_conforms(name: str, packed: Packaged, tmp_path: Path) -> None:
    """A text or a file of the artifact's, the same each time; and a bundle has it where it says so."""
    given = packing(packed, tmp_path / "made" / "artifact")
    content = SIDECARS[name](given)
    assert content == SIDECARS[name](given)
    assert (packed.bundle / name).is_file() == (content is not None)
    if isinstance(content, Path):
        assert content.read_bytes() == (packed.bundle / name).read_bytes()
    elif content is not None:
        assert content.endswith("\n")


def test_a_file_that_holds_its_tokenizer_has_other_sidecars(packed: Packaged, tmp_path: Path) -> None:
    gguf = {"output": "tokens", "tokenizer": None, "model": "model.gguf", "runtime": RUNTIME}
    talks = packing(packed, tmp_path, **gguf, settings={"chat": True})
    assert [name for name, make in SIDECARS.items() if make(talks) is not None] == [
        "load.py",
        "check.py",
        "Modelfile",
        "README.md",
    ]
    onnx = packing(packed, tmp_path, output="tokens", settings={"chat": True})
    assert [name for name, make in SIDECARS.items() if make(onnx) is not None] == [
        "tokenizer.json",
        "chat_template.jinja",
        "load.py",
        "check.py",
        "README.md",
    ]


def test_a_sidecar_that_is_dropped_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One function and one line: the file is in the folder, the archive and the manifest."""

    def labels(packing: Packing) -> str | None:
        return "".join(f"{label}\n" for label in packing.manifest.labels)

    monkeypatch.setattr(package_module, "SIDECARS", {**SIDECARS, "labels.txt": labels})
    packed = pack(tmp_path / "made", tmp_path / "out")
    assert (packed.bundle / "labels.txt").read_text(encoding="utf-8") == "light_on\nlight_off\nplay_music\n"
    for path in (packed.bundle, packed.archive):
        entry = open_bundle(path).manifest.files["labels.txt"]
        assert entry.sha256 == file_sha256(packed.bundle / "labels.txt")


@pytest.mark.parametrize("entry", LOADERS, ids="-".join)
def test_a_loader_conforms(entry: tuple[str, str, str]) -> None:
    """One file with a class Bundle, which imports what it says and nothing of edgekit."""
    loader = LOADERS[entry]
    source = ast.parse(loader.path.read_text(encoding="utf-8"))
    assert "Bundle" in {node.name for node in source.body if isinstance(node, ast.ClassDef)}
    imported = set[str]()
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {MODULES.get(name, name) for name in loader.needs}
    assert ast.parse(loader.use).body


def test_whatever_a_format_writes_has_a_loader() -> None:
    assert set(LOADERS) >= {
        (runtime, "text", output)
        for known in FORMATS.values()
        for runtime in known.RUNTIMES
        for output in known.SCHEMES
        if output in RUNTIMES[runtime].OUTPUTS
    }


def test_a_bundle_that_no_loader_is_for_says_so(packed: Packaged) -> None:
    path = packed.bundle / "bundle.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["runtime"]["name"] = "new-runtime"
    manifest["digest"] = fingerprint({key: value for key, value in manifest.items() if key != "digest"})
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(EdgekitError, match="has no loader for logits in new-runtime; use a newer edgekit"):
        run(packed.bundle, ["turn on the light"])
