"""Where the user's state lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import EdgekitError
from edgekit.state import check_state, state_folder


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


def test_a_state_that_cannot_be_written_is_told_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEKIT_STATE", str(tmp_path / "not" / "there"))
    check_state()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEKIT_STATE", str(tmp_path / "file" / "inside"))
    with pytest.raises(EdgekitError, match="set EDGEKIT_STATE to a folder"):
        check_state()


def test_without_a_home_a_folder_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKIT_STATE")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(EdgekitError, match="set EDGEKIT_STATE"):
        state_folder()
