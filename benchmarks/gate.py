"""How often is the gate wrong? The error rates and the power of the accuracy verdict, by simulation.

Goals, in every cell where a pass is possible at all, each within three Monte-Carlo standard errors:
- false pass: what truly loses its margin passes in at most 5 %; of a later look, in at most that look's alpha
- false fail: what truly loses nothing, or 0.9 of its margin, fails in at most 5 %
- power: of independent prompts, passes at no loss (likelihoods: at half of the margin) are at least 0.9 of those of the rule
  before, and 1,000 prompts with 1 % flips prove one point in at least 80 %

Cells: flips of independent prompts; groups of paraphrases of unequal sizes that flip together; prompts appended in planned
stages; embeddings and unlabelled prompts (exact bounds); likelihoods (mean loss per token, and share of prompts beyond ten times
its limit) that are normal, exponential, log-normal, with one prompt in a hundred at 50 times the loss, with long prompts (Pareto)
that lose more for each token, of blocks of a text with an autocorrelation of 0.6, and at a second look.

Beside each rate, on the same draws, that of the rule before: a fail by the loss that was seen, prompts for groups, means alone.
Usage: python benchmarks/gate.py [--resamplings 20000] [--seed 0] [--json]; exit code 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edgekit import gate
from edgekit.verify import clusters
from edgekit.verify.margins import FAR

SIZES, FLIPS, MARGINS = (100, 300, 1000, 3000), (0.01, 0.02, 0.04, 0.10), (0.01, 0.03)
POWER, KEPT = 0.80, 0.9
# Mean loss per token, in nats, at which likelihoods are judged; most tokens of a prompt.
LIMIT, LONGEST = 0.1, 63
ALPHA = gate.FIRST_LOOK

Floats = NDArray[np.float64]
Numbers = np.random.Generator
# Sums and counts of clusters whose losses per token have the mean LIMIT, and what each passage loses per token, with its cluster.
Draw = Callable[[Numbers, int], tuple[Floats, Floats]]
Row = dict[str, Any]


def main() -> int:
    """Measure, show, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resamplings", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = measure(asked.resamplings, asked.seed)
    if asked.json:
        sys.stdout.write(json.dumps({"resamplings": asked.resamplings, "seed": asked.seed, "rows": rows}) + "\n")
    else:
        show(rows)
    return 0 if all(row["met"] for row in rows) else 1


def measure(resamplings: int, seed: int) -> list[Row]:
    """One row per goal and cell: {goal, cell, n, draws, rate, before, limit, met}; bounds over clusters have fewer draws."""
    few = max(resamplings // 40, 40)
    return [
        *_paired(resamplings, np.random.default_rng([seed, 1])),
        *_stages(resamplings, np.random.default_rng([seed, 2])),
        *_exact(resamplings, np.random.default_rng([seed, 3])),
        *_groups(few, np.random.default_rng([seed, 4])),
        *_likelihoods(few, seed),
    ]


def _row(
    goal: str, cell: str, n: int, draws: int, rate: float, before: float | None, limit: float, least: bool = False
) -> Row:
    error = 3 * math.sqrt(max(limit * (1 - limit), 0.0) / draws)
    met = rate >= limit - error if least else rate <= limit + error
    told = {"goal": goal, "cell": cell, "n": n, "draws": draws, "rate": rate, "before": before, "limit": limit}
    return told | {"met": bool(met)}


# --- flips of independent prompts


def _paired(draws: int, numbers: Numbers) -> list[Row]:
    rows = []
    for n in SIZES:
        for flips in FLIPS:
            # A loss of 3 points needs 3 % of flips at least, all of them to the wrong side.
            for margin in (one for one in MARGINS if one <= flips):
                cell = f"{100 * flips:g} % flips, margin {100 * margin:g}"
                new, old = _verdicts(n, flips, margin, margin, draws, numbers)
                rows.append(_row("false pass", cell, n, draws, new["pass"], old["pass"], gate.ALPHA))
                for loss in (0.0, 0.9):
                    new, old = _verdicts(n, flips, loss * margin, margin, draws, numbers)
                    told = f"{cell}, loss {loss:g} of it"
                    rows.append(_row("false fail", told, n, draws, new["fail"], old["fail"], gate.ALPHA))
                    if not loss:
                        least = KEPT * old["pass"]
                        rows.append(_row("power", told, n, draws, new["pass"], old["pass"], least, least=True))
    new, old = _verdicts(1000, 0.01, 0.0, 0.01, draws, numbers)
    rows.append(_row("power", "1 % flips, margin 1, loss 0", 1000, draws, new["pass"], old["pass"], POWER, least=True))
    return rows


def _verdicts(
    n: int, flips: float, loss: float, margin: float, draws: int, numbers: Numbers
) -> tuple[dict[str, float], dict[str, float]]:
    """Rates of verdicts, and of the rule before: at 5 %, and a fail too where the loss exceeds the margin and n >= 3 / margin."""
    shares = [(flips + loss) / 2, (flips - loss) / 2, 1 - flips]
    outcomes, counts = np.unique(numbers.multinomial(n, shares, draws)[:, :2], axis=0, return_counts=True)
    new, old = dict.fromkeys(("pass", "fail", "not proven"), 0.0), dict.fromkeys(("pass", "fail", "not proven"), 0.0)
    for (b, c), count in zip(outcomes.tolist(), counts.tolist(), strict=True):
        new[gate.verdict(*gate.paired_bounds(b, c, n, ALPHA), margin)] += count / draws
        before = gate.verdict(*gate.paired_bounds(b, c, n, gate.ALPHA), margin)
        if before == "not proven" and (b - c) / n > margin and n * margin >= 3:
            before = "fail"
        old[before] += count / draws
    return new, old


def _stages(draws: int, numbers: Numbers) -> list[Row]:
    """300 prompts, then 300 and 300 more while nothing is proven, planned as three stages; before: 5 % each time."""
    rows = []
    for flips, margin in ((0.02, 0.01), (0.04, 0.02), (0.10, 0.03)):
        for loss in (margin, 0.0):
            shares = [(flips + loss) / 2, (flips - loss) / 2, 1 - flips]
            passed, naive = np.zeros(draws, bool), np.zeros(draws, bool)
            total = np.zeros((draws, 2), int)
            for stage in (1, 2, 3):
                total += numbers.multinomial(300, shares, draws)[:, :2]
                for found, alpha in ((passed, ALPHA * gate.stage_share(stage, 3)), (naive, gate.ALPHA)):
                    outcomes, places = np.unique(total, axis=0, return_inverse=True)
                    hits = [gate.paired_bounds(b, c, 300 * stage, alpha)[1] <= margin for b, c in outcomes.tolist()]
                    np.logical_or(found, np.array(hits)[places.ravel()], out=found)
            cell = f"3 stages, {100 * flips:g} % flips, margin {100 * margin:g}"
            if loss:
                rows.append(_row("false pass", cell, 900, draws, passed.mean(), naive.mean(), gate.ALPHA))
            else:
                rows.append(_row("power", cell, 900, draws, passed.mean(), naive.mean(), 0.0, least=True))
    return rows


def _exact(draws: int, numbers: Numbers) -> list[Row]:
    """Shares of prompts: embeddings that are far off, and answers that differ where no label is known."""
    rows = []
    for cell, n, margin, at_zero in (
        ("embeddings far off, 5 %", 59, 0.05, 0.0),
        ("embeddings far off, 5 %", 300, 0.05, 0.01),
        ("unlabelled, all changes lost, margin 1", 1000, 0.01, 0.002),
        ("unlabelled, all changes lost, margin 2", 300, 0.02, 0.002),
    ):
        for share, goal in ((margin, "false pass"), (at_zero, "power")):
            hits, times = np.unique(numbers.binomial(n, share, draws), return_counts=True)
            passed = sum(
                int(count)
                for hit, count in zip(hits, times, strict=True)
                if gate.proportion_bounds(int(hit), n, ALPHA)[1] <= margin
            )
            told = cell if goal == "false pass" else f"{cell}; truly {100 * share:g} %"
            limit = gate.ALPHA if goal == "false pass" else 0.0
            rows.append(_row(goal, told, n, draws, passed / draws, None, limit, least=goal == "power"))
    return rows


# --- groups of prompts that flip together


def _groups(draws: int, numbers: Numbers) -> list[Row]:
    rows = []
    for groups, size in ((20, 10), (100, 10), (200, 5), (500, 2)):
        for alike in (0.0, 0.5, 1.0):
            for flips, margin in ((0.08, 0.03), (0.20, 0.05)):
                cell = f"{groups} groups of about {size}, alike {alike:g}, {100 * flips:g} % flips, margin {100 * margin:g}"
                passed, failed, naive = _group_rates(groups, size, alike, flips, margin, margin, draws, numbers)
                rows.append(_row("false pass", cell, groups * size, draws, passed, naive, gate.ALPHA))
                _, failed, _ = _group_rates(groups, size, alike, flips, 0.9 * margin, margin, draws, numbers)
                rows.append(_row("false fail", f"{cell}, loss 0.9", groups * size, draws, failed, None, gate.ALPHA))
                passed, _, naive = _group_rates(groups, size, alike, flips, 0.0, margin, draws // 4, numbers)
                rows.append(_row("power", f"{cell}, loss 0", groups * size, draws // 4, passed, naive, 0.0, least=True))
    return rows


def _group_rates(
    groups: int, size: int, alike: float, flips: float, loss: float, margin: float, draws: int, numbers: Numbers
) -> tuple[float, float, float]:
    """Rates of pass, fail, and pass with prompts for groups; sizes 1 to 2 size - 1, a prompt flips as its group or by itself."""
    shares = [(flips + loss) / 2, (flips - loss) / 2, 1 - flips]
    passed = failed = naive = 0
    for _ in range(draws):
        place = np.repeat(np.arange(groups), numbers.integers(1, 2 * size, groups))
        own = numbers.choice(3, len(place), p=shares)
        change = np.where(numbers.random(len(place)) < alike, numbers.choice(3, groups, p=shares)[place], own)
        lost, won = change == 0, change == 1
        lo, hi = clusters.paired_bounds(lost, won, place.tolist(), ALPHA)
        passed += hi <= margin
        failed += lo > margin
        naive += gate.paired_bounds(int(lost.sum()), int(won.sum()), len(place), gate.ALPHA)[1] <= margin
    return passed / draws, failed / draws, naive / draws


# --- likelihoods


def _per_token(losses: Callable[[Numbers, int], Floats]) -> Draw:
    """Prompts of 4 to 63 tokens."""

    def draw(numbers: Numbers, n: int) -> tuple[Floats, Floats]:
        counts = numbers.integers(4, LONGEST + 1, n).astype(float)
        return counts * losses(numbers, n), counts

    return draw


def _long_lose_more(exponent: float, most: float) -> Draw:
    """Prompts of 10 tokens and more, Pareto-distributed, that lose for each token in proportion to their length."""
    lengths = np.minimum(np.floor(10 * (1 + np.random.default_rng(0).pareto(exponent, 2_000_000))), most)
    scale = LIMIT * lengths.sum() / (lengths**2).sum()

    def draw(numbers: Numbers, n: int) -> tuple[Floats, Floats]:
        counts = np.minimum(np.floor(10 * (1 + numbers.pareto(exponent, n))), most)
        return scale * counts**2 * numbers.gamma(4.0, 0.25, n), counts

    return draw


def _blocks(numbers: Numbers, texts: int, blocks: int) -> Floats:
    """[texts, blocks]: losses per token of blocks of 512 tokens, log-normal (s = 0.7), autocorrelated by 0.6 within a text."""
    state = numbers.normal(size=texts)
    found = []
    for _ in range(blocks):
        found.append(LIMIT * np.exp(0.7 * state - 0.245))
        state = 0.6 * state + 0.8 * numbers.normal(size=texts)
    return np.stack(found, axis=1)


def _texts(numbers: Numbers, n: int) -> tuple[Floats, Floats]:
    return 512.0 * _blocks(numbers, n, 10).sum(axis=1), np.full(n, 5120.0)


# Name: (draw, most tokens of a cluster, whether its power is to be kept).
KINDS: dict[str, tuple[Draw, float, bool]] = {
    "normal": (_per_token(lambda numbers, n: numbers.normal(LIMIT, 0.6 * LIMIT, n)), LONGEST, True),
    "exponential": (_per_token(lambda numbers, n: numbers.exponential(LIMIT, n)), LONGEST, True),
    "log-normal, s 1": (_per_token(lambda numbers, n: LIMIT * numbers.lognormal(-0.5, 1.0, n)), LONGEST, True),
    "log-normal, s 1.5": (_per_token(lambda numbers, n: LIMIT * numbers.lognormal(-1.125, 1.5, n)), LONGEST, False),
    "1 % at 50 times": (
        _per_token(
            lambda numbers, n: LIMIT / 1.49 * np.where(numbers.random(n) < 0.01, 50.0, 1.0) * numbers.gamma(4, 0.25, n)
        ),
        LONGEST,
        False,
    ),
    "long lose more, Pareto 1.5": (_long_lose_more(1.5, 512.0), 512.0, False),
    "long lose more, Pareto 2.5": (_long_lose_more(2.5, 2000.0), 2000.0, False),
    "texts of 10 blocks": (_texts, 5120.0, False),
}
# (clusters, share of prompts that may be far off): the default needs 300 prompts, fewer need a recipe that allows more.
ROOMS = ((100, 0.01), (100, 0.03), (300, 0.01), (1000, 0.01))


def _likelihoods(draws: int, seed: int) -> list[Row]:
    rows = []
    for place, (kind, (draw, longest, kept)) in enumerate(KINDS.items()):
        for n, share in ROOMS:
            if share > 0.01 and not kept:
                continue
            numbers = np.random.default_rng([seed, 5, place, n])
            cell = f"{kind}, {100 * share:g} % far off"
            told = [_judge(*draw(numbers, n), share, ALPHA, longest) for _ in range(draws)]
            rows.append(_row("false pass", cell, n, draws, _part(told, 0), _part(told, 2), gate.ALPHA))
            sums = [draw(numbers, n) for _ in range(draws)]
            failed = [_lower(0.9 * one, counts) > LIMIT for one, counts in sums]
            rows.append(_row("false fail", f"{cell}, loss 0.9", n, draws, float(np.mean(failed)), None, gate.ALPHA))
            half = [_judge(0.5 * one, counts, share, ALPHA, longest) for one, counts in sums[: max(draws // 4, 25)]]
            possible = kept and (1 - share) ** n <= ALPHA
            least = KEPT * _part(half, 2) if possible else 0.0
            rows.append(
                _row("power", f"{cell}, loss 0.5", n, len(half), _part(half, 0), _part(half, 2), least, least=True)
            )
        later, numbers = gate.alpha_for(2), np.random.default_rng([seed, 6, place])
        told = [_judge(*draw(numbers, 1000), 0.01, later, longest) for _ in range(draws)]
        rows.append(_row("false pass", f"{kind}, second look", 1000, draws, _part(told, 0), _part(told, 2), later))
    return [*rows, _one_text(draws, np.random.default_rng([seed, 7]))]


def _part(told: list[tuple[bool, bool, bool]], index: int) -> float:
    return sum(one[index] for one in told) / len(told)


def _judge(sums: Floats, counts: Floats, share: float, alpha: float, longest: float) -> tuple[bool, bool, bool]:
    """Whether mean and share pass together, the mean alone, and by the rule before: the mean, however its loss is spread."""
    far = int((sums > FAR * LIMIT * counts).sum())
    # Student's bound is part of the mean's: where it is beyond the limit, no resampling brings it back.
    ratio = sums.sum() / counts.sum()
    error = (sums - ratio * counts).std(ddof=1) / counts.mean() / math.sqrt(len(sums))
    if ratio + gate.t_quantile(1 - alpha, len(sums) - 1) * error > LIMIT:
        return False, False, False
    # The rule before had no exact bound for later looks: it resampled further than its draws tell.
    before = gate.ratio_bounds(sums, counts, max(alpha, 2.1 * 5 / 4000))[2] <= LIMIT
    if not before:
        return False, False, False
    most = FAR * LIMIT
    mean = gate.ratio_bounds(sums, counts, alpha, most=most, longest=longest)[2] <= LIMIT
    mean = mean and not gate.is_long_tailed(sums, counts, LIMIT, alpha, most=most, longest=longest)
    return mean and gate.proportion_bounds(far, len(sums), alpha)[1] <= share, mean, before


def _lower(sums: Floats, counts: Floats) -> float:
    """The lower bound; -inf without resampling where the loss itself is within the limit."""
    return gate.ratio_bounds(sums, counts, ALPHA)[1] if sums.sum() > LIMIT * counts.sum() else -math.inf


def _one_text(draws: int, numbers: Numbers) -> Row:
    """One running text of 300 blocks: one cluster, which proves nothing; before: 300."""
    passed = before = 0
    for _ in range(draws):
        losses = _blocks(numbers, 1, 300)[0]
        own = clusters.indices(["one text"] * 300)
        passed += (
            gate.ratio_bounds(np.bincount(own, weights=512 * losses).astype(float), np.bincount(own) * 512.0, ALPHA)[2]
            <= LIMIT
        )
        if losses.mean() < LIMIT:
            before += gate.ratio_bounds(512 * losses, np.full(300, 512.0), gate.ALPHA)[2] <= LIMIT
    return _row("false pass", "one running text of 300 blocks", 1, draws, passed / draws, before / draws, gate.ALPHA)


def show(rows: list[Row]) -> None:
    """The table, goals met and missed."""
    wide = max(len(row["cell"]) for row in rows)
    lines = [f"rates in %\n{'goal':<10}  {'cell':<{wide}}     n  draws    gate  before   limit"]
    for row in rows:
        before = "     -" if row["before"] is None else f"{100 * row['before']:6.2f}"
        lines.append(
            f"{row['goal']:<10}  {row['cell']:<{wide}}  {row['n']:>4}  {row['draws']:>5}  {100 * row['rate']:6.2f}  {before}"
            f"  {100 * row['limit']:6.2f}  {'met' if row['met'] else 'MISSED'}"
        )
    missed = sum(not row["met"] for row in rows)
    lines.append(f"{len(rows) - missed} of {len(rows)} goals met")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
