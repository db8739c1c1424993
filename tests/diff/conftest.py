"""Two bundles of other weights and versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.recipe import Issue
from tests.diff.bundles import pack


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both below dist."""
    folder = tmp_path_factory.mktemp("bundles")
    pack(folder, "a", Issue(version="1.0.0"))
    pack(folder, "b", Issue(version="1.1.0"), scale=0.2)
    return folder


@pytest.fixture(scope="module")
def a(made: Path) -> Path:
    return made / "dist" / "a"


@pytest.fixture(scope="module")
def b(made: Path) -> Path:
    return made / "dist" / "b"
