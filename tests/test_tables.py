"""Tables: what a file says is read as it says it, whatever its name, delimiter, encoding and compression."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.errors import EdgekitError
from edgekit.tables import read_table

ROWS = [{"text": 'gr\u00fcn; oder, "rot"', "label": "x"}, {"text": "na\u00efve\nlines", "label": "007"}]


def as_csv(delimiter: str, head: str = "") -> str:
    import csv
    import io

    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["text", "label"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return head + stream.getvalue()


def values(path: Path, **options: str) -> list[dict[str, object]]:
    table = read_table(path, **options)
    assert [row.problem for row in table.rows] == [None] * len(table.rows)
    return [dict(row.values) for row in table.rows]


@pytest.mark.parametrize(
    "name", ["data[1].csv", "q?.csv", "a*b.csv", "data [v2]/t.csv", "[2026] x/{a,b}.csv", "~t.csv"]
)
def test_a_path_is_a_path(tmp_path: Path, name: str) -> None:
    """Never a pattern: the neighbours that it would match are not read."""
    for neighbour in ("data1.csv", "qx.csv", "axb.csv", "data v/t.csv"):
        (tmp_path / neighbour).parent.mkdir(exist_ok=True)
        (tmp_path / neighbour).write_text("text,label\nneighbour,x\n")
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("text,label\nnamed,x\n")
    assert values(path) == [{"text": "named", "label": "x"}]


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (as_csv(",").encode(), {}),
        (as_csv(",").encode("utf-8-sig"), {}),
        (as_csv(",").encode("utf-16"), {}),
        (as_csv(",").encode("utf-16-le"), {"encoding": "utf-16-le"}),
        (as_csv(",").encode("utf-32"), {}),
        (as_csv(",").encode("cp1252"), {"encoding": "cp1252"}),
        (as_csv(",").encode("latin-1"), {"encoding": "ISO-8859-1"}),
        (as_csv(";").encode("utf-8-sig"), {"delimiter": ";"}),
        (as_csv(";", "sep=;\r\n").encode("utf-8-sig"), {}),
        (as_csv("|", '"sep=|"\n').encode(), {"delimiter": "|"}),
        (as_csv("\t", "SEP=\t\n").encode("utf-16"), {}),
        (as_csv("\t").encode("utf-16"), {"delimiter": "\t"}),
    ],
)
def test_delimiters_and_encodings(tmp_path: Path, content: bytes, options: dict[str, str]) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    assert values(tmp_path / "rows.csv", **options) == ROWS


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("text;label\na;x\n", {}, """line 1: its columns are parted by ';', not ','; set data.delimiter = ";\""""),
        ("text\tlabel\na\tx\n", {}, 'set data.delimiter = "\\t"'),
        ("text,label\ncaf\u00e9,x\n".encode("cp1252"), {}, 'byte 14 (0xe9) is not UTF-8; save the file as UTF-8, or name its encoding, such as data.encoding = "cp1252"'),
        (b"text,label\n\x81,x\n", {"encoding": "cp1252"}, "byte 11 (0x81) is not cp1252; "),
        ("text\na\n", {"encoding": "utf-9"}, "data.encoding: unknown encoding 'utf-9'"),
        ("text\na\n", {"encoding": "hex"}, "data.encoding: unknown encoding 'hex'"),
        (b"\xff\xfet", {}, "is not utf-16"),
        ("text,\na,b\n", {}, "line 1: column 2 has no name"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:01\nsize 4\n", {}, "a pointer of Git LFS, not the file itself"),
        ("text,label,text\na,b,c\n", {}, "line 1: two columns have the same name"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, content: str | bytes, options: dict[str, str], said: str) -> None:
    (tmp_path / "rows.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(EdgekitError) as told:
        read_table(tmp_path / "rows.csv", **options)
    assert said in told.value.message
    assert "\n" not in told.value.message


def test_bad_lines_of_csv(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('sep=,\ntext,label,\na,x,\non, please,x,\n\n"b\nc",y,\n')
    table = read_table(tmp_path / "rows.csv")
    assert table.columns == ["text", "label"]
    assert [(row.number, row.values, row.problem is None) for row in table.rows] == [
        (1, {"text": "a", "label": "x"}, True),
        (2, {}, False),
        (3, {"text": "b\nc", "label": "y"}, True),
    ]
    assert str(table.rows[1].problem).startswith("line 4: 4 fields, but the header has 3; put texts that hold")


def test_a_long_field(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"text\n{'a ' * 200_000}\n")
    assert values(tmp_path / "rows.csv") == [{"text": "a " * 200_000}]


LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES),
        ("rows.ndjson", LINES.replace("\n", "\r\n")),
        ("ROWS.JSONL", f"\n{LINES}\n"),
        ("rows.json", LINES),
        ("rows.json", json.dumps(ROWS, indent=1)),
        ("rows.json", json.dumps({"version": 1, "data": ROWS})),
        ("rows.json", json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]})),
        ("rows.json", json.dumps({key: {str(n): row[key] for n, row in enumerate(ROWS)} for key in ROWS[0]})),
    ],
)
def test_json(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert values(tmp_path / name) == ROWS


def test_json_keeps_its_types(tmp_path: Path) -> None:
    """A date stays a string, and an object has the keys that it has, whatever other rows have."""
    rows = [
        {"label": "2024-01-01", "more": {"a": 1}, "number": 1},
        {"label": "12:30", "more": {"b": [None, True]}, "number": 1.5},
        {"label": None, "other": "x"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert values(tmp_path / "rows.jsonl") == rows


def test_one_conversation_is_one_row(tmp_path: Path) -> None:
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "rows.json").write_text(json.dumps(talk))
    assert values(tmp_path / "rows.json") == [talk]


def test_broken_json_is_told_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": \n[1]\n' + "[" * 100_000 + "\n")
    problems = [str(row.problem) for row in read_table(tmp_path / "rows.jsonl").rows]
    assert problems[0] == "None"
    assert problems[1].startswith("line 2: not valid JSON: Expecting value")
    assert problems[2:] == [
        "line 3: [1] is not an object with the columns",
        "line 4: not valid JSON: nested too deeply",
    ]
    (tmp_path / "rows.json").write_text("[1, 2")
    with pytest.raises(EdgekitError, match=r"rows\.json: not valid JSON: Expecting ',' delimiter"):
        read_table(tmp_path / "rows.json")


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": "a", "label": 1.0}, {"text": "b", "label": 0.0}]
    place = tmp_path / "x=1"  # a folder that reads as a partition
    place.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), place / "rows.parquet")
    assert values(place / "rows.parquet") == rows
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(EdgekitError, match=r"rows\.parquet: cannot be read as parquet"):
        read_table(tmp_path / "rows.parquet")


def test_a_line_is_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("one\n\ntwo\u2028still two\r\n", encoding="utf-8", newline="")
    assert values(tmp_path / "rows.txt") == [{"text": "one"}, {"text": ""}, {"text": "two\u2028still two"}]


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".XZ", lzma.compress)])
def test_compressed(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(as_csv(",").encode())
    (tmp_path / f"rows.CSV{ending}").write_bytes(packed)
    assert values(tmp_path / f"rows.CSV{ending}") == ROWS
    for broken in (packed[:20], b"no"):
        (tmp_path / f"rows.csv{ending}").write_bytes(broken)
        with pytest.raises(EdgekitError, match=f"not a whole {ending.lower()} file"):
            read_table(tmp_path / f"rows.csv{ending}")


@pytest.mark.parametrize(
    ("name", "said"), [("rows.xlsx", "save the sheet as CSV"), ("rows", "unknown kind of file"), ("rows.gz", ".csv")]
)
def test_other_kinds(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(EdgekitError, match=said):
        read_table(tmp_path / name)
