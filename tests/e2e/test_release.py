"""A real build is released with the errors of its tensors, and verified."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import SLOWEST, Project


@pytest.mark.timeout(SLOWEST)
def test_a_build_is_released(tiny: Project, built: Mapping[str, Any], tmp_path: Path) -> None:
    bundle = tiny.folder / built["bundle"]
    out = tmp_path / "first.release"
    tiny.run("release", bundle, "--out", out)
    tiny.run("verify-release", out, "--unsigned")
    kept = json.loads((out / "quantization.json").read_text())
    assert kept["errors"] == "against the float student"
    assert kept["calibration_sha256"]
    quantized = [row for row in kept["tensors"] if row["name"].endswith(".int8")]
    assert len(quantized) > 10
    # Numbers of 8 bits: an error that is uniform in a step of a 127th of each channel's largest value.
    assert all(0.001 < row["relative_error"] < 0.02 for row in quantized), quantized
    again = tiny.run("release", out, "--check")
    assert again.stdout.endswith("files made again, the same bytes\n"), again.stdout
