"""The user's state: what must outlive a cache, such as which prompts have judged what, and what was measured."""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.errors import EdgekitError


def state_folder() -> Path:
    """The folder of the user's state; it need not be there yet.

    $EDGEKIT_STATE, else `edgekit` in $XDG_STATE_HOME, else ~/.local/state/edgekit (XDG Base Directory Specification 0.8; a
    relative path there means nothing); on Windows `edgekit` in %LOCALAPPDATA%. Raises EdgekitError where there is no home.
    """
    if own := os.environ.get("EDGEKIT_STATE"):
        return Path(own)
    shared = Path(os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_STATE_HOME", ""))
    try:
        return (shared if shared.is_absolute() else Path.home() / ".local" / "state") / "edgekit"
    except RuntimeError as homeless:
        raise EdgekitError(f"{homeless}: edgekit keeps its state there; set EDGEKIT_STATE to a folder") from homeless


def check_state() -> None:
    """Refuse a state folder that cannot be written, before anything is made. Makes nothing.

    Without it looks at prompts are not counted, and a verdict would claim more than it may.
    """
    folder = state_folder().resolve()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise EdgekitError(
            f"{folder}: cannot be written: looks at verify prompts are counted there; set EDGEKIT_STATE to a folder that"
            " stays from one build to the next"
        )
