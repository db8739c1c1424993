"""How fast is a bundle in a browser, beside the same file in the same runtime on the same machine, and does it answer alike?

Goals:
- a call in WebAssembly takes at most 7 times as long as natively, one thread each, at the target's length. Compared is the
  quickest tenth of the steady calls: other programs interrupt nearly every call of 5 ms and few of 1 ms, so that on a busy
  machine medians were 4 to 8.5 times apart where these were 4 to 5
- every text has the label that the bundle's own loader gives here. Scores are shown only: where an 8-bit activation lies between
  two steps, the last bit of a float decides, and WebAssembly computes that bit otherwise
- two decoders, stories260K and code-llama-46m, go on with four texts by 64 tokens in wllama as in llama.cpp here. With matrices
  of 16 bits all tokens are the same; with 8 bits each is the likeliest here, or below it by less than rounding moves this
  machine's own engine (`near_ties`). The ratio of their times, with 8 bits, is shown and has no goal
- `edgekit build --target browser --device browser:` of stories260K as it is ends without a check that fails, and what its
  bundle's file writes to the verify prompts there it writes here, but for such rounding

Both are timed in turns, each time in a process of its own (Chromium without a window, or Python): the first call, the next nine,
and the median and quickest tenth of what follows once the engine is warm, which a browser becomes by translating the module a
second time. Times measured on a busy machine mean little; the ratio is of the medians over rounds.

Usage: python benchmarks/browser.py [--bundle DIR] [--rounds 5] [--data DIR] [--only rows|tokens|build] [--json]; without a bundle
the assistant is built for the target `browser`, which takes minutes. Exit code 1 where a goal is missed. Needs Chromium and npm,
and the decoders in --data.
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
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf_files import write_gguf
from instruction_sets import decoder, stories
from near_ties import Written, compare_written, read_ends, split

from edgekit.bundle.open import check_bundle
from edgekit.devices import Device, open_device
from edgekit.modalities.text import read_shipped
from edgekit.model import load_model
from edgekit.pipeline import run
from edgekit.probes import PROBES, Question
from edgekit.probes.lines import Calls, Decode, First, Lines, Load
from edgekit.probes.web import LOADER
from edgekit.probes.web.npm import PACKAGES, fetch_packages
from edgekit.runtimes import llamacpp
from edgekit.runtimes.request import Timing
from edgekit.verify.measurements import ask_rows, flat, request

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

ROOT = Path(__file__).resolve().parents[1]
RATIO = 7.0
LENGTH = 32
SHARED = ROOT.parent / "shared" / "data"
WRITERS = {"stories260K": "stories260K/hf", "code-llama-46m": "code-llama-46m"}
STORIES = ("Once upon a time", "The big red ball", "Lily and Tom went to", "One day, a little cat")
NEW = 64
WRITING: Timing = {"prompts": (32,), "new": 64, "repeats": 4, "seconds": 20.0, "sweep": False}
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
    parser.add_argument(
        "--data", type=Path, default=SHARED, help="folder of stories260K/, code-llama-46m/ and code-heldout/"
    )
    parser.add_argument(
        "--only", choices=("rows", "tokens", "build"), help="a classifier, decoders, or a decoder's build alone"
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="edgekit-browser-benchmark-") as scratch:
        folder = Path(scratch)
        if given.only in {None, "rows"}:
            result |= judge_rows(given.bundle or build("--example", "assistant", folder=folder), given.rounds, folder)
        if given.only in {None, "tokens"}:
            result["writers"] = {
                name: time_writer(checkpoint, given.data, folder, given.rounds) for name, checkpoint in WRITERS.items()
            }
        if given.only in {None, "build"}:
            result["build"] = judge_build(given.data, folder / "decoder")
    result["missed"] = missed(result)
    print(json.dumps(result, indent=2) if given.json else "\n".join(lines(result, given.rounds)))
    return 1 if result["missed"] else 0


def missed(result: Mapping[str, Any]) -> list[str]:
    """The goals that are not met, of those that were looked at."""
    kept = {}
    if "times" in result:
        kept = {"ratio": result["ratio"] <= RATIO, "labels": result["alike"] == result["texts"]}
    for name, row in result.get("writers", {}).items():
        kept[f"{name} 16 bits"] = row["f16"]["same"] == row["f16"]["answers"]
        kept[f"{name} 8 bits"] = row["q8_0"]["is_rounding"]
    if "build" in result:
        kept["build"] = not result["build"]["failed"] and result["build"]["is_rounding"]
    return [name for name, good in kept.items() if not good]


def judge_rows(bundle: Path, rounds: int, folder: Path) -> dict[str, Any]:
    """Times of a classifier's bundle and whether its labels are alike."""
    texts = verify_texts()
    times = time_both(bundle, texts, rounds)
    alike, apart = compare_answers(bundle, texts, folder)
    return {"times": times, "ratio": _ratio(times), "texts": len(texts), "alike": alike, "apart": round(apart, 6)}


def judge_build(data: Path, folder: Path) -> dict[str, Any]:
    """What a build of stories260K for browsers says, and whether its file writes there what it writes here."""
    # A cache of its own: what it wrote is found there.
    recipe = decoder(folder / "stories", data / WRITERS["stories260K"], stories())
    bundle = build("--recipe", recipe, "--device", "browser:", folder=folder)
    report = json.loads((bundle.parent / f"{bundle.name}.report.json").read_text(encoding="utf-8"))
    (outputs,) = (folder / "cache" / "verify").glob("*/outputs.npz")
    (reference,) = (folder / "cache" / "record").glob("*/reference.npz")
    with np.load(outputs) as there, np.load(reference) as asked:
        said = [*split(there["answers"], there["answer_offsets"])]
        prompts = [*split(asked["asked"], asked["asked_offsets"])]
    manifest = check_bundle(bundle)
    options = {key: value for key, value in manifest.runtime.items() if key not in {"name", "minimum"}}
    failed = [check["name"] for check in report["checks"] if check["verdict"] == "fail"]
    told = {"verdict": report["verdict"], "failed": failed, "scheme": manifest.artifact.scheme}
    return {
        **told,
        **_row(compare_written(bundle / manifest.model, options, prompts, said, read_ends(reference.parent))),
    }


def _row(found: Written) -> dict[str, Any]:
    return {**asdict(found), "is_rounding": found.is_rounding}


def _ratio(times: Mapping[str, Mapping[str, float]]) -> float:
    return round(times["browser"]["quick_ms"] / times["native"]["quick_ms"], 3)


def lines(result: Mapping[str, Any], rounds: int) -> list[str]:
    """The result as lines for a terminal."""

    def table(name: str, times: Mapping[str, Mapping[str, float]]) -> list[str]:
        head = f"{name:15} {'load':>9} {'first':>9} {'next 9':>9} {'steady':>9} {'quick':>9}   ms, medians of {rounds} processes"
        return [
            head,
            *(f"{key:15} " + " ".join(f"{value:9.3f}" for value in row.values()) for key, row in times.items()),
        ]

    shown: list[str] = []
    if "times" in result:
        shown += table("", result["times"])
        shown.append(f"a browser takes {result['ratio']:.2f} x the native time (goal: at most {RATIO:g})")
        alike = f"{result['alike']} of {result['texts']} texts have the same label (goal: all)"
        shown.append(f"{alike}; scores are at most {result['apart']:.4f} apart")
    for name, row in result.get("writers", {}).items():
        shown += table(name, row["times"])
        shown.append(f"a browser takes {row['ratio']:.2f} x the native time for a token")
        shown += [f"{matrices}: {_written(row[matrices])}" for matrices in ("f16", "q8_0")]
    if "build" in result:
        row = result["build"]
        failed = f"checks that fail: {', '.join(row['failed']) or 'none'} (goal: none)"
        shown.append(f"a build of stories260K ({row['scheme']}): {row['verdict']}; {failed}; {_written(row)}")
    return [*shown, f"missed: {', '.join(result['missed']) or 'nothing'}"]


def _written(row: Mapping[str, Any]) -> str:
    same = f"{row['same']} of {row['answers']} answers are llama.cpp's here"
    below = f"{row['below']:.4f} logits below at most (rounding: {row['bound']:.4f})"
    return f"{same}, {row['other']} tokens are not its likeliest, {below}"


def time_writer(checkpoint: str, data: Path, scratch: Path, rounds: int) -> dict[str, Any]:
    """Times of a decoder with 8-bit weights, natively and in wllama; and how its answers there compare (`Written`), with matrices
    of 8 and of 16 bits."""
    seen: dict[str, list[list[float]]] = {name: [] for name in KINDS}
    row: dict[str, Any] = {}
    for matrices in ("q8_0", "f16"):
        folder = scratch / checkpoint.split("/", maxsplit=1)[0] / matrices
        folder.mkdir(parents=True)
        file = write_gguf(data / checkpoint, folder / "model.gguf", matrices)
        question = _writing(data / checkpoint, data, file)
        for _ in range(rounds if matrices == "q8_0" else 0):
            for name, table in KINDS.items():
                with closing(open_device(table, name)) as device:
                    seen[name].append(_one_writer(device, question.only_times()))
        with closing(open_device(KINDS["browser"], "browser")) as device:
            arrays = PROBES[device.PROBE].ask(device, question).arrays
        prompts = [*split(np.asarray(question.inputs["ids"]), np.asarray(question.inputs["offsets"]))]
        said = [*split(arrays["answers"], arrays["answer_offsets"])]
        row[matrices] = _row(compare_written(file, question.request["options"], prompts, said, (NEW, frozenset())))
    times = _medians(seen)
    return {"times": times, "ratio": _ratio(times), **row}


def _writing(checkpoint: Path, data: Path, file: Path) -> Question:
    """Four texts to go on with."""
    model = load_model(checkpoint)
    texts: Sequence[str] = STORIES
    if checkpoint.name == "code-llama-46m":
        held = (data / "code-heldout" / "held.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [str(json.loads(line)["text"])[:400] for line in held[: len(STORIES)]]
    rows = [ids[:64] for ids in model.encode(list(texts), 64)]
    inputs: dict[str, ArrayLike] = {
        **flat(rows),
        "starts": np.array([len(row) for row in rows]),
        "referenced": 0,
        "generate": len(rows),
        "max_new": NEW,
        "stop": np.array([], np.int64),
    }
    asked = request(llamacpp.NAME, {"threads": 1, "context": 512}, WRITING, kind="tokens")
    return Question(file=file, request=asked, inputs=inputs)


def _one_writer(device: Device, question: Question) -> list[float]:
    told = PROBES[device.PROBE].ask(device, question).lines
    return _figures(told, told.read("decode", Decode).ms)


def _figures(told: Lines, calls: Sequence[float]) -> list[float]:
    """Milliseconds of loading, the first call, the next nine, and the steady ones: their median and quickest tenth."""
    steady = np.percentile(calls[len(calls) // 2 :], [50, 10]).tolist()
    return [told.read("load", Load).ms, told.read("first", First).ms, statistics.median(calls[:9]), *steady]


def build(*arguments: str | Path, folder: Path) -> Path:
    """The bundle for browsers that a build with these arguments makes in a folder."""
    command = [sys.executable, "-m", "edgekit", "build", *map(str, arguments), "--target", "browser", "--json"]
    places = {"EDGEKIT_CACHE": str(folder / "cache"), "EDGEKIT_STATE": str(folder / "state")}
    environment = os.environ | places | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in {0, 3}:
        raise SystemExit(f"the build ended with exit code {done.returncode}: {done.stdout}")
    return folder / str(json.loads(done.stdout)["bundles"][0]["bundle"])


def verify_texts() -> list[str]:
    """The texts that the assistant is judged by."""
    lines = (ROOT / "calib_data/assistant/verify.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def time_both(bundle: Path, texts: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Medians over rounds of load_ms, first_ms, next_ms (of the nine calls after the first), steady_ms and quick_ms, natively and
    there."""
    manifest = check_bundle(bundle)
    encoded = read_shipped(bundle, texts, manifest.settings, manifest.pad_id)
    options = {key: value for key, value in manifest.runtime.items() if key not in {"name", "minimum"}} | {"threads": 1}
    question = ask_rows(bundle / manifest.model, manifest.runtime_name, options, encoded, LENGTH).only_times(**TIMING)
    seen: dict[str, list[list[float]]] = {name: [] for name in KINDS}
    for _ in range(rounds):
        for name, table in KINDS.items():
            with closing(open_device(table, name)) as device:
                seen[name].append(_one(device, question))
    return _medians(seen)


def _medians(seen: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, dict[str, float]]:
    names = ("load_ms", "first_ms", "next_ms", "steady_ms", "quick_ms")
    return {
        name: {
            key: round(float(np.median(column)), 4) for key, column in zip(names, zip(*rows, strict=True), strict=True)
        }
        for name, rows in seen.items()
    }


def _one(device: Device, question: Question) -> list[float]:
    lines = PROBES[device.PROBE].ask(device, question).lines
    return _figures(lines, lines.read("latency", Calls).ms)


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
