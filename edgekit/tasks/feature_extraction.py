"""feature-extraction: one embedding per text, pooled and normalised as sentence-transformers' modules.json says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.schema import pick, read_json
from edgekit.tasks.rows import encode

__all__ = ["NAME", "OUTPUT", "answer", "encode", "fit", "load", "score", "settings"]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from edgekit.model import Model

NAME = "feature-extraction"
OUTPUT = "embedding"

# sentence-transformers' key in 1_Pooling/config.json before version 6 -> the mode's name since.
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How token vectors become one embedding. Without sentence-transformers modules: the mean, as it is."""

    mode: str = "mean"
    normalise: bool = False


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


def read_pooling(folder: Path) -> Pooling:
    """Pooling and normalisation from modules.json; the defaults where the folder has none."""
    place = folder / "modules.json"
    if not place.is_file():
        return Pooling()
    mode, normalise = "mean", False
    for module in read_json(place):
        kind = str(module["type"]).rsplit(".", maxsplit=1)[-1]
        if kind == "Pooling":
            mode = _read_mode(folder / module["path"] / "config.json")
        elif kind == "Normalize":
            normalise = True
        elif kind != "Transformer":
            raise EdgekitError(f"{place}: module {kind} is not supported; only Transformer, Pooling and Normalize are")
    return Pooling(mode=mode, normalise=normalise)


def _read_mode(place: Path) -> str:
    settings = read_json(place)
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_POOLING_KEYS.items() if settings.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1:
        raise EdgekitError(f"{place}: {len(modes)} pooling modes at once are not supported; use one of them")
    return str(modes[0])


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
