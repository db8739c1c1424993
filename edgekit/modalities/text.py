"""text: a prompt is token ids, and a model is given `input_ids` and `attention_mask`, int64 [batch, longest]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.modalities.encoded import Encoded, Input

NAME = "text"
WORDED = True
TOKENIZER = "tokenizer.json"
IDS, MASK = "input_ids", "attention_mask"
_AXIS = "sequence"


def reads(folder: Path) -> bool:  # noqa: ARG001 - one signature for all
    """Every checkpoint: whether it has a tokenizer is another question (`lacks`)."""
    return True


def lacks(folder: Path) -> str | None:
    """A tokenizer that the tokenizers library reads."""
    if (folder / TOKENIZER).is_file():
        return None
    return f"no {TOKENIZER}; write one with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"


def read_shipped(folder: Path, texts: Sequence[str], settings: Mapping[str, object], pad_id: int) -> Encoded:
    """Texts as the tokenizer beside an artifact reads them, which truncates by itself, behind the prompt that ships."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    before = settings.get("prompt", "")
    return of_tokens(
        [encoding.ids for encoding in tokenizer.encode_batch([f"{before}{text}" for text in texts])], pad_id
    )


def of_tokens(ids: Sequence[Sequence[int]], pad_id: int, owners: Sequence[int] | None = None) -> Encoded:
    """Prompts of token ids, which `pad_id` fills up; the mask hides that. A prompt without any token is one `pad_id`.

    owners: see `Encoded`; each prompt its own where it is None.
    """
    import numpy as np

    rows = [np.array(row if len(row) else [pad_id], dtype=np.int64) for row in ids]
    return Encoded(
        inputs={IDS: Input(axis=_AXIS, padding=pad_id), MASK: Input(axis=_AXIS)},
        prompts=[{IDS: row, MASK: np.ones_like(row)} for row in rows],
        owners=range(len(rows)) if owners is None else owners,
    )


def reads_texts(encoded: Encoded) -> bool:
    """Whether prompts are texts."""
    return IDS in encoded.inputs


def token_ids(encoded: Encoded) -> list[list[int]]:
    """The token ids of prompts that are texts."""
    return [prompt[IDS].tolist() for prompt in encoded.prompts]
