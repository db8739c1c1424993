"""Conversions killed at random moments: what has the final name is whole, and the next one makes the same bytes."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")

from random_llama import Shape, write_checkpoint

from tests.conftest import child_environment

SEED, KILLS, ATTEMPTS = 7, 5, 15
# 66 MB in two shards, 26 MB as q6_k: a second or two of work, so that kills hit it.
SHAPE = Shape(layers=8, hidden=512, intermediate=1536, heads=8, kv_heads=4, vocabulary=6000)
CONVERT = """
import sys
from pathlib import Path
from edgekit.formats.gguf.convert import Quantization, convert, plan
from edgekit.model import Model
model = Model(folder=Path(sys.argv[1]))
types = {one.name: "q6_k" if len(one.shape) > 1 else "f32" for one in plan(model)}
told = lambda done, whole: print(done / whole, flush=True)
convert(model, Path(sys.argv[2]), Quantization(types=types), {}, threads=2, progress=told)
"""


def start(folder: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CONVERT, str(folder), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_environment())


def finish(folder: Path, out: Path) -> str:
    """sha256 of the file of a conversion that nothing disturbs."""
    with start(folder, out) as child:
        child.communicate()
    assert child.returncode == 0
    return digest(out)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kill_at(share: float, wait: float, folder: Path, out: Path) -> bool:
    """Kill a conversion some seconds after that share of the bytes was written; whether it still ran then."""
    with start(folder, out) as child:
        assert child.stdout
        for line in child.stdout:
            if float(line) >= share:
                break
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
    return child.returncode == -signal.SIGKILL


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_kills_leave_nothing_half_under_the_final_name(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    folder, place = tmp_path / "model", tmp_path / "out"
    folder.mkdir()
    place.mkdir()
    write_checkpoint(folder, SHAPE)
    out = place / "model.gguf"
    expected = finish(folder, tmp_path / "whole.gguf")
    # Half of the kills hit a conversion whose place holds an older file: that one stays until the new one is whole.
    older = b"an older file"
    hits = midway = 0
    for attempt in range(ATTEMPTS):
        if attempt % 2:
            out.write_bytes(older)
        else:
            out.unlink(missing_ok=True)
        # One of them at the end, when bytes are synced and the file gets its name.
        share = 1.0 if hits == KILLS - 1 else rng.uniform(0, 0.8)
        hit = kill_at(share, rng.uniform(0, 0.02), folder, out)
        if out.exists():
            assert digest(out) in {expected, hashlib.sha256(older).hexdigest()}, f"attempt {attempt}, {share}"
        else:
            assert hit, "it ended, and there is no file"
        hits += hit
        partial = place / "model.gguf.partial"
        midway += hit and partial.exists() and partial.stat().st_size > 0
        if hits == KILLS:
            break
    assert hits == KILLS
    assert midway >= KILLS - 1, "the kills came too early or too late to prove anything"
    assert finish(folder, out) == expected
    assert [path.name for path in place.iterdir()] == ["model.gguf"]
