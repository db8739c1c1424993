"""The user's state: what must outlive a cache, such as which prompts have judged what, and what was measured."""

from __future__ import annotations

import os
from pathlib import Path


def state_folder() -> Path:
    """The folder of the user's state; it need not be there yet.

    $EDGEKIT_STATE, else `edgekit` in $XDG_STATE_HOME, else ~/.local/state/edgekit (XDG Base Directory Specification 0.8; a
    relative path there means nothing).
    """
    if own := os.environ.get("EDGEKIT_STATE"):
        return Path(own)
    shared = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".local" / "state") / "edgekit"
