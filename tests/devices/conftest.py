"""Boards for tests of devices."""

from __future__ import annotations

from collections import Counter

import pytest

from edgekit import devices
from tests.devices.board import Board


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> type[Board]:
    """The kind `board` in a copy of the table, called by nobody yet."""
    monkeypatch.setattr(devices, "DEVICES", {**devices.DEVICES, "board": Board})
    monkeypatch.setattr(Board, "calls", Counter())
    monkeypatch.setattr(Board, "says", {})
    return Board
