"""Every task, and what tasks share: batches, padding, order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.errors import EdgekitError
from edgekit.modalities.text import of_tokens
from edgekit.model import load_model
from edgekit.prompts import Prompt
from edgekit.tasks import TASKS, outputs, row_task, tensors
from edgekit.tasks.padding import find_pad_id
from tests.architectures.decoders import make_decoder
from tests.conftest import LABELS, make_checkpoint

TEXTS = ["jazz", "please turn the hall light on", "", "some jazz on the attic speaker would be nice"]


ROWS = [name for name, task in TASKS.items() if task.OUTPUT != "tokens"]


@pytest.mark.parametrize("name", ROWS)
def test_every_task_keeps_its_promises(name: str, checkpoint: Path, tmp_path: Path) -> None:
    task = row_task(name)
    assert name == task.NAME
    folder = checkpoint if task.OUTPUT == "logits" else make_checkpoint(tmp_path / "encoder")
    module = task.load(folder)
    assert not module.training
    assert {one.dtype for one in module.parameters()} == {torch.float32}
    ids = load_model(folder).encode(TEXTS, 32)
    rows = outputs(module, of_tokens(ids, 0), batch=2)
    assert rows.dtype == np.float32
    assert len(rows) == len(TEXTS)
    assert task.score(rows, rows) == pytest.approx(1.0, abs=1e-6)
    settings = task.fit(rows, ["music", "light_on", "oos", "music"], LABELS, "oos")
    assert json.loads(json.dumps(settings)) == settings
    assert len(task.answer(rows, settings, LABELS)) == len(TEXTS)


def test_a_task_of_tokens_keeps_its_promises(tmp_path: Path) -> None:
    (name,) = set(TASKS) - set(ROWS)
    folder, task = make_decoder("qwen3", tmp_path / "decoder", num_hidden_layers=1), TASKS[name]
    assert name == task.NAME
    module, model = task.load(folder), load_model(folder)
    assert not module.training
    assert {one.dtype for one in module.parameters()} == {torch.float32}
    found = task.encode(model, [Prompt(text=text) for text in TEXTS], 32)
    assert list(found.owners) == [0, 1, 2, 3]
    inputs = tensors(found.batch())
    tokens, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.inference_mode():
        together = module(tokens, mask)
        alone = module(tokens[:1, : mask[0].sum()], mask[:1, : mask[0].sum()])
    assert together.shape == (*tokens.shape, 512)
    torch.testing.assert_close(together[0, : mask[0].sum()], alone[0], atol=1e-4, rtol=1e-4)
    assert json.loads(json.dumps(task.settings(model))) == task.settings(model)
    with pytest.raises(EdgekitError, match=r"task: text-generation: gives tokens, not one row per text"):
        row_task(name)


@pytest.mark.parametrize("name", TASKS)
def test_half_precision_checkpoints_are_loaded_in_float32(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    if TASKS[name].OUTPUT == "tokens":
        folder = make_decoder("llama", tmp_path / "model", num_hidden_layers=1)
    else:
        folder = make_checkpoint(tmp_path / "model", labels=LABELS if TASKS[name].OUTPUT == "logits" else None)
    path = folder / "model.safetensors"
    save_file({key: one.half() for key, one in load_file(path).items()}, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert {one.dtype for one in TASKS[name].load(folder).parameters()} == {torch.float32}


def test_outputs_keep_the_order_and_tell_progress() -> None:
    class Lengths(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            assert (input_ids[attention_mask == 0] == 9).all()
            return attention_mask.sum(1, keepdim=True).float()

    ids = [[1] * length for length in (5, 1, 3, 8, 2)]
    told: list[tuple[int, int, str]] = []
    rows = outputs(Lengths(), of_tokens(ids, 9), batch=2, progress=lambda *now: told.append(now))
    assert rows[:, 0].tolist() == [5, 1, 3, 8, 2]
    assert [done for done, _, _ in told] == [2, 4, 5]


def test_the_padding_id_is_found(classifier: Path) -> None:
    path = classifier / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for found in (config | {"pad_token_id": 1}, config | {"pad_token_id": None}):
        path.write_text(json.dumps(found), encoding="utf-8")
        if found["pad_token_id"] is None:
            with pytest.raises(EdgekitError, match=r"config\.json: pad_token_id: missing"):
                find_pad_id(load_model(classifier))
            (classifier / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}', encoding="utf-8")
            assert find_pad_id(load_model(classifier)) == 0
        else:
            assert find_pad_id(load_model(classifier)) == 1
