"""Tables become dataclasses, or an error that names the file, the key and the nearest valid key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
from annotated_types import Gt

from edgekit.errors import CheckFailed, DeviceFailed, EdgekitError, first_line, require
from edgekit.schema import dump_json, nearest, parse, pick, read_json, read_text, read_toml


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: Annotated[int, Gt(0)] = 1


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    share: float = 0.5
    words: list[str] = field(default_factory=list)
    inner: Inner = Inner()
    maybe: Inner | None = None
    raw: dict[str, Any] = field(default_factory=dict)


def test_good_table() -> None:
    made = parse(
        Outer, {"name": "x", "share": 1, "words": ["a"], "inner": {"size": 2}, "raw": {"any": {"thing": 1}}}, "f"
    )
    assert made == Outer(name="x", share=1.0, words=["a"], inner=Inner(size=2), raw={"any": {"thing": 1}})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "f.toml: name: missing key"),
        ({"name": "x", "shrae": 1}, "f.toml: shrae: unknown key (did you mean share?)"),
        ({"name": "x", "zzz": 1}, "f.toml: zzz: unknown key (known: inner, maybe, name, raw, share, words)"),
        ({"name": 3}, "f.toml: name: should be a valid string, got 3"),
        ({"name": "x", "share": "0.5"}, "f.toml: share: should be a valid number, got '0.5'"),
        ({"name": "x", "share": True}, "f.toml: share: should be a valid number, got True"),
        ({"name": "x", "share": float("nan")}, "f.toml: share: expected a finite number, got nan"),
        ({"name": "x", "raw": {"a": [1.0, float("inf")]}}, "f.toml: raw.a.1: expected a finite number, got inf"),
        ({"name": "x", "words": "a"}, "f.toml: words: should be a valid list, got 'a'"),
        ({"name": "x", "words": ["a", 1]}, "f.toml: words.1: should be a valid string, got 1"),
        ({"name": "x", "inner": {"sizes": 1}}, "f.toml: inner.sizes: unknown key (did you mean size?)"),
        ({"name": "x", "maybe": {"sizes": 1}}, "f.toml: maybe.sizes: unknown key (did you mean size?)"),
        ({"name": "x", "inner": {"size": 0}}, "f.toml: inner.size: should be greater than 0, got 0"),
        ({"name": "x", "inner": 3}, "f.toml: inner: expected a table, got 3"),
        ([], "f.toml: expected a table, got []"),
    ],
)
def test_bad_table(table: Any, said: str) -> None:
    with pytest.raises(EdgekitError) as told:
        parse(Outer, table, "f.toml")
    assert told.value.message == said


def test_where_with_a_key() -> None:
    with pytest.raises(EdgekitError, match=r"^f\.toml: outer\.name: missing key$"):
        parse(Outer, {}, "f.toml: outer")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a b.toml"
    with pytest.raises(EdgekitError, match="no such file"):
        read_toml(path)
    path.write_bytes(b"\xef\xbb\xbfkey = 1\n")
    assert read_toml(path) == {"key": 1}
    path.write_bytes(b"key = \n")
    with pytest.raises(EdgekitError, match=r"a b\.toml: not valid TOML: .*line 1"):
        read_toml(path)
    path.write_bytes(b"key = 'caf\xe9'")
    with pytest.raises(EdgekitError, match=r"byte 10 \(0xe9\) is not UTF-8"):
        read_text(path)
    path.write_text("{")
    with pytest.raises(EdgekitError, match=r"not valid JSON: .*line 1"):
        read_json(path)
    with pytest.raises(EdgekitError, match="cannot be read"):
        read_text(tmp_path)


def test_json_is_canonical() -> None:
    assert dump_json({"b": 1, "a": "é"}) == '{\n  "a": "é",\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        dump_json(float("nan"))


def test_nearest_and_pick() -> None:
    assert nearest("onx", ["onnx", "gguf"]) == " (did you mean onnx?)"
    assert nearest("zzz", ["onnx", "gguf"]) == " (known: gguf, onnx)"
    assert nearest("zzz", []) == " (known: none)"
    assert pick({"a": 1}, "a", "f") == 1
    with pytest.raises(EdgekitError, match=r"^f: unknown value 'b' \(known: a\)$"):
        pick({"a": 1}, "b", "f")


def test_errors_carry_their_exit_codes() -> None:
    assert [kind("x").exit_code for kind in (EdgekitError, CheckFailed, DeviceFailed)] == [1, 3, 4]


def test_a_library_that_does_not_load_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As llama_cpp says it where its shared library was built for a GPU that is not there."""
    (tmp_path / "broken_library.py").write_text(
        "raise RuntimeError('Failed to load shared library x.so: libcuda.so.1')"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EdgekitError, match=r"does not load \(Failed.*libcuda.*--force-reinstall .edgekit\[gguf\]"):
        require("broken_library", extra="gguf")


def test_require() -> None:
    assert require("json").__name__ == "json"
    with pytest.raises(EdgekitError, match=r"no_such_library: .*pip install no_such_library"):
        require("no_such_library")
    with pytest.raises(EdgekitError, match=r'pip install "edgekit\[gguf\]"'):
        require("no_such_library.inner", "gguf")


def test_first_line() -> None:
    assert first_line(OSError("one\ntwo")) == "one"
    assert first_line(OSError()) == "OSError"
