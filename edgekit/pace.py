"""What a block costs: students of few blocks, which nobody taught, are exported as the real one will be, and timed.

A call takes so long for all that is not a block, and so long for each block; two depths tell both, and a narrower sample how much
of a block's time follows from its width. The samples take turns, each
time in a process of its own.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from edgekit.inputs import Content, Json
from edgekit.modalities import MODALITIES
from edgekit.outputs import OUTPUTS
from edgekit.probes import PROBES, Question
from edgekit.probes.lines import Calls, Decode, Lines, Load, MachineSpeed, Peak, Prefill
from edgekit.progress import Progress, silent
from edgekit.prompts import PromptSet
from edgekit.recipe import AS_CALIBRATED, Calibrate, Student
from edgekit.runtimes import RUNTIMES
from edgekit.schema import dump_json, read_json
from edgekit.tasks import TASKS
from edgekit.typed_json import read_table, to_table
from edgekit.verify import generation
from edgekit.verify.measurements import ask_rows, flat, read_timed, request, runtime_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from edgekit.artifact import Artifact
    from edgekit.devices import Device
    from edgekit.formats import FormatOptions, Processor
    from edgekit.runtimes.request import Timing
    from edgekit.verify.measurements import Timed

FILE = "samples.json"
# Prompts that a sample is calibrated on; what each process times.
_PROMPTS = 16
_ROWS: Timing = {"warmup": 10, "repeats": 100, "least": 20, "seconds": 0.6}
_TOKENS: Timing = {"new": 24, "repeats": 6, "seconds": 1.0, "sweep": False}


@dataclass(frozen=True, kw_only=True)
class PaceInputs:
    """What `pace` is given: a checkpoint, which of its blocks each sample keeps, and how the samples are written and timed.

    classes: of a classifier that is still to be trained, else (). options: of the format, by scheme. prompts: calibrate's.
    widths: of each sample, keys of [student] that make it narrower than the checkpoint. runtime: which one, and tables: the
    target's of all runtimes. sequence: tokens of the timed prompt. device: its table. rounds: processes that time each sample.
    """

    STEP: ClassVar[str] = "pace"
    teacher: Content
    classes: Sequence[str]
    keeps: Sequence[Sequence[int]]
    prompts: Content
    task: str
    max_length: int
    format: str
    options: Mapping[str, FormatOptions]
    processor: Processor | None
    runtime: str
    tables: Mapping[str, Mapping[str, Json]]
    sequence: int
    device: Mapping[str, Json]
    libraries: Mapping[str, str]
    widths: Sequence[Mapping[str, int]]
    rounds: int = 3


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A student of so many blocks in a scheme: the file's bytes, and its calls in ms.

    widths: see `PaceInputs`. times: p50_ms of a call; of a decoder of a new token, and ttft_ms, the time to the first one; both
    as on a quiet machine.
    """

    layers: int
    scheme: str
    bytes: int
    times: Mapping[str, float]
    widths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What was measured, where. threads: that a call had; speed: of the machine (see `runtimes.machine`); on_cpu: whether the CPU
    did the work; peak_mb: the largest process, of the deepest sample (the widest of them) in the first scheme, None where nobody
    tells."""

    device: str
    cpu: str
    runtime: str
    threads: int
    on_cpu: bool
    speed: Mapping[str, float]
    peak_mb: float | None
    samples: tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True)
class _Made:
    layers: int
    widths: Mapping[str, int]
    scheme: str
    artifact: Artifact
    question: Question


def pace(inputs: PaceInputs, out: Path, progress: Progress = silent, *, device: Device) -> dict[str, object]:
    """Make the samples in a scratch folder, time them on the device, and write samples.json into `out`.

    Raises EdgekitError for what cannot be exported, and DeviceFailed where the device does not run it.
    """
    ask = PROBES[device.PROBE].ask
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        made = _make(inputs, Path(scratch), progress)
        deepest = max(made, key=lambda one: one.layers)
        progress(0, 0, f"{deepest.layers} blocks: memory, and how fast the machine is")
        whole = ask(device, deepest.question).lines
        found: list[list[Timed]] = [[] for _ in made]
        total = inputs.rounds * len(made)
        for turn in range(total):
            one = made[turn % len(made)]
            progress(turn, total, f"timing {one.layers} blocks, {one.scheme}")
            lines = ask(device, one.question.only_times()).lines
            found[turn % len(made)].append(_timed(lines, inputs))
    samples = tuple(
        Sample(
            layers=one.layers,
            widths=one.widths,
            scheme=one.scheme,
            bytes=one.artifact.file.bytes,
            times=_quietest(timed),
        )
        for one, timed in zip(made, found, strict=True)
    )
    told = _told(whole, device, inputs, samples)
    (out / FILE).write_text(dump_json(to_table(told)), encoding="utf-8", newline="\n")
    return {}


def read_pace(folder: Path) -> Pace:
    """What was measured; EdgekitError for a folder of another version."""
    return read_table(Pace, read_json(folder / FILE), str(folder / FILE))


def _make(inputs: PaceInputs, scratch: Path, progress: Progress) -> list[_Made]:
    """The samples of every depth in every scheme, each with the question that times it."""
    from edgekit.calibrate import CalibrateInputs, calibrate
    from edgekit.distill.sample import write_sample
    from edgekit.distill.sizes import choose_sizes
    from edgekit.model import load_model

    rows = PromptSet(folder=inputs.prompts.path).split("calibrate")[:_PROMPTS]
    prompts = _folder(scratch, "prompts")
    (prompts.path / "calibrate.jsonl").write_text(
        "".join(f"{json.dumps(row.facts())}\n" for row in rows), encoding="utf-8"
    )
    made = []
    teacher = load_model(inputs.teacher.path)
    for place, (keep, widths) in enumerate(zip(inputs.keeps, inputs.widths, strict=True)):
        count = len(keep)
        progress(0, 0, f"a student of {count} blocks, untaught")
        student, calibration = (_folder(scratch, f"{place}-{name}") for name in ("student", "calibration"))
        asked = Student(keep=list(keep), **cast("dict[str, Any]", widths))
        sizes = choose_sizes(teacher, asked, "student")
        write_sample(inputs.teacher.path, inputs.task, keep, inputs.classes, student.path, sizes)
        given = CalibrateInputs(
            student=student,
            prompts=prompts,
            task=inputs.task,
            options=Calibrate(),
            max_length=inputs.max_length,
            seed=0,
            gradients=False,
        )
        calibrate(given, calibration.path)
        for scheme, options in inputs.options.items():
            progress(0, 0, f"a student of {count} blocks, untaught, as {inputs.format} {scheme}")
            artifact, folder = _export(inputs, (student, calibration, prompts), options, scratch / f"{place}-{scheme}")
            question = _question(artifact, folder, [row.text for row in rows], inputs)
            made.append(_Made(layers=count, widths=widths, scheme=scheme, artifact=artifact, question=question))
    return made


def _folder(scratch: Path, name: str) -> Content:
    """A new folder in the scratch folder."""
    path = scratch / name
    path.mkdir()
    return Content(path=path, digest=name)


def _export(
    inputs: PaceInputs, parts: tuple[Content, Content, Content], options: FormatOptions, out: Path
) -> tuple[Artifact, Path]:
    """A student with its calibration and prompts as an artifact in a folder."""
    from edgekit.export import ExportInputs, export

    student, calibration, prompts = parts
    out.mkdir()
    asked = ExportInputs(
        student=student,
        calibration=calibration,
        prompts=prompts,
        task=inputs.task,
        format=inputs.format,
        options=options,
        max_length=inputs.max_length,
        out_of_scope=None,
        rejection=AS_CALIBRATED,
        name="sample",
        license=None,
        card=None,
        processor=inputs.processor,
        limits=None,
        libraries=inputs.libraries,
    )

    def keep(_inputs: object, fill: Callable[[Path], None]) -> Path:
        traced = student.path.with_name(f"{student.path.name}-traced")
        if not traced.is_dir():
            traced.mkdir()
            fill(traced)
        return traced

    return export(asked, out, keep=keep), out


def _question(artifact: Artifact, folder: Path, texts: Sequence[str], inputs: PaceInputs) -> Question:
    """What times a sample: at the budget's length, as `verify` times."""
    import numpy as np

    file = folder / artifact.file.name
    options = runtime_options(artifact.file.runtime_options, inputs.tables, inputs.runtime, "target")
    modality = MODALITIES[TASKS[inputs.task].MODALITY]
    encoded = modality.read_shipped(folder, texts, artifact.settings, artifact.pad_id)
    if not OUTPUTS[artifact.output].generates:
        sequence = min(inputs.sequence, artifact.max_length)
        rows = ask_rows(file, inputs.runtime, options, encoded, sequence)
        timing: Timing = {**_ROWS, "sequence": rows.request["timing"]["sequence"]}
        return replace(rows, request={**rows.request, "timing": timing})
    row = [token for prompt in encoded.prompts for token in prompt["input_ids"].tolist()][: inputs.max_length]
    # Behind the longest prompt, as there.
    timing = {**_TOKENS, "prompts": sorted({*generation.TIMING["prompts"][-1:], inputs.sequence})}
    nothing: dict[str, ArrayLike] = {"referenced": 0, "generate": 0, "max_new": 0, "stop": np.zeros(0, np.int64)}
    return Question(
        file=file,
        request=request(inputs.runtime, options, timing, kind="tokens"),
        inputs={**flat([row or [0]]), "starts": np.ones(1, np.int64), **nothing},
    )


def _timed(lines: Lines, inputs: PaceInputs) -> Timed:
    """The calls of one process."""
    if not OUTPUTS[TASKS[inputs.task].OUTPUT].generates:
        return read_timed(lines)
    lengths = lines.read("prefill", Prefill).lengths
    return generation.read_timed(lines, min(lengths, key=lambda length: abs(length - inputs.sequence)))


def _quietest(processes: Sequence[Timed]) -> dict[str, float]:
    """The times of their quickest calls, which pass for a quiet machine's median.

    What other programs take of a machine makes calls longer, never shorter: long ones are interrupted more often than short ones,
    and large models lose more of the caches, so that medians, and processor times too, bend the line.
    """
    calls = {"p50_ms": [time for one in processes for time in one.times]}
    calls["ttft_ms"] = [time for one in processes for time in one.first]
    return {key: min(times) for key, times in calls.items() if times}


def _told(lines: Lines, device: Device, inputs: PaceInputs, samples: tuple[Sample, ...]) -> Pace:
    """What the process says that was asked for more than times."""
    rows = not OUTPUTS[TASKS[inputs.task].OUTPUT].generates
    work = lines.work
    threads = lines.read("latency", Calls).shape.threads if rows else lines.read("decode", Decode).threads
    placed = RUNTIMES[inputs.runtime].placement(
        dict(inputs.tables.get(inputs.runtime, {})), work, lines.read("load", Load).available
    )
    return Pace(
        device=device.identity,
        cpu=lines.device["cpu"],
        runtime=inputs.runtime,
        threads=min(threads or lines.device["cores"], lines.device["cores"]),
        on_cpu=placed.on_cpu,
        speed=lines.read("machine", MachineSpeed).speed,
        peak_mb=lines.read("memory", Peak).peak_mb,
        samples=samples,
    )
