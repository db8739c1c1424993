"""A device kind that tests drop in: a board, played by this machine, that counts who calls it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from edgekit import devices
from edgekit.devices import Facts, Finished, LocalDevice
from edgekit.inputs import Json
from edgekit.schema import parse


@dataclass(frozen=True, kw_only=True)
class BoardOptions:
    """`[device]` of a target that is such a board."""

    kind: Literal["board"]
    address: str


class Board(LocalDevice):
    """A remote device. calls: how often all boards were asked for what; says: what they say of themselves."""

    Options: ClassVar[type[object]] = BoardOptions
    REMOTE: ClassVar[bool] = True
    calls: ClassVar[Counter[str]] = Counter()
    says: ClassVar[dict[str, Json]] = {}

    def __init__(self, table: Mapping[str, object], where: str = "device") -> None:
        super().__init__({}, where)
        self._options = parse(BoardOptions, dict(table), where)

    @property
    def identity(self) -> str:
        return f"board {self._options.address}"

    def push(self, folder: Path) -> str:
        self.calls["push"] += 1
        return super().push(folder)

    def run(self, command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Finished:
        self.calls["run"] += 1
        return super().run(command, timeout_s=timeout_s, env=env)

    def fetch(self, path: str, out: Path) -> None:
        self.calls["fetch"] += 1
        super().fetch(path, out)

    def facts(self) -> Facts:
        self.calls["facts"] += 1
        return {**super().facts(), **self.says}


def drop_in(monkeypatch: pytest.MonkeyPatch) -> type[Board]:
    """The kind `board` in a copy of the table, until the test ends; nobody has called it yet."""
    monkeypatch.setattr(devices, "DEVICES", {**devices.DEVICES, "board": Board})
    monkeypatch.setattr(Board, "calls", Counter())
    monkeypatch.setattr(Board, "says", {})
    return Board
