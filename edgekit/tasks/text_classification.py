"""text-classification: one label per text, and "none of them" by a threshold on the largest probability.

Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples" (arXiv:1610.02136).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.modalities import text
from edgekit.outputs.rows import LOGITS
from edgekit.recipe import AS_CALIBRATED, Rejection
from edgekit.tasks.contentless import ASKED
from edgekit.tasks.rows import encode, length, open_model, pad_id, settings, ship

__all__ = [
    "CONTENTLESS",
    "MODALITY",
    "NAME",
    "OUTPUT",
    "answer",
    "encode",
    "fit",
    "has_content",
    "length",
    "load",
    "open_model",
    "pad_id",
    "score",
    "settings",
    "ship",
]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


NAME = "text-classification"
MODALITY = text.NAME
OUTPUT = LOGITS.name
CONTENTLESS = ASKED
# Accuracies nearer than this are equal but for rounding.
_ALIKE = 1e-12


def load(folder: Path) -> nn.Module:
    """A classifier: (input_ids, attention_mask) -> raw logits [batch, classes].

    Raises EdgekitError for a checkpoint without a trained classifier, with one output, or with several labels per text.
    """
    from edgekit.tasks.encoders import load_encoder

    module = load_encoder(folder, NAME)
    config: Any = module.model.config
    if config.num_labels < 2 or config.problem_type == "multi_label_classification":
        raise EdgekitError(
            f"{folder / 'config.json'}: not a single-label classifier ({config.num_labels} outputs, problem_type"
            f" {config.problem_type}); edgekit builds single-label classifiers"
        )
    return module


def fit(
    outputs: NDArray[np.float32],
    labels: Sequence[str | None],
    classes: Sequence[str],
    out_of_scope: str | None,
    rejection: Rejection = AS_CALIBRATED,
) -> dict[str, object]:
    """The rejection threshold on the largest probability that maximises accuracy, a rejection being a class of its own.

    outputs are logits [n, classes]. Accuracy is that of a mix with `rejection.share` out-of-scope texts (without it, of these
    rows), among the thresholds that reject at least `rejection.recall` of them. Every threshold between two neighbouring
    confidences scores alike, so the answer is the middle of the widest range of best thresholds. {} where there is no
    out-of-scope label, or no row has it.
    """
    import numpy as np

    known = [row for row, label in enumerate(labels) if label is not None]
    outside = np.array([labels[row] == out_of_scope for row in known])
    if out_of_scope is None or not outside.any():
        return {}
    probabilities = softmax(outputs[known])
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = np.array([classes[best] for best in probabilities.argmax(axis=1)]) == np.array(
        [labels[row] for row in known]
    )

    edges = np.unique(np.concatenate([[0.0], confidence, [1.0]]))
    # A threshold in (edges[i], edges[i + 1]] keeps the rows above edges[i] and rejects the others.
    kept_right = np.array([np.count_nonzero(right & (confidence > edge)) for edge in edges[:-1]])
    rejected_outside = np.array([np.count_nonzero(outside & (confidence <= edge)) for edge in edges[:-1]])
    outer, inner = int(outside.sum()), int((~outside).sum())
    hits = (kept_right + rejected_outside).astype(np.float64)
    if rejection.share is not None:
        hits = (1 - rejection.share) * kept_right / max(inner, 1) + rejection.share * rejected_outside / outer
    if rejection.recall is not None:
        hits[rejected_outside < rejection.recall * outer] = -1.0
    borders = np.flatnonzero(np.diff(np.concatenate([[False], hits >= hits.max() - _ALIKE, [False]])))
    runs = [(edges[start], edges[end]) for start, end in zip(borders[::2], borders[1::2], strict=True)]
    low, high = max(runs, key=lambda run: run[1] - run[0])
    return {"threshold": float((low + high) / 2), "out_of_scope": out_of_scope}


def answer(
    outputs: NDArray[np.float32],
    settings: Mapping[str, object],
    classes: Sequence[str],
    texts: Sequence[str] | None = None,
) -> list[str]:
    """The label of each row of logits [n, classes]; the out-of-scope label below the threshold.

    With texts, one each, also where a text has no letter and no digit: silence belongs to no class (load.py does the same).
    """
    probabilities = softmax(outputs)
    names = [classes[best] for best in probabilities.argmax(axis=1)]
    threshold = settings.get("threshold")
    if not isinstance(threshold, int | float):
        return names
    rejected = str(settings["out_of_scope"])
    sure = (probabilities.max(axis=1) >= threshold).tolist()
    told = [True] * len(names) if texts is None else [has_content(text) for text in texts]
    return [name if kept and content else rejected for name, kept, content in zip(names, sure, told, strict=True)]


def has_content(text: str) -> bool:
    """Whether a text has a letter or a digit."""
    return any(character.isalnum() for character in text)


def score(reference: NDArray[np.float32], outputs: NDArray[np.float32]) -> float:
    """Mean cosine of centred logits, [n, classes] each: a softmax does not see a shift, so neither does the score."""
    import numpy as np

    from edgekit.runtimes.scores import cosine

    centred = (x.astype(np.float64) - x.mean(axis=1, keepdims=True, dtype=np.float64) for x in (reference, outputs))
    return float(cosine(*centred).mean())


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of logits along the last axis."""
    import numpy as np

    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: NDArray[np.float32] = powers / powers.sum(axis=-1, keepdims=True)
    return shares
