"""Trains the Llama that the quality benchmarks quantize: small enough for 40 minutes on 2 cores.

10 million weights (hidden 256, so that K-quants apply), a tokenizer of 8,192 tokens, made by `edgekit.distill.created` from
the running Python's standard library and, with --data, the stories and Shakespeare of that folder. 5 % of the files are
held out by the hash of their text; WikiText is never read. A killed run continues; a finished one is found in the cache.

Usage: python benchmarks/train_tiny_llama.py [--cache FOLDER] [--data ../shared/data]
Prints the perplexity on the held-out files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edgekit.distill import CreateInputs, create  # noqa: E402
from edgekit.distill.machine import conditions  # noqa: E402
from edgekit.distill.options import read_create_options  # noqa: E402
from edgekit.inputs import Content  # noqa: E402
from edgekit.schema import dump_json, read_json  # noqa: E402
from edgekit.workspace import fingerprint, write_atomically  # noqa: E402

SHARED = ROOT.parent / "shared" / "data"
PROSE = ("stories260K/text/tinystories.txt", "tinyshakespeare/input.txt")
HOLDOUT = 0.05
# What 40 minutes are enough for, at about 3.3 bytes a token; larger files are mostly tables.
TRAIN_BYTES, LARGEST_BYTES, PIECE_BYTES = 10_000_000, 100_000, 8_000
LENGTH = 512
OPTIONS: dict[str, Any] = {
    "vocabulary": 8192,
    "hidden": 256,
    "layers": 6,
    "heads": 4,
    "kv_heads": 2,
    "intermediate": 1024,
    "context": LENGTH,
    "tied": False,
    "epochs": 1,
    "batch": 2,  # few tokens are seen in all: many small steps use them better
    "learning_rate": 1.5e-3,
    "holdout": 0.0,
    "precision": "fp32",
}


def default_cache() -> Path:
    """A folder of the user's cache directory."""
    home = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return Path(home or Path.home() / ".cache") / "edgekit" / "tiny_llama"


def tiny_llama(cache: Path | None = None, data: Path = SHARED) -> Path:
    """The trained checkpoint's folder, from the cache or trained now (up to 40 minutes); facts lie beside it."""
    texts = train_texts(data)
    folder = (cache or default_cache()) / fingerprint([OPTIONS, LENGTH, texts])[:16]
    model, facts = folder / "model", folder / "facts.json"
    if facts.is_file():
        return model
    model.mkdir(parents=True, exist_ok=True)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    write_atomically(folder / "train.jsonl", rows)
    begun = time.monotonic()

    def tell(done: int, total: int, note: str) -> None:
        if done % 40 == 0 or done == total:
            spent = time.monotonic() - begun
            print(f"step {done} of {total}, {note}, {spent:.0f} s in this run", file=sys.stderr, flush=True)

    options = read_create_options(OPTIONS, LENGTH, "benchmark")
    inputs = CreateInputs(
        prompts=Content(path=folder, digest=fingerprint(texts)),
        task="text-generation",
        options=options,
        max_length=LENGTH,
        seed=0,
        machine=conditions(options),
    )
    made = create(inputs, model, progress=tell)
    held = perplexity(model, held_out_texts(data))
    write_atomically(facts, dump_json(made | {"held_out": held, "python": sys.version.split()[0]}))
    return model


def train_texts(data: Path = SHARED) -> list[str]:
    """The prose, and source files in the order of their hashes, as many as the time is enough for."""
    prose, code = texts_of(data)
    kept = [text for text in prose + sorted(code, key=_hash) if _share(text) >= HOLDOUT]
    total = 0
    chosen = []
    for text in kept:
        total += len(text.encode())
        if total > TRAIN_BYTES:
            break
        chosen.append(text)
    return chosen


def held_out_texts(data: Path = SHARED) -> list[str]:
    """Texts that the model never saw, one in twenty of each kind, in the order of their hashes."""
    prose, code = texts_of(data)
    return sorted((text for text in prose + code if _share(text) < HOLDOUT), key=_hash)


def texts_of(data: Path) -> tuple[list[str], list[str]]:
    """(pieces of prose, Python's own source files); without the data folder no prose."""
    prose = []
    for name in PROSE:
        path = data / name
        if path.is_file():
            prose += pieces(path.read_text(encoding="utf-8"))
    code = set()
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "dist-packages", "__pycache__"} & set(path.parts):
            continue
        if 200 <= path.stat().st_size <= LARGEST_BYTES:
            try:
                code.add(path.read_bytes().decode("utf-8").replace("\r\n", "\n"))
            except UnicodeDecodeError:
                continue  # the library tests its own parser with files in other encodings
    return prose, sorted(code)


def pieces(text: str) -> list[str]:
    """A long text in pieces of about PIECE_BYTES, cut between paragraphs."""
    found: list[str] = [""]
    for paragraph in text.split("\n\n"):
        if len(found[-1]) > PIECE_BYTES:
            found.append("")
        found[-1] += paragraph + "\n\n"
    return [one.strip("\n") + "\n" for one in found if one.strip()]


def perplexity(model: Path, texts: list[str], tokens: int = 200_000) -> dict[str, float]:
    """exp of the mean loss over blocks of LENGTH tokens of each text, in order, until so many tokens are counted."""
    import torch
    from torch.nn.functional import cross_entropy

    from edgekit.model import load_model
    from edgekit.tasks import TASKS

    module = TASKS["text-generation"].load(model)
    total, count = 0.0, 0
    with torch.inference_mode():
        for ids in load_model(model).encode(texts, 1 << 30):
            for start in range(0, len(ids) - 1, LENGTH):
                block = torch.tensor([ids[start : start + LENGTH]])
                if block.shape[1] < 2:
                    continue
                logits = module(block, torch.ones_like(block))[0, :-1]
                total += float(cross_entropy(logits, block[0, 1:], reduction="sum"))
                count += block.shape[1] - 1
            if count >= tokens:
                break
    return {"perplexity": round(math.exp(total / count), 3), "tokens": count}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _share(text: str) -> float:
    return int(_hash(text)[:12], 16) / 16**12


def main() -> int:
    """Train, or find, the model and say how good it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the model is kept")
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of stories260K/ and tinyshakespeare/")
    given = parser.parse_args()
    model = tiny_llama(given.cache, given.data)
    facts = read_json(model.parent / "facts.json")
    held = facts["held_out"]
    print(
        f"{model}: {facts['parameters']:,} weights, {facts['train_tokens']:,} tokens of {facts['train_texts']:,} texts"
    )
    print(f"perplexity {held['perplexity']} on {held['tokens']:,} tokens of held-out texts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
