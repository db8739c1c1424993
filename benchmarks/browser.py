"""How fast is a bundle in a browser, beside the same file in onnxruntime on the same machine, and does it answer alike?

Goals:
- the median call in WebAssembly takes at most 7 times as long as natively, one thread each, at the target's length
- every text has the label that the bundle's own loader gives here. Scores are shown only: where an 8-bit activation lies between
  two steps, the last bit of a float decides, and WebAssembly computes that bit otherwise

Both are timed in turns, each time in a process of its own (Chromium without a window, or Python): the first call, the next nine,
and the median of what follows once the engine is warm, which a browser becomes by translating the module a second time. Times
measured on a busy machine mean little; the ratio is of the medians over rounds.

Usage: python benchmarks/browser.py [--bundle DIR] [--rounds 5] [--json]; without a bundle the assistant is built for the target
`browser`, which takes minutes. Exit code 1 where a goal is missed. Needs Chromium and npm.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from edgekit.bundle.open import check_bundle
from edgekit.devices import Device, open_device
from edgekit.modalities.text import read_shipped
from edgekit.pipeline import run
from edgekit.probes import PROBES, Question
from edgekit.probes.lines import Calls, First, Load
from edgekit.probes.web import LOADER
from edgekit.probes.web.npm import PACKAGES, fetch_packages
from edgekit.runtimes.request import Timing
from edgekit.verify.measurements import ask_rows

ROOT = Path(__file__).resolve().parents[1]
RATIO = 7.0
LENGTH = 32
TIMING: Timing = {"warmup": 0, "repeats": 300, "least": 100, "seconds": 8.0}
KINDS: Mapping[str, Mapping[str, object]] = {"native": {"kind": "local"}, "browser": {"kind": "browser"}}
APP = """
export async function main(io) {
  const [bundle, packages, texts, loader] = io.args;
  const ort = await import(new URL(`${packages}/onnxruntime-web/ort.wasm.min.mjs`, io.root));
  const { Tokenizer } = await import(new URL(`${packages}/tokenizers/tokenizers.min.mjs`, io.root));
  const { open } = await import(new URL(`${loader}/load.mjs`, io.root));
  const answer = await open(new URL(`${bundle}/`, io.root), { ort, Tokenizer });
  const found = [];
  for (const text of JSON.parse(new TextDecoder().decode(await io.read(texts)))) found.push((await answer(text))[0]);
  await io.out(JSON.stringify(found));
}
"""


def main() -> int:
    """Measure, show a table, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="the folder of a classifier's bundle for browsers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekit-browser-benchmark-") as scratch:
        bundle = given.bundle or build(Path(scratch))
        texts = verify_texts()
        times = time_both(bundle, texts, given.rounds)
        alike, apart = compare_answers(bundle, texts, Path(scratch))
    ratio = times["browser"]["steady_ms"] / times["native"]["steady_ms"]
    missed = [name for name, kept in {"ratio": ratio <= RATIO, "answers": alike == len(texts)}.items() if not kept]
    result = {
        "times": times,
        "ratio": round(ratio, 3),
        "texts": len(texts),
        "alike": alike,
        "apart": round(apart, 6),
        "missed": missed,
    }
    if given.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{'':8} {'load':>9} {'first':>9} {'next 9':>9} {'steady':>9}   ms, medians of {given.rounds} processes")
        for name, row in times.items():
            print(f"{name:8} " + " ".join(f"{value:9.3f}" for value in row.values()))
        print(f"a browser takes {ratio:.2f} x the native time (goal: at most {RATIO:g})")
        print(f"{alike} of {len(texts)} texts have the same label (goal: all); scores are at most {apart:.4f} apart")
    return 1 if missed else 0


def build(folder: Path) -> Path:
    """The assistant's bundle for browsers."""
    command = [
        sys.executable,
        "-m",
        "edgekit",
        "build",
        "--example",
        "assistant",
        "--target",
        "browser",
        "--out",
        "dist",
    ]
    places = {"EDGEKIT_CACHE": str(folder / "cache"), "EDGEKIT_STATE": str(folder / "state")}
    subprocess.run(
        command, cwd=folder, env=os.environ | places | {"PYTHONPATH": str(ROOT)}, check=True, stdout=sys.stderr
    )
    return folder / "dist" / "assistant-browser"


def verify_texts() -> list[str]:
    """The texts that the assistant is judged by."""
    lines = (ROOT / "calib_data/assistant/verify.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def time_both(bundle: Path, texts: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Medians over rounds of load_ms, first_ms, next_ms (of the nine calls after the first) and steady_ms, natively and there."""
    manifest = check_bundle(bundle)
    encoded = read_shipped(bundle, texts, manifest.settings, manifest.pad_id)
    options = {key: value for key, value in manifest.runtime.items() if key not in {"name", "minimum"}} | {"threads": 1}
    question = ask_rows(bundle / manifest.model, manifest.runtime_name, options, encoded, LENGTH).only_times(**TIMING)
    seen: dict[str, list[list[float]]] = {name: [] for name in KINDS}
    for _ in range(rounds):
        for name, table in KINDS.items():
            with closing(open_device(table, name)) as device:
                seen[name].append(_one(device, question))
    names = ("load_ms", "first_ms", "next_ms", "steady_ms")
    return {
        name: {
            key: round(float(np.median(column)), 4) for key, column in zip(names, zip(*rows, strict=True), strict=True)
        }
        for name, rows in seen.items()
    }


def _one(device: Device, question: Question) -> list[float]:
    lines = PROBES[device.PROBE].ask(device, question).lines
    calls = lines.read("latency", Calls).ms
    steady = statistics.median(calls[len(calls) // 2 :])
    return [lines.read("load", Load).ms, lines.read("first", First).ms, statistics.median(calls[:9]), steady]


def compare_answers(bundle: Path, texts: Sequence[str], scratch: Path) -> tuple[int, float]:
    """How many texts have the same label from load.mjs in the browser as from the bundle's loader here; the largest difference
    of a score."""
    app = scratch / "app"
    app.mkdir()
    (app / "app.mjs").write_text(APP, encoding="utf-8")
    (app / "texts.json").write_text(json.dumps(list(texts)), encoding="utf-8")
    with closing(open_device(KINDS["browser"], "browser")) as device:
        own, packages = device.push(app), device.push(fetch_packages([*PACKAGES]))
        words = [f"{own}/app.mjs", device.push(bundle), packages, f"{own}/texts.json", device.push(LOADER.parent)]
        ended = device.run(words, timeout_s=1800)
    if ended.returncode:
        raise SystemExit(f"the page failed: {ended.stderr.strip()}")
    here = run(bundle, texts)
    alike, apart = 0, 0.0
    for (label, score), answer in zip(json.loads(ended.stdout), here, strict=True):
        assert isinstance(answer, dict)
        alike += label == answer["label"]
        apart = max(apart, abs(score - answer["score"]))
    return alike, apart


if __name__ == "__main__":
    sys.exit(main())
