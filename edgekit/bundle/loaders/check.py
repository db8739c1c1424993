"""Whether a bundle is what was verified, and answers here as it did there. It ships beside load.py, which asks it."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Table = dict[str, Any]  # an object of JSON
FORMAT, GOLDEN_FORMAT = 2, 1  # of bundle.json and golden.json


def read(folder: Path, runtime: str, found: str, check: bool) -> Table:
    """The manifest, once the runtime's version and, with `check`, every file are as they were verified; else RuntimeError."""
    path = folder / "bundle.json"
    manifest = _read_table(path, "format_version", FORMAT)
    if check:
        said = {key: value for key, value in manifest.items() if key != "digest"}
        text = json.dumps(said, sort_keys=True, separators=(",", ":"))
        if hashlib.sha256(text.encode()).hexdigest() != manifest.get("digest"):
            raise RuntimeError(f"{path}: changed after it was written (its digest is another); copy it again")
    minimum = [int(part) for part in re.findall(r"\d+", manifest["runtime"]["minimum"])]
    if [int(part) for part in re.findall(r"\d+", found)][: len(minimum)] < minimum:
        raise RuntimeError(f"{runtime} {found} is too old for this bundle: it needs {manifest['runtime']['minimum']}")
    if check:
        _check_files(folder, manifest)
    return manifest


def _check_files(folder: Path, manifest: Table) -> None:
    files, source = manifest["files"], folder / "bundle.json"
    for name in (*files, manifest["model"], manifest["tokenizer"] or manifest["model"]):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise RuntimeError(f"{source}: names a file outside the bundle, {name}; do not use this bundle")
        if name not in files:
            raise RuntimeError(f"{source}: tells no sha256 of {name}; do not use this bundle")
    for name, entry in files.items():
        path = folder / name
        with _readable(path), path.open("rb") as stream:
            size, digest = path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()
        if size < entry["bytes"]:
            raise RuntimeError(f"{path}: {size} of {entry['bytes']} bytes: cut off, or another bundle's; copy it again")
        if digest != entry["sha256"]:
            raise RuntimeError(f"{path}: not the file that was verified; is it another bundle's? Copy it again")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise RuntimeError(f"{path}: missing; copy the whole bundle") from None
    except OSError as failed:
        raise RuntimeError(f"{path}: cannot be read ({failed.strerror}); copy the whole bundle") from None


def _read_table(path: Path, key: str, known: int) -> Table:
    """The object of JSON in a file, whose `key` says of which format it is."""
    with _readable(path):
        content = path.read_bytes()
    try:
        table = json.loads(content.decode("utf-8"))
    except ValueError:
        raise RuntimeError(f"{path}: no JSON: cut off, or something else; copy it again") from None
    if not isinstance(table, dict) or key not in table:
        raise RuntimeError(f"{path}: not what edgekit writes there; copy it again")
    if table[key] != known:
        raise RuntimeError(
            f"{path}: of format {table[key]}, this loader reads {known}: use the one that ships with the bundle"
        )
    return table


def opened(path: Path, make: Callable[[str], Any]) -> Any:
    """What `make` makes of a file's path; RuntimeError, a sentence, for whatever it raises."""
    try:
        return make(str(path))
    except Exception as failed:
        why = (str(failed).strip() or type(failed).__name__).splitlines()[0]
        raise RuntimeError(f"{path}: cannot be opened ({why}): install a newer runtime, or copy it again") from failed


def tuned(manifest: Table, threads: int | Path | None) -> int | None:
    """The threads that are asked for; of NAME.tuning.json what build measured as the best, if it is of this model."""
    if not isinstance(threads, Path):
        return threads
    best = json.loads(threads.read_bytes())
    return int(best["best"]["threads"]) if best["artifact"] == manifest["artifact"]["sha256"] else None


def ranked(manifest: Table, scores: Any, text: str) -> list[tuple[str, float]]:
    """(label, score) of each class, the answer first: the likeliest, or out of scope where that is under the threshold.

    scores: float32 [classes]. No letter or digit is out of scope with 1, a best score under the threshold with 1 - that score.
    """
    labels, threshold, silent = manifest["labels"], manifest["threshold"], not any(map(str.isalnum, text))
    if len(scores) != len(labels):
        raise RuntimeError(f"the model gives {len(scores)} scores for {len(labels)} labels: copy the whole bundle")
    found = [(labels[index], float(scores[index])) for index in (-scores).argsort(kind="stable")]
    if threshold is None or (scores.max() >= threshold and not silent):
        return found
    return [(manifest["out_of_scope"], 1.0 if silent else 1.0 - found[0][1]), *found]


def golden(bundle: Any, check: bool) -> dict[str, float]:
    """Ask the golden inputs: RuntimeError where an answer is another; milliseconds of the first (`cold`) and last (`warm`)."""
    if not check or "golden.json" not in bundle.manifest.get("files", {}):
        return {}
    content, times = _read_table(bundle.folder / "golden.json", "format", GOLDEN_FORMAT), list[float]()
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
