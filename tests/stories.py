"""stories260K, a real storyteller of 260,000 weights, as a GGUF file of 8-bit matrices."""

from __future__ import annotations

from pathlib import Path

import pytest
from q8_files import write_q8

from tests.conftest import ROOT

STORIES = ROOT.parent / "shared" / "data" / "stories260K" / "hf"


def write_stories(path: Path) -> Path:
    """The file, for which ../shared must be there."""
    if not STORIES.is_dir():
        pytest.skip("needs ../shared/data/stories260K")
    return write_q8(STORIES, path)
