"""One prepared run on a machine with a GPU: does what edgekit builds for it run there, and as fast as it should?

Goals:
- onnxruntime's provider and llama.cpp each take the work of a session of a second;
- on a target that `edgekit targets probe` writes of this very machine the demo's student (ONNX, fp16) and code-llama-46m (GGUF
  q8_0, and ONNX w8 with a 16-bit cache) are built and judged: no check fails, and `provider` and `offload` pass;
- a call of the demo's student as its bundle makes it (CUDA graphs, with the copies there and back) takes at most 1.3 times what
  torch's CUDA graph of the same student in fp16 takes, in turns, on the same 32 tokens;
- all of it in at most five minutes.

Without a GPU that an engine uses nothing is measurable: it says why, and ends with exit code 1.

Usage: python benchmarks/laptop_gpu.py [--data ../shared/data] [--answers 40] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import real_models

from edgekit.bundle.open import load_bundle, open_bundle
from edgekit.devices import LocalDevice
from edgekit.probes.proof import ask
from edgekit.runtimes.proof import fault

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 5.0
# A call through the bundle by torch's CUDA graph; tokens of it; calls of each, in turns.
GRAPH_RATIO, TOKENS, CALLS = 1.3, 32, 300
# Both in 16 bits: what logits may differ by.
APART = 0.05
# The first that this machine's onnxruntime has, of those that a target can be probed with.
PROVIDERS = ("CUDAExecutionProvider", "DmlExecutionProvider", "WebGpuExecutionProvider")
PLACED = ("provider", "offload")
GRAPHS = "demo, CUDA graphs"


def prove() -> dict[str, str]:
    """What each engine says of the GPU; "" where it takes the work there."""
    found = {}
    with LocalDevice({}) as device:
        plain = ask(device, "onnxruntime", {})
        provider = next((name for name in PROVIDERS if name in plain.get("available", ())), PROVIDERS[0])
        for runtime, options in (("onnxruntime", {"provider": provider}), ("llama-cpp", {"gpu_layers": -1})):
            wrong = fault(runtime, ask(device, runtime, options))
            found[runtime] = "" if wrong is None else str(wrong)
    return found


def build(folder: Path, target: Path, *, recipe: list[str], choice: list[str]) -> dict[str, object]:
    """The verdict of one build on the target: its checks by name, and seconds."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "edgekit", "build", *recipe, "--target", str(target), *choice, "--json"]
    places = {"EDGEKIT_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*command, "--out", str(folder / "dist")], env=os.environ | places, capture_output=True, text=True, check=False
    )
    try:
        answer = json.loads(ended.stdout)
    except ValueError:
        last = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "")
        return {"verdict": "error", "why": last[:300], "exit_code": ended.returncode}
    made = (answer.get("bundles") or [{"error": answer.get("error")}])[0]
    if made.get("report") is None:
        return {"verdict": "error", "why": str(made.get("error"))[:300], "exit_code": ended.returncode}
    report = json.loads(Path(made["report"]).read_text(encoding="utf-8"))
    return {
        "verdict": report["verdict"],
        "checks": {check["name"]: check["verdict"] for check in report["checks"]},
        "exit_code": ended.returncode,
        "seconds": round(time.perf_counter() - begun, 1),
        "archive": made["archive"],
    }


def graphs(folder: Path) -> dict[str, object]:
    """Median milliseconds of a call of the demo's student, through its bundle and by torch's CUDA graph."""
    import numpy as np
    import torch

    if not torch.cuda.is_available():
        return {"why": f"torch {torch.__version__} finds no CUDA GPU here"}
    (bundle,) = (path.parent for path in (folder / "dist").glob("assistant-*/bound.py"))
    (student,) = (path.parent for path in (folder / "cache" / "distill").glob("*/config.json"))
    session = vars(load_bundle(open_bundle(bundle), bundle))["session"]
    ids = np.arange(1, TOKENS + 1, dtype=np.int64)[None]
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    feeds = {value.name: known[value.name] for value in session.get_inputs()}
    calls = {"bundle": lambda: session.run(None, feeds)[0], "torch": torch_graph(student, ids)}
    answers = {name: call() for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(CALLS):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - begun))
    ms = {name: round(statistics.median(one[20:]), 4) for name, one in times.items()}
    return {
        "ms": ms,
        "ratio": round(ms["bundle"] / ms["torch"], 3),
        "without": session.why,
        "apart": float(np.abs(answers["bundle"] - answers["torch"]).max()),
    }


def torch_graph(student: Path, ids: NDArray[np.int64]) -> Callable[[], NDArray[np.float32]]:
    """A call of a classifier's checkpoint in fp16: copies there, the replay of a CUDA graph, the logits back (docs.pytorch.org,
    "CUDA semantics", "CUDA Graphs": warmed up on a stream of its own, recorded, replayed)."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(student, dtype=torch.float16).eval().cuda()
    given, read = torch.from_numpy(ids), torch.from_numpy(ids).cuda()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):
            model(input_ids=read)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        logits = model(input_ids=read).logits

    def call() -> NDArray[np.float32]:
        read.copy_(given)
        graph.replay()
        answer: NDArray[np.float32] = logits.float().cpu().numpy()
        return answer

    return call


def run(folder: Path, asked: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Probe this machine, and build each of the three for it."""
    probe = [sys.executable, "-m", "edgekit", "targets", "probe", "this-laptop", "--out", str(folder), "--busy"]
    subprocess.run(probe, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, stdout=subprocess.DEVNULL)
    code = folder / "code"
    code.mkdir()
    real_models.code_llama(code, real_models.Asked(data=asked.data, smollm2=None, prompts=0, answers=asked.answers))
    own = ["--recipe", str(code / "recipe.toml")]
    target, cached = folder / "this-laptop.toml", folder / "this-laptop-f16.toml"
    own_export = "[export.text-generation]\n"
    text = target.read_text(encoding="utf-8")
    head, _, tail = text.partition(own_export)
    _, between, rest = tail.partition("\n[")
    onnx = 'format = "onnx"\nscheme = "w8"\ncache = "f16"\n'
    cached.write_text(head + own_export + onnx + between + rest, encoding="utf-8")
    demo = build(folder, target, recipe=["--example", "assistant"], choice=["--scheme", "fp16"])
    return {
        "demo, ONNX fp16": demo,
        GRAPHS: graphs(folder) if demo.get("archive") else {"why": "the demo was not built"},
        "code-llama-46m, GGUF": build(folder, target, recipe=own, choice=["--format", "gguf", "--scheme", "q8_0"]),
        "code-llama-46m, ONNX": build(folder, cached, recipe=own, choice=[]),
    }


def main() -> int:
    """Measure, print a table or one JSON object, and return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=real_models.SHARED, help="the folder that has code-llama-46m")
    parser.add_argument("--answers", type=int, default=40, help="prompts that code-llama-46m is judged on")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    begun = time.perf_counter()
    engines = prove()
    builds: dict[str, dict[str, object]] = {}
    measurable = not all(engines.values())
    if measurable:
        with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
            builds = run(Path(scratch), asked)
    minutes = (time.perf_counter() - begun) / 60
    goals = {
        "engines": not any(engines.values()),
        "verdicts": bool(builds) and all(_passes(one) for name, one in builds.items() if name != GRAPHS),
        "graphs": _replays(builds.get(GRAPHS, {})),
        "minutes": measurable and minutes <= MINUTES,
    }
    if asked.json:
        print(json.dumps({"measurable": measurable, "engines": engines, "builds": builds, "goals": goals}, indent=1))
    else:
        for name, why in engines.items():
            print(f"{name:24} {why or 'computes on the GPU'}")
        for name, one in builds.items() if builds else [(GRAPHS, "no GPU here")]:
            print(f"{name:24} {one}")
        print(f"{minutes:.1f} minutes" if measurable else "not measurable: no engine here computes on a GPU")
    return 0 if all(goals.values()) else 1


def _replays(one: dict[str, object]) -> bool:
    """Whether graphs were replayed, right, and as fast as they should be."""
    ratio, apart = one.get("ratio"), one.get("apart")
    if not isinstance(ratio, float) or not isinstance(apart, float):
        return False
    return one["without"] == "" and ratio <= GRAPH_RATIO and apart < APART


def _passes(one: dict[str, object]) -> bool:
    checks = one.get("checks")
    if not isinstance(checks, dict) or "fail" in checks.values():
        return False
    return all(checks[name] == "pass" for name in PLACED if name in checks)


if __name__ == "__main__":
    raise SystemExit(main())
