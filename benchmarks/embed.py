"""What each loader that apps copy costs beside the Python one, on one bundle that gives rows.

Goals:
- every text has the label that the Python loader gives, with each score within 1e-4 (embeddings: each number)
- Node.js answers steadily in at most 2 times the Python loader's time
- the web app (engine, tokenizer library, model, tokenizer and modules, as a server that compresses sends them) is at most 17 MB

Each loader runs in processes of its own, in turns; opening includes the hashes, and `cold` is the first golden answer, or the
first text's where a bundle has none. Figures are medians over rounds, in milliseconds: opening, cold, the first text, the nine
after it, and steady. Times of a busy machine mean little; the ratio is of medians. In a browser, see browser.py.

Usage: python benchmarks/embed.py BUNDLE [--texts FILE.jsonl] [--rounds 5] [--keep FILE] [--json]. Exit code 1 where a goal is
missed. Needs node and npm; what it had measured it takes from --keep.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rows import Rows

from edgekit.bundle.embed import embed
from edgekit.bundle.open import check_bundle
from edgekit.bundle.platforms import EMBEDDINGS
from edgekit.probes.web.npm import PACKAGES, fetch_packages

ROOT = Path(__file__).resolve().parents[1]
NEAR, SLOWER, WIRE = 1e-4, 2.0, 17e6
FIGURES = ("open", "cold", "first", "next", "steady")
PYTHON = """
import json, sys, time
texts = json.load(open("texts.json"))
begun = time.perf_counter()
from load import Bundle
bundle = Bundle("bundle")
opened = 1000 * (time.perf_counter() - begun)
times, answers = [], []
for text in texts:
    begun = time.perf_counter()
    answer = bundle(text)
    times.append(1000 * (time.perf_counter() - begun))
    answers.append(answer.tolist() if hasattr(answer, "tolist") else answer)
print(json.dumps({"open": opened, "cold": bundle.times.get("cold"), "times": times, "answers": answers}))
"""
NODE = """
import { readFileSync } from "node:fs";
const texts = JSON.parse(readFileSync("texts.json", "utf8"));
const begun = performance.now();
const { open } = await import("./load.mjs");
const bundle = await open("bundle");
const opened = performance.now() - begun;
const [times, answers] = [[], []];
for (const text of texts) {
  const begun = performance.now();
  const answer = await bundle(text);
  times.push(performance.now() - begun);
  answers.push(Array.from(answer));
}
console.log(JSON.stringify({ open: opened, cold: bundle.times.cold, times, answers }));
"""


def main() -> int:
    """Measure, print a table or one JSON object; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--texts", type=Path, default=ROOT / "calib_data/assistant/verify.jsonl")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    lines = asked.texts.read_text(encoding="utf-8").split("\n")
    texts = [json.loads(line)["text"] for line in lines if line]
    rows = Rows(asked.keep)
    seen: dict[str, list[Mapping[str, Any]]] = {"python": [], "node": []}
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        apps = {name: lay_out(asked.bundle, name, Path(scratch, name), texts) for name in seen}
        for turn in range(asked.rounds):
            for name, app in apps.items():
                seen[name].append(rows.take(f"{name} {turn}", lambda name=name, app=app: measure(name, app)))  # type: ignore[misc]
        sizes = web_sizes(asked.bundle, Path(scratch, "web"))
    loaders = {name: figures(found) for name, found in seen.items()}
    alike = {"texts": len(texts), **compare(seen["python"][0]["answers"], seen["node"][0]["answers"])}
    missed = find_missed(loaders, alike, sizes["total"])
    if asked.json:
        print(json.dumps({"loaders": loaders, "wire": sizes, "alike": alike, "missed": missed}))
    else:
        show(loaders, alike, sizes, missed)
    return int(bool(missed))


def show(
    loaders: Mapping[str, Mapping[str, float]],
    alike: Mapping[str, float],
    sizes: Mapping[str, int],
    missed: Sequence[str],
) -> None:
    """The table."""
    print(f"{'loader':<10}" + "".join(f"{name:>10}" for name in FIGURES))
    for name, found in loaders.items():
        print(f"{name:<10}" + "".join(f"{found[figure]:>10.3f}" for figure in FIGURES))
    print(f"{alike['labels']} of {alike['texts']} labels alike, scores {alike['apart']:.1e} apart")
    print("web app over the wire, MB: " + ", ".join(f"{name} {size / 1e6:.2f}" for name, size in sizes.items()))
    for one in missed:
        print(f"missed: {one}")


def lay_out(bundle: Path, name: str, app: Path, texts: Sequence[str]) -> Path:
    """An app of a loader with the bundle, its packages and the texts."""
    embed(bundle, name, app)
    (app / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    (app / ("ask.py" if name == "python" else "ask.mjs")).write_text(
        PYTHON if name == "python" else NODE, encoding="utf-8"
    )
    if name == "node":
        (line,) = EMBEDDINGS["onnxruntime", "text", "logits", "node"].install
        subprocess.run(f"{line} --silent --no-audit --no-fund --ignore-scripts", shell=True, cwd=app, check=True)
    return app


def measure(name: str, app: Path) -> dict[str, Any]:
    """What one process of a loader says."""
    command = [sys.executable, "ask.py"] if name == "python" else ["node", "ask.mjs"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=app, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def figures(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians over rounds, by FIGURES."""
    rows = []
    for one in found:
        times = one["times"]
        rows.append((one["open"], one["cold"] or times[0], times[0], np.median(times[1:10]), np.median(times[10:])))
    return dict(zip(FIGURES, np.median(rows, axis=0).tolist(), strict=True))


def compare(here: Sequence[Any], there: Sequence[Any]) -> dict[str, float]:
    """How many first labels are alike (of embeddings: all), and how far scores or numbers are apart at most."""
    labels, apart = 0, 0.0
    for one, other in zip(here, there, strict=True):
        if isinstance(one[0], float):
            labels += 1
            apart = max(apart, float(np.abs(np.subtract(one, other)).max()))
            continue
        labels += one[0][0] == other[0][0]
        apart = max(apart, *(abs(dict(map(tuple, one))[label] - score) for label, score in other))
    return {"labels": labels, "apart": apart}


def web_sizes(bundle: Path, app: Path) -> dict[str, int]:
    """Bytes over the wire of what a page asks for, each file compressed by gzip where that is smaller."""
    made, manifest = embed(bundle, "web", app), check_bundle(bundle)
    fetched = fetch_packages([*PACKAGES])
    parts = {
        "engine": [*(fetched / "onnxruntime-web").rglob("*.*")],
        "tokenizer library": [*(fetched / "tokenizers").rglob("*.mjs")],
        "model": [app / "bundle" / manifest.model],
        "tokenizer": [app / "bundle" / str(manifest.tokenizer)],
        "rest": [app / name for name in made.files if "/" not in name and name != "serve.mjs"]
        + [path for path in (app / "bundle/bundle.json", app / "bundle/golden.json") if path.exists()],
    }
    sizes = {
        name: sum(
            min(len(data), len(gzip.compress(data))) for data in (path.read_bytes() for path in paths if path.is_file())
        )
        for name, paths in parts.items()
    }
    shutil.rmtree(app)
    return {**sizes, "total": sum(sizes.values())}


def find_missed(loaders: Mapping[str, Mapping[str, float]], alike: Mapping[str, float], wire: int) -> list[str]:
    """The goals that are missed, in words."""
    ratio = loaders["node"]["steady"] / loaders["python"]["steady"]
    missed = {
        f"{alike['labels']} of {alike['texts']} labels alike": alike["labels"] < alike["texts"],
        f"scores {alike['apart']:.1e} apart, at most {NEAR}": alike["apart"] > NEAR,
        f"Node.js takes {ratio:.2f} times the Python loader's time, at most {SLOWER}": ratio > SLOWER,
        f"the web app is {wire / 1e6:.2f} MB over the wire, at most {WIRE / 1e6:.0f}": wire > WIRE,
    }
    return [goal for goal, is_missed in missed.items() if is_missed]


if __name__ == "__main__":
    sys.exit(main())
