"""What memory made a training do is in the lock file, and the next build, here or elsewhere, makes the same bytes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.cli.options import open_session
from edgekit.distill import loop
from edgekit.errors import EdgekitError
from edgekit.pipeline import distill, finetune, gather_prompts, read_settings
from edgekit.recipe import load_recipe
from edgekit.workspace import file_sha256
from tests.conftest import make_checkpoint, make_data

RECIPE = """
task = "text-classification"
[teacher]
source = "base"
[teacher.finetune]
epochs = 1
holdout = 0.0
[data]
path = "data"
text = "text"
label = "label"
max_length = 32
[student]
layers = 1
[distill]
epochs = 1
batch = 6
holdout = 0.0
"""
Build = Callable[..., str]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A student's sha256, made in a workspace of this name on a machine with so much free memory."""
    make_checkpoint(tmp_path / "base")
    make_data(tmp_path / "data")
    (tmp_path / "tiny.toml").write_text(RECIPE)

    def build(cache: str, free: int | None = None, *overrides: str) -> str:
        monkeypatch.setattr(loop, "free_memory", lambda: free)
        recipe = load_recipe(tmp_path / "tiny.toml", overrides)
        session = open_session(tmp_path / cache, tmp_path / "dist")
        prompts, settings = gather_prompts(recipe, session), read_settings(recipe)
        teacher = finetune(settings, tmp_path / "base", prompts, session)
        return file_sha256(distill(settings, teacher, prompts, session) / "model.safetensors")

    return build


def test_the_next_build_does_what_memory_made_the_first_one_do(build: Build, tmp_path: Path) -> None:
    lock = tmp_path / "dist" / "tiny.lock.json"
    whole = build("large")
    assert not lock.exists(), "where a batch fits nothing was chosen"
    short = build("small", 1000)
    assert short != whole
    kept = lock.read_text()
    plans = json.loads(kept)["rows_at_once"]
    assert sorted(name.split()[0] for name in plans) == ["distill", "finetune"]
    assert all(plan == {"training": {"0": [1]}} for plan in plans.values())
    assert build("elsewhere", 1 << 50) == short
    # A product that was made otherwise is made again, and one that was made so is kept.
    assert build("large") == short
    assert lock.read_text() == kept
    # Another recipe is another training: nothing that was found for this one holds for it.
    build("large", None, "distill.batch=5")
    assert lock.read_text() == kept
    lock.unlink()
    assert build("small") == short
    assert json.loads(lock.read_text())["rows_at_once"] == plans, "what a kept product says is kept"


def test_a_damaged_plan_is_told(build: Build, tmp_path: Path) -> None:
    build("small", 1000)
    lock = tmp_path / "dist" / "tiny.lock.json"
    content = json.loads(lock.read_text())
    (name,) = (name for name in content["rows_at_once"] if name.startswith("finetune"))
    for damage in (
        "rows",
        {"training": 3},
        {"training": {"x": [1]}},
        *({"training": {"0": bad}} for bad in ([-1], [], [True], 1)),
    ):
        content["rows_at_once"][name] = damage
        lock.write_text(json.dumps(content))
        with pytest.raises(
            EdgekitError, match=rf"tiny.lock.json: rows_at_once.{name}: not what edgekit writes; restore"
        ):
            build("small")
