"""Tables: the rows of a file as the file has them. CSV and plain text hold texts, JSON and Parquet the types that they name."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from edgekit import stored
from edgekit.errors import EdgekitError, first_line
from edgekit.schema import refuse_pointer

KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".txt": "txt",
}
COMPRESSED = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
_OPENED: Mapping[str, Callable[[Path], object]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# What a file begins with that says its own encoding (Unicode 15, section 23.8); UTF-32's begins with UTF-16's.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# So many lines of a file tell how it is written.
SNIFFED = 200
DELIMITERS = (",", ";", "\t", "|")
# What Excel reads a file's delimiter from, and writes it as.
_SEP = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: its values by column, or the problem that it could not be read for; `number` counts from 1."""

    number: int
    values: Mapping[str, object] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Rows(Iterable[Row]):
    """The rows of a file that is not held in memory: each pass reads it anew."""

    read: Callable[[], Iterator[Row]]

    def __iter__(self) -> Iterator[Row]:
        """From the first row on. Raises EdgekitError as `read_table` does."""
        return self.read()


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a file; `columns` in the file's order, `classes` the names of the class numbers in a column."""

    columns: Sequence[str]
    rows: Sequence[Row] | Rows
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a text file is written, where that is not plain: None stands for a comma (.tsv: a tab), and for UTF-8."""

    delimiter: str | None = None
    encoding: str | None = None


def sniff(path: Path) -> Form:
    """How a file seems to be written: its encoding, and what is between the columns of a CSV file.

    A guess, for a person to look at: of 8-bit encodings it is Windows' for Western languages. Raises EdgekitError for a file that
    cannot be read.
    """
    ending, packed = kind_of(path)
    if ending is None or KINDS[ending] == "parquet":
        return Form()
    content = _read_bytes(path, packed)
    encoding = _sniff_encoding(content)
    if KINDS[ending] != "csv":
        return Form(encoding=encoding)
    lines = decode(path, content, encoding).split("\n")[:SNIFFED]
    usual = "\t" if ending == ".tsv" else ","
    if _SEP.match(f"{lines[0]}\n"):
        return Form(encoding=encoding)
    # The one that parts the first line, and the others most often into as many.
    found = max((usual, *DELIMITERS), key=lambda mark: _parted(lines, mark))
    return Form(delimiter=None if found == usual else found, encoding=encoding)


def _sniff_encoding(content: bytes) -> str | None:
    if any(content.startswith(mark) for mark in MARKS):
        return None
    start = content[:1000]
    if b"\0" in start:
        return "utf-16-le" if start[1::2].count(0) > start[::2].count(0) else "utf-16-be"
    for encoding in ("utf-8", "cp1252"):
        try:
            content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return None if encoding == "utf-8" else encoding
    return "latin-1"


def _parted(lines: Sequence[str], delimiter: str) -> tuple[int, int]:
    """In how many lines a delimiter makes as many fields as in the first one, if more than one; and how many fields."""
    try:
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
    except csv.Error:
        return 0, 0
    fields = len(rows[0]) if rows else 0
    return (sum(len(row) == fields for row in rows), fields) if fields > 1 else (0, 0)


def kind_of(path: Path) -> tuple[str | None, str | None]:
    """What a file's name says: the key of KINDS and, where it is compressed, that of COMPRESSED; None for others."""
    endings = [ending.casefold() for ending in path.suffixes]
    packed = endings.pop() if endings and endings[-1] in COMPRESSED else None
    return (endings[-1] if endings and endings[-1] in KINDS else None), packed


def read_table(path: Path, *, delimiter: str | None = None, encoding: str | None = None) -> Table:
    """The rows of one file; its path is taken as it is, never as a pattern.

    delimiter: of CSV, one character; without it a comma (.tsv: a tab), or what the file's own `sep=;` line says.
    encoding: of anything but Parquet; without it UTF-8, or what the file's byte order mark says.
    Rows of a file of more than `stored.HELD` bytes are read when they are asked for, but for those of one JSON value.
    Raises EdgekitError for a file that is missing, empty, of another kind or encoding, or whose form is broken as a whole. A row
    that is broken on its own is there with its problem.
    """
    ending, packed = kind_of(path)
    if ending is None:
        remedy = "; save the sheet as CSV" if path.suffix.casefold() in {".xlsx", ".xls", ".ods"} else ""
        raise EdgekitError(
            f"{path}: unknown kind of file; expected one of {', '.join(KINDS)}, or these with {', '.join(COMPRESSED)}{remedy}"
        )
    kind, mark = KINDS[ending], delimiter or ("\t" if ending == ".tsv" else None)
    if kind != "json" and path.is_file() and path.stat().st_size > stored.HELD:
        return _read_large(path, (kind, packed), mark, encoding)
    content = _read_bytes(path, packed)
    if kind == "parquet":
        return _read_parquet(path, lambda: io.BytesIO(content))
    text = decode(path, content, encoding)
    if not text.strip():
        raise EdgekitError(f"{path}: empty; expected rows with texts")
    if kind == "csv":
        return _read_csv(path, lambda: io.StringIO(text, newline=""), mark)
    if kind == "txt":
        return Table(columns=["text"], rows=[Row(number=n, values={"text": line}) for n, line in _lines(text)])
    return _read_json(path, text, lines=kind == "jsonl")


def _read_large(path: Path, kind: tuple[str, str | None], delimiter: str | None, encoding: str | None) -> Table:
    """`read_table` of a file that is read in passes."""
    name, packed = kind
    if name == "parquet":
        return _read_parquet(path, lambda: _open(path, packed), held=False)
    codec = _check_text(path, packed, encoding)

    def lines(newline: str) -> Iterator[str]:
        with (
            _open(path, packed) as file,
            io.TextIOWrapper(cast("io.BufferedReader", file), codec, newline=newline) as text,
        ):
            first = next(text)
            yield from itertools.chain([first.removeprefix("\ufeff")], text)

    def numbered() -> Iterator[tuple[int, str]]:
        ends = (line[:-2] if line.endswith("\r\n") else line.removesuffix("\n") for line in lines("\n"))
        return enumerate(ends, start=1)

    if name == "csv":
        return _read_csv(path, lambda: lines(""), delimiter, held=False)
    if name == "txt":
        return Table(
            columns=["text"], rows=Rows(lambda: (Row(number=n, values={"text": line}) for n, line in numbered()))
        )
    rows = Rows(lambda: (_json_row(n, "line", _parse_json(line)) for n, line in numbered() if line.strip()))
    return Table(columns=list(dict.fromkeys(key for row in rows for key in row.values)), rows=rows)


def _open(path: Path, packed: str | None) -> IO[bytes]:
    return cast("IO[bytes]", _OPENED[packed](path) if packed else path.open("rb"))


def _check_text(path: Path, packed: str | None, encoding: str | None) -> str:
    """Read a text file through, and refuse what is refused of one that is held; what its encoding is."""
    place, empty, start, marked, reader = 0, True, "", "utf-8", None
    try:
        with _open(path, packed) as file:
            while block := file.read(1 << 16):
                marked = _marked(block) if reader is None else marked
                with _decoding(path, encoding, marked, place):
                    b"".decode(encoding or marked)  # some codecs are not of texts
                    reader = reader or codecs.getincrementaldecoder(encoding or marked)()
                    pending = len(reader.getstate()[0])
                with _decoding(path, encoding, marked, place - pending):
                    text = reader.decode(block)
                place, empty, start = place + len(block), empty and not text.strip(), start or text[:1000]
    except (OSError, lzma.LZMAError, zlib.error, EOFError) as bad:
        raise _broken(path, packed, bad) from bad
    if reader is not None:
        with _decoding(path, encoding, marked, place - len(reader.getstate()[0])):
            reader.decode(b"", final=True)
    if empty:
        raise EdgekitError(f"{path}: empty; expected rows with texts")
    _refuse_zeros(path, start, encoding)
    return encoding or marked


def decode(path: Path, content: bytes, encoding: str | None = None) -> str:
    """A file's text. Raises EdgekitError with the byte that does not fit, and for an unknown encoding."""
    marked = _marked(content)
    with _decoding(path, encoding, marked):
        text = content.decode(encoding or marked)
    _refuse_zeros(path, text[:1000], encoding)
    return text.removeprefix("\ufeff")


def _marked(content: bytes) -> str:
    return next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")


@contextmanager
def _decoding(path: Path, encoding: str | None, marked: str, place: int = 0) -> Iterator[None]:
    """What a codec raises of bytes that begin at this place of a file, for a user."""
    try:
        yield
    except LookupError as unknown:
        raise EdgekitError(
            f'{path}: data.encoding: unknown encoding {encoding!r}; expected one of Python\'s, such as "cp1252" or "utf-16"'
        ) from unknown
    except UnicodeDecodeError as bad:
        byte, name = bad.object[bad.start], "UTF-8" if encoding is None and marked == "utf-8" else (encoding or marked)
        raise EdgekitError(
            f"{path}: byte {place + bad.start} (0x{byte:02x}) is not {name}; save the file as UTF-8, or name its encoding, such"
            f' as data.encoding = "{"cp1252" if encoding != "cp1252" else "latin-1"}"'
        ) from bad
    except UnicodeError as bad:
        raise EdgekitError(f"{path}: not {encoding or marked}: {first_line(bad)}; save the file as UTF-8") from bad


def _refuse_zeros(path: Path, start: str, encoding: str | None) -> None:
    if encoding is None and "\0" in start:
        raise EdgekitError(f'{path}: holds zero bytes, as UTF-16 does; if it is that, set data.encoding = "utf-16-le"')


def value_of(row: Mapping[str, object], column: str) -> object:
    """A row's value in a column, None where it has none; "data.text" is the key `text` of the object in the column `data`."""
    if column in row:
        return row[column]
    head, dot, rest = column.partition(".")
    while dot:
        inner = row.get(head)
        if isinstance(inner, Mapping):
            return value_of(inner, rest)
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return None


def has_column(table: Table, column: str) -> bool:
    """Whether a column, dotted or not, is there in a row that could be read."""
    return column in table.columns or any(value_of(row.values, column) is not None for row in table.rows)


def column_names(table: Table, rows: int = 20) -> list[str]:
    """The table's columns, with those of objects in them as dotted names, as far as the first rows tell."""
    names: dict[str, None] = {}
    for column in table.columns:
        values = [row.values.get(column) for row in itertools.islice(table.rows, rows)]
        inner = [value for value in values if isinstance(value, Mapping)]
        names |= dict.fromkeys(f"{column}.{key}" for value in inner for key in value) if inner else {column: None}
    return list(names)


def _read_bytes(path: Path, packed: str | None) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as missing:
        raise EdgekitError(f"{path}: no such file") from missing
    except OSError as unreadable:
        raise EdgekitError(f"{path}: cannot be read: {unreadable.strerror}") from unreadable
    refuse_pointer(path, content)
    try:
        return COMPRESSED[packed](content) if packed else content
    except (OSError, lzma.LZMAError, zlib.error, EOFError, ValueError) as bad:
        raise _broken(path, packed, bad) from bad


def _broken(path: Path, packed: str | None, bad: Exception) -> EdgekitError:
    what = f"not a whole {packed} file: {first_line(bad)}; pack it again" if packed else f"cannot be read: {bad}"
    return EdgekitError(f"{path}: {what}")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines. Not splitlines: a text may hold U+2028 or U+0085, which end a line there but not in these files."""
    ended = text.replace("\r\n", "\n").removesuffix("\n")
    return ((number, line) for number, line in enumerate(ended.split("\n"), start=1))


def _read_csv(path: Path, lines: Callable[[], Iterator[str]], delimiter: str | None, *, held: bool = True) -> Table:
    """Every field is text: a label 007 stays 007, and a text NA is not a missing one. lines: those of the file, from its first
    on, each time that it is called; held: whether the rows are kept."""
    first = next(lines())
    told, skipped = _SEP.match(first), 0
    if told and delimiter in {None, told[1]}:
        delimiter, skipped = told[1], 1

    def fields() -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(itertools.islice(lines(), skipped, None), delimiter=delimiter or ",", strict=True)
        try:
            yield from ((reader.line_num + skipped, row) for row in _rows_of(reader) if row)
        except csv.Error as bad:
            raise EdgekitError(
                f"{path}: line {reader.line_num + skipped}: not valid CSV: {bad}; check its double quotes"
            ) from bad

    line, names = next(fields(), (skipped, []))
    header = [name.strip() for name in names]
    found = [*fields()][1:] if held else None

    def below() -> Iterable[tuple[int, list[str]]]:
        return itertools.islice(fields(), 1, None) if found is None else found

    _check_header(path, header, line, delimiter or ",", lambda: (row for _, row in below()))

    def rows() -> Iterator[Row]:
        for number, (at, row) in enumerate(below(), start=1):
            if len(row) == len(header):
                values = {name: value for name, value in zip(header, row, strict=True) if name}
                yield Row(number=number, values=values)
                continue
            problem = f"line {at}: {len(row)} fields, but the header has {len(header)}"
            yield Row(number=number, problem=f"{problem}; put texts that hold a delimiter in double quotes")

    return Table(columns=[name for name in header if name], rows=Rows(rows) if found is None else list(rows()))


def _rows_of(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """A CSV reader's rows, with fields as long as there are."""
    while True:
        limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        try:
            row = next(reader, None)
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        yield row


def _check_header(
    path: Path, header: Sequence[str], line: int, delimiter: str, rows: Callable[[], Iterator[Sequence[str]]]
) -> None:
    if len(header) == 1:
        other = next((mark for mark in DELIMITERS if mark != delimiter and mark in header[0]), None)
        if other:
            raise EdgekitError(
                f"{path}: line {line}: its columns are parted by {other!r}, not {delimiter!r}; set"
                f" data.delimiter = {json.dumps(other)}"
            )
    if next(rows(), None) is None:
        raise EdgekitError(f"{path}: no rows below the header line; add some")
    named = [name for name in header if name]
    if len(set(named)) < len(named):
        raise EdgekitError(f"{path}: line {line}: two columns have the same name; rename one")
    for place, name in enumerate(header):
        # A sheet's empty columns are exported too.
        if not name and any(row[place].strip() for row in rows() if len(row) == len(header)):
            raise EdgekitError(f"{path}: line {line}: column {place + 1} has no name; give it one")


def headerless(columns: Iterable[str]) -> str | None:
    """The column name that is rather a text, as where a file begins with its first row; None where all look like names."""
    return next((name for name in columns if len(name.split()) > 3 or len(name) > 40), None)


def _read_json(path: Path, text: str, *, lines: bool) -> Table:
    """JSON lines; or one value: a list of rows, an object of columns, or an object that holds the list of rows."""
    whole = None if lines else _parse_json(text)
    if isinstance(whole, dict):
        whole = _rows_within(whole)
    if isinstance(whole, list):
        found = list(enumerate(whole, start=1))
        rows = [_json_row(number, "row", value) for number, value in found]
    else:
        texts = [(number, line) for number, line in _lines(text) if line.strip()]
        if not lines and isinstance(whole, _Broken) and not isinstance(_parse_json(texts[0][1]), dict):
            raise EdgekitError(f"{path}: not valid JSON: {whole.reason}")
        rows = [_json_row(number, "line", _parse_json(line)) for number, line in texts]
    columns = dict.fromkeys(key for row in rows for key in row.values)
    return Table(columns=list(columns), rows=rows)


@dataclass(frozen=True, kw_only=True)
class _Broken:
    reason: str


def _parse_json(text: str) -> object:
    """A JSON value as the file has it (a date stays a string), or why it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as bad:
        return _Broken(reason=str(bad))
    except RecursionError:
        return _Broken(reason="nested too deeply")


def _json_row(number: int, counted: str, value: object) -> Row:
    if isinstance(value, _Broken):
        return Row(number=number, problem=f"{counted} {number}: not valid JSON: {value.reason}")
    if not isinstance(value, dict):
        return Row(
            number=number, problem=f"{counted} {number}: {json.dumps(value):.60} is not an object with the columns"
        )
    return Row(number=number, values=value)


def _rows_within(whole: dict[str, object]) -> list[object]:
    """The rows of one JSON object: a list in each of its columns, an object of rows in each (pandas), or a list of rows."""
    values = list(whole.values())
    lists = [value for value in values if isinstance(value, list)]
    objects = [value for value in values if isinstance(value, dict)]
    if any(isinstance(row, dict) and {"role", "from"} & row.keys() for value in lists for row in value[:1]):
        return [whole]  # one conversation: its turns are no rows
    held = [value for value in lists if value and all(isinstance(row, dict) for row in value)]
    if len(held) == 1:
        return list(held[0])
    if lists and len(lists) == len(values) and len({len(value) for value in lists}) == 1:
        return [dict(zip(whole, row, strict=True)) for row in zip(*lists, strict=True)]
    if objects and len(objects) == len(values) and len({tuple(value) for value in objects}) == 1:
        return [{column: value[key] for column, value in zip(whole, objects, strict=True)} for key in objects[0]]
    return [whole]


def _read_parquet(path: Path, opened: Callable[[], IO[bytes]], *, held: bool = True) -> Table:
    """opened: the file, each time that it is called; held: whether the rows are kept."""
    import pyarrow
    from pyarrow import parquet

    def values() -> Iterator[dict[str, object]]:
        with opened() as file:
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=1024):
                yield from batch.to_pylist()

    def rows() -> Iterator[Row]:
        try:
            yield from (Row(number=number, values=row) for number, row in enumerate(values(), start=1))
        except (pyarrow.ArrowException, OSError, ValueError) as bad:
            raise EdgekitError(f"{path}: cannot be read as parquet: {first_line(bad)}") from bad

    try:
        with opened() as file:
            schema = parquet.ParquetFile(file).schema_arrow
    except (pyarrow.ArrowException, OSError, ValueError) as bad:
        raise EdgekitError(f"{path}: cannot be read as parquet: {first_line(bad)}") from bad
    classes = _class_names(schema.metadata or {})
    return Table(columns=schema.names, rows=list(rows()) if held else Rows(rows), classes=classes)


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The names of `datasets.ClassLabel` columns, which `datasets` keeps in the schema's metadata."""
    told = _parse_json(metadata.get(b"huggingface", b"{}").decode("utf-8", "replace"))
    features = told.get("info", {}).get("features", {}) if isinstance(told, dict) else {}
    return {
        column: [str(name) for name in feature["names"]]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and "names" in feature
    }
