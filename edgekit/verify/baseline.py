"""An artifact against an earlier one of its line: is it slower, or less accurate, beyond what chance explains?

Both were measured in sessions of their own, and sessions of one artifact differ: what is called slower is slower by more than
`ROOM`, and Welch's t of the processes' logarithms excludes that it is not. What is less accurate answers more of the same prompts
wrongly than a sign test allows or, where means are compared, has an interval wholly above the earlier one's. To compare two
artifacts more finely let them take turns: `edgekit compare`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

from edgekit.gate import ALPHA, Verdict
from edgekit.history import Compared, Entry
from edgekit.verify import latency

# Medians of eight processes of one artifact, measured on other days, differ by up to this on a quiet machine.
ROOM = 1.05
COUNTED = ("accuracy", "agreement")


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of one figure. ratio: of a time, new over old; below: what the ratio exceeds with 95 % confidence, None where
    nothing is bounded. detail: in words."""

    name: str
    old: float | None
    new: float | None
    verdict: Verdict
    detail: str
    ratio: float | None = None
    below: float | None = None


@dataclass(frozen=True, kw_only=True)
class Against:
    """An artifact against an earlier one: fail where any change fails, pass where all pass, else not proven."""

    baseline: str
    since: str
    verdict: Verdict
    changes: tuple[Change, ...]

    @property
    def reason(self) -> str:
        """What did not pass, in words."""
        return "; ".join(f"{one.name}: {one.detail}" for one in self.changes if one.verdict != "pass")


def against(new: Entry, earlier: Sequence[Entry]) -> Against | None:
    """An entry against the last other artifact of its line among earlier ones; None where there is none.

    One whose times may not be compared is passed by where there is another. All measurements of that artifact count, and all of
    the new one that are among them.
    """
    line = [entry for entry in earlier if entry.line == new.line]
    others = [entry for entry in line if entry.sha256 != new.sha256]
    if not others:
        return None
    last = next((entry for entry in reversed(others) if entry.counts), others[-1])
    old = [entry for entry in others if entry.sha256 == last.sha256]
    mine = [new, *(entry for entry in line if entry.sha256 == new.sha256 and entry.at != new.at)]
    changes = (_time(mine, old), *_accuracies(new, old[-1]))
    verdicts = {one.verdict for one in changes}
    worst: Verdict = "fail" if "fail" in verdicts else "pass" if verdicts == {"pass"} else "not proven"
    return Against(baseline=old[-1].sha256, since=old[-1].at, verdict=worst, changes=changes)


def _time(new: Sequence[Entry], old: Sequence[Entry]) -> Change:
    """The median time of a call or a token."""
    mine, theirs = ([time for entry in side if entry.counts for time in entry.p50_ms] for side in (new, old))
    shown = [latency.centre([time for entry in side for time in entry.p50_ms]) for side in (new, old)]
    if min(len(mine), len(theirs)) < latency.FEWEST:
        reasons = [reason for entry in (*new, *old) for reason in (*entry.disturbed, *(entry.incomparable or ()))]
        why = next(iter(reasons), None)
        detail = (
            f"{len(mine)} processes against {len(theirs)} on a quiet machine, and {latency.FEWEST} are needed of each"
        )
        more = f" ({why})" if why else ": a target that limits a time, on its own device, has eight timed"
        return Change(name="p50_ms", old=shown[1], new=shown[0], verdict="not proven", detail=detail + more)
    ratio, below = slower_than(mine, theirs)
    verdict: Verdict = "fail" if below > 1.0 and ratio > ROOM else "pass"
    detail = f"{shown[0]:.4g} ms, was {shown[1]:.4g}: {ratio:.3f} x, with 95 % confidence more than {below:.3f} x"
    return Change(name="p50_ms", old=shown[1], new=shown[0], verdict=verdict, detail=detail, ratio=ratio, below=below)


def slower_than(new: Sequence[float], old: Sequence[float]) -> tuple[float, float]:
    """The ratio of two artifacts' times, new over old, and its lower 95 % bound, from each process's own time.

    Welch's t of the logarithms, of which processes that share nothing give each one (Welch, Biometrika 34, 1947, 28-35).
    """
    logs = [[math.log(time) for time in side] for side in (new, old)]
    shares = [variance(side) / len(side) for side in logs]
    error = sum(shares)
    difference = fmean(logs[0]) - fmean(logs[1])
    if error == 0.0:
        return math.exp(difference), math.exp(difference)
    freedom = error**2 / sum(share**2 / (len(side) - 1) for share, side in zip(shares, logs, strict=True))
    half = latency.t_quantile(1.0 - ALPHA, max(int(freedom), 1)) * math.sqrt(error)
    return math.exp(difference), math.exp(difference - half)


def _accuracies(new: Entry, old: Entry) -> list[Change]:
    known = {(one.reference, one.metric): one for one in old.comparisons}
    pairs = [(one, known[one.reference, one.metric]) for one in new.comparisons if (one.reference, one.metric) in known]
    counted = [pair for pair in pairs if pair[0].metric in COUNTED and None not in {pair[0].score, pair[1].score}]
    same = new.prompts == old.prompts
    changes = [_count(*min(counted, key=_flips), same=same)] if counted else []
    return [*changes, *(_mean(*pair) for pair in pairs if pair[0].metric not in COUNTED and pair[1].bound is not None)]


def _flips(pair: tuple[Compared, Compared]) -> int:
    return pair[0].flips + pair[1].flips


def _count(new: Compared, old: Compared, *, same: bool) -> Change:
    """Right answers. Of the same prompts and the same reference, no more than both one's flips from it can be unlike."""
    assert new.score is not None
    assert old.score is not None
    if same and new.reference_score == old.reference_score and new.prompts == old.prompts:
        lost = round((old.score - new.score) * new.prompts)
        chance = sign_test(lost, max(new.flips + old.flips, abs(lost)))
        how = f"{lost:+d} wrong of the same {new.prompts} prompts" if lost else "as many right of the same prompts"
    else:
        chance = _unpaired(new, old)
        how = f"{new.prompts} prompts, then {old.prompts}, not the same ones or judged beside another model"
    verdict: Verdict = "fail" if new.score < old.score and chance <= ALPHA else "pass"
    detail = f"{new.score:.2%}, was {old.score:.2%}: {how}, chance {chance:.3f}"
    return Change(name=new.metric, old=old.score, new=new.score, verdict=verdict, detail=detail)


def sign_test(lost: int, unlike: int) -> float:
    """How likely chance loses so many more prompts than it gains, where so many answers differ: exact, one-sided.

    P(Binomial(unlike, 1/2) >= (unlike + lost) / 2). More answers that differ make it larger: an upper bound of them is safe.
    """
    if lost <= 0:
        return 1.0
    unlike += (unlike + lost) % 2
    worst = (unlike + lost) // 2
    return float(sum(math.comb(unlike, count) for count in range(worst, unlike + 1)) / 2**unlike)


def _unpaired(new: Compared, old: Compared) -> float:
    """The same of two sets of prompts: the normal test of two shares."""
    assert new.score is not None
    assert old.score is not None
    both = (new.score * new.prompts + old.score * old.prompts) / (new.prompts + old.prompts)
    error = math.sqrt(both * (1.0 - both) * (1.0 / new.prompts + 1.0 / old.prompts))
    if error == 0.0:
        return 1.0
    return 1.0 - NormalDist().cdf((old.score - new.score) / error)


def _mean(new: Compared, old: Compared) -> Change:
    """A mean loss from the float model: worse where its interval lies above the earlier one's."""
    assert old.bound is not None
    worse = new.lo is not None and new.lo > old.bound
    detail = f"loss of at least {_shown(new.lo)} against {new.reference}, was at most {_shown(old.bound)}"
    verdict: Verdict = "fail" if worse else "pass"
    return Change(name=f"{new.metric} ({new.reference})", old=old.bound, new=new.bound, verdict=verdict, detail=detail)


def _shown(value: float | None) -> str:
    return "nothing known" if value is None else f"{value:.4g}"
