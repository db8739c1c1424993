"""A small random BERT, exported once for all tests of the ONNX format, and what a Calibration says of it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgekit.formats.onnx import float_graph
from edgekit.modalities.text import of_tokens

VOCABULARY, WIDTH, CLASSES = 2000, 64, 5


class Classifier(nn.Module):
    """A BERT classifier as a task loads one: two inputs, logits."""

    def __init__(self, layers: int = 2) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        super().__init__()
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=2 * WIDTH,
            max_position_embeddings=40,
            num_labels=CLASSES,
            attn_implementation="eager",
        )
        self.model = BertForSequenceClassification(config)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        types = torch.zeros_like(input_ids)
        return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=types).logits


def calibrate(module: nn.Module, ids: list[list[int]]) -> Any:
    """What a Calibration offers: stats by "<module path>#<call>"."""
    stats: dict[str, Any] = {}

    def watch(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], __: torch.Tensor) -> None:
            seen = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).numpy()
            low, high = seen.min(axis=0), seen.max(axis=0)
            if f"{path}#0" in stats:
                before = stats[f"{path}#0"]
                low, high = np.minimum(low, before.minimum), np.maximum(high, before.maximum)
            stats[f"{path}#0"] = SimpleNamespace(minimum=low, maximum=high, mean_square=(seen**2).mean(axis=0))

        return hook

    hooks = [
        part.register_forward_hook(watch(path)) for path, part in module.named_modules() if isinstance(part, nn.Linear)
    ]
    with torch.inference_mode():
        for row in ids:
            module(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.int64))
    for hook in hooks:
        hook.remove()
    return SimpleNamespace(stats=stats)


@pytest.fixture(scope="session")
def module() -> Classifier:
    return Classifier().eval()


@pytest.fixture(scope="session")
def ids() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(5, VOCABULARY, size=length).tolist() for length in random.integers(3, 38, size=16)]


@pytest.fixture(scope="session")
def calibration(module: Classifier, ids: list[list[int]]) -> Any:
    return calibrate(module, ids)


@pytest.fixture(scope="session")
def exported(module: Classifier, ids: list[list[int]]) -> onnx.ModelProto:
    return float_graph.export_float(module, of_tokens(ids, 0), output_name="embedding")
