"""The native probe's program: its own JSON, SHA-256 and archives, how it is built, and that it answers as Python does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.devices import native
from edgekit.devices.native import LIBRARY, PROGRAM, Platform, build_probe, built_probe, llama, name_machine
from edgekit.errors import DeviceFailed, EdgekitError
from edgekit.modalities.text import of_tokens
from edgekit.runtimes import machine
from edgekit.verify.measurements import pack_rows
from tests.conftest import Answer
from tests.devices.native import HERE, cached_probe


@pytest.fixture(scope="module")
def program() -> Path:
    return cached_probe(HERE) / PROGRAM


def say(program: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1 << 16, (1 << 16) + 1, 1_000_003])
def test_sha256(program: Path, tmp_path: Path, size: int) -> None:
    """At every edge of a block, of the padding and of what is read at once."""
    content = bytes(index * 7 % 251 for index in range(size))
    (tmp_path / "file").write_bytes(content)
    assert say(program, "--sha256", tmp_path / "file").stdout.strip() == hashlib.sha256(content).hexdigest()


VALUES: list[object] = [
    None, True, False, 0, -1, 1.5, -2.25e-9, 1e300, 0.1, 123456789012345, 2**53, "", "a\"b\\c/\n\t\x01", "zwölf ☃ 𝄞", [], {}, [1, [2, {}]],
    {"a": {"b": [None, "c"]}, "": 0, "ü\n": "$HOME"},
]  # fmt: skip


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_json_comes_back_as_it_was(program: Path, tmp_path: Path, value: object, ascii_only: bool) -> None:
    (tmp_path / "file").write_text(json.dumps(value, ensure_ascii=ascii_only, indent=1), encoding="utf-8")
    assert json.loads(say(program, "--json", tmp_path / "file").stdout) == value


NO_JSON = [
    "",
    "{",
    "[1,]",
    '{"a" 1}',
    "01",
    "1.",
    "+1",
    "nul",
    '"a',
    '"\x01"',
    '"\\x"',
    '"\\ud800"',
    '"\\udc00a"',
    "1 2",
    "[" * 200,
    "NaN",
]


@pytest.mark.parametrize("text", NO_JSON, ids=repr)
def test_what_is_no_json_is_refused(program: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    ended = say(program, "--json", tmp_path / "file")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("JSON: ")


def test_it_says_what_the_machine_is_as_python_does(program: Path) -> None:
    told, expected = json.loads(say(program, "--describe").stdout), machine.describe()
    assert {key: told[key] for key in told if key != "python"} == {
        key: value for key, value in json.loads(json.dumps(expected)).items() if key in told and key != "python"
    }


def request_of(folder: Path, **changes: object) -> Path:
    """A request for a model that is not there."""
    encoded = of_tokens([[1, 2]], 0)
    np.savez(folder / "inputs.npz", **pack_rows(encoded, encoded.resized(4)))
    timing = {"warmup": 1, "repeats": 2, "least": 1, "seconds": 1, "sequence": 4}
    request = {
        "runtime": "onnxruntime", "file": "model.onnx", "inputs": "inputs.npz", "outputs": "out/outputs.npz", "options": {}, "timing": timing,
    }  # fmt: skip
    (folder / "request.json").write_text(json.dumps(request | changes))
    return folder / "request.json"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "model.onnx"),
        ({"runtime": "llama-cpp"}, "rows in onnxruntime and tokens in llama-cpp, not rows in llama-cpp"),
        ({"kind": "tokens"}, "rows in onnxruntime and tokens in llama-cpp, not tokens in onnxruntime"),
        ({"kind": "tokens", "runtime": "llama-cpp"}, "the inputs lack ids"),
        ({"options": {"thraeds": 1}}, "has no option thraeds"),
        ({"outputs": None}, "the request lacks outputs"),
        ({"inputs": "none.npz"}, "none.npz: No such file"),
        ({"inputs": "request.json"}, "no zip archive"),
    ],
)
def test_what_it_cannot_answer(program: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    ended = say(program, request_of(tmp_path, **changes))
    assert ended.returncode == 1
    assert message in ended.stderr.splitlines()[-1]
    assert "done" not in ended.stdout


@pytest.mark.parametrize("damage", ["cut", "compressed", "other type"])
def test_inputs_that_are_damaged(program: Path, tmp_path: Path, damage: str) -> None:
    request = request_of(tmp_path)
    inputs = tmp_path / "inputs.npz"
    if damage == "cut":
        inputs.write_bytes(inputs.read_bytes()[:-30])
    elif damage == "compressed":
        np.savez_compressed(inputs, sizes=np.zeros(1000, np.int64))
    else:
        encoded = of_tokens([[1, 2]], 0)
        np.savez(inputs, **pack_rows(encoded, encoded.resized(4)) | {"sizes": np.zeros(1, np.int16)})
    ended = say(program, request)
    assert ended.returncode == 1
    assert {"cut": "zip archive", "compressed": "compressed or damaged", "other type": "not i8"}[damage] in ended.stderr


def test_a_core_is_named() -> None:
    assert name_machine({"part": "0x41/0xd0b", "cpu": "aarch64"})["cpu"] == "Cortex-A76"
    assert name_machine({"part": "0x41/0xfff", "cpu": "aarch64"})["cpu"] == "aarch64"
    assert name_machine({"part": None, "cpu": "AMD"})["cpu"] == "AMD"


def test_what_was_not_built_is_named() -> None:
    with pytest.raises(
        DeviceFailed, match=r"for android-aarch64; run: edgekit devices native --arch aarch64 --system android"
    ):
        built_probe(Platform(arch="aarch64", system="android"))


# A program in the place of a compiler: the library's way is tested without compiling.
COMPILER = '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho program >"$2"\n'


@pytest.fixture
def compiler(tmp_path: Path) -> str:
    path = tmp_path / "a compiler"
    path.write_text(COMPILER)
    path.chmod(0o755)
    return str(path)


def test_where_the_library_comes_from(tmp_path: Path, compiler: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/libonnxruntime.so.1.31.1").write_bytes(b"library")
    with zipfile.ZipFile(tmp_path / "onnxruntime.aar", "w") as archive:
        for abi in ("x86_64", "arm64-v8a"):
            archive.writestr(f"jni/{abi}/libonnxruntime.so", abi)
    with zipfile.ZipFile(tmp_path / "onnxruntime.whl", "w") as archive:
        archive.writestr("onnxruntime/capi/libonnxruntime.so.1.31.1", "wheel")
    sources = {
        "there": "library",
        "there/libonnxruntime.so.1.31.1": "library",
        "onnxruntime.aar": "arm64-v8a",
        "onnxruntime.whl": "wheel",
    }
    for name, content in sources.items():
        wanted = Platform(arch="aarch64", system="android")
        folder = build_probe(wanted, onnxruntime=tmp_path / name, compiler=compiler)
        assert (folder, (folder / LIBRARY).read_text()) == (built_probe(wanted), content)
    (folder / "sources.sha256").write_text("0")
    with pytest.raises(DeviceFailed, match="is of another version of edgekit; run: edgekit devices native"):
        built_probe(wanted)


def arm_file(path: Path) -> None:
    """The head of an ELF file for 64-bit ARM, which is all that is looked at."""
    path.write_bytes(b"\x7fELF\x02\x01" + bytes(12) + (183).to_bytes(2, "little") + bytes(8))


def test_decoders_need_a_llama_for_that_system(tmp_path: Path, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LIBRARY).write_text("")
    arm, libraries = Platform(arch="aarch64"), tmp_path / "llama-arm"
    libraries.mkdir()

    def build(llama_folder: Path | None = libraries, wanted: Platform = arm) -> Path:
        return build_probe(wanted, onnxruntime=tmp_path / LIBRARY, llama=llama_folder, compiler=compiler)

    build(None)
    message = (
        r"for linux-aarch64 was built without llama\.cpp.*; run: edgekit devices native --arch aarch64 --llama-library"
    )
    with pytest.raises(DeviceFailed, match=message):
        built_probe(arm, decoders=True)
    with pytest.raises(EdgekitError, match=r"no libllama\.so in it; make such a folder: edgekit devices cross-build"):
        build()
    names = (
        "libllama.so",
        "libllama.so.0",
        "libggml.so",
        "libggml-cpu.so.0",
        "libllama.so.0.5.0",
        "libmtmd.so",
        "notes.txt",
    )
    for name in names:
        arm_file(libraries / name)
    with pytest.raises(EdgekitError, match=r"libllama\.so: is not for x86_64; name a folder with libraries for it"):
        build(wanted=Platform(arch="x86_64", system="android"))
    folder = build()
    assert folder == built_probe(arm, decoders=True)
    assert sorted(path.name for path in folder.glob("lib[lg]*")) == [
        "libggml-cpu.so.0", "libggml.so", "libllama.so", "libllama.so.0",
    ]  # fmt: skip
    monkeypatch.setattr(llama, "headers", lambda: None)
    with pytest.raises(EdgekitError, match=r"without include/llama\.h.*--force-reinstall llama-cpp-python=="):
        build()


def test_a_llama_that_does_not_load(program: Path, tmp_path: Path) -> None:
    arrays = {
        "ids": np.array([1, 2]),
        "offsets": np.array([0, 2]),
        "starts": np.array([1]),
        "stop": np.array([], np.int64),
    }
    request = request_of(tmp_path, kind="tokens", runtime="llama-cpp")
    np.savez(tmp_path / "inputs.npz", **arrays, referenced=0, generate=0, max_new=0)  # type: ignore[arg-type]
    (tmp_path / PROGRAM).write_bytes(program.read_bytes())
    (tmp_path / PROGRAM).chmod(0o755)
    (tmp_path / "libllama.so").write_bytes(b"no library")
    ended = say(tmp_path / PROGRAM, request)
    assert ended.returncode == 1
    assert ended.stderr.startswith("llama.cpp does not load: ")
    np.savez(tmp_path / "inputs.npz", **{**arrays, "starts": np.array([3])}, referenced=0, generate=0, max_new=0)  # type: ignore[arg-type]
    assert "a sequence starts to be scored within itself" in say(tmp_path / PROGRAM, request).stderr


def test_what_cannot_be_built(tmp_path: Path, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    android, arm = Platform(arch="aarch64", system="android"), Platform(arch="aarch64")
    refusals: list[tuple[Callable[[], Path], str]] = [
        (
            lambda: build_probe(android),
            r"built by the compiler of its NDK: name it, such as --compiler \$NDK/.*android24-clang\+\+",
        ),
        (lambda: build_probe(arm, compiler="no-such-compiler"), "no such compiler here; install it"),
        (lambda: build_probe(android, compiler=compiler), "fetch onnxruntime-android's .aar and name it"),
        (lambda: build_probe(arm, compiler=compiler, onnxruntime=tmp_path), "no libonnxruntime.so there"),
        (lambda: build_probe(arm, compiler="false", onnxruntime=Path(os.devnull)), "no libonnxruntime.so there"),
    ]
    (tmp_path / "bad.whl").write_text("no archive")
    refusals.append(
        (lambda: build_probe(arm, compiler=compiler, onnxruntime=tmp_path / "bad.whl"), "cannot be read as an archive")
    )
    (tmp_path / LIBRARY).write_text("")
    refusals.append(
        (lambda: build_probe(arm, compiler="false", onnxruntime=tmp_path), "false does not build it: and says nothing")
    )
    for build, message in refusals[:5]:
        (tmp_path / LIBRARY).unlink(missing_ok=True)
        with pytest.raises(EdgekitError, match=message):
            build()
    for build, message in refusals[5:]:
        (tmp_path / LIBRARY).write_text("")
        with pytest.raises(EdgekitError, match=message):
            build()
    with pytest.raises(DeviceFailed):
        built_probe(arm)


def test_the_command(command: Callable[..., Answer], tmp_path: Path, compiler: str) -> None:
    from edgekit.cli import devices

    assert (devices.ARCHES, devices.SYSTEMS) == (native.ARCHES, native.SYSTEMS)
    (tmp_path / LIBRARY).write_text("")
    words = ("devices", "native", "--arch", "aarch64", "--onnxruntime", tmp_path / LIBRARY, "--compiler", compiler)
    made = json.loads(command(*words, "--json").out)
    assert (made["platform"], Path(made["folder"], PROGRAM).read_text()) == ("linux-aarch64", "program\n")
    assert command("devices", "native", "--arch", "armv7l").code == 2
