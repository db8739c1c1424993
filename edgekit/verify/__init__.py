"""Verify: the artifact answers the verify prompts on its device, is compared with the reference, and judged.

gate holds the statistics, accuracy the comparisons, measurements runs the probe, hardware says what the machine may vouch for,
arithmetic whether its INT8 is the target's, checks turns all that into verdicts with remedies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import gate
from edgekit.errors import EdgekitError
from edgekit.evidence import (
    FILE,
    ArtifactFacts,
    Check,
    Comparison,
    Coverage,
    FloatModel,
    Generation,
    Latency,
    LayerError,
    OwnLengths,
    PromptFacts,
    Quantiles,
    Report,
    Vouches,
    whole_verdict,
)
from edgekit.formats import FORMATS, finer
from edgekit.progress import Progress, silent
from edgekit.prompts import PromptSet
from edgekit.recipe import AS_CALIBRATED, Rejection
from edgekit.runtimes import neighbours
from edgekit.schema import pick
from edgekit.tasks import TASKS, row_task
from edgekit.typed_json import read_table
from edgekit.verify import accuracy as compared
from edgekit.verify import arithmetic, budgets, checks, generation, hardware, latency, margins
from edgekit.verify.accuracy import Answers
from edgekit.verify.as_original import check_rows
from edgekit.verify.kept import keep
from edgekit.verify.measurements import Measurements, ask_rows, encode, measure, runtime_options
from edgekit.verify.plan import check_accuracy_table, plan_text
from edgekit.verify.rejection import check_rejection, rejection_notes
from edgekit.workspace import Product, file_sha256, open_product, write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.devices import Device
    from edgekit.prompts import Prompt
    from edgekit.target import Budget, Target
    from edgekit.verify.margins import EmbeddingMargins, Margins

    Floats = NDArray[np.float32]

__all__ = ["Subject", "Terms", "check_accuracy_table", "check_reference", "plan_text", "verify"]

ROLES = ("teacher", "student", "artifact")

JUDGING = "comparing the answers with the float models'"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is judged, and beside what: the folders of export, record and prompts.

    foreign_teacher: why the record's teacher is not the recipe's, where it is not: then nothing is compared with it, and nothing
    passes.
    """

    artifact: Path
    reference: Path
    prompts: Path
    foreign_teacher: str | None = None


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the artifact is held to: a recipe's task and tables, a target's hardware and budget, and which look this is.

    accuracy: the recipe's `[accuracy]` table. out_of_scope: the label of texts that belong to no class.
    """

    task: str
    target: Target
    accuracy: Mapping[str, object]
    out_of_scope: str | None
    look: gate.Look
    rejection: Rejection = AS_CALIBRATED


def verify(
    subject: Subject,
    terms: Terms,
    device: Device,
    *,
    coverage: Coverage | None = None,
    progress: Progress = silent,
    out: Path,
) -> Report:
    """Run an export's artifact on the device over the verify prompts and write report.json, measurements.json and outputs.npz.

    coverage: how well the calibration covers these prompts, passed on. Raises EdgekitError where folders do not belong together,
    DeviceFailed.
    """
    product, recorded = open_product(subject.artifact, "export"), open_product(subject.reference, "record")
    check_reference(recorded, product, subject.prompts)
    runtime = pick(FORMATS, str(product.facts["format"]), f"{subject.artifact}: format").RUNTIME
    run = _Run(
        subject=subject,
        terms=terms,
        facts=product.facts,
        recorded=recorded,
        device=device,
        runtime=runtime,
        options=runtime_options(product.facts, terms.target, runtime),
        coverage=coverage,
        progress=progress,
        out=out,
    )
    report = _verify_tokens(run) if TASKS[terms.task].OUTPUT == "tokens" else _verify_rows(run)
    write_atomically(out / FILE, report.to_json())
    return report


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What one verify is about."""

    subject: Subject
    terms: Terms
    facts: Mapping[str, Any]
    recorded: Product
    device: Device
    runtime: str
    options: Mapping[str, Any]
    coverage: Coverage | None
    progress: Progress
    out: Path

    @property
    def file(self) -> Path:
        """The artifact's main file."""
        return self.subject.artifact / str(self.facts["file"])

    @property
    def budget(self) -> Budget:
        """The limits of the target for this task."""
        return self.terms.target.budget_for(self.terms.task)

    def split(self, name: str) -> list[Prompt]:
        """The prompts of a split."""
        return PromptSet(folder=self.subject.prompts).split(name)


@dataclass(frozen=True, kw_only=True)
class _Judgement:
    """What was found of the answers: accuracy by role, comparisons, the checks of both, the margins, how many prompts were
    judged, and notes."""

    accuracy: Mapping[str, float | None]
    comparisons: Sequence[Comparison]
    checks: Sequence[Check]
    margins: Mapping[str, float | None]
    prompts: int
    notes: Sequence[str]


def _verify_rows(run: _Run) -> Report:
    """Verify what gives one row per text."""
    facts, rows = run.facts, run.split("verify")
    ids = encode(run.subject.artifact, rows, facts["settings"])
    # The tokenizer that ships cuts texts at max_length: no request is ever longer.
    sequence = min(run.budget.sequence, int(facts["max_length"]))
    question = ask_rows(run.file, run.runtime, run.options, ids, int(facts["pad_id"]), sequence)
    measured = measure(question, run.device, partial(_is_judged, run), run.progress, run.out)
    run.progress(0, 0, JUDGING)
    conditions, measured = _conditions(run, measured)
    answers, finite = _answers(run, rows, measured.outputs)
    truth = [row.label for row in rows]
    comparisons, asked, floors = _compare(run, answers, rows)
    judgement = _Judgement(
        accuracy=_accuracy(run, answers, truth),
        comparisons=comparisons,
        checks=[
            *_check_answers(run, comparisons),
            *floors,
            check_rows(run.recorded, [row.text for row in rows], ids),
            *checks.check_finite(finite),
            *_rejected(run, answers["artifact"].labels, truth),
        ],
        margins=vars(asked),
        prompts=len(truth),
        notes=_rejection_notes(run, truth) if answers["artifact"].labels else (),
    )
    real = OwnLengths(
        p50=gate.quantile(measured.real_times, 0.5),
        p95=gate.quantile(measured.real_times, 0.95),
        mean_tokens=sum(measured.real_lengths) / max(len(measured.real_lengths), 1),
    )
    report = replace(_report(run, judgement, measured, conditions), latency_real=real)
    if not answers["artifact"].labels:
        return report
    return replace(
        report,
        scope={role: compared.scope(answers[role], truth, run.terms.out_of_scope) for role in ROLES},
        confusion=tuple(compared.confusion(answers["student"], answers["artifact"], truth)),
    )


def _accuracy(run: _Run, answers: Mapping[str, Answers], truth: Sequence[str | None]) -> dict[str, float | None]:
    """The share of right answers of each model on the labelled prompts; None where nothing says so."""
    known = [row for row, label in enumerate(truth) if label is not None]
    if not known or not answers["artifact"].labels:
        return dict.fromkeys(answers)
    hidden = "teacher" if run.subject.foreign_teacher else None
    return {
        role: None if role == hidden else sum(own.labels[row] == truth[row] for row in known) / len(known)
        for role, own in answers.items()
    }


def _rejection_notes(run: _Run, truth: Sequence[str | None]) -> list[str]:
    terms, subject = run.terms, run.subject
    folders = (run.recorded.folder, subject.prompts, terms.task, list(run.facts["classes"]))
    return rejection_notes(*folders, truth, terms.out_of_scope, terms.rejection)


def _verify_tokens(run: _Run) -> Report:
    """Verify what gives tokens."""
    terms, facts = run.terms, run.facts
    limits = margins.read_limits(terms.accuracy)
    recorded = generation.read_recorded(run.recorded, with_teacher=run.subject.foreign_teacher is None)
    question = generation.ask_tokens(run.file, run.runtime, run.options, recorded, run.budget)
    measured, arrays = generation.measure(
        question, run.budget, run.device, partial(_is_judged, run), run.progress, run.out
    )
    run.progress(0, 0, JUDGING)
    conditions, measured = _conditions(run, measured)
    asked = margins.limits_at(limits, float(facts["bits"]))
    answers = generation.answers_in_words(run.subject.artifact, arrays)
    judged = generation.judge(recorded, arrays, run.split("verify"), asked, answers, terms.look.alpha)
    right = {entry.reference: entry for entry in judged.comparisons if entry.metric in {"accuracy", "agreement"}}
    accuracy = {role: entry.reference_score for role, entry in right.items()}
    if right:
        accuracy["artifact"] = next(iter(right.values())).score
    judgement = _Judgement(
        accuracy=accuracy,
        comparisons=judged.comparisons,
        checks=[
            *_check_answers(run, judged.comparisons),
            *checks.check_floor(judged.right, judged.groups, limits.at_least, terms.look.alpha, terms.look.index),
            *checks.check_finite(judged.is_finite),
        ],
        margins=asked,
        prompts=int(recorded.facts["rows"]["verify"]) - int(recorded.facts["left_out"]),
        notes=[*recorded.facts["warnings"], *judged.notes],
    )
    speed = measured.generation
    assert speed is not None
    return replace(
        _report(run, judgement, measured, conditions),
        kl=judged.kl,
        top1=judged.top1,
        perplexity=judged.perplexity,
        tokens=judged.tokens,
        ttft_ms=speed.ttft_ms,
        tokens_per_second=speed.tokens_per_second,
        generation=Generation(
            bytes_per_token=float(facts["bytes_per_token"]),
            memory_mb=speed.memory_mb,
            roofline_share=hardware.roofline_share(measured, float(facts["bytes_per_token"])),
            threads=speed.threads,
            ttft_cold_ms=speed.ttft_cold_ms,
        ),
    )


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


def _answers(run: _Run, rows: Sequence[Prompt], outputs: Floats) -> tuple[dict[str, Answers], bool]:
    """Teacher, student and artifact on the verify prompts, and whether the artifact's outputs were finite.

    Teacher and student are judged with what the task learns from their own outputs on the calibrate prompts, the artifact with
    the settings that ship with it.
    """
    import numpy as np

    terms, facts = run.terms, run.facts
    task = terms.task
    kind, reference = row_task(task), run.recorded.folder
    classes, texts = list(facts["classes"]), [row.text for row in rows]
    if kind.OUTPUT == "logits" and list(run.recorded.facts["classes"]) != classes:
        raise EdgekitError(f"{reference}: its classes are not the artifact's; record the reference of this model")
    with np.load(reference / "reference.npz", allow_pickle=False) as arrays:
        recorded_outputs = {name: arrays[name] for name in arrays.files}
    if kind.OUTPUT == "logits":
        _check_labels(run.subject.prompts, facts["file"], [*classes, str(terms.out_of_scope)])
    labels = [row.label for row in run.split("calibrate")]
    answers = {}
    for name in ("teacher", "student"):
        calibrate, verify_ = recorded_outputs[f"{name}_calibrate"], recorded_outputs[f"{name}_verify"]
        settings = kind.fit(calibrate, labels, classes, terms.out_of_scope, terms.rejection)
        answers[name] = _answer(name, verify_, task, settings, classes, texts)
    finite = bool(np.isfinite(outputs).all())
    if outputs.shape[1:] != answers["student"].outputs.shape[1:]:
        raise EdgekitError(
            f"{facts['file']}: gives rows of {outputs.shape[1:]}, the reference of {answers['student'].outputs.shape[1:]};"
            " they are not of one model"
        )
    if not finite:
        outputs = np.nan_to_num(outputs, nan=0.0, posinf=3e38, neginf=-3e38)
    answers["artifact"] = _answer("artifact", outputs, task, facts["settings"], classes, texts)
    return answers, finite


def _check_labels(prompts: Path, file: str, known: Sequence[str]) -> None:
    """Refuse verify prompts with labels that the model cannot say: it would lose nothing by never being right."""
    labels = {row.label for row in PromptSet(folder=prompts).split("verify") if row.label is not None}
    unknown = sorted(labels - set(known))
    if unknown:
        shown = ", ".join(repr(label) for label in unknown[:3])
        raise EdgekitError(
            f"{prompts}: the verify prompts have {len(unknown)} labels that {file} does not know, such as {shown}; its classes"
            f" are {', '.join(repr(label) for label in known[:5])} ...: give this model's own prompts (--recipe), or name"
            " the label of texts that belong to no class (data.out_of_scope)"
        )


def _answer(
    name: str,
    outputs: Floats,
    task: str,
    settings: Mapping[str, object],
    classes: Sequence[str],
    texts: Sequence[str],
) -> Answers:
    kind = row_task(task)
    labels = kind.answer(outputs, settings, classes, texts) if kind.OUTPUT == "logits" else []
    return Answers(name=name, outputs=outputs, labels=list(labels))


def _rejected(run: _Run, labels: Sequence[str], truth: Sequence[str | None]) -> list[Check]:
    terms = run.terms
    return check_rejection(labels, truth, terms.out_of_scope, terms.rejection, run.facts.get("contentless"), terms.look)


def _compare(
    run: _Run, answers: Mapping[str, Answers], rows: Sequence[Prompt]
) -> tuple[list[Comparison], Margins | EmbeddingMargins, list[Check]]:
    """Artifact to student and to teacher, and student to teacher, which is shown and not judged; the margins; other checks."""
    artifact, student, teacher = answers["artifact"], answers["student"], answers["teacher"]
    look, accuracy = run.terms.look, run.terms.accuracy
    groups = [row.group for row in rows]
    if TASKS[run.terms.task].OUTPUT == "logits":
        truth = [row.label for row in rows]
        labelled = [row for row, label in enumerate(truth) if label is not None]
        asked = margins.for_prompts(margins.read_margins(accuracy), len(labelled) or len(rows))
        comparisons = [
            compared.compare_labels(reference, candidate, truth, margin=margin, alpha=look.alpha, groups=groups)
            for reference, candidate, margin in (
                (student, artifact, asked.student_margin),
                (teacher, artifact, asked.teacher_margin),
                (teacher, student, None),
            )
        ]
        right = [artifact.labels[row] == truth[row] for row in labelled]
        own = [groups[row] for row in labelled]
        floor = checks.check_floor(right, own, asked.at_least, look.alpha, look.index)
        return _of_recipe(run, comparisons), asked, floor
    wanted = margins.read_embedding_margins(accuracy)
    comparisons = [
        comparison
        for reference, candidate, limits in (
            (student, artifact, wanted),
            (teacher, artifact, None),
            (teacher, student, None),
        )
        for comparison in compared.compare_embeddings(reference, candidate, limits, alpha=look.alpha, groups=groups)
    ]
    return _of_recipe(run, comparisons), wanted, []


def _of_recipe(run: _Run, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with models that the recipe names."""
    hidden = "teacher" if run.subject.foreign_teacher else None
    return [comparison for comparison in comparisons if comparison.reference != hidden]


def _foreign(run: _Run, measured: Measurements) -> list[str]:
    """Why the machine that measured may not vouch for the target."""
    found = hardware.mismatches(run.terms.target.hardware, measured.device, measured.speed, run.options["threads"])
    provider = run.options.get("provider")
    if provider is not None and provider not in measured.available:
        found.append(f"without {provider}")
    return found


def _is_judged(run: _Run, measured: Measurements) -> bool:
    """Whether times are judged: where the target limits them, and this machine may vouch for it. Else one process shows them."""
    return run.budget.limits_time and not _foreign(run, measured)


def _conditions(run: _Run, measured: Measurements) -> tuple[budgets.Conditions, Measurements]:
    """What bears on the times, and the measurements with the earlier ones of this artifact; kept where times are judged."""
    impossible = hardware.impossibilities(measured, gate.quantile(measured.times, 0.5))
    impossible += hardware.above_roofline(measured, run.facts.get("bytes_per_token"))
    threads = measured.shape.threads or int(measured.device["cores"])
    disturbed = neighbours.disturbances([process.neighbours for process in measured.processes], threads)
    disturbed = disturbed or [
        f"while its speed was measured, {why}" for why in neighbours.disturbances([measured.neighbours], 1)
    ]
    conditions = budgets.Conditions(
        foreign=_foreign(run, measured),
        impossible=impossible,
        disturbed=disturbed,
        scales=hardware.scales(run.terms.target.hardware, measured.speed),
    )
    if _is_judged(run, measured):
        proves_nothing = [*disturbed, *impossible]
        measured = keep(measured, artifact=str(run.facts["sha256"]), options=run.options, disturbed=proves_nothing)
    return conditions, measured


def _check_answers(run: _Run, comparisons: Sequence[Comparison]) -> list[Check]:
    """The checks of the comparisons that have a margin, and of what the record compares with."""
    scheme, output = str(run.facts["scheme"]), TASKS[run.terms.task].OUTPUT
    more = None if scheme == "unknown" else finer(str(run.facts["format"]), output, scheme)
    judged = [
        checks.check_accuracy(entry, run.terms.look.index, more) for entry in comparisons if entry.margin is not None
    ]
    if run.subject.foreign_teacher is None:
        return judged
    return [
        *judged,
        Check(
            name="reference",
            measured="another model as the teacher",
            limit="the recipe's teacher",
            verdict="not proven",
            remedy=run.subject.foreign_teacher,
            detail="not judged against the teacher",
        ),
    ]


def _check_machine(run: _Run, measured: Measurements, conditions: budgets.Conditions) -> list[Check]:
    facts, options = run.facts, run.options
    provider = options.get("provider")
    placed = (
        checks.check_offload(int(options.get("gpu_layers", 0)), measured)
        if provider is None
        else checks.check_provider(provider, measured)
    )
    return [
        *budgets.check_budget(run.budget, measured, int(facts["bytes"]), conditions),
        checks.check_plausible(conditions.impossible),
        *checks.check_reading(facts.get("parity"), facts.get("misread")),
        *checks.check_as_original(run.recorded.facts.get("as_original")),
        placed,
        checks.check_arithmetic(
            run.terms.target.hardware,
            measured.device,
            arithmetic.saturating_share(run.file),
            exact=arithmetic.is_exact(options),
        ),
    ]


def _report(run: _Run, judgement: _Judgement, measured: Measurements, conditions: budgets.Conditions) -> Report:
    """What all reports have."""
    judged = [check.finite() for check in (*judgement.checks, *_check_machine(run, measured, conditions))]
    own = [
        Quantiles(p50=latency.level(process.times, 0.5), p95=latency.level(process.times, 0.95))
        for process in measured.processes
    ]
    facts, terms = run.facts, run.terms
    return Report(
        verdict=whole_verdict(judged),
        accuracy_only=not run.budget.limits_time,
        target=terms.target.name,
        artifact=ArtifactFacts(
            format=facts["format"],
            scheme=facts["scheme"],
            file=facts["file"],
            bytes=facts["bytes"],
            sha256=facts["sha256"],
        ),
        checks=tuple(judged),
        comparisons=tuple(entry.finite() for entry in judgement.comparisons),
        accuracy=judgement.accuracy,
        margins=judgement.margins,
        look=terms.look,
        prompts=judgement.prompts,
        latency_ms=Latency(
            p50=latency.centre([process.p50 for process in own]),
            p95=latency.centre([process.p95 for process in own]),
            first=measured.first_ms,
            load=measured.load_ms,
        ),
        latency_processes_ms=tuple(own),
        latency_raw_ms=tuple(measured.times),
        measurement=measured.measurement,
        memory_mb=measured.peak_mb,
        shape=measured.shape,
        device={**measured.device, **measured.speed},
        runtime=measured.runtime,
        work=measured.work,
        vouches=Vouches(
            scales=conditions.scales,
            foreign=tuple(conditions.foreign),
            rule=hardware.tolerances(terms.target.hardware),
        ),
        busy=measured.processes[0].neighbours.get("load"),
        disturbed=tuple(conditions.disturbed),
        models=_float_models(run),
        layers=tuple(LayerError(name=entry["name"], error=entry["error"]) for entry in facts.get("layers", ())),
        coverage=run.coverage,
        data=_data(run.subject.prompts),
        notes=tuple(_notes(run, judgement)),
    )


def _notes(run: _Run, judgement: _Judgement) -> list[str]:
    first = [] if run.budget.limits_time else ["accuracy only: the target states no latency limit (budget.p95_ms)"]
    plan = plan_text(run.terms.task, judgement.prompts, run.terms.accuracy, look=run.terms.look)
    return [*first, *plan, *judgement.notes, *run.facts.get("notes", ())]


def _float_models(run: _Run) -> dict[str, FloatModel]:
    """What teacher and float student cost, by the record, without a teacher that is not the recipe's."""
    where = f"{run.recorded.folder / 'record.json'}: facts.models"
    return {
        role: read_table(FloatModel, model, f"{where}.{role}")
        for role, model in run.recorded.facts.get("models", {}).items()
        if not (run.subject.foreign_teacher and role == "teacher")
    }


def _data(prompts: Path) -> PromptFacts | None:
    """What `gather` says of the prompts: rows, labels, what was left out; None of a folder that it did not make."""
    if not (prompts / "prompts.json").is_file():
        return None
    facts = open_product(prompts, "prompts").facts
    known = {key: facts[key] for key in ("rows", "dropped", "unusual", "notes")}
    return read_table(PromptFacts, {**known, "labels": len(facts["labels"])}, f"{prompts / 'prompts.json'}: facts")
