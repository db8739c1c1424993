"""What both answered to the verify prompts when they were judged, prompt by prompt; neither is asked again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit import gate
from edgekit.diff.asked import Right, compare_right
from edgekit.diff.sides import Side
from edgekit.evidence import Interval, finite
from edgekit.outcomes import Outcomes


@dataclass(frozen=True, kw_only=True)
class Nats:
    """How much a token surprises each, in nats, the mean over the prompts' tokens; B's less A's, below 0 where B is better; and
    the bounds of that, each one-sided at 95 %, None where nothing bounds it."""

    a: float
    b: float
    difference: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Verified:
    """Both on one verify set of so many prompts. changed: of classifiers, how many B answers otherwise. right: of those with a
    wanted answer; nats: of models that write. why_not: why something is not compared, in words."""

    prompts: int
    changed: int | None = None
    right: Right | None = None
    nats: Nats | None = None
    why_not: tuple[str, ...] = ()


def compare_outcomes(a: Side, b: Side) -> Verified:
    """What both answered when they were judged, or why that is not known of both."""
    mine, theirs = a.outcomes, b.outcomes
    if mine is None or theirs is None:
        return Verified(prompts=0, why_not=(_why_none(*(("A", a) if mine is None else ("B", b))),))
    places = {name: place for place, name in enumerate(theirs.prompts)}
    common = len(places.keys() & set(mine.prompts))
    if not len(mine.prompts) == len(theirs.prompts) == common:
        sets = f"{len(mine.prompts)} prompts and B on {len(theirs.prompts)}, of which {common} are the same"
        why = f"A was verified on {sets}: name the prompts that both are to be asked (--prompts)"
        return Verified(prompts=0, why_not=(why,))
    order = [places[name] for name in mine.prompts]
    known = [
        place for place, one in enumerate(mine.right) if one is not None and theirs.right[order[place]] is not None
    ]
    right = None
    if known:
        sides = [bool(mine.right[place]) for place in known], [bool(theirs.right[order[place]]) for place in known]
        right = compare_right(*sides, [mine.groups[place] for place in known])
    changed = None
    if mine.answers is not None and theirs.answers is not None:
        changed = sum(one != theirs.answers[place] for one, place in zip(mine.answers, order, strict=True))
    nats = _compare_nats(mine, theirs, order)
    return Verified(
        prompts=len(order),
        changed=changed,
        right=right,
        nats=nats if isinstance(nats, Nats) else None,
        why_not=(nats,) if isinstance(nats, str) else (),
    )


def _why_none(name: str, side: Side) -> str:
    if side.manifest is not None and side.manifest.output == "embedding":
        return "an embedding is neither right nor wrong"
    if side.kind == "release":
        return (
            f"{name} is a release, which says nothing of single verify prompts: name its bundle, or prompts (--prompts)"
        )
    return (
        f"what {name} answered to its verify prompts is not known: no outcomes.json of this model that this edgekit reads"
        " lies beside it; build it again, or name prompts (--prompts)"
    )


def _compare_nats(mine: Outcomes, theirs: Outcomes, order: Sequence[int]) -> Nats | str | None:
    """The means of both; or why not, where the prompts are other tokens; None where there are none."""
    import numpy as np

    if mine.nats is None or theirs.nats is None or mine.tokens is None or theirs.tokens is None or not any(mine.tokens):
        return None
    counts = np.array(mine.tokens, np.float64)
    if not np.array_equal(counts, np.array(theirs.tokens)[list(order)]):
        return "the prompts have another number of tokens for B: its surprise at one is of other tokens than A's"
    before, after = (
        np.array([np.nan if one is None else one for one in values], np.float64)
        for values in (mine.nats, [theirs.nats[place] for place in order])
    )
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return "not every likelihood is a number"
    # As in the control run: either may have rare large losses, which a lower bound knows nothing of: the wider of both counts.
    more, each = (np.bincount(mine.groups, weights=values).astype(np.float64) for values in (after - before, counts))
    more, each = more[each > 0], each[each > 0]
    ratio, least, most = gate.ratio_bounds(more, each)
    _, below, above = gate.ratio_bounds(-more, each)
    return Nats(
        a=float(before.sum() / counts.sum()),
        b=float(after.sum() / counts.sum()),
        difference=ratio,
        interval=(finite(min(least, -above)), finite(max(most, -below))),
    )
