"""Whether a bundle is what was verified, and answers here as it did there. It ships beside load.py, which asks it."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import time
from pathlib import Path
from typing import Any

Table = dict[str, Any]  # an object of JSON


def read(folder: Path, runtime: str, found: str, check: bool) -> Table:
    """The manifest, once the runtime's version and, with `check`, every file are as they were verified; else RuntimeError."""
    manifest: Table = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    minimum = [int(part) for part in re.findall(r"\d+", manifest["runtime"]["minimum"])]
    if [int(part) for part in re.findall(r"\d+", found)][: len(minimum)] < minimum:
        raise RuntimeError(f"{runtime} {found} is too old for this bundle: it needs {manifest['runtime']['minimum']}")
    for name, entry in manifest.get("files", {}).items() if check else ():
        path = folder / name
        if not path.is_file():
            raise RuntimeError(f"{path}: missing; copy the whole bundle")
        if (size := path.stat().st_size) < entry["bytes"]:
            raise RuntimeError(f"{path}: {size} of {entry['bytes']} bytes: cut off, or another bundle's; copy it again")
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != entry["sha256"]:
                raise RuntimeError(f"{path}: not the file that was verified; is it another bundle's? Copy it again")
    return manifest


def tuned(manifest: Table, threads: int | Path | None) -> int | None:
    """The threads that are asked for; of NAME.tuning.json what build measured as the best, if it is of this model."""
    if not isinstance(threads, Path):
        return threads
    best = json.loads(threads.read_bytes())
    return int(best["best"]["threads"]) if best["artifact"] == manifest["artifact"]["sha256"] else None


def golden(bundle: Any, check: bool) -> dict[str, float]:
    """Ask the golden inputs: RuntimeError where an answer is another; milliseconds of the first (`cold`) and last (`warm`)."""
    if not check or "golden.json" not in bundle.manifest.get("files", {}):
        return {}
    content, times = json.loads((bundle.folder / "golden.json").read_bytes()), list[float]()
    for row in content["rows"]:
        begun = time.perf_counter()
        said = _continued(bundle, row) if "tokens" in row else bundle(row["text"])
        times.append(1000 * (time.perf_counter() - begun))
        if (wrong := _differs(said, row, content["tolerance"])) is not None:
            raise RuntimeError(f"golden answer to {row['text'][:40]!r}: {wrong} when it was verified: this machine or runtime"
                               " computes something else")  # fmt: skip
    return {"cold": times[0], "warm": times[-1]} if times else {}


def _continued(bundle: Any, row: Table) -> dict[str, list[int]]:
    """How a decoder reads a golden text, and the tokens that it says behind it, the likeliest each time."""
    count, tokens = len(row["tokens"]), list[int]()
    if hasattr(bundle, "llama"):
        asked = bundle.llama.tokenize(row["text"].encode())
        tokens += itertools.islice(bundle.llama.generate(asked, temp=0.0), count)
    else:
        asked = list(bundle.tokenizer.encode(row["text"]).ids)
        for _ in range(count):
            tokens.append(int(bundle.read(asked + tokens).argmax()))
    return {"asked": asked, "tokens": tokens}


def _differs(said: Any, row: Table, tolerance: float) -> str | None:
    """What an answer is and what it was; None where that is the same."""
    if "tokens" in row:
        other = next((name for name in ("asked", "tokens") if said[name] != row[name]), None)
        return other and f"{'read as ' if other == 'asked' else ''}tokens {said[other]}, and {row[other]}"
    if "embedding" in row:
        found, wanted = [float(value) for value in said], row["embedding"]
        lengths = math.hypot(*found) * math.hypot(*wanted)
        cosine = sum(one * other for one, other in zip(found, wanted, strict=False)) / lengths if lengths else 0.0
        apart = 1 - cosine if len(found) == len(wanted) else math.inf
        return None if apart <= tolerance else f"an embedding {apart:.4f} away (1 - cosine), and at most {tolerance}"
    (label, score), *_ = said
    alike = label == row["label"] and abs(score - row["score"]) <= tolerance
    return None if alike else f"{label} {score:.4f}, and {row['label']} {row['score']}"
