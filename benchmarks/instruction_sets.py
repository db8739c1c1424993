"""Does an artifact mean the same on CPUs with other instructions? Emulated ones behind a real SSH server answer.

Goals:
- ARM: on a Cortex-A76 (dot products) and a Cortex-A72 (none), INT8 in ONNX and q8_0 and q4_0 in GGUF have the verdict of this
  machine in every check that compares them with the float model, and `as_on_host` does not fail. llama.cpp's library is compiled
  here, for each CPU's own variant
- x86: on an x86-64 without VNNI, whose sums of bytes saturate in 16 bits, prompts predicted as affected are those that are, with
  recall >= 0.9 and precision >= 0.7, also of a model that only some prompts saturate (between a tenth and nine tenths of them
  move); the damaged model is diagnosed as saturation, and with `reduce_range` nothing moves

The encoder is small and made here, the decoder is stories260K; `--large` adds code-llama-46m (q8_0 and q4_k_m), which takes an
hour. Emulated times mean nothing, and none is shown. With `--work FOLDER` what was made stays there, and a run that was cut goes
on at the row where it was; compiled libraries stay in the tests' cache.

Usage: python benchmarks/instruction_sets.py [--only arm|x86] [--large] [--work FOLDER] [--json]; exit code 1 where a goal is
missed. Needs root on Linux 6.7 or newer, Debian's packages, pip, Debian's cross compiler and ../shared/data.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edgekit.devices import libllama
from tests.conftest import LABELS, PATTERNS, SUBJECTS, make_checkpoint, make_data
from tests.devices.emulated import board
from tests.devices.old_x86 import old_x86
from tests.devices.sshd import Reachable
from tests.llama_programs import made_once

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
RECALL, PRECISION = 0.9, 0.7
PROMPTS = 120
CALIBRATE, JUDGED = 8, 24
BOARDS = {"cortex-a76": "armv8.2-a+dotprod", "cortex-a72": "armv8-a"}
Row = dict[str, Any]
"""What a case gave, and whether that `met` its goal."""
# Each kind of call once: what is timed here is the emulator.
COMMAND = """
from edgekit.verify import generation, measurements
generation.TIMING = {"prompts": (16,), "new": 4, "repeats": 1, "seconds": 0.0, "sweep": False}
measurements.TIMING = {"warmup": 1, "repeats": 5, "least": 1, "seconds": 0.0}
from edgekit.cli import run_command_line
import sys
sys.exit(run_command_line())
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An artifact: the recipe, and the options that say which."""

    recipe: Path
    options: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Where commands run: a folder with the cache, in which the same artifact is made once for all devices."""

    folder: Path

    def edgekit(self, *arguments: str | Path, at: Reachable | None = None, name: str = "here") -> dict[str, Any]:
        """What a command says as JSON; SystemExit where it fails. at: the device that its ssh reaches, `name` its CPU."""
        path = os.environ["PATH"] if at is None else f"{at.commands}{os.pathsep}{os.environ['PATH']}"
        # Devices have one address, so each has a state of its own: what one said of itself is not another's.
        places = {"EDGEKIT_CACHE": str(self.folder / "cache"), "EDGEKIT_STATE": str(self.folder / name)}
        environment = os.environ | places | {"PATH": path, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        command = [sys.executable, "-c", COMMAND, *map(str, arguments), "--json"]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in {0, 3}:
            raise SystemExit(f"edgekit {' '.join(map(str, arguments))}: {done.stderr.strip() or done.stdout.strip()}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def judge(
        self, case: Case, target: str | Path, *, at: Reachable | None = None, name: str = "here"
    ) -> dict[str, Any]:
        """The report of an artifact on a device: the target's own, else the one that `at` is."""
        there = ["--device", at.url] if at is not None and isinstance(target, str) else []
        words = ("build", "--recipe", case.recipe, "--target", target, "--out", f"dist-{name}", *case.options, *there)
        (entry,) = self.edgekit(*words, at=at, name=name)["bundles"]
        report: dict[str, Any] = json.loads((self.folder / entry["report"]).read_text(encoding="utf-8"))
        return report | {"verdicts": {check["name"]: check["verdict"] for check in report["checks"]}}


def main() -> int:
    """Judge, show, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("arm", "x86"))
    parser.add_argument("--large", action="store_true", help="code-llama-46m too")
    parser.add_argument("--work", type=Path, help="keep what is made here, and go on with it")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekit-sets-") as scratch:
        rows = judge(asked.work.absolute() if asked.work else Path(scratch), only=asked.only, large=asked.large)
    missed = [name for name, row in rows.items() if not row["met"]]
    if asked.json:
        print(json.dumps({"rows": rows, "missed": missed}, indent=2))
    else:
        for name, row in rows.items():
            told = "  ".join(f"{key} {value}" for key, value in row.items() if key != "met")
            print(f"{name:34} {told}  {'met' if row['met'] else 'MISSED'}")
    return 1 if missed else 0


def judge(folder: Path, *, only: str | None, large: bool) -> dict[str, Row]:
    """All rows, each written to a file of the folder as soon as it is there, and read from it where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.json"
    rows: dict[str, Row] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    todo = [judge_x86(folder / "x86", rows)] if only != "arm" else []
    todo += [judge_arm(folder / "arm", rows, large=large)] if only != "x86" else []
    for name, row in itertools.chain(*todo):
        rows[name] = row
        file.write_text(json.dumps(rows, indent=2), encoding="utf-8")
        print(f"{name}: {'met' if row['met'] else 'MISSED'}", file=sys.stderr, flush=True)
    return rows


def library(variant: str) -> Path:
    """llama.cpp's library for it, compiled where the tests' cache has none: four minutes of a core."""
    recipe = f"{libllama.SETTINGS}{libllama.CROSS}{libllama.version()}"
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    return made_once(f"libllama-{variant}-{digest}", partial(libllama.cross_build, variant=variant))


def judge_arm(folder: Path, rows: Mapping[str, Row], *, large: bool) -> Iterator[tuple[str, Row]]:
    """Each artifact on each board, and here."""
    desk = Desk(folder=folder)
    classifier = encoder(folder / "encoder")
    storyteller = decoder(folder / "stories", DATA / "stories260K" / "hf", stories())
    cases = {"onnx int8-static": Case(recipe=classifier, options=("--scheme", "int8-static"))}
    cases |= {f"gguf {scheme}": in_gguf(storyteller, scheme) for scheme in ("q4_0", "q8_0")}
    if large:
        held = texts(DATA / "code-heldout" / "held.jsonl", CALIBRATE + JUDGED)
        code = decoder(folder / "code", DATA / "code-llama-46m", held)
        cases |= {f"46m {scheme}": in_gguf(code, scheme) for scheme in ("q8_0", "q4_k_m")}
    here = {name: desk.judge(case, "raspberrypi") for name, case in cases.items()}
    for cpu, variant in BOARDS.items():
        todo = {name: case for name, case in cases.items() if f"{cpu} {name}" not in rows}
        if not todo:
            continue
        compiled = library(variant)
        shutil.rmtree(folder / cpu, ignore_errors=True)
        with board(folder / cpu, cpu=cpu) as at:
            desk.edgekit("devices", "setup", at.url, "--llama-library", compiled, at=at, name=cpu)
            for name, case in todo.items():
                yield f"{cpu} {name}", compare(here[name], desk.judge(case, "raspberrypi", at=at, name=cpu))


def in_gguf(recipe: Path, scheme: str) -> Case:
    """A decoder in GGUF."""
    return Case(recipe=recipe, options=("--format", "gguf", "--scheme", scheme))


def compare(here: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """Whether both have the same verdicts of what is compared with the float model."""
    assert here["artifact"]["sha256"] == there["artifact"]["sha256"]
    names = [name for name in here["verdicts"] if "_vs_" in name]
    other = {
        name: there["verdicts"].get(name) for name in names if there["verdicts"].get(name) != here["verdicts"][name]
    }
    host = there["host"]
    return {
        "checks": len(names),
        "otherwise": other,
        "as_on_host": there["verdicts"]["as_on_host"],
        "ratio": round(host["ratio"], 4),
        "interval": [None if bound is None else round(bound, 4) for bound in host["interval"]],
        "moved": f"{host['moved']}/{host['prompts']}",
        "met": bool(names) and not other and there["verdicts"]["as_on_host"] != "fail",
    }


@dataclass(frozen=True, kw_only=True)
class Saturating:
    """A model whose sums of bytes saturate there: how its weights are made so, the target's reduce_range, what more its export
    table says, and the least and the most share of the prompts that may move."""

    change: Callable[[Path], None]
    reduce_range: bool = False
    export: str = ""
    moved: tuple[float, float] = (0.0, 1.0)


def judge_x86(folder: Path, rows: Mapping[str, Row]) -> Iterator[tuple[str, Row]]:
    """Models whose weights make sums of bytes saturate: of all prompts, of some, and with weights of seven bits of none."""
    desk = Desk(folder=folder)
    cases = {
        "x86 without VNNI": Saturating(change=flatten),
        "x86 without VNNI, in part": Saturating(change=plant, export="smoothing = false", moved=(0.1, 0.9)),
        "x86 without VNNI, reduce_range": Saturating(change=flatten, reduce_range=True, moved=(0.0, 0.0)),
    }
    todo = {name: case for name, case in cases.items() if name not in rows}
    if not todo:
        return
    shutil.rmtree(folder / "device", ignore_errors=True)
    with old_x86(folder / "device") as at:
        for index, (name, case) in enumerate(todo.items()):
            recipe = encoder(folder / case.change.__name__, change=case.change)
            target = folder / f"old-{index}.toml"
            target.write_text(
                old_target(at.python, reduce_range=case.reduce_range, export=case.export), encoding="utf-8"
            )
            artifact = Case(recipe=recipe, options=("--scheme", "int8-static"))
            report = desk.judge(artifact, target, at=at, name=f"x86-{index}")
            host, verdict = report["host"], report["verdicts"]["as_on_host"]
            least, most = case.moved
            met = least <= host["moved"] / host["prompts"] <= most
            if case.reduce_range:
                met = met and verdict == "pass"
            else:
                met = met and (verdict, host["diagnosis"]) == ("fail", "saturation")
                met = met and host["recall"] >= RECALL and host["precision"] >= PRECISION
            told = {key: host[key] for key in ("moved", "prompts", "predicted", "recall", "precision", "diagnosis")}
            yield name, {**told, "as_on_host": verdict, "met": met}


def encoder(folder: Path, change: Callable[[Path], None] = lambda _: None) -> Path:
    """A recipe of a classifier as it is, or changed, whose verify prompts are orders of words that its tokenizer has."""
    recipe = folder / "recipe.toml"
    if recipe.is_file():
        return recipe
    shutil.rmtree(folder, ignore_errors=True)
    make_checkpoint(folder / "teacher", labels=LABELS)
    change(folder / "teacher")
    make_data(folder / "data")
    (folder / "data" / "verify.jsonl").write_text(orders(PROMPTS), encoding="utf-8")
    source = '[teacher]\nsource = "teacher"\n\n[data]\npath = "data"\nmax_length = 32\n'
    recipe.write_text(f'task = "text-classification"\n\n{source}', encoding="utf-8")
    return recipe


def orders(count: int) -> str:
    """Lines of so many prompts: words in any order."""
    words = sorted({word for phrase in (*PATTERNS.values(), *SUBJECTS) for word in phrase.split() if word != "{}"})
    numbers = random.Random(0)
    rows = [
        {"text": " ".join(numbers.sample(words, numbers.randint(4, 12))), "label": LABELS[row % len(LABELS)]}
        for row in range(count)
    ]
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def flatten(checkpoint: Path) -> None:
    """Make the weights of all matrices of layers nearly alike in size: as bytes all are near 127, and pairs of them saturate."""
    from safetensors.torch import load_file, save_file

    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith("weight") and tensor.ndim == 2 and "embeddings" not in name:
            tensors[name] = (tensor.sign() * tensor.abs() ** 0.5 * tensor.abs().mean() ** 0.5).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})


def plant(checkpoint: Path) -> None:
    """Make the weights of one matrix large in two neighbouring columns, which each word of a prompt feeds more or less.

    The matrix is the first of the second layer's feed-forward part; the words' mean comes there through attention, by weights
    that pass both channels on. In all other pairs of weights one is small: no activation makes them exceed 16 bits.
    """
    from safetensors.torch import load_file, save_file

    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if not name.endswith("weight") or tensor.ndim != 2 or "embeddings" in name:
            continue
        peak, place = tensor.abs().max(dim=1, keepdim=True)
        made = tensor.clamp(-0.3 * peak, 0.3 * peak)
        made = made.scatter(1, place ^ 1, 0.0).scatter(1, place, tensor.gather(1, place))
        if "attention.self.value" in name or "attention.output.dense" in name:
            made[:2] = 0
            made[0, 0] = made[1, 1] = 2.5
        if name.endswith("layer.1.intermediate.dense.weight"):
            made = tensor.clamp(-0.05 * peak, 0.05 * peak)
            made[:, :2] = peak
        # What comes out of that part then outweighs what rounding alone costs.
        gain = 6.0 if name.endswith(("layer.1.intermediate.dense.weight", "layer.1.output.dense.weight")) else 1.0
        tensors[name] = (gain * made).contiguous()
    for kind in ("word", "position", "token_type"):
        tensors[f"bert.embeddings.{kind}_embeddings.weight"][:, :2] = 0
    words = tensors["bert.embeddings.word_embeddings.weight"]
    order, spread = list(range(4, len(words))), float(words.std())  # the first four are special tokens
    random.Random(1).shuffle(order)
    for index, word in enumerate(order):
        words[word, :2] = 2 * spread * (2 * index / len(order) - 0.7)
    save_file(tensors, file, metadata={"format": "pt"})


def old_target(python: str, *, reduce_range: bool, export: str = "") -> str:
    """A target file: INT8 for an x86-64 without VNNI behind SSH, whose interpreter is that; export: a line of its export table.

    Signed bytes that are dequantized before they are multiplied: what onnxruntime makes of them on such a CPU saturates.
    """
    changes = {
        '[device]\nkind = "local"\n': f'[device]\nkind = "ssh"\nhost = "stand-in"\npython = "{python}"\n',
        'activation = "uint8"': f'activation = "int8"\nlayout = "qdq"\n{export}',
        "reduce_range = false": f"reduce_range = {'true' if reduce_range else 'false'}",
    }
    text = (ROOT / "targets" / "raspberrypi.toml").read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def stories() -> list[str]:
    """Texts for `decoder`: stories for children."""
    counts = {"calibrate": CALIBRATE, "verify": JUDGED}
    return [
        text
        for name, count in counts.items()
        for text in texts(ROOT / "calib_data" / "stories" / f"{name}.jsonl", count)
    ]


def texts(file: Path, count: int) -> list[str]:
    """The first texts of a file, cut to what a decoder reads in a moment."""
    return [json.loads(line)["text"][:160] for line in file.read_text(encoding="utf-8").splitlines()[:count]]


def decoder(folder: Path, checkpoint: Path, prompts: Sequence[str]) -> Path:
    """A recipe of a decoder as it is: nothing is trained. prompts: CALIBRATE to calibrate with, then JUDGED to judge by."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, rows in {"calibrate": prompts[:CALIBRATE], "verify": prompts[CALIBRATE:]}.items():
        lines = [json.dumps({"text": text}) for text in rows]
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'task = "text-generation"\n\n[teacher]\nsource = "{checkpoint}"\n\n[data]\npath = "data"\nmax_length = 64\n',
        encoding="utf-8",
    )
    return recipe


if __name__ == "__main__":
    sys.exit(main())
