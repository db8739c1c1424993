"""Bounds over prompts that are not independent: those of one group (a speaker, a document, a template) err together.

A group is one observation, however many prompts it has. Standard library and NumPy only; `benchmarks/gate.py` measures the error
rates, and `gate` has the bounds of independent prompts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from edgekit import gate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Keys = Sequence[Hashable]


def indices(groups: Keys) -> NDArray[np.int64]:
    """Of each prompt the index of its group, in the order in which groups appear; a prompt without one (None) is its own."""
    import numpy as np

    found: dict[Hashable, int] = {}
    places = [
        found.setdefault(("alone", place) if group is None else ("group", group), len(found))
        for place, group in enumerate(groups)
    ]
    return np.array(places, np.int64)


def paired_bounds(
    lost: Sequence[bool] | NDArray[np.bool_],
    won: Sequence[bool] | NDArray[np.bool_],
    groups: Keys,
    alpha: float = gate.ALPHA,
) -> tuple[float, float]:
    """`gate.paired_bounds` of prompts in groups: (lower, upper) bound of the loss (lost - won) / n, each at 1 - alpha.

    Where every group is one prompt, these are Tango's bounds themselves. Else the wider of two counts. First, Tango's with all
    counts divided by the design effect (Rao and Scott, "A simple method for the analysis of clustered binary data", Biometrics
    48, 1992): the variance of the loss over groups by that of independent prompts, with one further group that flips
    altogether, since few flips say little about how they cluster; without any flip the effect is a group's size. Second,
    Student's t over groups with as many degrees of freedom as groups of equal size would say as much (Kish's), less one.
    """
    import numpy as np

    changes = np.asarray(lost, np.float64) - np.asarray(won, np.float64)
    b, c, n = float(np.sum(lost)), float(np.sum(won)), len(changes)
    sums, sizes = _by_group(changes, groups)
    if n == 0 or sizes.max() == 1:
        return gate.paired_bounds(b, c, n, alpha)
    loss = (b - c) / n
    effect = _effect(sums - loss * sizes, sizes, b + c - n * loss * loss)
    lo, hi = gate.paired_bounds(b / effect, c / effect, max(int(n / effect), 1), alpha)
    reach = _t_reach(sums - loss * sizes, sizes, alpha)
    # Dividing and rounding down moves the loss a little: each bound is on its own side of what was seen.
    return max(min(lo, loss - reach), -1.0), min(max(hi, loss + reach), 1.0)


def paired_difference(
    right: Sequence[bool], other: Sequence[bool], groups: Keys, alpha: float = gate.ALPHA
) -> tuple[float, tuple[float, float]]:
    """How much more often one is right than another, and the bounds of that, each at 1 - alpha; `paired_bounds` of one prompt
    or more."""
    lost = [theirs and not mine for mine, theirs in zip(right, other, strict=True)]
    won = [mine and not theirs for mine, theirs in zip(right, other, strict=True)]
    least, most = paired_bounds(lost, won, groups, alpha)
    return (sum(won) - sum(lost)) / len(won), (-most, -least)


def proportion_bounds(
    hits: Sequence[bool] | NDArray[np.bool_], groups: Keys, alpha: float = gate.ALPHA
) -> tuple[float, float]:
    """`gate.proportion_bounds` of prompts in groups: (lower, upper) bound of the share of hits, each at 1 - alpha.

    As in `paired_bounds`, with the exact bounds of a proportion in Tango's place.
    """
    import numpy as np

    values = np.asarray(hits, np.float64)
    count, n = int(values.sum()), len(values)
    sums, sizes = _by_group(values, groups)
    if n == 0 or sizes.max() == 1:
        return gate.proportion_bounds(count, n, alpha)
    share = count / n
    residuals = sums - share * sizes
    least = max(int(n / _effect(residuals, sizes, n * share * (1.0 - share))), 1)
    reach = _t_reach(residuals, sizes, alpha)
    lo = min(gate.proportion_bounds(math.floor(share * least), least, alpha)[0], share - reach)
    hi = max(gate.proportion_bounds(math.ceil(share * least - 1e-9), least, alpha)[1], share + reach)
    return max(lo, 0.0), min(hi, 1.0)


def mean_bounds(losses: Floats, groups: Keys, most: float, alpha: float = gate.ALPHA) -> tuple[float, float]:
    """`gate.mean_bounds` of prompts in groups: (lower, upper) bound of the mean of losses in [0, most], each at 1 - alpha."""
    import numpy as np

    sums, sizes = _by_group(np.clip(losses, 0.0, most), groups)
    return gate.mean_bounds(sums, most, alpha, sizes)


def _by_group(values: Floats, groups: Keys) -> tuple[Floats, Floats]:
    """Sums and sizes of the groups."""
    import numpy as np

    places = indices(groups)
    sums: Floats = np.bincount(places, weights=values).astype(np.float64)
    return sums, np.bincount(places).astype(np.float64)


def _effect(residuals: Floats, sizes: Floats, variance: float) -> float:
    """The design effect, never below 1: squared residuals of groups by those of prompts, one whole group added to both."""
    n = len(sizes)
    kish = float((sizes**2).sum() / sizes.sum())
    between = float((residuals**2).sum()) * n / max(n - 1, 1)
    return max((between + kish * kish) / (max(variance, 0.0) + kish), 1.0)


def _t_reach(residuals: Floats, sizes: Floats, alpha: float) -> float:
    """How far Student's t over groups reaches on either side; 1, the whole range, where fewer than two groups weigh."""
    n, total = len(sizes), float(sizes.sum())
    freedom = total * total / float((sizes**2).sum()) - 1.0
    if n < 2 or freedom < 1.0:
        return 1.0
    error = math.sqrt(float((residuals**2).sum()) * n / (n - 1)) / total
    return gate.t_quantile(1.0 - alpha, freedom) * error
