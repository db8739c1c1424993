"""What is larger than memory is read as what is not: the same rows, columns and errors, whatever the file is."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from edgekit import stored
from edgekit.errors import EdgekitError
from edgekit.stored import Spool, choose, derive, join, read_lines
from edgekit.tables import read_table

TEXTS = ["plain", "two\nlines", 'a "quoted", one', "Grüße\u2028ß", "", "ends with\r"]


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is taken for one that is larger than memory."""
    monkeypatch.setattr(stored, "HELD", 0)


def write_parquet(path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": TEXTS, "label": [1, 2, 3, 4, 5, None]}), path)


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


CSV = "text,label\r\n" + "".join(f"{quoted(text)},{index:03}\r\n" for index, text in enumerate(TEXTS)) + "half\r\n"
LINES = "".join(json.dumps({"text": text, f"more{index}": index}) + "\n" for index, text in enumerate(TEXTS))
FILES: dict[str, bytes | Callable[[Path], None]] = {
    "rows.jsonl": f"{LINES}\n\n[1]\n{{broken\n{LINES}".encode(),
    "crlf.jsonl": LINES.replace("\n", "\r\n").encode().removesuffix(b"\r\n"),
    "marked.jsonl": b"\xef\xbb\xbf" + LINES.encode(),
    "wide.jsonl": LINES.encode("utf-16"),
    "packed.jsonl.gz": gzip.compress(LINES.encode()),
    "packed.csv.bz2": bz2.compress(CSV.encode()),
    "rows.csv": CSV.encode(),
    "told.csv": b"sep=;\r\ntext;label\r\na;b\r\n\r\nc;d;e\r\n",
    "rows.tsv": b"text\t\tlabel\na\t\tb\n",
    "rows.txt": b"eins\r\nzwei\n\ndrei\r",
    "rows.parquet": write_parquet,
    # What is refused.
    "bad.jsonl": b'{"text": "' + b"x" * (1 << 20) + b'\xe4"}\n',
    "cut.txt": "Grüß".encode()[:-1],
    "zeros.txt": "abc".encode("utf-16-le"),
    "blank.jsonl": b" \n\n",
    "cut.jsonl.gz": gzip.compress(LINES.encode())[:-9],
    "quotes.csv": b'text,label\na,b\n"c,d\n',
    "header.csv": b"text,label\n",
    "marks.csv": b"text;label\na;b\n",
    "nameless.csv": b"text,\na,b\n",
    "bad.parquet": b"PAR1 no more than that",
}


def read(path: Path) -> object:
    """All that a table says, or why it cannot be read."""
    try:
        table = read_table(path)
        return table.columns, list(table.rows), dict(table.classes)
    except EdgekitError as refused:
        return refused.message


@pytest.mark.parametrize("name", FILES)
def test_what_is_read_in_passes_is_what_is_held(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, path = FILES[name], tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    held = read(path)
    monkeypatch.setattr(stored, "HELD", 0)
    assert read(path) == held
    if not isinstance(held, str):
        rows = read_table(path).rows
        assert not isinstance(rows, list)
        assert list(rows) == list(rows)  # each pass begins anew


def test_an_encoding_is_that_of_every_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.txt").write_bytes("Grüße\nß\n".encode("cp1252"))
    monkeypatch.setattr(stored, "HELD", 0)
    assert [row.values["text"] for row in read_table(tmp_path / "rows.txt", encoding="cp1252").rows] == ["Grüße", "ß"]
    with pytest.raises(EdgekitError, match="byte 2 "):
        read_table(tmp_path / "rows.txt")
    with pytest.raises(EdgekitError, match="unknown encoding 'cp1'"):
        read_table(tmp_path / "rows.txt", encoding="cp1")


@pytest.mark.usefixtures("streamed")
def test_lines_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    lines = [json.dumps(text, ensure_ascii=False) for text in TEXTS]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8", newline="\n")
    rows = read_lines(tmp_path / "rows.jsonl", json.loads)
    assert not isinstance(rows, list)
    assert [rows[3], rows[0], rows[-1], *rows[1:3]] == [TEXTS[3], TEXTS[0], TEXTS[5], *TEXTS[1:3]]
    assert list(rows) == TEXTS
    with pytest.raises(IndexError):
        rows[len(TEXTS)]
    assert list(choose(rows, [4, 1])) == [TEXTS[4], TEXTS[1]]
    assert list(join(rows, ["more"])) == [*TEXTS, "more"]
    assert list(derive(rows, len)) == [len(text) for text in TEXTS]


def test_a_spool_leaves_no_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for text in TEXTS:
        spool.add(text.encode())
    rows = spool.rows(bytes.decode)
    del spool
    assert list(rows) == TEXTS
    assert list(tmp_path.iterdir()) == []
