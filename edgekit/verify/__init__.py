"""Verify: the artifact answers the verify prompts on its device, is compared with the reference, and judged.

gate holds the statistics, accuracy the comparisons, measurements runs the probe, hardware says what the machine may vouch for,
arithmetic whether its INT8 is the target's, choice which runtime answers, checks turns all that into verdicts with remedies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import gate
from edgekit.artifact import read_artifact
from edgekit.errors import EdgekitError
from edgekit.evidence import (
    FILE,
    ArtifactFacts,
    Check,
    Comparison,
    Coverage,
    EnergyUse,
    FloatModel,
    Generation,
    OwnLengths,
    Quantiles,
    Report,
    RuntimeTime,
    Vouches,
    whole_verdict,
)
from edgekit.formats import finer
from edgekit.modalities import MODALITIES
from edgekit.outputs.rows import EMBEDDING, LOGITS
from edgekit.outputs.tokens import TOKENS
from edgekit.probes import Question, Texts
from edgekit.progress import Progress, silent
from edgekit.reference import Reference, read_reference
from edgekit.runtimes import RUNTIMES, neighbours
from edgekit.runtimes.emulation import emulation
from edgekit.tasks import TASKS
from edgekit.times import Answered
from edgekit.verify import accuracy as compared
from edgekit.verify import (
    arithmetic,
    budgets,
    checks,
    choice,
    comparable,
    generation,
    hardware,
    latency,
    margins,
    on_host,
    outcomes,
    roofline,
)
from edgekit.verify.as_original import check_rows
from edgekit.verify.control import compare_rows, compare_tokens, model_of
from edgekit.verify.kept import keep, with_earlier
from edgekit.verify.line import draw_line
from edgekit.verify.measurements import Measurements, Processes, ask_rows, certifying, measure, runtime_options
from edgekit.verify.phases import More, latency_of, measure_more
from edgekit.verify.plan import check_accuracy_table, plan_text
from edgekit.verify.recorded import read_recorded, read_texts
from edgekit.verify.rows import accuracy_by_role, check_rejected, compare, notes_on_rejection, read_answers
from edgekit.verify.run import Run, VerifyInputs, read_facts
from edgekit.workspace import Product, file_sha256, open_product, write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.devices import Device
    from edgekit.runtimes.placement import Placement

__all__ = ["VerifyInputs", "check_accuracy_table", "check_reference", "plan_text", "verify"]

ROLES = ("teacher", "student", "artifact")

JUDGING = "comparing the answers with the float models'"


def verify(
    inputs: VerifyInputs,
    out: Path,
    progress: Progress = silent,
    *,
    device: Device,
    coverage: Coverage | None = None,
    control_offer: str | None = None,
) -> Report:
    """Run an export's artifact on the device over the verify prompts and write report.json, measurements.json, outputs.npz and,
    of what is right or wrong, outcomes.json.

    device: the one that the inputs name. coverage: how well their calibration covers the prompts, and control_offer: what to say
    where there is no control run, both passed on.
    Raises EdgekitError where folders do not belong together, DeviceFailed.
    """
    product, recorded = open_product(inputs.artifact.path, "export"), open_product(inputs.reference.path, "record")
    check_reference(recorded, product, inputs.prompts.path)
    artifact, reference = read_artifact(product), read_reference(recorded)
    runtimes = choice.answering(artifact, inputs.runtime, inputs.target)
    run = Run(
        inputs=inputs,
        artifact=artifact,
        recorded=recorded,
        reference=reference,
        device=device,
        runtimes=runtimes,
        runtime=runtimes[0],
        options=runtime_options(artifact.file.runtime_options, inputs.runtime, runtimes[0], inputs.target),
        coverage=coverage,
        control_offer=control_offer,
        models=_float_models(reference, inputs),
        data=read_facts(inputs.prompts.path),
        progress=progress,
        out=out,
    )
    report = JUDGES[TASKS[inputs.task].OUTPUT](run)
    write_atomically(out / FILE, report.to_json())
    return report


@dataclass(frozen=True, kw_only=True)
class _Judgement:
    """What was found of the answers: accuracy by role, comparisons, the checks of both, the margins, how many prompts were
    judged, and notes; of a decoder how its answers ended."""

    accuracy: Mapping[str, float | None]
    comparisons: Sequence[Comparison]
    checks: Sequence[Check]
    margins: Mapping[str, float | None]
    prompts: int
    notes: Sequence[str]
    answers: Answered | None = None


def _verify_rows(run: Run) -> Report:
    """Verify what gives one row per text."""
    artifact, rows = run.artifact, run.split("verify")
    texts = [row.text for row in rows]
    modality = MODALITIES[TASKS[artifact.task].MODALITY]
    encoded = modality.read_shipped(run.inputs.artifact.path, texts, artifact.settings, artifact.pad_id)
    # The tokenizer that ships cuts texts at max_length: no request is ever longer.
    sequence = min(run.budget.sequence, artifact.max_length)
    read = Texts(texts=texts, before=str(artifact.settings.get("prompt", "")), pad_id=artifact.pad_id)

    def ask(run: Run) -> Question:
        question = ask_rows(run.file, run.runtime, run.options, encoded, sequence)
        question = certifying(question, run.budget, _most(run), run.artifact.file.sha256)
        return question if modality.TOKENIZER is None else replace(question, texts=read)

    run, measured, outputs, raced = _measure_fastest(run, ask)
    more = measure_more(run, ask(run), measured)
    run.progress(0, 0, JUDGING)
    conditions, measured = _conditions(run, measured)
    answers, finite = read_answers(run, rows, outputs)
    truth = [row.label for row in rows]
    comparisons, asked, floors = compare(run, answers, rows)
    student, groups = answers["student"], [row.group for row in rows]
    beside = on_host.beside_rows(run, ask(run), outputs, student.outputs, encoded.prompts, groups)
    outcomes.keep_labels(run, rows, answers["artifact"].labels)
    judgement = _Judgement(
        accuracy=accuracy_by_role(run, answers, truth),
        comparisons=comparisons,
        checks=[
            *_check_answers(run, comparisons),
            *floors,
            check_rows(run.recorded, run.reference, texts, encoded),
            *checks.check_device_reading(measured.reading, texts),
            *checks.check_finite(finite),
            *check_rejected(run, answers["artifact"].labels, truth),
            *beside.checks,
        ],
        margins=vars(asked),
        prompts=len(truth),
        notes=[
            *choice.note(raced, run.runtime, conditions.foreign),
            *(notes_on_rejection(run, truth) if answers["artifact"].labels else ()),
            *beside.notes,
        ],
    )
    report = _report(run, judgement, measured, conditions, more)
    report = replace(report, latency_real=_real(measured), runtimes=raced or None, host=beside.found)
    if not answers["artifact"].labels:
        return report
    return replace(
        report,
        scope={role: compared.scope(answers[role], truth, run.inputs.out_of_scope) for role in ROLES},
        confusion=tuple(compared.confusion(student, answers["artifact"], truth)),
        baseline=draw_line(run, rows, answers["artifact"].labels, sequence),
        control=compare_rows(run, rows, student),
    )


def _real(measured: Measurements) -> OwnLengths:
    lengths, times = measured.real_lengths, measured.real_times
    p50, p95 = (gate.quantile(times, level) for level in (0.5, 0.95))
    return OwnLengths(p50=p50, p95=p95, mean_tokens=sum(lengths) / max(len(lengths), 1))


def _measure_fastest(
    run: Run, ask: Callable[[Run], Question]
) -> tuple[Run, Measurements, NDArray[np.float32], tuple[RuntimeTime, ...]]:
    """The run in the runtime that answers, its measurements and outputs, and the times of all that could have answered.

    Where this machine may not vouch for the target's speed, the first that the target names answers.
    """
    raced = choice.race(run, run.runtimes, ask)
    run = choice.with_runtime(run, choice.winner(raced)) if raced else run
    measured, outputs = measure(ask(run), run.device, _processes(run), run.progress, run.out)
    if run.runtime != run.runtimes[0] and _foreign(run, measured):
        run = choice.with_runtime(run, run.runtimes[0])
        measured, outputs = measure(ask(run), run.device, _processes(run), run.progress, run.out)
    return run, measured, outputs, raced


def _verify_tokens(run: Run) -> Report:
    """Verify what gives tokens."""
    inputs, file = run.inputs, run.artifact.file
    assert file.bits is not None
    assert file.bytes_per_token is not None
    limits = margins.read_limits(inputs.accuracy)
    recorded = read_recorded(run.recorded, run.reference, with_teacher=run.inputs.foreign_teacher is None)
    question = generation.ask_tokens(run.file, run.runtime, run.options, recorded, run.budget)
    prompts = run.split("verify")
    question = replace(question, sha256=file.sha256, texts=read_texts(run.inputs.artifact.path, prompts))
    measured, arrays = generation.measure(question, run.budget, run.device, _processes(run), run.progress, run.out)
    more = measure_more(run, question, measured)
    run.progress(0, 0, JUDGING)
    conditions, measured = _conditions(run, measured)
    asked = margins.limits_at(limits, file.bits)
    answers = generation.answers_in_words(run.inputs.artifact.path, arrays)
    judged = generation.judge(recorded, arrays, prompts, asked, answers, inputs.look.alpha)
    outcomes.keep_tokens(run, prompts, recorded, arrays, judged)
    beside = on_host.beside_tokens(run, question, arrays, *generation.passages(recorded, prompts))
    right = {entry.reference: entry for entry in judged.comparisons if entry.metric in {"accuracy", "agreement"}}
    accuracy = {role: entry.reference_score for role, entry in right.items()}
    if right:
        accuracy["artifact"] = next(iter(right.values())).score
    judgement = _Judgement(
        accuracy=accuracy,
        comparisons=judged.comparisons,
        checks=[
            *_check_answers(run, judged.comparisons),
            *checks.check_floor(judged.right, judged.groups, limits.at_least, inputs.look.alpha, inputs.look.index),
            *checks.check_device_reading(measured.reading, [prompt.text for prompt in prompts]),
            *checks.check_finite(judged.is_finite),
            *beside.checks,
        ],
        margins=asked,
        prompts=run.reference.rows["verify"] - recorded.sequences.left_out,
        notes=[*run.reference.warnings, *judged.notes, *beside.notes],
        answers=comparable.count_answers(arrays["answer_offsets"], recorded.sequences.max_new),
    )
    speed = measured.generation
    assert speed is not None
    return replace(
        _report(run, judgement, measured, conditions, more),
        host=beside.found,
        kl=judged.kl,
        top1=judged.top1,
        perplexity=judged.perplexity,
        tokens=judged.tokens,
        control=compare_tokens(run, recorded, prompts),
        ttft_ms=speed.ttft_ms,
        tokens_per_second=speed.tokens_per_second,
        generation=Generation(
            bytes_per_token=float(file.bytes_per_token),
            memory_mb=speed.memory_mb,
            roofline_share=hardware.roofline_share(measured, file.bytes_per_token),
            threads=speed.threads,
            ttft_cold_ms=speed.ttft_cold_ms,
        ),
    )


# How what was measured becomes a report, by the kind of answer.
JUDGES: dict[str, Callable[[Run], Report]] = {
    LOGITS.name: _verify_rows,
    EMBEDDING.name: _verify_rows,
    TOKENS.name: _verify_tokens,
}


def check_reference(recorded: Product, artifact: Product, prompts: Path) -> None:
    """Refuse a record (EdgekitError) of other prompts or another student: the comparison would be of anything."""
    for split, sha256 in recorded.manifest["inputs"]["prompts"].items():
        if file_sha256(prompts / f"{split}.jsonl") != sha256:
            raise EdgekitError(
                f"{recorded.folder}: recorded on other {split} prompts than {prompts}; run `edgekit record` again"
            )
    if recorded.manifest["inputs"]["student"] != artifact.manifest["inputs"]["student"]:
        raise EdgekitError(
            f"{recorded.folder}: what another student answered, not the one that {artifact.folder} was exported from; run"
            " `edgekit record` on that one"
        )


def _foreign(run: Run, measured: Measurements) -> list[str]:
    """Why the machine that measured may not vouch for the target."""
    placement = _placement(run, measured)
    found = hardware.mismatches(
        run.inputs.hardware, measured.device, measured.speed, measured.shape.threads, on_cpu=placement.on_cpu
    )
    return found if placement.absent is None else [*found, f"without {placement.absent}"]


def _placement(run: Run, measured: Measurements) -> Placement:
    """Whether the work ran where the target wants it."""
    return RUNTIMES[run.runtime].placement(run.options, measured.work, measured.available)


def _is_judged(run: Run, measured: Measurements) -> bool:
    """Whether times are judged: where the target limits them, and this machine may vouch for it. Else one process shows them."""
    return run.budget.limits_time and not _foreign(run, measured)


def _processes(run: Run) -> Processes:
    """How many processes time the artifact."""
    return Processes(most=_most(run), is_judged=partial(_is_judged, run), is_settled=partial(_is_settled, run))


def _most(run: Run) -> int:
    return run.inputs.measure.processes or latency.PROCESSES


def _is_settled(run: Run, measured: Measurements) -> bool:
    """Whether every limit of speed is kept or broken for certain, so that further processes would change nothing."""
    conditions = _weigh(run, measured)
    whose = {"device": run.device.identity, "artifact": run.artifact.file.sha256}
    judged = budgets.check_times(run.budget, with_earlier(measured, **whose, options=run.options), conditions)
    return all(check.verdict != "not proven" for check in judged)


def _threads(measured: Measurements) -> int:
    return measured.shape.threads or measured.device["cores"]


def _weigh(run: Run, measured: Measurements) -> budgets.Conditions:
    """What bears on the times."""
    on_cpu = _placement(run, measured).on_cpu
    impossible = hardware.impossibilities(measured, gate.quantile(measured.times, 0.5)) if on_cpu else []
    impossible += hardware.above_roofline(measured, run.artifact.file.bytes_per_token) if on_cpu else []
    disturbed = neighbours.disturbances([process.neighbours for process in measured.processes], _threads(measured))
    disturbed = disturbed or [
        f"while its speed was measured, {why}" for why in neighbours.disturbances([measured.neighbours], 1)
    ]
    return budgets.Conditions(
        foreign=_foreign(run, measured),
        impossible=impossible,
        disturbed=[*disturbed, *comparable.cut(measured.processes, measured.planned)],
        scales=hardware.scales(run.inputs.hardware, measured.speed, on_cpu=on_cpu),
    )


def _conditions(run: Run, measured: Measurements) -> tuple[budgets.Conditions, Measurements]:
    """What bears on the times, and the measurements with the earlier ones of this artifact; kept where times are judged."""
    conditions = _weigh(run, measured)
    if _is_judged(run, measured):
        proves_nothing = [*conditions.disturbed, *conditions.impossible]
        measured = keep(
            measured,
            device=run.device.identity,
            artifact=run.artifact.file.sha256,
            options=run.options,
            disturbed=proves_nothing,
        )
    return conditions, measured


def _check_answers(run: Run, comparisons: Sequence[Comparison]) -> list[Check]:
    """The checks of the comparisons that have a margin, and of what the record compares with."""
    scheme, output = run.artifact.file.scheme, TASKS[run.inputs.task].OUTPUT
    more = None if scheme == "unknown" else finer(run.artifact.file.format, output, scheme)
    judged = [
        checks.check_accuracy(entry, run.inputs.look.index, more) for entry in comparisons if entry.margin is not None
    ]
    if run.inputs.foreign_teacher is None:
        return judged
    return [
        *judged,
        Check(
            name="reference",
            measured="another model as the teacher",
            limit="the recipe's teacher",
            verdict="not proven",
            remedy=run.inputs.foreign_teacher,
            detail="not judged against the teacher",
        ),
    ]


def _check_machine(run: Run, measured: Measurements, conditions: budgets.Conditions) -> list[Check]:
    file, options = run.artifact.file, run.options
    sequences = run.reference.sequences
    return [
        *budgets.check_budget(run.budget, measured, file.bytes, conditions),
        checks.check_plausible(conditions.impossible),
        *checks.check_reading(file.parity, file.misread),
        *checks.check_as_original(None if sequences is None else sequences.as_original),
        checks.check_placement(_placement(run, measured)),
        checks.check_arithmetic(
            run.inputs.hardware,
            measured.device,
            arithmetic.saturating_share(run.file),
            exact=arithmetic.is_exact(options),
        ),
    ]


def _report(
    run: Run, judgement: _Judgement, measured: Measurements, conditions: budgets.Conditions, more: More
) -> Report:
    """What all reports have."""
    judged = checks.named_once(
        [check.finite() for check in (*judgement.checks, *_check_machine(run, measured, conditions))]
    )
    own = [
        Quantiles(p50=latency.level(process.times, 0.5), p95=latency.level(process.times, 0.95))
        for process in measured.processes
    ]
    file, inputs, energy = run.artifact.file, run.inputs, measured.energy
    spent = None if energy is None else energy.energy_j
    emulated = bool(emulation(measured.device, measured.speed, inputs.hardware.clock_ghz))
    on_cpu, threads = _placement(run, measured).on_cpu, _threads(measured)
    around = roofline.Around(on_cpu=on_cpu, emulated=emulated, disturbed=conditions.disturbed, threads=threads)
    return Report(
        verdict=whole_verdict(judged),
        accuracy_only=not run.budget.limits_time,
        target=inputs.target,
        artifact=ArtifactFacts(
            format=file.format, scheme=file.scheme, file=file.name, bytes=file.bytes, sha256=file.sha256
        ),
        checks=judged,
        comparisons=tuple(entry.finite() for entry in judgement.comparisons),
        accuracy=judgement.accuracy,
        margins=judgement.margins,
        look=inputs.look,
        prompts=judgement.prompts,
        latency_ms=latency_of(measured),
        latency_processes_ms=tuple(own),
        latency_raw_ms=tuple(measured.times),
        measurement=measured.measurement,
        memory_mb=measured.peak_mb,
        shape=measured.shape,
        device={**measured.device, **measured.speed},
        runtime=measured.runtime,
        work={**measured.work},
        vouches=Vouches(
            scales=conditions.scales,
            foreign=tuple(conditions.foreign),
            rule=hardware.tolerances(inputs.hardware),
        ),
        busy=measured.processes[0].neighbours.get("load"),
        disturbed=tuple(conditions.disturbed),
        models=run.models,
        layers=file.onnx.layers or () if file.onnx else (),
        coverage=run.coverage,
        data=run.data,
        notes=tuple(_notes(run, judgement)),
        energy_j=None if spent is None else EnergyUse(net=spent.net, gross=spent.gross, method=spent.method),
        no_energy=None if energy is None else energy.why,
        emulated=emulated,
        comparable=comparable.judge(measured.processes, _ran(run, measured, conditions), judgement.answers),
        sustained=more.sustained,
        tuning=more.tuning,
        roofline=roofline.of_call(file, measured, around),
        roofline_prompt=roofline.of_prompt(file, measured, around),
        control_offer=run.control_offer,
    )


def _ran(run: Run, measured: Measurements, conditions: budgets.Conditions) -> comparable.Asked:
    """What should have run, for the question whether the times may be compared."""
    return comparable.Asked(
        sha256=run.artifact.file.sha256,
        threads=_threads(measured),
        planned=measured.planned,
        foreign=conditions.foreign,
    )


def _notes(run: Run, judgement: _Judgement) -> list[str]:
    first = [] if run.budget.limits_time else ["accuracy only: the target states no latency limit (budget.p95_ms)"]
    plan = plan_text(run.inputs.task, judgement.prompts, run.inputs.accuracy, look=run.inputs.look)
    taught = [run.inputs.who_taught] if run.inputs.who_taught else []
    return [*first, *plan, *taught, *judgement.notes, *(run.artifact.file.notes or ())]


def _float_models(reference: Reference, inputs: VerifyInputs) -> dict[str, FloatModel]:
    """What teacher and float student cost, by the record, without a teacher that is not the recipe's."""
    hidden = "teacher" if inputs.foreign_teacher else None
    return {role: model for role, model in reference.models.items() if role != hidden} | model_of(inputs)
