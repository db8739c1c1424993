"""stories260K, a real storyteller of 260,000 weights, as a GGUF file of 8-bit matrices."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_files import write_gguf

from tests.conftest import ROOT

STORIES = ROOT.parent / "shared" / "data" / "stories260K" / "hf"


def need_stories() -> Path:
    """The checkpoint, for which ../shared must be there."""
    if not STORIES.is_dir():
        pytest.skip("needs ../shared/data/stories260K")
    return STORIES


def write_stories(path: Path) -> Path:
    """The file."""
    return write_gguf(need_stories(), path)
