"""text: token ids become named arrays; a checkpoint is asked for what its own modality needs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgekit.errors import EdgekitError
from edgekit.modalities import MODALITIES, find_modality
from edgekit.modalities.text import of_tokens
from edgekit.model import load_model
from edgekit.tasks import TASKS
from tests.conftest import LABELS, make_checkpoint


def test_padding_is_on_the_right() -> None:
    inputs = of_tokens([[4, 5], [6]], 7).batch()
    assert {name: array.tolist() for name, array in inputs.items()} == {
        "input_ids": [[4, 5], [6, 7]],
        "attention_mask": [[1, 1], [1, 0]],
    }
    assert {array.dtype for array in inputs.values()} == {np.dtype(np.int64)}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_names_a_modality(name: str) -> None:
    assert TASKS[name].MODALITY in MODALITIES


def test_a_tokenizer_is_asked_of_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dropped-in modality that needs a file of its own, and no tokenizer."""
    folder = make_checkpoint(tmp_path / "model", labels=LABELS)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(EdgekitError, match=r"model: no tokenizer\.json; write one with transformers"):
        load_model(folder)
    processor = folder / "preprocessor_config.json"
    images = SimpleNamespace(
        NAME="image",
        reads=lambda folder: folder.name == "model",
        lacks=lambda _: None if processor.is_file() else f"no {processor.name}",
    )
    monkeypatch.setitem(MODALITIES, "image", images)
    assert find_modality(folder).NAME == "image"
    assert find_modality(tmp_path).NAME == "text"
    with pytest.raises(EdgekitError, match=r"model: no preprocessor_config\.json"):
        load_model(folder)
    processor.write_text("{}")
    assert load_model(folder).labels == LABELS
