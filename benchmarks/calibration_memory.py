"""How much memory does calibration take, and does it grow with the prompts?

Goals:
- flat: peak memory at 3,200 prompts <= 1.1x that at 200
- lean: at 3,200 prompts <= 1.25x that of plain float inference over the same prompts
- padding: batches of one and padded batches give the same ranges, within 1e-4 of each layer's largest value

Beside them onnxruntime's own MinMax and Entropy calibrators on the same model and prompts, padded to 128 tokens as its
examples do. Every figure is the peak resident memory of a process of its own; the processes run one after the other.
Usage: python benchmarks/calibration_memory.py [--prompts 200 3200] [--peer-prompts 50 200] [--peer-limit-gb 10] [--json]
Exit code 1 where a goal is missed, 2 where the data is absent.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.modalities.encoded import Encoded

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SHARED = ROOT.parent / "shared" / "data"
TASK = "text-classification"
MAX_LENGTH, BATCH, PADDED = 64, 16, 128
FLAT, LEAN, SAME = 1.10, 1.25, 1e-4


def main() -> int:
    """Measure, show, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SHARED / "banking77-teacher", help="a classifier's folder")
    parser.add_argument(
        "--texts", type=Path, default=SHARED / "banking77" / "train.csv", help="a CSV with a text column"
    )
    parser.add_argument("--prompts", type=int, nargs=2, default=(200, 3200), metavar=("FEW", "MANY"))
    parser.add_argument("--peer-prompts", type=int, nargs="*", default=(50, 200))
    parser.add_argument("--peer-limit-gb", type=float, default=10.0, help="address space of a peer's process")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(json.loads(arguments.child))
    for needed in (arguments.model, arguments.texts):
        if not needed.exists():
            print(f"{needed}: not here; name another with --model or --texts")
            return 2
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(arguments, Path(scratch))
    checks = judge(found, *arguments.prompts)
    if arguments.json:
        print(json.dumps({"measurements": found, "checks": checks}, indent=2))
    else:
        show(found, checks)
    return 0 if all(check["met"] for check in checks) else 1


def measure(arguments: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """One process per figure: {how, prompts, peak_mb, seconds, ...}, or {failed} where it did not end well."""
    few, many = arguments.prompts
    with arguments.texts.open(encoding="utf-8", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)]
    for count in {few, many, *arguments.peer_prompts}:
        # Spread over the file: it is sorted by class.
        chosen = [texts[place * len(texts) // count] for place in range(count)] if count <= len(texts) else texts
        folder = scratch / str(count)
        folder.mkdir()
        lines = (json.dumps({"text": text, "label": None}) for text in chosen)
        (folder / "calibrate.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    plan = [("float inference", count, BATCH) for count in (few, many)]
    plan += [("edgekit", count, BATCH) for count in (few, many)] + [("edgekit", few, 1)]
    if arguments.peer_prompts:
        plan.append(("onnx export", few, 1))
    plan += [(how, count, BATCH) for how in ("MinMax", "Entropy") for count in arguments.peer_prompts]
    found = []
    for how, count, batch in plan:
        request = {"how": how, "prompts": count, "batch": batch, "model": str(arguments.model), "scratch": str(scratch)}
        if how in {"MinMax", "Entropy"}:
            request["limit_gb"] = arguments.peer_limit_gb
        command = [sys.executable, __file__, "--child", json.dumps(request)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 and done.stdout else {}
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        found.append({"how": how, "prompts": count, "batch": batch} | (told or {"failed": reason[:100]}))
    compare = {"how": "compare", "few": few, "scratch": str(scratch)}
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(compare)], capture_output=True, text=True, check=True
    )
    return [*found, {"how": "padding", "prompts": few, **json.loads(done.stdout.splitlines()[-1])}]


def judge(found: list[dict[str, Any]], few: int, many: int) -> list[dict[str, Any]]:
    """The goals, each with what was measured."""
    peak = {
        (one["how"], one["prompts"]): one.get("peak_mb", float("nan")) for one in found if one.get("batch") == BATCH
    }
    apart = next(one["largest_difference"] for one in found if one["how"] == "padding")
    measured = (
        (f"{many} prompts to {few}", peak["edgekit", many] / peak["edgekit", few], FLAT),
        (f"edgekit to float inference, {many} prompts", peak["edgekit", many] / peak["float inference", many], LEAN),
        ("padded to unpadded, largest difference of a range", apart, SAME),
    )
    return [{"goal": goal, "measured": value, "limit": limit, "met": value <= limit} for goal, value, limit in measured]


def show(found: list[dict[str, Any]], checks: list[dict[str, Any]]) -> None:
    """Two tables for people."""
    print(f"{'':18}{'prompts':>8}{'batch':>7}{'peak MB':>10}{'seconds':>9}")
    for one in found:
        if one["how"] not in {"padding", "onnx export"}:
            figures = one.get("failed") or f"{one['peak_mb']:10.0f}{one['seconds']:9.1f}"
            print(f"{one['how']:18}{one['prompts']:8}{one['batch']:7}{figures}")
    print()
    for check in checks:
        verdict = "met" if check["met"] else "MISSED"
        print(f"{check['goal']:52}{check['measured']:12.3g}   limit {check['limit']:<8g}{verdict}")


def child(request: dict[str, Any]) -> int:
    """Do one thing in this process and print what it took as JSON."""
    import resource

    if "limit_gb" in request:
        most = int(request["limit_gb"] * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    begun = time.monotonic()
    more = WORK[request["how"]](request)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mb = peak / 2**20 if sys.platform == "darwin" else peak / 2**10
    print(json.dumps({"peak_mb": peak_mb, "seconds": time.monotonic() - begun, **more}))
    return 0


def encode(request: dict[str, Any]) -> Encoded:
    """The prompts' token ids."""
    from edgekit.modalities.text import of_tokens
    from edgekit.model import load_model
    from edgekit.prompts import PromptSet

    rows = PromptSet(folder=Path(request["scratch"]) / str(request["prompts"])).split("calibrate")
    ids = load_model(Path(request["model"])).encode([row.text for row in rows], MAX_LENGTH)
    return of_tokens(ids, 0)


def run_float(request: dict[str, Any]) -> dict[str, Any]:
    """Plain inference in torch, the batches that calibration uses."""
    from edgekit.tasks import TASKS, outputs

    return {"rows": len(outputs(TASKS[TASK].load(Path(request["model"])), encode(request), batch=request["batch"]))}


def run_edgekit(request: dict[str, Any]) -> dict[str, Any]:
    """edgekit calibrate."""
    from edgekit.calibrate import CalibrateInputs, calibrate
    from edgekit.inputs import Content
    from edgekit.recipe import Calibrate

    scratch = Path(request["scratch"])
    out = scratch / f"calibration-{request['prompts']}-{request['batch']}"
    out.mkdir()
    prompts = scratch / str(request["prompts"])
    inputs = CalibrateInputs(
        student=Content(path=Path(request["model"]), digest=""),
        prompts=Content(path=prompts, digest=""),
        task=TASK,
        options=Calibrate(batch=request["batch"]),
        max_length=MAX_LENGTH,
        seed=0,
        gradients=False,
    )
    facts = calibrate(inputs, out)
    return {"layers": facts["layers"], "bytes": (out / "calibration.npz").stat().st_size}


def export_onnx(request: dict[str, Any]) -> dict[str, Any]:
    """The float model for the peers."""
    import torch

    from edgekit.modalities.text import of_tokens
    from edgekit.tasks import TASKS, tensors

    inputs = tensors(of_tokens([[101, 2003, 102], [101, 102]], 0).batch())
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        TASKS[TASK].load(Path(request["model"])),
        tuple(inputs.values()),
        dynamo=True,
        input_names=list(inputs),
        dynamic_shapes=(axes, axes),
        verbose=False,
    )
    assert program is not None
    program.save(str(Path(request["scratch"]) / "model.onnx"))
    return {}


def run_peer(request: dict[str, Any]) -> dict[str, Any]:
    """onnxruntime's calibrator of that name over the same prompts, one padded text at a time."""
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    from edgekit.modalities.text import token_ids

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = feeds()

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    def feeds() -> Iterator[dict[str, Any]]:
        for row in token_ids(encode(request)):
            short = PADDED - len(row)
            yield {
                "input_ids": np.array([row + [0] * short], dtype=np.int64),
                "attention_mask": np.array([[1] * len(row) + [0] * short], dtype=np.int64),
            }

    scratch = Path(request["scratch"])
    calibrator = create_calibrator(
        scratch / "model.onnx",
        ["MatMul", "Gemm"],
        augmented_model_path=str(scratch / f"augmented-{request['how']}-{request['prompts']}.onnx"),
        calibrate_method=CalibrationMethod[request["how"]],
    )
    calibrator.collect_data(Reader())
    return {"tensors": len(calibrator.compute_data().keys())}


def compare(request: dict[str, Any]) -> dict[str, Any]:
    """The largest difference of a layer's per-channel ranges between batches of one and padded ones, in units of its peak."""
    import numpy as np

    from edgekit.calibration import load_calibration

    one, many = (
        load_calibration(Path(request["scratch"]) / f"calibration-{request['few']}-{batch}").stats
        for batch in (1, BATCH)
    )
    apart = 0.0
    for key, stats in one.items():
        peak = max(float(np.abs(stats.minimum).max()), float(np.abs(stats.maximum).max()))
        for name in ("minimum", "maximum"):
            apart = max(apart, float(np.abs(getattr(stats, name) - getattr(many[key], name)).max()) / peak)
    return {"largest_difference": apart}


WORK = {
    "float inference": run_float,
    "edgekit": run_edgekit,
    "onnx export": export_onnx,
    "MinMax": run_peer,
    "Entropy": run_peer,
    "compare": compare,
}

if __name__ == "__main__":
    sys.exit(main())
