"""How often is the gate wrong? The error rates of the paired accuracy gate, by resampling.

Goals, each within three Monte-Carlo standard errors:
- false pass: with a true loss at the margin, pass in at most 5 %, for n in {100, 1000, 3000} and flips {1, 2, 4, 10 %}
- false alarm: exchangeable pairs (equal accuracy, real flips) have lo > 0 in at most 5 %
- power: at zero loss, n = 1000, 1 % flips and a margin of 1 point, pass in at least 80 %
- false pass, ratio: a mean loss per token over prompts of 4 to 63 tokens (KL divergence, likeliest tokens), truly at its margin,
  passes in at most 6 % with 40 and 100 prompts, also where few prompts have most of the loss

Beside each: Tango's bound as published, without the continuity correction, on the same draws; of ratios the percentile bootstrap.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edgekit.verify import gate

SIZES = (100, 1000, 3000)
FLIPS = (0.01, 0.02, 0.04, 0.10)
MARGINS = (0.01, 0.03)
POWER = 0.80
# No bound that knows no distribution is exact for ratios.
RATIO_LIMIT = 0.06
CLUSTERS = (40, 100)

Event = Callable[[int, int], bool]
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def _per_token(losses: Callable[[np.random.Generator, int], np.ndarray]) -> Draw:
    """Sums and counts of prompts whose losses per token have the mean 0.05."""

    def draw(numbers: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        counts = numbers.integers(4, 64, n).astype(float)
        return counts * losses(numbers, n), counts

    return draw


def _changed(numbers: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Changed tokens of prompts that change 5 % of them, most of them none."""
    counts = numbers.integers(4, 64, n)
    return numbers.binomial(counts, numbers.beta(0.5, 9.5, n)).astype(float), counts.astype(float)


LOSS = 0.05
RATIOS: dict[str, Draw] = {
    "normal": _per_token(lambda numbers, n: numbers.normal(LOSS, 0.6 * LOSS, n)),
    "exponential": _per_token(lambda numbers, n: numbers.exponential(LOSS, n)),
    "log-normal": _per_token(lambda numbers, n: LOSS * numbers.lognormal(-0.5, 1.0, n)),
    "changed tokens": _changed,
}


def main() -> int:
    """Measure, show, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resamplings", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = measure(asked.resamplings, np.random.default_rng(asked.seed))
    if asked.json:
        sys.stdout.write(json.dumps({"resamplings": asked.resamplings, "seed": asked.seed, "rows": rows}) + "\n")
    else:
        show(rows, asked.resamplings)
    return 0 if all(row["met"] for row in rows) else 1


def measure(resamplings: int, numbers: np.random.Generator) -> list[dict[str, Any]]:
    """One row per goal, size and flip rate: {goal, n, flips, margin, rate, uncorrected, limit, met}."""
    rows = []
    for n in SIZES:
        for flips in FLIPS:
            # A loss of 3 points needs 3 % of flips at least, all of them to the wrong side.
            possible = [margin for margin in MARGINS if margin <= flips]
            rows += [_row("false pass", n, flips, margin, margin, resamplings, numbers) for margin in possible]
            rows.append(_row("false alarm", n, flips, None, 0.0, resamplings, numbers))
    rows.append(_row("power", 1000, 0.01, 0.01, 0.0, resamplings, numbers))
    # A ratio's bound is a thousand times dearer than a count's.
    draws = max(resamplings // 10, 100)
    rows += [
        _ratio_row(name, n, draws, np.random.default_rng([n, place]))
        for n in CLUSTERS
        for place, name in enumerate(RATIOS)
    ]
    return rows


def _ratio_row(name: str, n: int, draws: int, numbers: np.random.Generator) -> dict[str, Any]:
    passed = percentile = 0
    picks = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=1000).astype(float)
    for _ in range(draws):
        sums, counts = RATIOS[name](numbers, n)
        passed += gate.ratio_bounds(sums, counts)[2] <= LOSS
        percentile += np.quantile((picks @ sums) / (picks @ counts), 1 - gate.ALPHA) <= LOSS
    error = 3 * math.sqrt(RATIO_LIMIT * (1 - RATIO_LIMIT) / draws)
    return {
        "goal": f"false pass, {name}",
        "n": n,
        "flips": None,
        "margin": LOSS,
        "rate": passed / draws,
        "uncorrected": percentile / draws,
        "limit": RATIO_LIMIT,
        "met": passed / draws <= RATIO_LIMIT + error,
    }


def _row(
    goal: str, n: int, flips: float, margin: float | None, loss: float, resamplings: int, numbers: np.random.Generator
) -> dict[str, Any]:
    shares = [(flips + loss) / 2, (flips - loss) / 2, 1 - flips]
    drawn = numbers.multinomial(n, shares, resamplings)[:, :2]
    outcomes, counts = np.unique(drawn, axis=0, return_counts=True)
    found = {}
    for name, bounds in (("rate", _ours(n)), ("uncorrected", _published(n))):
        event = _event(margin, bounds)
        hits = sum(int(count) for (b, c), count in zip(outcomes, counts, strict=True) if event(int(b), int(c)))
        found[name] = hits / resamplings
    limit = POWER if goal == "power" else gate.ALPHA
    error = 3 * math.sqrt(limit * (1 - limit) / resamplings)
    met = found["rate"] >= limit - error if goal == "power" else found["rate"] <= limit + error
    return {"goal": goal, "n": n, "flips": flips, "margin": margin, **found, "limit": limit, "met": met}


def _event(margin: float | None, bounds: Callable[[int, int], tuple[float, float]]) -> Event:
    """A pass at the margin; without one, a lower bound above zero."""
    if margin is None:
        return lambda b, c: bounds(b, c)[0] > 0.0
    return lambda b, c: bounds(b, c)[1] <= margin


def _ours(n: int) -> Callable[[int, int], tuple[float, float]]:
    return lambda b, c: gate.paired_bounds(b, c, n)


def _published(n: int) -> Callable[[int, int], tuple[float, float]]:
    def bounds(b: int, c: int) -> tuple[float, float]:
        upper = gate.score_upper(b, c, n, gate.ALPHA, 0.0)
        return -gate.score_upper(c, b, n, gate.ALPHA, 0.0), upper

    return bounds


def show(rows: list[dict[str, Any]], resamplings: int) -> None:
    """The table, goals met and missed."""
    lines = [
        f"{resamplings} resamplings each; rates in %",
        "goal                          n  flips  margin   gate  as published   limit",
    ]
    for row in rows:
        margin = "     -" if row["margin"] is None else f"{100 * row['margin']:6.1f}"
        flips = "     -" if row["flips"] is None else f"{100 * row['flips']:6.1f}"
        lines.append(
            f"{row['goal']:<26} {row['n']:>4} {flips}  {margin} {100 * row['rate']:>6.2f}"
            f"  {100 * row['uncorrected']:>12.2f}  {100 * row['limit']:>6.1f}  {'met' if row['met'] else 'MISSED'}"
        )
    missed = sum(not row["met"] for row in rows)
    lines.append(f"{len(rows) - missed} of {len(rows)} goals met")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
