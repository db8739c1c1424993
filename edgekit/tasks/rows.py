"""What the tasks share that give one row per text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.modalities import text
from edgekit.tasks.padding import find_pad_id

if TYPE_CHECKING:
    from edgekit.modalities.encoded import Encoded
    from edgekit.model import Model
    from edgekit.prompts import Prompt


def open_model(folder: Path) -> Model:
    """The checkpoint with the tokenizer that transformers' AutoTokenizer makes of it."""
    from edgekit.model import load_model

    return load_model(folder)


def settings(model: Model) -> dict[str, object]:  # noqa: ARG001 - one signature for all
    """Nothing: the module answers as it is."""
    return {}


def length(model: Model, max_length: int) -> int:  # noqa: ARG001 - one signature for all
    """How many tokens of a text are read at most: max_length, as `pipeline(..., truncation=True, max_length=...)` does."""
    return max_length


def encode(model: Model, prompts: Sequence[Prompt], max_length: int) -> Encoded:
    """The token ids of each text, special tokens included, truncated at max_length."""
    return text.of_tokens(model.encode([prompt.text for prompt in prompts], max_length), find_pad_id(model))


def pad_id(model: Model) -> int:
    """The token that fills up a shorter text of a batch."""
    return find_pad_id(model)


def ship(model: Model, max_length: int, out: Path) -> None:
    """The tokenizer, which cuts texts at max_length tokens."""
    model.tokenizer(max_length).save(str(out / text.TOKENIZER))
