"""feature-extraction: one embedding per text, as sentence-transformers' `encode` gives it by the folder's files.

A folder without modules.json gives the mean of its token vectors, as sentence-transformers does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.embedding_files import read_embedding
from edgekit.modalities import text
from edgekit.outputs.rows import EMBEDDING
from edgekit.recipe import AS_CALIBRATED, Rejection
from edgekit.tasks.padding import find_pad_id
from edgekit.tasks.rows import pad_id, ship

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from edgekit.modalities.encoded import Encoded
    from edgekit.model import Model
    from edgekit.prompts import Prompt

__all__ = [
    "CONTENTLESS",
    "MODALITY",
    "NAME",
    "OUTPUT",
    "answer",
    "encode",
    "fit",
    "length",
    "load",
    "open_model",
    "pad_id",
    "prompt_tokens",
    "score",
    "settings",
    "ship",
]

NAME = "feature-extraction"
MODALITY = text.NAME
OUTPUT = EMBEDDING.name
CONTENTLESS = ()


def load(folder: Path) -> nn.Module:
    """An embedder: (input_ids, attention_mask) -> embedding [batch, width].

    Raises EdgekitError for modules, keys and weights that edgekit cannot put into the graph.
    """
    from edgekit.tasks.encoders import load_encoder
    from edgekit.tasks.pooling import Embedder, load_steps

    said = read_embedding(folder)
    encoder = load_encoder(folder, NAME)
    unread = 0 if said.include_prompt else prompt_tokens(open_model(folder))
    return Embedder(
        encoder, modes=said.modes, unread=unread, steps=load_steps(said.steps), width=said.truncate_dim
    ).eval()


def open_model(folder: Path) -> Model:
    """The checkpoint with the tokenizer that sentence-transformers makes of it."""
    from edgekit.model import load_model
    from edgekit.owners_tokenizer import lower_cased, read_tokenizer

    model = load_model(folder)
    if not read_embedding(folder).lower_case:
        return model
    return replace(model, tokenizer_text=lower_cased(read_tokenizer(folder)))


def length(model: Model, max_length: int) -> int:
    """How many tokens of a text are read at most: max_length, or what the checkpoint's own files say where that is less."""
    from edgekit.owners_tokenizer import longest_text

    said = read_embedding(model.folder).max_seq_length
    if said is None and model.read_text is not None:
        said = longest_text(model.read_text)
    return min(max_length, said or max_length)


def encode(model: Model, prompts: Sequence[Prompt], max_length: int) -> Encoded:
    """The token ids of each text behind the default prompt, special tokens included, truncated."""
    before = read_embedding(model.folder).prompt
    texts = [before + prompt.text for prompt in prompts]
    return text.of_tokens(model.encode(texts, length(model, max_length)), find_pad_id(model))


def prompt_tokens(model: Model) -> int:
    """How many tokens the default prompt is, those before it included, as sentence-transformers counts them."""
    before = read_embedding(model.folder).prompt
    if not before:
        return 0
    tokenizer = model.tokenizer()
    ids = tokenizer.encode(before).ids
    special = {token.id for token in model.added_tokens if token.special}
    return len(ids) - (ids[-1] in special)


def settings(model: Model) -> dict[str, object]:
    """normalize: whether embeddings have length 1, for runtimes that normalise outside the model; prompt: what is put before
    every text; prompts: others, by name; similarity: how sentence-transformers compares two embeddings."""
    said = read_embedding(model.folder)
    found: dict[str, object] = {"normalize": said.normalise}
    if said.prompt:
        found["prompt"] = said.prompt
    # Where the prompt is not pooled, the graph leaves out as many tokens as the default prompt has.
    others = {name: text for name, text in said.prompts.items() if text} if said.include_prompt else {}
    return (
        found | ({"prompts": others} if others else {}) | ({"similarity": said.similarity} if said.similarity else {})
    )


def fit(
    outputs: NDArray[np.float32],  # noqa: ARG001 - one signature for all tasks
    labels: Sequence[str | None],  # noqa: ARG001
    classes: Sequence[str],  # noqa: ARG001
    out_of_scope: str | None,  # noqa: ARG001
    rejection: Rejection = AS_CALIBRATED,  # noqa: ARG001
) -> dict[str, object]:
    """Nothing to learn."""
    return {}


def answer(
    outputs: NDArray[np.float32],
    settings: Mapping[str, object],  # noqa: ARG001 - one signature for all tasks
    classes: Sequence[str],  # noqa: ARG001
    texts: Sequence[str] | None = None,  # noqa: ARG001
) -> NDArray[np.float32]:
    """The embeddings themselves, [n, hidden]."""
    return outputs


def score(reference: NDArray[np.float32], outputs: NDArray[np.float32]) -> float:
    """Mean cosine between embeddings, [n, hidden] each."""
    from edgekit.runtimes.scores import cosine

    return float(cosine(reference, outputs).mean())
