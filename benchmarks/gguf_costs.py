"""How much longer this CPU multiplies by each GGUF type than by q4_k: the figures of edgekit.formats.gguf.mixed.allocate.COSTS.

Goal: of mixtures that were kept out of the fit, the decoding times that the figures predict are within 2 % (median).

Decodes of the trained Llama of train_tiny_llama.py in random mixtures of types, each interleaved with Q4_K_M, on one thread.
Every type takes some time per weight and some per row more than q4_k (or less); a linear fit of least absolute deviations, by
iterated reweighting, finds them. No text is judged.

Usage: python benchmarks/gguf_costs.py [--cache FOLDER] [--data ../shared/data] [--mixtures 120] [--pairs 30] [--json]
Exit code 1 where the goal is missed. Run it on an idle machine; 120 mixtures take about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gguf_quality import PROMPT, Bench, decode, say  # noqa: E402
from train_tiny_llama import SHARED, default_cache, tiny_llama  # noqa: E402

from edgekit.formats.gguf.mixed.allocate import role_of  # noqa: E402
from edgekit.formats.gguf.schemes import TOKEN_EMBEDDING, Shape, quantizable  # noqa: E402
from edgekit.formats.gguf.tensors import shapes as shapes_of  # noqa: E402
from edgekit.runtimes import llamacpp, machine  # noqa: E402

GOAL = 0.02
KINDS = ("q4_k", "q4_0", "iq4_nl", "q5_k", "q6_k", "q8_0")
# Of the layers of a role, how many get the role's type; the others get any.
ALIKE = 0.85
ROUNDS = 30
Types = Mapping[str, str]
Floats = NDArray[np.float64]


def main() -> int:
    """Measure, fit, show, and say by the exit code whether the fit holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the trained Llama is kept")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--mixtures", type=int, default=120)
    parser.add_argument("--pairs", type=int, default=30, help="interleaved pairs of decodes for each mixture")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekit-costs-") as scratch:
        bench = Bench(tiny_llama(asked.cache, asked.data), asked.data, Path(scratch), threads=1, blocks=4)
        shapes = {
            one.name: one
            for one in shapes_of(bench.tensors.values())
            if quantizable(one) and one.name != TOKEN_EMBEDDING
        }
        base = bench.types("q4_k_m", {name: np.ones(0, np.float32) for name in bench.tensors})
        tried, more, whole = measure(bench, shapes, base, asked.mixtures, asked.pairs)
    found = fit(shapes, base, tried, more, whole)
    found |= {"machine": machine.describe(), "goals": [{"limit": GOAL, "met": found["error"] <= GOAL}]}
    print(json.dumps(found, indent=2) if asked.json else table(found))
    return 0 if found["error"] <= GOAL else 1


def measure(
    bench: Bench, shapes: Mapping[str, Shape], base: Types, count: int, pairs: int
) -> tuple[list[Types], Floats, float]:
    """Random mixtures, the seconds by which a token of each takes longer than Q4_K_M's, and what that takes (medians)."""
    numbers = np.random.default_rng(0)
    prompt = np.array(bench.blocks["verify"][0][:PROMPT])
    reference = llamacpp.generator(bench.write("base", base, {}), {"threads": 1})
    tried: list[Types] = []
    more, whole = [], []
    for number in range(count):
        common = {role_of(name): str(numbers.choice(KINDS)) for name in sorted(shapes)}
        types = {
            name: common[role_of(name)] if numbers.random() < ALIKE else str(numbers.choice(KINDS))
            for name in sorted(shapes)
        }
        decoder = llamacpp.generator(bench.write("tried", {**base, **types}, {}), {"threads": 1})
        times: dict[bool, list[float]] = {False: [], True: []}
        for pair in range(pairs + 1):
            for own in (True, False) if pair % 2 else (False, True):
                times[own].append(1 / decode(decoder if own else reference, prompt))
        decoder.close()
        # The first pair warms up.
        ratio = float(np.median(np.array(times[True][1:]) / np.array(times[False][1:])))
        whole.append(statistics.median(times[False][1:]))
        more.append(ratio - 1)
        tried.append(types)
        say(f"{number + 1}/{count}: {ratio:.3f} of Q4_K_M's time")
    reference.close()
    second = statistics.median(whole)
    return tried, np.array(more) * second, second


def fit(shapes: Mapping[str, Shape], base: Types, tried: Sequence[Types], more: Floats, whole: float) -> dict[str, Any]:
    """{costs: {type: [picoseconds a weight, nanoseconds a row]}, error: of held-out mixtures, tokens_per_second: Q4_K_M's}."""
    rows = np.array([count(shapes, types) for types in tried]) - count(shapes, base)
    held = np.arange(len(tried)) % 5 == 0
    solved = np.linalg.lstsq(rows[~held], more[~held], rcond=None)[0]
    for _ in range(ROUNDS):
        weight = 1 / np.sqrt(np.maximum(np.abs(rows[~held] @ solved - more[~held]), whole / 1000))
        solved = np.linalg.lstsq(rows[~held] * weight[:, None], more[~held] * weight, rcond=None)[0]
    errors = np.abs(rows[held] @ solved - more[held]) / (whole + more[held])
    costs = {kind: [solved[2 * at] * 1e12, solved[2 * at + 1] * 1e9] for at, kind in enumerate(KINDS[1:])}
    return {"costs": {KINDS[0]: [0.0, 0.0], **costs}, "error": float(np.median(errors)), "tokens_per_second": 1 / whole}


def count(shapes: Mapping[str, Shape], types: Types) -> Floats:
    """Weights and rows in each type but the first, in the order of the fitted figures."""
    found = []
    for kind in KINDS[1:]:
        those = [shape for name, shape in shapes.items() if types[name] == kind]
        found += [sum(one.rows * one.columns for one in those), sum(one.rows for one in those)]
    return np.array(found, np.float64)


def table(found: Mapping[str, Any]) -> str:
    """For people."""
    lines = [f"{'type':8} {'ps a weight':>12} {'ns a row':>10}   more than q4_k"]
    lines += [f"{kind:8} {weight:>12.1f} {row:>10.1f}" for kind, (weight, row) in found["costs"].items()]
    state = "met" if found["goals"][0]["met"] else "MISSED"
    return "\n".join([*lines, f"error of held-out mixtures: {found['error']:.1%}, goal {GOAL:.0%}: {state}"])


if __name__ == "__main__":
    sys.exit(main())
