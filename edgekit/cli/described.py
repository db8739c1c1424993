"""What `inspect` found as lines of text: tables indented, a line per entry, nothing that is empty."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.cli.tables import table_lines
from edgekit.evidence import Check
from edgekit.report.figures import check_figures, human_bytes, number
from edgekit.typed_json import read_table

# Entries of a long list that are worth a line.
MOST_SHOWN = 12


def describe_lines(found: Mapping[str, object]) -> list[str]:
    """What `inspect` found, as lines of text; long records of what was tried are only counted."""
    if found.get("kind") == "report":
        checks = found["checks"]
        assert isinstance(checks, list)
        found = {**found, "checks": [_with_units(check) for check in checks]}
    return _lines(found, "")


def _with_units(entry: object) -> dict[str, str]:
    check = read_table(Check, entry, "checks")
    measured, loss, bound, limit, _ = check_figures(check)
    figures = {"measured": measured, "loss": loss, "bound": bound, "limit": limit}
    return {"name": check.name, **figures, "verdict": check.verdict}


def _lines(table: Mapping[str, object], of: str) -> list[str]:
    """A line per entry, or more where the entry is a table itself. of: the key that the table stands under."""
    shown = {str(key): value for key, value in table.items() if not _is_empty(value)}
    width = max((len(key) for key in shown), default=0)
    lines = []
    for key, value in shown.items():
        label = _words(key, of)
        rows = _rows(value)
        if key == "tried" and isinstance(value, Mapping):
            lines.append(f"{label.ljust(width)}  {len(value)} candidates")
        elif rows:
            lines += [label, *table_lines(rows, indent=2)]
        elif isinstance(value, Mapping):
            lines += [label, *(f"  {line}" for line in _lines(value, key))]
        else:
            is_size = key.startswith("bytes") or key.endswith("_bytes") or of in {"files", "external_files"}
            lines.append(f"{label.ljust(width)}  {_show('bytes' if is_size else key, value)}")
    return lines


def _words(key: str, of: str) -> str:
    """A key as people write it: only at the top are all keys edgekit's own."""
    return key if of else key.replace("_", " ")


def _is_empty(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(_is_empty(inner) for inner in value.values())
    return value is None or (isinstance(value, str | list | tuple) and not value)


def _rows(value: object) -> list[list[str]]:
    """The rows of what is a table, its head first: a list of mappings, or mappings of figures by name."""
    if isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value):
        entries: list[Mapping[str, object]] = value
    elif isinstance(value, Mapping) and all(_is_flat(entry) for entry in value.values()):
        entries = [{"": name} | dict(entry) for name, entry in value.items()]
    else:
        return []
    keys = dict.fromkeys(
        key for entry in entries for key in entry if not all(_is_empty(one.get(key)) for one in entries)
    )
    return [[str(key) for key in keys], *([_show(key, entry.get(key)) for key in keys] for entry in entries)]


def _is_flat(entry: object) -> bool:
    return isinstance(entry, Mapping) and not any(isinstance(value, Mapping | list) for value in entry.values())


def _show(key: str, value: object) -> str:
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int) and key == "bytes":
        return human_bytes(value)
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_show(str(name), item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        shown = ", ".join(_show("", item) for item in value[:MOST_SHOWN])
        shown += f", ... ({len(value)})" if len(value) > MOST_SHOWN else ""
        return f"[{shown}]" if key == "shape" else shown
    return number(value)
