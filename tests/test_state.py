"""Where the user's state lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.state import state_folder


def test_the_state_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKIT_STATE")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/ann")
    assert state_folder() == Path("/home/ann/.local/state/edgekit")
    monkeypatch.setenv("XDG_STATE_HOME", "elsewhere")
    assert state_folder() == Path("/home/ann/.local/state/edgekit"), "a relative path means nothing"
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert state_folder() == Path("/state/edgekit")
    monkeypatch.setenv("EDGEKIT_STATE", "mine")
    assert state_folder() == Path("mine")
