"""text: a prompt is token ids, and a model is given `input_ids` and `attention_mask`, int64 [batch, longest]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "text"
TOKENIZER = "tokenizer.json"


def reads(folder: Path) -> bool:  # noqa: ARG001 - one signature for all
    """Every checkpoint: whether it has a tokenizer is another question (`lacks`)."""
    return True


def lacks(folder: Path) -> str | None:
    """A tokenizer that the tokenizers library reads."""
    if (folder / TOKENIZER).is_file():
        return None
    return f"no {TOKENIZER}; write one with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"


def collate(ids: Sequence[Sequence[int]], pad_id: int) -> dict[str, NDArray[np.int64]]:
    """Token ids of several texts as a model's inputs by name, padded on the right with `pad_id`, which the mask hides."""
    import numpy as np

    longest = max(len(row) for row in ids)
    tokens = np.full((len(ids), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(ids), longest), dtype=np.int64)
    for index, row in enumerate(ids):
        tokens[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return {"input_ids": tokens, "attention_mask": mask}


def batches(
    ids: Sequence[Sequence[int]], pad_id: int, batch: int
) -> Iterator[tuple[list[int], dict[str, NDArray[np.int64]]]]:
    """Batches of texts of like length: their indices in `ids`, and the model's inputs.

    The longest come first: later batches fit into the memory that the first ones took, so it does not fragment.
    """
    order = sorted(range(len(ids)), key=lambda index: (-len(ids[index]), index))
    for start in range(0, len(order), batch):
        indices = order[start : start + batch]
        yield indices, collate([ids[index] for index in indices], pad_id)
