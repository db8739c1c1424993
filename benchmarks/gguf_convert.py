"""How long, and in how much memory, from a checkpoint to a quantized GGUF file? edgekit against llama.cpp's two steps.

Goals, with random weights in the shape of TinyLlama (1.1 billion, f16, two shards), both sides on all cores, in one run:
- q4_0 takes at most 0.35 of the time of llama.cpp's converter (to f16) and its quantizer, q4_k_m at most 0.8 of it
- the largest process takes at most 0.5 of the memory, for both schemes
- 0 bytes on the disk beside the output
- every tensor has the same bytes as llama.cpp's: straight and through f16, and from a bf16 checkpoint through f16
- a checkpoint in the shape of Llama 2 7B (sparse files) peaks below 0.8 GB, and at most at 1.3 of the smaller one's peak

Times are wall clock from the start of a process to its end, the result's sha256 and fsync included on both sides; medians of
interleaved rounds. Ours is what the export does from plan to file, in a process without torch; not timed is what comes before
and after: the checkpoint's check, and the proof that llama.cpp reads texts as the original does. llama.cpp's converter is the
one in the source of the installed llama-cpp-python, which pip fetches (or EDGEKIT_TEST_LLAMA_SDIST names the archive, --source
the unpacked folder); it needs sentencepiece, which pip puts into the cache.

Usage: python benchmarks/gguf_convert.py [--cache FOLDER] [--rounds 3] [--source FOLDER] [--dtype F16] [--quick] [--json]
The cache takes 4 GB, a run 5 GB more. --quick: small shapes, only bytes are judged. Exit code 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from random_llama import Shape, write_checkpoint  # noqa: E402

PEER = "llama-cpp-python"
SCHEMES = {"q4_0": 0.35, "q4_k_m": 0.8}  # the goal of each: our time to theirs
OURS = Path("ours") / "model.gguf"
MEMORY, LARGE_MB, LARGE_RATIO = 0.5, 800.0, 1.3
TINY = Shape(layers=22, hidden=2048, intermediate=5632, heads=32, kv_heads=4, vocabulary=32000)
LARGE = Shape(layers=32, hidden=4096, intermediate=11008, heads=32, kv_heads=32, vocabulary=32000, sparse=True)
SMALL = Shape(layers=2, hidden=256, intermediate=768, heads=4, kv_heads=2, vocabulary=1000)
# "cut" and "spread" have fewer layers, for the routes that are not timed.
WHOLE = {"timed": TINY, "cut": replace(TINY, layers=2), "large": LARGE}
QUICK = {"timed": SMALL, "cut": SMALL, "large": replace(SMALL, layers=8, sparse=True)}


def main() -> int:
    """Measure, show, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="checkpoints and llama.cpp's converter")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--source", type=Path, help="llama.cpp's source, where it is unpacked already")
    parser.add_argument("--dtype", choices=("F16", "BF16"), default="F16", help="of the timed checkpoint")
    parser.add_argument("--quick", action="store_true", help="small shapes; times and memory are shown and not judged")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        request = json.loads(options.child)
        work: Any = WORK[request.pop("what")]
        print(json.dumps(work(**request)))
        return 0
    cache = options.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    source = options.source or fetch_source(cache)
    peer = fetch_sentencepiece(cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix="run-") as scratch:
        found = measure(cache, Path(scratch), Peer(source=source.resolve(), packages=peer), options)
    checks = judge(found, bytes_only=options.quick)
    if options.json:
        print(json.dumps({"measured": found, "checks": checks}, indent=2))
    else:
        show(found, checks)
    return 0 if all(check["met"] for check in checks) else 1


def default_cache() -> Path:
    """A folder of the user's cache directory."""
    home = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return Path(home or Path.home() / ".cache") / "edgekit" / "gguf_convert"


# What is measured


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Where llama.cpp's source is, and the packages that its converter needs besides ours."""

    source: Path
    packages: Path


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a process took: wall and CPU seconds, its peak memory, the most bytes that its folder held, and what it told."""

    seconds: float
    cpu_s: float
    peak_mb: float
    most_bytes: int
    told: dict[str, Any]


def measure(cache: Path, scratch: Path, peer: Peer, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides, round by round, then the other routes and the large checkpoint."""
    shapes = QUICK if options.quick else WHOLE
    spread = replace(shapes["cut"], dtype="BF16", spread=True)
    shapes = shapes | {"timed": replace(shapes["timed"], dtype=options.dtype), "spread": spread}
    folders = {name: checkpoint(cache, shape) for name, shape in shapes.items()}
    # Nothing of this is timed: it also brings files and programs into memory.
    routes = compare_routes(folders, scratch, peer, quick=options.quick)
    rounds = []
    for number in range(options.rounds):
        rounds.append(compare_sides(folders["timed"], scratch, peer, first_ours=number % 2 == 0))
        note(f"round {number + 1} of {options.rounds}: {json.dumps(rounds[-1])}")
    found: dict[str, Any] = {
        "parameters": sum(math.prod(shape) for shape in shapes["timed"].tensors.values()),
        "dtype": options.dtype,
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": statistics.median(one["load"] for one in rounds),
        "rounds": rounds,
        "schemes": {scheme: summary(scheme, rounds) for scheme in SCHEMES},
        "routes": routes,
    }
    note("the large checkpoint")
    large = ours(folders["large"], scratch, "q4_0")
    found["large"] = {
        "parameters": sum(math.prod(shape) for shape in shapes["large"].tensors.values()),
        "bytes": large.told["bytes"],
        "seconds": large.seconds,
        "peak_mb": large.peak_mb,
        "temporary_bytes": large.most_bytes - large.told["bytes"],
        "ratio": large.peak_mb / found["schemes"]["q4_0"]["ours"]["peak_mb"],
    }
    return found


def checkpoint(cache: Path, shape: Shape) -> Path:
    """A checkpoint's folder, from the cache or made now."""
    folder = cache / f"checkpoint-{hashlib.sha256(repr((2, shape)).encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        note(f"{folder.name}: {shape}")
        unfinished = folder.with_suffix(".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        child("make", folder=str(unfinished), shape=asdict(shape))
        unfinished.rename(folder)
    return folder


def compare_sides(folder: Path, scratch: Path, peer: Peer, *, first_ours: bool) -> dict[str, Any]:
    """One round: {load, scheme: {ours, theirs, tensors, different}}; llama.cpp's first step counts for each scheme."""
    found: dict[str, Any] = {"load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        theirs = Path(place)
        first = convert_theirs(folder, theirs, peer)
        for scheme in SCHEMES:
            mine = ours(folder, scratch, scheme) if first_ours else None
            second = quantize_theirs(theirs, scheme)
            mine = mine or ours(folder, scratch, scheme)
            file = theirs / f"{scheme}.gguf"
            found[scheme] = {
                "ours": {
                    "seconds": mine.seconds,
                    "cpu_s": mine.cpu_s,
                    "peak_mb": mine.peak_mb,
                    "temporary_bytes": mine.most_bytes - mine.told["bytes"],
                },
                "theirs": {
                    "seconds": first.seconds + second.seconds,
                    "cpu_s": first.cpu_s + second.cpu_s,
                    "peak_mb": max(first.peak_mb, second.peak_mb),
                    "temporary_bytes": max(first.most_bytes, second.most_bytes) - file.stat().st_size,
                    "convert_s": first.seconds,
                    "quantize_s": second.seconds,
                },
                **child("compare", one=str(scratch / OURS), other=str(file)),
            }
            file.unlink()
    return found


def compare_routes(folders: dict[str, Path], scratch: Path, peer: Peer, *, quick: bool) -> list[dict[str, Any]]:
    """The routes that are not timed, each against llama.cpp's two steps: {checkpoint, scheme, through, tensors, different}."""
    found = []
    for name in ("spread",) if quick else ("cut", "spread"):
        with tempfile.TemporaryDirectory(dir=scratch) as theirs:
            convert_theirs(folders[name], Path(theirs), peer)
            for scheme in SCHEMES:
                quantize_theirs(Path(theirs), scheme)
                # Of spread, the straight route keeps what f16 rounds: it must differ, or the checkpoint proves nothing.
                for through in ("f16",) if name == "cut" else ("f16", None):
                    ours(folders[name], scratch, scheme, through=through)
                    compared = child("compare", one=str(scratch / OURS), other=f"{theirs}/{scheme}.gguf")
                    found.append({"checkpoint": name, "scheme": scheme, "through": through, **compared})
                    note(f"route: {json.dumps(found[-1])}")
                Path(f"{theirs}/{scheme}.gguf").unlink()
    return found


def summary(scheme: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of each side's figures, and of each round's ratio; of temporary bytes and differences the most."""
    own = [one[scheme] for one in rounds]
    found: dict[str, Any] = {
        side: {key: statistics.median(one[side][key] for one in own) for key in own[0][side]}
        for side in ("ours", "theirs")
    }
    for side in ("ours", "theirs"):
        found[side]["temporary_bytes"] = max(one[side]["temporary_bytes"] for one in own)
    for key in ("seconds", "cpu_s", "peak_mb"):
        found[f"{key}_ratio"] = statistics.median(one["ours"][key] / one["theirs"][key] for one in own)
    found["tensors"] = own[0]["tensors"]
    found["different"] = max(one["different"] for one in own)
    return found


def judge(found: dict[str, Any], *, bytes_only: bool) -> list[dict[str, Any]]:
    """The goals, each with what was measured."""
    measured: list[tuple[str, float, float]] = []
    for scheme, one in found["schemes"].items():
        if not bytes_only:
            measured.append((f"{scheme}: time to llama.cpp's", one["seconds_ratio"], SCHEMES[scheme]))
            measured.append((f"{scheme}: peak memory to llama.cpp's", one["peak_mb_ratio"], MEMORY))
        measured.append((f"{scheme}: temporary bytes", one["ours"]["temporary_bytes"], 0))
        measured.append((f"{scheme}: tensors that differ, of {one['tensors']}", one["different"], 0))
    for route in found["routes"]:
        if route["through"]:
            name = f"{route['checkpoint']} through {route['through']} to {route['scheme']}: tensors that differ"
            measured.append((name, route["different"], 0))
    large = found["large"]
    measured.append(("large checkpoint: temporary bytes", large["temporary_bytes"], 0))
    if not bytes_only:
        measured.append(("large checkpoint: peak memory, MB", large["peak_mb"], LARGE_MB))
        measured.append(("large checkpoint: peak memory to the smaller's", large["ratio"], LARGE_RATIO))
    checks = [
        {"goal": goal, "measured": value, "limit": limit, "met": value <= limit} for goal, value, limit in measured
    ]
    straight = min(route["different"] for route in found["routes"] if not route["through"])
    name = "spread straight: tensors that differ (at least one, or f16 rounds nothing)"
    return [*checks, {"goal": name, "measured": straight, "limit": 1, "met": straight >= 1}]


def show(found: dict[str, Any], checks: list[dict[str, Any]]) -> None:
    """Two tables for people."""
    print(f"{found['parameters'] / 1e9:.2f} billion weights in {found['dtype']}", end=", ")
    print(f"{found['threads']} threads, load {found['load']:.1f}\n")
    print(f"{'':30}{'seconds':>9}{'CPU s':>9}{'peak MB':>9}{'temporary MB':>14}")
    rows = [(f"{side}, {scheme}", one[side]) for scheme, one in found["schemes"].items() for side in ("ours", "theirs")]
    for name, one in [*rows, (f"ours, {found['large']['parameters'] / 1e9:.1f} billion", found["large"])]:
        steps = f"   {one['convert_s']:.1f} + {one['quantize_s']:.1f} s" if "convert_s" in one else ""
        cpu = f"{one['cpu_s']:9.1f}" if "cpu_s" in one else " " * 9
        print(f"{name:30}{one['seconds']:9.1f}{cpu}{one['peak_mb']:9.0f}{one['temporary_bytes'] / 1e6:14.1f}{steps}")
    print()
    for check in checks:
        verdict = "met" if check["met"] else "MISSED"
        print(f"{check['goal']:74}{check['measured']:10.3g}   limit {check['limit']:<6g}{verdict}")


# Processes


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def child(what: str, **request: Any) -> dict[str, Any]:
    """What a function of WORK returns in a process of its own: this one stays small, as children begin with its peak."""
    command = [sys.executable, __file__, "--child", json.dumps({"what": what, **request})]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def ours(folder: Path, scratch: Path, scheme: str, *, through: str | None = None) -> Taken:
    """edgekit's conversion to OURS, in a folder that holds nothing else."""
    file = scratch / OURS
    shutil.rmtree(file.parent, ignore_errors=True)
    file.parent.mkdir()
    request = {"what": "ours", "folder": str(folder), "out": str(file), "scheme": scheme, "through": through}
    return run([sys.executable, __file__, "--child", json.dumps(request)], file.parent)


def convert_theirs(folder: Path, place: Path, peer: Peer) -> Taken:
    """llama.cpp's first step: to f16."""
    script = peer.source / "convert_hf_to_gguf.py"
    command = [sys.executable, script, folder, "--outtype", "f16", "--outfile", place / "f16.gguf"]
    return run([str(part) for part in command], place, packages=[peer.source / "gguf-py", peer.packages])


def quantize_theirs(place: Path, scheme: str) -> Taken:
    """llama.cpp's second step, with sha256 and fsync of the result."""
    request = {"what": "quantize", "source": str(place / "f16.gguf"), "out": str(place / f"{scheme}.gguf")}
    return run([sys.executable, __file__, "--child", json.dumps({**request, "scheme": scheme})], place)


def run(command: list[str], folder: Path, packages: list[Path] | None = None) -> Taken:
    """Run a process to its end; what it and its temporary files write lies in `folder`, which is watched meanwhile."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(temporary)}
    if packages:
        environment["PYTHONPATH"] = os.pathsep.join(str(path) for path in packages)
    watch = Watch(folder)
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=errors, env=environment)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        most = watch.end()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit {process.returncode}\n{text(errors)[-4000:]}")
        lines = text(said).splitlines()
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return Taken(
        seconds=seconds,
        cpu_s=used.ru_utime + used.ru_stime,
        peak_mb=used.ru_maxrss / unit,
        most_bytes=most,
        told=json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {},
    )


def text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")


class Watch:
    """The most bytes that the files of a folder take together, looked at 20 times a second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.most = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def end(self) -> int:
        self.ended.set()
        self.thread.join()
        return self.most

    def _look(self) -> None:
        while True:
            last = self.ended.wait(0.05)
            self.most = max(self.most, sum(sizes(self.folder)))
            if last:
                return


def sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        try:
            yield path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # it was renamed meanwhile
            yield 0


# Work of child processes


def work_ours(folder: str, out: str, scheme: str, through: Literal["f16"] | None) -> dict[str, Any]:
    """What edgekit's export does for GGUF, without the parity of its texts and without calibration."""
    from edgekit.formats.gguf import scheme_types
    from edgekit.formats.gguf.convert import Quantization, convert
    from edgekit.formats.gguf.metadata import describe_model, describe_origin, describe_quantization
    from edgekit.formats.gguf.tensors import plan
    from edgekit.formats.gguf.tokenizer import general_name, vocabulary
    from edgekit.model import Model
    from edgekit.runtimes.machine import available_cores

    model = Model(folder=Path(folder))
    tensors, keys = plan(model), vocabulary(model)
    metadata = describe_model(model, name=general_name(model, "benchmark")) | describe_quantization(scheme)
    made = convert(
        model,
        Path(out),
        Quantization(types=scheme_types(metadata, tensors, scheme).types, through=through),
        metadata | describe_origin({}, scheme=scheme) | keys,
        threads=available_cores(),
    )
    assert not {"torch", "transformers"} & set(sys.modules), "the converter imports torch or transformers"
    return {"bytes": made.bytes, "sha256": made.sha256}


def work_quantize(source: str, out: str, scheme: str) -> dict[str, Any]:
    """llama.cpp's quantizer on all cores, then fsync and sha256 of what it wrote."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    kinds = {"q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}
    settings.ftype, settings.nthread = kinds[scheme], 0  # 0: as many as there are cores
    llama_cpp.llama_backend_init()
    failed = llama_cpp.llama_model_quantize(source.encode(), out.encode(), settings)
    assert not failed, f"llama_model_quantize: {failed}"
    with Path(out).open("rb+") as stream:
        os.fsync(stream.fileno())
        return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def work_compare(one: str, other: str) -> dict[str, Any]:
    """How many tensors two GGUF files have, and how many of them differ in type, shape or bytes, or are in one only."""
    import numpy as np

    from edgekit.formats.gguf.file import GgufFile, read_gguf

    files = read_gguf(Path(one)), read_gguf(Path(other))

    def content(file: GgufFile, name: str) -> Iterator[bytes]:
        place = file.tensors[name]
        with file.path.open("rb") as stream:
            stream.seek(place.offset)
            for start in range(0, place.bytes, 1 << 22):
                yield stream.read(min(1 << 22, place.bytes - start))

    def same(name: str) -> bool:
        first, second = (file.tensors.get(name) for file in files)
        if first is None or second is None or (first.type, first.shape) != (second.type, second.shape):
            return False
        return all(here == there for here, there in zip(*(content(file, name) for file in files), strict=True))

    names = sorted({*files[0].tensors, *files[1].tensors})
    different = [name for name in names if not same(name)]
    tokens = ("tokens", "scores", "token_type")
    for key in (f"tokenizer.ggml.{token}" for token in tokens):
        first, second = (np.asarray(file.metadata[key]).tolist() for file in files)
        assert first == second, f"{key}: the two files have different ones"
    return {"tensors": len(names), "different": len(different)}


def work_make(folder: str, shape: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of random weights."""
    write_checkpoint(Path(folder), Shape(**shape))
    return {}


WORK = {"ours": work_ours, "quantize": work_quantize, "compare": work_compare, "make": work_make}


# llama.cpp's converter


def fetch_source(cache: Path) -> Path:
    """The part of llama.cpp's source that its converter is, of the version that the installed package came from."""
    version = metadata.version(PEER)
    folder = cache / f"{PEER}-{version}"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as scratch:
        named = os.environ.get("EDGEKIT_TEST_LLAMA_SDIST")
        if not named:
            note(f"fetching the source of {PEER} {version}")
            pip("download", "--no-deps", "--no-binary", PEER, "--dest", scratch, f"{PEER}=={version}")
        sdist = Path(named) if named else next(Path(scratch).glob("*.tar.gz"))
        unpacked = Path(scratch) / "source"
        with tarfile.open(sdist) as archive:
            for entry in archive:
                entry.name = entry.name.partition("/vendor/llama.cpp/")[2]
                if entry.name.startswith(("convert_hf_to_gguf.py", "conversion/", "gguf-py/")):
                    archive.extract(entry, unpacked, filter="data")
        unpacked.rename(folder)
    return folder


def fetch_sentencepiece(cache: Path) -> Path:
    """A folder with the sentencepiece package, which llama.cpp's converter reads tokenizer.model with; edgekit does not."""
    folder = cache / f"sentencepiece-{sys.version_info[0]}.{sys.version_info[1]}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as scratch:
            pip("install", "--no-deps", "--target", f"{scratch}/packages", "sentencepiece")
            (Path(scratch) / "packages").rename(folder)
    return folder


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
