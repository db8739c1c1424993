"""What a delta takes of models that changed in the ways in which they do, beside bsdiff's patch and the whole file.

Goals:
- every delta gives the new file, byte for byte
- no delta is larger than the new file as .tar.gz takes it (gzip, level 6)
- where codes only moved, or the file's head changed alone, it takes at most a tenth of that
- it is at most 1.25 times bsdiff's patch where a model was taught anew

What changed: `anew` is another student of the same recipe (give its file), `moved` one byte in twenty behind the first 200 kB,
drawn at random, by one step up or down, `few` one in a hundred, `head` three bytes at the beginning. Times are of one thread.

Usage: python benchmarks/delta.py MODEL [--anew MODEL] [--keep FILE] [--json]. Exit code 1 where a goal is missed. It needs
zstandard, and bsdiff4 for its column (17 times the model in memory); what it had measured it takes from --keep.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import io
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rows import Rows

from edgekit.bundle.manifest import FileEntry
from edgekit.diff.parts import Part, decoded, smallest
from edgekit.workspace import file_sha256

TENTH, BESIDE_BSDIFF = 0.1, 1.25
SMALL = ("moved", "few", "head")


def main() -> int:
    """Measure, print a table or one JSON object; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--anew", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = Rows(asked.keep)
    old = asked.model.read_bytes()
    found: dict[str, Mapping[str, Any]] = {}
    for name in (*(["anew"] if asked.anew else []), *SMALL):
        new = asked.anew.read_bytes() if name == "anew" else changed(name, old)
        found[name] = rows.take(name, lambda new=new: measure(old, new))  # type: ignore[misc]
    missed = find_missed(found)
    if asked.json:
        print(json.dumps({"bytes": len(old), "changes": found, "missed": missed}))
        return int(bool(missed))
    print(f"{'change':<8}{'way':>12}{'delta':>12}{'bsdiff':>12}{'gzip':>12}{'made s':>9}{'applied s':>11}")
    for name, one in found.items():
        shown = f"{name:<8}{one['way']:>12}{one['delta']:>12}{one['bsdiff'] or '-':>12}{one['gzip']:>12}"
        print(f"{shown}{one['made_s']:>9.1f}{one['applied_s']:>11.2f}")
    for line in missed:
        print(f"missed: {line}")
    return int(bool(missed))


def changed(name: str, old: bytes) -> bytes:
    """The model after a change."""
    held = np.frombuffer(old, np.uint8).copy()
    if name == "head":
        held[100:103] += 1
    else:
        rng, body = np.random.default_rng(0), held[200_000:]
        steps = rng.choice(np.array([1, 255], np.uint8), len(body))
        body += steps * (rng.random(len(body)) < (0.05 if name == "moved" else 0.01)).astype(np.uint8)
    return held.tobytes()


def measure(old: bytes, new: bytes) -> dict[str, Any]:
    """Bytes and seconds of one change."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "a").write_bytes(old)
        (folder / "b").write_bytes(new)
        begun = time.perf_counter()
        way, made = smallest(folder / "a", folder / "b", folder / "part")
        made_s = time.perf_counter() - begun
        size = made.stat().st_size
        entries = [FileEntry(bytes=path.stat().st_size, sha256=file_sha256(path)) for path in (folder / "b", made)]
        part = Part(name="b", way=way, file=entries[0], source=None if way == "whole" else "a", part=entries[1])
        begun = time.perf_counter()
        with made.open("rb") as stream:
            same = b"".join(decoded(part, stream, folder)) == new
        applied_s = time.perf_counter() - begun
    bsdiff = None
    if importlib.util.find_spec("bsdiff4"):
        bsdiff = len(importlib.import_module("bsdiff4").diff(old, new))
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as stream:
        stream.write(new)
    sizes = {"delta": size, "bsdiff": bsdiff, "gzip": len(packed.getvalue())}
    return {"way": way, "same": same, **sizes, "made_s": made_s, "applied_s": applied_s}


def find_missed(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The goals that were missed."""
    missed = []
    for name, one in found.items():
        if not one["same"]:
            missed.append(f"{name}: the delta does not give the new file")
        if one["delta"] > one["gzip"]:
            missed.append(f"{name}: the delta is larger than the file: {one['delta']} and {one['gzip']} bytes")
        if name in SMALL and one["delta"] > TENTH * one["gzip"]:
            missed.append(f"{name}: {one['delta']} bytes, more than a tenth of {one['gzip']}")
        if name == "anew" and one["bsdiff"] and one["delta"] > BESIDE_BSDIFF * one["bsdiff"]:
            missed.append(f"{name}: {one['delta']} bytes, and bsdiff {one['bsdiff']}")
    return missed


if __name__ == "__main__":
    sys.exit(main())
