"""What a loader asks before its first answer; what it says of planted faults, see `test_faults.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.bundle.golden import GOLDEN
from tests.bundle.faults import change_golden
from tests.bundle.test_golden import pack_golden
from tests.bundle.test_load import shipped


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_golden(tmp_path_factory.mktemp("check")).bundle


def test_cold_is_told_from_warm(bundle: Path) -> None:
    times = shipped(bundle).Bundle(bundle).times
    assert set(times) == {"cold", "warm"}
    assert all(ms > 0 for ms in times.values())
    assert shipped(bundle).Bundle(bundle, check=False).times == {}


def test_an_embedding_is_held_by_its_cosine(tmp_path: Path) -> None:
    made = pack_golden(tmp_path, output="embedding").bundle
    rows = json.loads((made / GOLDEN).read_text(encoding="utf-8"))["rows"]
    first = rows[0]["embedding"]
    change_golden(made, embedding=[2 * value for value in first])
    assert shipped(made).Bundle(made).times
    change_golden(made, embedding=[-value for value in first])
    with pytest.raises(RuntimeError, match=r"an embedding 2\.0000 away \(1 - cosine\), and at most 0\.05 when"):
        shipped(made).Bundle(made)
