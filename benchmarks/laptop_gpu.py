"""One prepared run on a machine with a GPU: does what edgekit builds for it run there, and as fast as it should?

Goals:
- onnxruntime's provider and llama.cpp each take the work of a session of a second;
- on a target that `edgekit targets probe` writes of this very machine the demo's student (ONNX, fp16) and code-llama-46m (GGUF
  q8_0, and ONNX w8 with a 16-bit cache) are built and judged: no check fails, and `provider` and `offload` pass;
- all of it in at most five minutes.

Without a GPU that an engine uses nothing is measurable: it says why, and ends with exit code 1.

Usage: python benchmarks/laptop_gpu.py [--data ../shared/data] [--answers 40] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import real_models

from edgekit.devices import LocalDevice
from edgekit.probes.proof import ask
from edgekit.runtimes.proof import fault

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 5.0
# The first that this machine's onnxruntime has, of those that a target can be probed with.
PROVIDERS = ("CUDAExecutionProvider", "DmlExecutionProvider", "WebGpuExecutionProvider")
PLACED = ("provider", "offload")


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
    }


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
    return {
        "demo, ONNX fp16": build(folder, target, recipe=["--example", "assistant"], choice=["--scheme", "fp16"]),
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
        "verdicts": bool(builds) and all(_passes(one) for one in builds.values()),
        "minutes": measurable and minutes <= MINUTES,
    }
    if asked.json:
        print(json.dumps({"measurable": measurable, "engines": engines, "builds": builds, "goals": goals}, indent=1))
    else:
        for name, why in engines.items():
            print(f"{name:24} {why or 'computes on the GPU'}")
        for name, one in builds.items():
            print(f"{name:24} {one}")
        print(f"{minutes:.1f} minutes" if measurable else "not measurable: no engine here computes on a GPU")
    return 0 if all(goals.values()) else 1


def _passes(one: dict[str, object]) -> bool:
    checks = one.get("checks")
    if not isinstance(checks, dict) or "fail" in checks.values():
        return False
    return all(checks[name] == "pass" for name in PLACED if name in checks)


if __name__ == "__main__":
    raise SystemExit(main())
