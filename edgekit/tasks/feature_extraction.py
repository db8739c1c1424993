"""feature-extraction: one embedding per text, pooled and normalised as sentence-transformers' modules.json says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.model import read_pooling
from edgekit.schema import pick
from edgekit.tasks.rows import encode

__all__ = ["NAME", "OUTPUT", "answer", "encode", "fit", "load", "score", "settings"]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from edgekit.model import Model

NAME = "feature-extraction"
OUTPUT = "embedding"


def load(folder: Path) -> nn.Module:
    """An embedder: (input_ids, attention_mask) -> embedding [batch, hidden].

    Raises EdgekitError for pooling or modules that edgekit cannot put into the graph.
    """
    from edgekit.tasks.encoders import load_encoder
    from edgekit.tasks.pooling import POOLINGS, Embedder

    pooling = read_pooling(folder)
    pool = pick(POOLINGS, pooling.mode, f"{folder / 'modules.json'}: pooling mode")
    encoder, missing = load_encoder(folder, NAME)
    if missing:
        raise EdgekitError(f"{folder}: the checkpoint lacks the weights {missing[0]}; not a whole encoder")
    return Embedder(encoder, pool, normalise=pooling.normalise).eval()


def settings(model: Model) -> dict[str, Any]:
    """Whether embeddings have length 1, for runtimes that normalise outside the model."""
    return {"normalize": read_pooling(model.folder).normalise}


def fit(
    outputs: NDArray[np.float32],  # noqa: ARG001 - one signature for all tasks
    labels: Sequence[str | None],  # noqa: ARG001
    classes: Sequence[str],  # noqa: ARG001
    out_of_scope: str | None,  # noqa: ARG001
) -> dict[str, Any]:
    """Nothing to learn."""
    return {}


def answer(
    outputs: NDArray[np.float32],
    settings: Mapping[str, Any],  # noqa: ARG001 - one signature for all tasks
    classes: Sequence[str],  # noqa: ARG001
) -> NDArray[np.float32]:
    """The embeddings themselves, [n, hidden]."""
    return outputs


def score(reference: NDArray[np.float32], outputs: NDArray[np.float32]) -> float:
    """Mean cosine between embeddings, [n, hidden] each."""
    from edgekit.runtimes.scores import cosine

    return float(cosine(reference, outputs).mean())
