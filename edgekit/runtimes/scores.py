"""Scores of outputs against a reference's, in NumPy: what must be reduced next to the engine is reduced here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.floating]
    Doubles = NDArray[np.float64]


def log_softmax(logits: Floats) -> Doubles:
    """Log-probabilities of logits along the last axis."""
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    logs: Doubles = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs


def kl(reference: Floats, logits: Floats) -> Doubles:
    """KL(reference || other) of each row's probabilities in nats; both are logits [n, classes]."""
    import numpy as np

    p, q = log_softmax(reference), log_softmax(logits)
    rows: Doubles = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0)
    return rows


def nll(logits: Floats, labels: NDArray[np.integer]) -> Doubles:
    """Negative log-likelihood of each row's label in nats; logits [n, classes], labels [n]."""
    import numpy as np

    picked: Doubles = -log_softmax(logits)[np.arange(len(labels)), labels]
    return picked


def top1(logits: Floats) -> NDArray[np.intp]:
    """Each row's most likely class."""
    best: NDArray[np.intp] = logits.argmax(axis=-1)
    return best


def cosine(a: Floats, b: Floats) -> Doubles:
    """Cosine of each pair of rows, [n, width] each; 0 where a row is all zeros."""
    import numpy as np

    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    rows: Doubles = np.clip((a * b).sum(axis=-1) / np.maximum(lengths, np.finfo(np.float64).tiny), -1.0, 1.0)
    return rows


def nearest(rows: Floats, piece: int = 512) -> NDArray[np.intp]:
    """Each row's nearest other row by cosine; rows are [n >= 2, width]. Memory is piece * n floats."""
    import numpy as np

    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    unit = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    found = np.empty(len(unit), dtype=np.intp)
    for start in range(0, len(unit), piece):
        alike = unit[start : start + piece] @ unit.T
        alike[np.arange(len(alike)), start + np.arange(len(alike))] = -np.inf
        found[start : start + piece] = alike.argmax(axis=1)
    return found
