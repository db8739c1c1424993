"""How often does `edgekit compare` name a difference that is not there, and how often does it find one of 10 %? On real times.

Goals:
- false report: one artifact against itself, a difference is reported in at most 6 % of comparisons
- power: against an artifact that does 10 % more of the same work, the slower one is named in at least 90 %, from 400 pairs

The artifacts are chains of equal matrix products in onnxruntime, of 20 and of 22 links; they take turns on this machine in as
many rounds as --rounds says, each in new processes, and a comparison is a draw of ten rounds (no round twice). Against itself a
round's two sides are exchanged by a coin: both are the same, so this is as true a round as the other, and no side has won before.
Usage: python benchmarks/device_compare.py [--rounds 40] [--draws 4000] [--json]; exit code 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edgekit.devices import LocalDevice
from edgekit.probes.turns import Round, take_turns
from edgekit.verify.paired import PAIRS, ROUNDS, interval, log_ratio, verdict

WIDTH, TOKENS, LINKS, MORE = 192, 64, 20, 22
FALSE_REPORTS, FOUND = 0.06, 0.90


def write_chain(path: Path, links: int, width: int = WIDTH) -> Path:
    """An artifact of so many matrix products behind each other, whose answer is a row."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    numbers = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(
            (numbers.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32), f"w{link}"
        )
        for link in range(links)
    ]
    weights.append(numpy_helper.from_array(numbers.standard_normal((8, width)).astype(np.float32), "table"))
    weights.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"))
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["x0"])]
    for link in range(links):
        nodes.append(helper.make_node("MatMul", [f"x{link}", f"w{link}"], [f"y{link}"]))
        nodes.append(helper.make_node("Relu", [f"y{link}"], [f"x{link + 1}"]))
    nodes.append(helper.make_node("ReduceSum", [f"x{links}", "axis"], ["logits"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", width])],
        weights,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def measure(first: Path, second: Path, rounds: int, pairs: int = PAIRS // ROUNDS) -> list[Round]:
    """Real rounds of two artifacts' turns on this machine."""
    sides = [(file, "onnxruntime", {"threads": 1}) for file in (first, second)]
    prompt = {"input_ids": [1 + index % 7 for index in range(TOKENS)]}
    request = {"prompt": prompt, "ids": [], "tokens": False, "first": False}
    with LocalDevice({}) as device:
        return [take_turns(device, sides, {**request, "pairs": pairs, "seed": seed}) for seed in range(rounds)]


def reported(logs: list[float], draws: int, *, exchanges: bool, seed: int = 0) -> dict[str, float]:
    """The share of each verdict over so many draws of ROUNDS rounds."""
    numbers, count = np.random.default_rng(seed), dict.fromkeys(("faster", "slower", "not proven"), 0)
    for _ in range(draws):
        drawn = np.array(logs)[numbers.choice(len(logs), ROUNDS, replace=False)]
        drawn = drawn * numbers.choice((-1.0, 1.0), ROUNDS) if exchanges else drawn
        count[verdict(interval(drawn.tolist())[1])] += 1
    return {name: number / draws for name, number in count.items()}


def run(rounds: int, draws: int) -> list[dict[str, object]]:
    """A row for each comparison."""
    with tempfile.TemporaryDirectory(prefix="edgekit-compare-") as scratch:
        plain = write_chain(Path(scratch, "a", "model.onnx"), LINKS)
        more = write_chain(Path(scratch, "b", "model.onnx"), MORE)
        measured = {"A against A": measure(plain, plain, rounds), "10 % slower": measure(plain, more, rounds)}
    rows: list[dict[str, object]] = []
    for name, each in measured.items():
        logs = [log_ratio(one.ms) for one in each]
        same = name == "A against A"
        shares = reported(logs, draws, exchanges=same)
        wrong = shares["faster"] + shares["slower"]
        ratio, bounds = interval(logs)
        waited = np.mean([seen.get("waited") or 0.0 for one in each for seen in one.neighbours])
        facts = {
            "ratio": ratio,
            "low": bounds[0],
            "high": bounds[1],
            "spread": float(np.std(logs)),
            "waited": float(waited),
        }
        value, goal = (wrong, FALSE_REPORTS) if same else (shares["slower"], FOUND)
        rows.append(
            {"what": name, "value": value, "goal": goal, "met": bool(value <= goal if same else value >= goal), **facts}
        )
    return rows


def main() -> int:
    """Measure, show, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = run(asked.rounds, asked.draws)
    if asked.json:
        sys.stdout.write(json.dumps({"rounds": asked.rounds, "draws": asked.draws, "rows": rows}) + "\n")
    else:
        sys.stdout.write(f"{asked.rounds} rounds of {PAIRS // ROUNDS} pairs, {asked.draws} draws of {ROUNDS} rounds\n")
        head = ("comparison", "reported", "goal", "ratio of all", "spread", "waited", "met")
        sys.stdout.write("{:14} {:>9} {:>8} {:>22} {:>8} {:>8} {:>4}\n".format(*head))
        for row in rows:
            sign = "at most" if row["what"] == "A against A" else "at least"
            ratio = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            sys.stdout.write(
                f"{row['what']:14} {row['value']:9.1%} {sign[3:]:>3} {row['goal']:4.0%} {ratio:>22} {row['spread']:8.3f}"
                f" {row['waited']:8.0%} {'yes' if row['met'] else 'NO':>4}\n"
            )
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
