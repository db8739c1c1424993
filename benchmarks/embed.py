"""What each loader that apps copy costs beside the Python one, on one bundle.

Goals:
- from every loader every text has the label that the Python loader gives, with each score within 1e-4 (embeddings: each number);
  a model that writes says the same 64 tokens, the likeliest each time. Where a page or Node.js does not, it is told how far below
  the likeliest here its tokens are (near_ties.py): other kernels round other sums
- Node.js answers steadily in at most 2 times the Python loader's time, C in at most its time
- the web app (engine, tokenizer library, model, tokenizer and modules, as a server that compresses sends them) is at most 17 MB

Each loader runs in processes of its own, in turns: Python, Node.js, C (gcc -O2, over the library that Python has), and pages in
Chromium, isolated, of one thread and of two. Opening includes the hashes, and in a page the download from this machine; `cold` is
the first golden answer, or the first text's where a loader tells none (in C it is part of opening). Figures are medians over
rounds, in milliseconds: opening, cold, the first text, the nine after it, and steady; of a model that writes, in llama.cpp or in
onnxruntime, the same of tokens: a prompt's first is one of them. Times of a busy machine mean little; the ratio is of medians.
Of pages on other devices, see browser.py.

Usage: python benchmarks/embed.py BUNDLE [--texts FILE.jsonl] [--count 200] [--rounds 3] [--keep FILE] [--json]. Exit code 1 where
a goal is missed. Needs node, npm, gcc and Chromium; what it had measured it takes from --keep. --count 0: all of the texts.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import http.server
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from near_ties import Written, compare_written
from rows import Rows

from edgekit.bundle.embed import embed
from edgekit.bundle.open import check_bundle
from edgekit.devices.browser.program import CHROMIUM, find_program, start
from edgekit.devices.native import llama
from edgekit.probes.web.npm import PACKAGES, fetch_packages

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.bundle.pages import Told  # noqa: E402
from tests.devices.ort_headers import header_folder, library_folder  # noqa: E402

NEAR, WIRE = 1e-4, 17e6
SLOWER = {"node": 2.0, "c": 1.0}
# Of a loader's name its platform, and of a page its threads.
LOADERS = {"python": ("python", 0), "node": ("node", 0), "c": ("c", 0), "web": ("web", 1), "web 2": ("web", 2)}
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
# In JavaScript: of each text the answer, or the pieces of what is written, with their times.
ASK = """const begun = performance.now();
  const answer = await bundle(text);
  times.push(performance.now() - begun);
  answers.push(Array.from(answer));"""
ASK_WORDS = """let [said, tokens, begun] = ["", [], performance.now()];
  for await (const piece of bundle(text, 64)) {
    times.push(performance.now() - begun);
    said += piece.text;
    tokens.push(Number(piece.token));
    begun = performance.now();
  }
  answers.push([said, tokens]);"""
NODE = """
import { readFileSync } from "node:fs";
const texts = JSON.parse(readFileSync("texts.json", "utf8"));
const begun = performance.now();
const { open } = await import("./load.mjs");
const bundle = await open("bundle");
const opened = performance.now() - begun;
const [times, answers] = [[], []];
for (const text of texts) {
  ASK
}
console.log(JSON.stringify({ open: opened, cold: bundle.times.cold, times, answers }));
"""

# Texts come as lines of their length in bytes and then their bytes.
C = """
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "load.h"
static double now(void) {
  struct timespec at;
  timespec_get(&at, TIME_UTC);
  return (double)at.tv_sec * 1e3 + (double)at.tv_nsec / 1e6;
}
int main(void) {
  static float numbers[65536];
  ek_error error;
  ek_answer answer;
  double begun = now();
  ek_model *model = ek_open(ek_verified(), "bundle", &error);
  if (!model) return fprintf(stderr, "%s\\n", error.text), 1;
  printf("%.6f\\n", now() - begun);
  for (size_t length, width = ek_verified()->width; scanf("%zu", &length) == 1;) {
    char *text = calloc(length + 1, 1);
    if (!text || getchar() == EOF || fread(text, 1, length, stdin) != length) return 1;
    begun = now();
    int fine = width ? ek_embed(model, text, NULL, numbers, &error) : ek_classify(model, text, &answer, &error);
    if (!fine) return fprintf(stderr, "%s\\n", error.text), 1;
    printf("%.6f", now() - begun);
    if (!width) printf("\\t%s\\t%.9g", answer.label, answer.score);
    for (size_t at = 0; at < width; ++at) printf("\\t%.9g", (double)numbers[at]);
    putchar('\\n');
    free(text);
  }
  return 0;
}
"""
PYTHON_WORDS = """
import json, sys, time
texts = json.load(open("texts.json"))
begun = time.perf_counter()
from load import Bundle
bundle = Bundle("bundle")
opened = 1000 * (time.perf_counter() - begun)
times, answers = [], []
for text in texts:
    pieces, begun = [], time.perf_counter()
    for piece in bundle.stream(text, max_tokens=64):
        times.append(1000 * (time.perf_counter() - begun))
        pieces.append(piece)
        begun = time.perf_counter()
    answers.append("".join(pieces))
print(json.dumps({"open": opened, "cold": bundle.times.get("cold"), "times": times, "answers": answers}))
"""
NODE_WORDS = (
    NODE.replace("ASK", ASK_WORDS)
    .replace("console.log(", "process.stdout.write(")
    .replace("answers }));", "answers }), () => process.exit(0));")
)
C_WORDS = """
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "generate.h"
static double begun;
static double now(void) {
  struct timespec at;
  timespec_get(&at, TIME_UTC);
  return (double)at.tv_sec * 1e3 + (double)at.tv_nsec / 1e6;
}
static int take(void *to, const char *piece, size_t length) {
  if (!length) return 1; /* the text is still being read */
  fprintf(to, "%.6f %zu\\n", now() - begun, length);
  fwrite(piece, 1, length, to);
  begun = now();
  return 1;
}
int main(void) {
  ek_error error;
  begun = now();
  ek_writer *writer = ek_open_writer(ek_verified(), "bundle", &error);
  if (!writer) return fprintf(stderr, "%s\\n", error.text), 1;
  printf("%.6f\\n", now() - begun);
  for (size_t length; scanf("%zu", &length) == 1;) {
    char *text = calloc(length + 1, 1);
    if (!text || getchar() == EOF || fread(text, 1, length, stdin) != length) return 1;
    begun = now();
    if (!ek_write(writer, text, 64, take, stdout, &error)) return fprintf(stderr, "%s\\n", error.text), 1;
    printf("-\\n");
    free(text);
  }
  return 0;
}
"""
PAGE = """<!doctype html><meta charset="utf-8"><script type="module">
import { open } from "./app.mjs";
const say = (said) => fetch("TELL", { method: "POST", mode: "no-cors", body: JSON.stringify(said) }).catch(() => {});
try {
  const texts = await (await fetch("./texts.json")).json();
  const begun = performance.now();
  const bundle = await open("./bundle/", { threads: THREADS });
  const opened = performance.now() - begun;
  const [times, answers] = [[], []];
  for (const text of texts) {
    ASK
  }
  await say({ open: opened, cold: bundle.times.cold, times, answers, notes: bundle.notes });
} catch (failed) {
  await say({ failed: String(failed.message ?? failed) });
}
</script>"""
PAGE_WORDS = (
    PAGE.replace(
        'import { open } from "./app.mjs";',
        """import { Wllama } from "./node_modules/@wllama/wllama/esm/index.min.js";
import { open } from "./load.mjs";
import { createReader } from "./store.mjs";
const wasm = "./node_modules/@wllama/wllama/esm/";""",
    )
    .replace("{ threads: THREADS }", "{ Wllama, wasm, read: createReader(), threads: THREADS }")
    .replace("ASK", ASK_WORDS)
)
# What asks each platform's loader, and its file in the app: of rows, and of texts by each runtime.
ASKS = {
    "rows": {
        "python": ("ask.py", PYTHON),
        "node": ("ask.mjs", NODE.replace("ASK", ASK)),
        "c": ("main.c", C),
        "web": ("", PAGE.replace("ASK", ASK)),
    },
    "llama-cpp": {
        "python": ("ask.py", PYTHON_WORDS),
        "node": ("ask.mjs", NODE_WORDS),
        "c": ("main.c", C_WORDS),
        "web": ("", PAGE_WORDS),
    },
    "onnxruntime": {
        "python": ("ask.py", PYTHON_WORDS),
        "node": ("ask.mjs", NODE_WORDS),
        "c": ("main.c", C_WORDS),
        "web": ("", PAGE.replace("ASK", ASK_WORDS)),
    },
}


def main() -> int:
    """Measure, print a table or one JSON object; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--texts", type=Path, default=ROOT / "calib_data/assistant/verify.jsonl")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    lines = asked.texts.read_text(encoding="utf-8").split("\n")
    texts = [json.loads(line)["text"] for line in lines if line][: asked.count or None]
    rows, manifest = Rows(asked.keep), check_bundle(asked.bundle)
    kind = manifest.runtime_name if manifest.output == "tokens" else "rows"
    seen: dict[str, list[Mapping[str, Any]]] = {name: [] for name in LOADERS}
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        apps = {
            platform: lay_out(asked.bundle, platform, Path(scratch, platform), texts, kind)
            for platform in dict.fromkeys(platform for platform, _ in LOADERS.values())
        }
        for turn in range(asked.rounds):
            for name, (platform, threads) in LOADERS.items():
                taken = functools.partial(measure, platform, apps[platform], threads, kind)
                seen[name].append(rows.take(f"{name} {turn} of {len(texts)}", taken))
        sizes = {} if kind != "rows" else web_sizes(asked.bundle, Path(scratch, "weighed"))
    loaders = {name: figures(found) for name, found in seen.items()}
    wanted = seen["python"][0]["answers"]
    alike = {name: compare(wanted, found[0]["answers"]) for name, found in seen.items()}
    ties = (
        find_ties(asked.bundle, texts, {name: found[0] for name, found in seen.items()}) if kind == "llama-cpp" else {}
    )
    missed = find_missed(loaders, alike, len(texts), sizes.get("total", 0))
    if asked.json:
        told = {name: vars(found) for name, found in ties.items()}
        print(
            json.dumps(
                {"texts": len(texts), "loaders": loaders, "wire": sizes, "alike": alike, "ties": told, "missed": missed}
            )
        )
    else:
        show(loaders, alike, len(texts), sizes, missed)
        for name, one in ties.items():
            print(
                f"{name}: {one.other} tokens are not the likeliest here behind the same text, the furthest {one.below:.3f} logits"
                f" below it; reading in one batch turns here what is up to {one.bound:.3f} apart"
            )
    return int(bool(missed))


def show(
    loaders: Mapping[str, Mapping[str, float]],
    alike: Mapping[str, Mapping[str, float]],
    texts: int,
    sizes: Mapping[str, int],
    missed: Sequence[str],
) -> None:
    """The table."""
    print(f"{'loader':<10}" + "".join(f"{name:>10}" for name in (*FIGURES, "times", "labels", "apart")))
    for name, found in loaders.items():
        times = found["steady"] / loaders["python"]["steady"]
        told = f"{times:>10.2f}{alike[name]['labels']:>10}{alike[name]['apart']:>10.1e}"
        print(f"{name:<10}" + "".join(f"{found[figure]:>10.3f}" for figure in FIGURES) + told)
    print(f"of {texts} texts; times: steady, of the Python loader's; labels: alike; apart: scores at most")
    if sizes:
        print("web app over the wire, MB: " + ", ".join(f"{name} {size / 1e6:.2f}" for name, size in sizes.items()))
    for one in missed:
        print(f"missed: {one}")


def lay_out(bundle: Path, name: str, app: Path, texts: Sequence[str], kind: str) -> Path:
    """An app of a loader with the bundle, its packages and the texts; kind: of ASKS."""
    made = embed(bundle, name, app)
    (app / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    file, script = ASKS[kind][name]
    if file:
        (app / file).write_text(script, encoding="utf-8")
    if name == "node":
        line = made.embedding.notes[0].rpartition(": ")[2] if kind == "llama-cpp" else made.embedding.install[0]
        subprocess.run(f"{line} --silent --no-audit --no-fund --ignore-scripts", shell=True, cwd=app, check=True)
    if name == "c":
        compile_program(app, kind == "llama-cpp")
    if name == "web":
        for package in ("wllama",) if kind == "llama-cpp" else ("onnxruntime-web", "tokenizers"):
            inside = "esm" if package == "wllama" else "dist"
            fetched = fetch_packages([*PACKAGES]) / package
            shutil.copytree(fetched, app / "node_modules" / PACKAGES[package].package / inside)
    return app


def compile_program(app: Path, is_llama: bool) -> None:
    """The program in C of an app's folder, over llama.cpp or onnxruntime."""
    headers, library = (
        (llama.headers(), llama.installed()) if is_llama else (header_folder(), library_folder(app / "lib"))
    )
    names = ("llama", "ggml", "ggml-base") if is_llama else ("onnxruntime",)
    command = ["gcc", "-std=c11", "-O2", *map(str, app.glob("*.c")), f"-I{headers}", f"-L{library}"]
    rest = [*(f"-l{name}" for name in names), "-lm", f"-Wl,-rpath,{library}", "-Wl,--allow-shlib-undefined"]
    subprocess.run([*command, *rest, "-o", str(app / "app")], check=True)


def find_ties(bundle: Path, texts: Sequence[str], found: Mapping[str, Mapping[str, Any]]) -> dict[str, Written]:
    """Of each loader that tells its tokens and says other texts than the Python one: how far those are from the likeliest."""
    from llama_cpp import Llama

    other = {
        name: one["tokens"]
        for name, one in found.items()
        if "tokens" in one and one["answers"] != found["python"]["answers"]
    }
    manifest = check_bundle(bundle)
    if not other or manifest.settings["chat"]:
        return {}
    options = {key: value for key, value in manifest.runtime.items() if key not in {"name", "minimum"}}
    options["context"] = options["context"] or manifest.max_length
    with contextlib.closing(Llama(str(bundle / manifest.model), vocab_only=True, verbose=False)) as llama:
        prompts = [llama.tokenize(text.encode()) for text in texts]
        room = 64, frozenset({llama.token_eos()})
    return {
        name: compare_written(bundle / manifest.model, options, prompts, tokens, room) for name, tokens in other.items()
    }


def measure(platform: str, app: Path, threads: int, kind: str) -> dict[str, Any]:
    """What one process of a loader says."""
    if platform == "c":
        return measure_program(app, kind != "rows")
    found = measure_page(app, ASKS[kind]["web"][1], threads) if platform == "web" else measure_script(platform, app)
    if kind != "rows" and platform != "python":
        said, tokens = zip(*found["answers"], strict=True)
        found |= {"answers": list(said), "tokens": list(tokens)}
    return found


def measure_script(platform: str, app: Path) -> dict[str, Any]:
    """The same of Python or Node.js."""
    command = [sys.executable, "ask.py"] if platform == "python" else ["node", "ask.mjs"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=app, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure_program(app: Path, writes: bool) -> dict[str, Any]:
    """The same of the program in C."""
    texts = [text.encode() for text in json.loads((app / "texts.json").read_text(encoding="utf-8"))]
    given = b"".join(b"%d\n%s" % (len(text), text) for text in texts)
    done = subprocess.run([app / "app"], cwd=app, input=given, stdout=subprocess.PIPE, check=True)
    opened, _, rest = done.stdout.partition(b"\n")
    times, answers = (read_words if writes else read_rows)(rest)
    return {"open": float(opened), "cold": None, "times": times, "answers": answers}


def read_rows(said: bytes) -> tuple[list[float], list[Any]]:
    """Times and answers by what the program in C writes of a model that gives rows."""
    parts = [line.split("\t") for line in said.decode().splitlines()]
    embeds = len(parts[0]) != 3
    answers: list[Any] = [[float(one) for one in row[1:]] if embeds else [(row[1], float(row[2]))] for row in parts]
    return [float(row[0]) for row in parts], answers


def read_words(said: bytes) -> tuple[list[float], list[Any]]:
    """The same of a model that writes: each piece comes behind its time and length."""
    times, answers, pieces = list[float](), list[Any](), b""
    while said:
        line, _, said = said.partition(b"\n")
        if line == b"-":
            answers.append(pieces.decode(errors="ignore"))
            pieces = b""
            continue
        time, length = line.split()
        times.append(float(time))
        pieces, said = pieces + said[: int(length)], said[int(length) :]
    return times, answers


def measure_page(app: Path, page: str, threads: int) -> dict[str, Any]:
    """The same of a page of so many threads, which the app's own server isolates."""
    said: queue.Queue[str] = queue.Queue()
    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Told, said, directory=str(app)))
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    tell = f"http://127.0.0.1:{listener.server_port}/"
    (app / "page.html").write_text(page.replace("TELL", tell).replace("THREADS", str(threads)), encoding="utf-8")
    with subprocess.Popen(["node", "serve.mjs", "0"], cwd=app, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        opened = start(find_program(CHROMIUM), f"{server.stdout.readline().strip()}page.html")
        try:
            found: dict[str, Any] = json.loads(said.get(timeout=600))
        finally:
            opened.stop()
            server.terminate()
            listener.shutdown()
            listener.server_close()
    if "failed" in found or found["notes"]:
        raise SystemExit(f"a page of {threads} threads: {found.get('failed') or found['notes']}")
    return found


def figures(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians over rounds, by FIGURES."""
    rows = []
    for one in found:
        times = one["times"]
        rows.append((one["open"], one["cold"] or times[0], times[0], np.median(times[1:10]), np.median(times[10:])))
    return dict(zip(FIGURES, np.median(rows, axis=0).tolist(), strict=True))


def compare(here: Sequence[Any], there: Sequence[Any]) -> dict[str, float]:
    """How many first labels or texts are alike (of embeddings: all), and how far scores or numbers are apart at most."""
    labels, apart = 0, 0.0
    for one, other in zip(here, there, strict=True):
        if isinstance(one, str):
            labels += one == other
            continue
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


def find_missed(
    loaders: Mapping[str, Mapping[str, float]], alike: Mapping[str, Mapping[str, float]], texts: int, wire: int
) -> list[str]:
    """The goals that are missed, in words."""
    ratios = {name: loaders[name]["steady"] / loaders["python"]["steady"] for name in SLOWER}
    missed = {
        **{f"{name}: {one['labels']} of {texts} labels alike": one["labels"] < texts for name, one in alike.items()},
        **{
            f"{name}: scores {one['apart']:.1e} apart, at most {NEAR}": one["apart"] > NEAR
            for name, one in alike.items()
        },
        **{
            f"{name} takes {ratio:.2f} times the Python loader's time, at most {SLOWER[name]}": ratio > SLOWER[name]
            for name, ratio in ratios.items()
        },
        f"the web app is {wire / 1e6:.2f} MB over the wire, at most {WIRE / 1e6:.0f}": wire > WIRE,
    }
    return [goal for goal, is_missed in missed.items() if is_missed]


if __name__ == "__main__":
    sys.exit(main())
