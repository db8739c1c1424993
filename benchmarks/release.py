"""A release under harm: flipped bits, kills, time to verify, and whether it can be made again.

Goals
  flips      of 500 single bits flipped in random places of a release, verify-release finds all; model_signing finds all outside
             its own signature's file
  verify     a release of 100 MB is verified in less than 5 s beside hashing it once
  kills      of 20 releases killed at random moments none leaves anything that is taken for a release and is not whole
  again      `release --check --recipe` makes a small build's bundle and papers again, byte for byte

    python benchmarks/release.py [--flips 500] [--rows FILE] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rows import Row, Rows
from tiny_project import make_project

from edgekit.release.contents import SIGNATURE, names_in
from edgekit.release.signature import Trusted
from edgekit.release.verify import find_faults
from tests.release.conftest import Keys, make_bundle, make_keys, make_release, relist
from tests.release.test_verify import flipped, holds_by_model_signing

LARGE = 100 << 20
SECONDS = 5.0
KILLS = 20


def flips(folder: Path, keys: Keys, count: int) -> Row:
    """Flip single bits, one at a time, in places that are drawn over all bytes of a release."""
    make_release(make_bundle(folder / "made"), folder / "demo.release", keys)
    place, drawn = folder / "demo.release", random.Random(0)
    names = names_in(place)
    sizes = [(place / name).stat().st_size for name in names]
    own, foreign, outside = 0, 0, 0
    for name in drawn.choices(names, sizes, k=count):
        before = (place / name).read_bytes()
        flipped(place / name, drawn.randrange(8 * len(before)))
        own += bool(find_faults(place, Trusted(key=keys.path("key.pub"))))
        if name != SIGNATURE:
            outside += 1
            foreign += not holds_by_model_signing(place, keys)
        (place / name).write_bytes(before)
    return {"flips": count, "found": own, "outside_signature": outside, "found_by_model_signing": foreign}


def verify_time(folder: Path, keys: Keys) -> Row:
    """Seconds of `edgekit verify-release` on 100 MB, a process of its own, and those of hashing the files once."""
    place = folder / "demo.release"
    make_release(make_bundle(folder / "made"), place, None)
    with (place / "bundle" / "more.bin").open("wb") as stream:
        for number in range(LARGE >> 20):
            stream.write(hashlib.shake_256(str(number).encode()).digest(1 << 20))
    relist(place, keys)
    begin = time.perf_counter()
    for name in names_in(place):
        with (place / name).open("rb") as stream:
            hashlib.file_digest(stream, "sha256")
    hashing = time.perf_counter() - begin
    command = [sys.executable, "-m", "edgekit", "verify-release", str(place), "--key", str(keys.path("key.pub"))]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"seconds": time.perf_counter() - begin, "hashing": hashing, "exit_code": done.returncode}


def kills(folder: Path, keys: Keys, count: int) -> Row:
    """Kill releases in processes of their own at random moments of the time that a whole one takes."""
    bundle, trusted = make_bundle(folder / "made"), Trusted(key=keys.path("key.pub"))
    out, drawn = folder / "demo.release", random.Random(1)
    command = [sys.executable, "-m", "edgekit", "release", str(bundle), "--sign", str(keys.path("key.pem"))]
    command += ["--out", str(out), "--cache", str(folder / "cache")]
    begin = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    whole = time.perf_counter() - begin
    taken = killed = 0
    for _ in range(count):
        started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            started.wait(timeout=drawn.uniform(0.5, 1.0) * whole)
        except subprocess.TimeoutExpired:
            os.kill(started.pid, signal.SIGKILL)
            started.wait()
            killed += 1
        taken += bool(out.exists() and find_faults(out, trusted))
    subprocess.run(command, capture_output=True, check=True)
    return {"kills": killed, "taken_and_broken": taken, "whole_at_the_end": not find_faults(out, trusted)}


def again(folder: Path, keys: Keys) -> Row:
    """Build a small project, release it, and have it made again from its recipe."""
    make_project(folder / "project")
    environment = {**os.environ, "EDGEKIT_STATE": str(folder / "state"), "EDGEKIT_CACHE": "cache"}
    run = partial(subprocess.run, cwd=folder / "project", env=environment, capture_output=True, text=True, check=False)
    edgekit = [sys.executable, "-m", "edgekit"]
    built = json.loads(run([*edgekit, "build", "--target", "first", "--json"]).stdout)["bundles"][0]["bundle"]
    run([*edgekit, "release", built, "--sign", str(keys.path("key.pem")), "--out", "out"])
    done = run([*edgekit, "release", "out", "--check", "--recipe", "recipe.toml", "--json"])
    told = json.loads(done.stdout)
    return {"same": len(told.get("same", ())), "difference": told.get("difference", told.get("error"))}


def main() -> int:
    """Measure what is not kept, print a table or one object; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = Rows(asked.rows)
    found: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="edgekit-release-") as scratch:
        keys = make_keys(Path(scratch) / "keys")
        measures: dict[str, Callable[[Path, Keys], Row]] = {
            "flips": partial(flips, count=asked.flips),
            "verify": verify_time,
            "kills": partial(kills, count=KILLS),
            "again": again,
        }
        for name, measure in measures.items():
            place = Path(scratch) / name
            place.mkdir()
            found[name] = rows.take(name, partial(measure, place, keys))
    missed = judge(found)
    if asked.json:
        print(json.dumps({"rows": found, "missed": missed}, indent=2))
    else:
        for name, row in found.items():
            print(f"{name:<8}" + "  ".join(f"{key} {value}" for key, value in row.items()))
        print("\n".join(f"missed: {goal}" for goal in missed) or "every goal is met")
    return int(bool(missed))


def judge(found: dict[str, Row]) -> list[str]:
    """The goals that are missed."""
    bits, verify, dead, made = (found[name] for name in ("flips", "verify", "kills", "again"))
    goals = {
        "flips: verify-release finds all": bits["found"] == bits["flips"],
        "flips: model_signing finds all outside its file": bits["found_by_model_signing"] == bits["outside_signature"],
        "verify: 100 MB": verify["exit_code"] == 0
        and float(str(verify["seconds"])) - float(str(verify["hashing"])) < SECONDS,
        "kills: nothing broken is taken for a release": dead["taken_and_broken"] == 0
        and bool(dead["whole_at_the_end"]),
        "again: the same bytes": made["difference"] is None and int(str(made["same"])) > 10,
    }
    return [goal for goal, met in goals.items() if not met]


if __name__ == "__main__":
    sys.exit(main())
