"""Rows of a long benchmark, each kept in a file as soon as it is measured: what was stopped goes on behind its last row."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

Row = Mapping[str, object]


class Rows:
    """The rows of a file of JSON lines, by key; of none, where nothing is to be kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._rows: dict[str, Row] = {}
        if path is not None and path.exists():
            # What a kill tore is no row.
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    kept = json.loads(line)
                except ValueError:
                    continue
                self._rows[kept["key"]] = kept["row"]

    def take(self, key: str, measure: Callable[[], Row]) -> Row:
        """The row of this key: the one that is kept, else measured now and kept."""
        if key not in self._rows:
            # As a reader of the file would see it.
            row = json.loads(json.dumps(measure()))
            self._rows[key] = row
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as stream:
                    stream.write(f"\n{json.dumps({'key': key, 'row': row})}\n")
                    stream.flush()
                    os.fsync(stream.fileno())
        return self._rows[key]
