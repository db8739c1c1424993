"""What a browser needs of npm, and the tokenizer of pages beside the one that this machine has."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from edgekit.errors import DeviceFailed
from edgekit.probes import web
from edgekit.probes.web.npm import PACKAGES, fetch_packages
from tests.devices.chromium import need_chromium

TOKENIZERS = ["tokenizers"]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache that is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/edgekit/npm"


def fake_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder.mkdir()
    program = folder / "npm"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_without_npm(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        DeviceFailed, match=r"@huggingface/tokenizers@0.2.0: npm, .* not installed here; .*apt install npm"
    ):
        fetch_packages(TOKENIZERS)


def test_without_a_registry(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_npm(tmp_path / "bin", monkeypatch, 'echo "npm error code ENOTFOUND" >&2; exit 1')
    with pytest.raises(DeviceFailed, match=r"npm cannot fetch it: npm error code ENOTFOUND; is its registry reachable"):
        fetch_packages(TOKENIZERS)
    assert [path.name for path in empty_cache.iterdir() if path.name != ".lock"] == []


def test_another_archive_is_not_kept(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_npm(tmp_path / "bin", monkeypatch, "echo other > x.tgz; echo x.tgz")
    with pytest.raises(DeviceFailed, match="is not the archive that this edgekit knows"):
        fetch_packages(TOKENIZERS)
    assert [path.name for path in empty_cache.iterdir() if path.name != ".lock"] == []


def test_fetched_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Real packages from npm's registry; the second time without npm."""
    need_chromium()
    folder = fetch_packages([*PACKAGES])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetch_packages([*PACKAGES]) == folder
    assert sorted(path.name for path in folder.iterdir()) == sorted(PACKAGES)
    assert (folder / "onnxruntime-web/ort-wasm-simd-threaded.wasm").stat().st_size > 10**7


READ = """
import { createEncoder } from %s;
import { Tokenizer } from %s;
import { readFileSync } from "node:fs";
const { table, texts } = JSON.parse(readFileSync(0, "utf-8"));
const encode = createEncoder(Tokenizer, table);
console.log(JSON.stringify(texts.map((text) => encode(text))));
"""
TEXTS = [
    "turn the light on",
    "",
    "  two  spaces\tand\na tab ",
    "Straße, naïve, ÉCOLE",
    "你好世界",
    "مرحبا بالعالم",
    "👩‍👩‍👧 family 🇩🇪",
    "a" * 300,
    "please turn the big kitchen light on " * 40,
    "[CLS] not special [SEP]",
    "e\u0301 combining",
]


@pytest.mark.parametrize(
    "cut", [None, {"max_length": 12, "direction": "Right"}, {"max_length": 12, "direction": "Left"}], ids=str
)
def test_pages_read_texts_as_this_machine_does(checkpoint: Path, cut: dict[str, object] | None) -> None:
    """rows.mjs cuts texts, which the library for pages does not; with the special tokens around them."""
    need_chromium()
    from tokenizers import Tokenizer

    table = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    table["truncation"] = None if cut is None else {**cut, "strategy": "LongestFirst", "stride": 0}
    tokenizer = Tokenizer.from_str(json.dumps(table))
    library = fetch_packages([*PACKAGES]) / "tokenizers/tokenizers.min.mjs"
    node = shutil.which("node")
    assert node is not None
    done = subprocess.run(
        [node, "--input-type=module", "-e", READ % (json.dumps(web.ROWS.as_uri()), json.dumps(library.as_uri()))],
        input=json.dumps({"table": table, "texts": TEXTS}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [tokenizer.encode(text).ids for text in TEXTS]
