"""Scores of outputs against a reference's, in NumPy: what must be reduced next to the engine is reduced here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.floating]
    Doubles = NDArray[np.float64]

# A sum of float32 probabilities is known to about this: 2^-24 relative in each logarithm, times an entropy of at most 12 nats.
_RESOLUTION = 1e-6


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


def log_sum_exp(logits: Floats, piece: int = 1 << 18) -> Doubles:
    """The logarithm of each row's sum of exponentials, [n, classes] -> [n]; about `piece` doubles of memory."""
    import numpy as np

    found = np.empty(len(logits), dtype=np.float64)
    step = max(1, piece // logits.shape[-1])
    for start in range(0, len(logits), step):
        rows = logits[start : start + step].astype(np.float64)
        highest = rows.max(axis=-1)
        rows -= highest[:, None]
        np.exp(rows, out=rows)
        found[start : start + step] = np.log(rows.sum(axis=-1)) + highest
    return found


def sparse_kl(ids: NDArray[np.integer], logprobs: Floats, logits: Floats, log_sums: Doubles) -> Doubles:
    """KL(reference || other) of each row in nats, of a reference of which only K classes are known; never below 0.

    ids and logprobs [n, K] are the reference's classes and natural log-probabilities, logits [n, classes] the other's and
    log_sums its `log_sum_exp`. The classes that are not known count as one more, with what is left of both. By the
    data-processing inequality that is a lower bound of the divergence over all classes (Cover and Thomas, Elements of
    Information Theory, 2.8: merging outcomes never raises it), and the divergence itself where K is all of them.
    """
    import numpy as np

    p = logprobs.astype(np.float64)
    q = np.take_along_axis(logits, ids, axis=-1).astype(np.float64) - log_sums[:, None]
    left = 1.0 - np.exp(p).sum(axis=-1)
    # Rounded log-probabilities do not sum to 1: a rest below their resolution, or below 0, is none, and the known are all.
    known = (left <= _RESOLUTION) | (p.shape[-1] == logits.shape[-1])
    p[known] -= np.log(np.exp(p[known]).sum(axis=-1, keepdims=True))
    rest_p = np.where(known, 1.0, left)
    # The rest of the other is only as exact as 1 minus a sum of doubles.
    rest_q = np.maximum(1.0 - np.exp(q).sum(axis=-1), np.finfo(np.float64).eps)
    tail = np.where(known, 0.0, rest_p * (np.log(rest_p) - np.log(rest_q)))
    rows: Doubles = np.maximum((np.exp(p) * (p - q)).sum(axis=-1) + tail, 0.0)
    return rows


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
