"""Verify: the artifact answers the verify prompts on its device, is compared with the reference, and judged.

gate holds the statistics, accuracy the comparisons, measurements runs the probe, hardware says what the machine may vouch for,
arithmetic whether its INT8 is the target's, checks turns all that into verdicts with remedies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import gate
from edgekit.errors import EdgekitError
from edgekit.formats import FORMATS, finer
from edgekit.progress import Progress, silent
from edgekit.prompts import PromptSet
from edgekit.recipe import AS_CALIBRATED, Rejection
from edgekit.runtimes import neighbours
from edgekit.schema import dump_json, pick
from edgekit.tasks import TASKS, row_task
from edgekit.verify import accuracy as compared
from edgekit.verify import arithmetic, budgets, checks, generation, hardware, latency, margins
from edgekit.verify.accuracy import Answers, Comparison
from edgekit.verify.as_original import check_rows
from edgekit.verify.kept import keep
from edgekit.verify.measurements import Measurements, encode, measure, runtime_options
from edgekit.verify.plan import check_accuracy_table, plan_text
from edgekit.verify.rejection import check_rejection, rejection_notes
from edgekit.workspace import Product, file_sha256, open_product, write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.devices import Device
    from edgekit.prompts import Prompt
    from edgekit.target import Target

    Floats = NDArray[np.float32]

__all__ = ["check_accuracy_table", "plan_text", "verify"]

JUDGING = "comparing the answers with the float models'"


def _data(prompts: Path) -> dict[str, Any] | None:
    """What `gather` says of the prompts: rows, labels, what was left out; None of a folder that it did not make."""
    if not (prompts / "prompts.json").is_file():
        return None
    facts = open_product(prompts, "prompts").facts
    return {"labels": len(facts["labels"])} | {key: facts[key] for key in ("rows", "dropped", "unusual", "notes")}


def verify(
    *,
    artifact: Path,
    reference: Path,
    prompts: Path,
    target: Target,
    task: str,
    accuracy: Mapping[str, Any],
    out_of_scope: str | None,
    look: gate.Look,
    device: Device,
    rejection: Rejection = AS_CALIBRATED,
    coverage: Mapping[str, Any] | None = None,
    foreign_teacher: str | None = None,
    progress: Progress = silent,
    out: Path,
) -> dict[str, Any]:
    """Run an export's artifact on the device over the verify prompts and write report.json, measurements.json and outputs.npz.

    artifact, reference, prompts: folders of export, record and prompts. accuracy: the recipe's `[accuracy]` table. look:
    which look at these prompts this is. coverage: what `calibrate.cover` says of these prompts, passed on. foreign_teacher: why
    the record's teacher is not the recipe's, where it is not: then nothing is compared with it, and nothing passes. Returns
    {verdict, checks: {name: verdict}}. Raises EdgekitError where folders do not belong together, DeviceFailed.
    """
    product = open_product(artifact, "export")
    facts = product.facts
    recorded = open_product(reference, "record")
    check_reference(recorded, product, prompts)
    runtime = pick(FORMATS, str(facts["format"]), f"{artifact}: format").RUNTIME
    run = _Run(
        artifact=artifact,
        facts=facts,
        recorded=recorded,
        prompts=prompts,
        target=target,
        task=task,
        accuracy=accuracy,
        out_of_scope=out_of_scope,
        rejection=rejection,
        look=look,
        foreign_teacher=foreign_teacher,
        device=device,
        runtime=runtime,
        options=runtime_options(facts, target, runtime),
        progress=progress,
        out=out,
    )
    report, found = _verify_tokens(run) if TASKS[task].OUTPUT == "tokens" else _verify_rows(run)
    timed = target.budget_for(task).limits_time
    models = recorded.facts.get("models", {})
    report |= {
        "models": {role: told for role, told in models.items() if not (foreign_teacher and role == "teacher")},
        "coverage": coverage,
        "data": _data(prompts),
        "layers": facts.get("layers", []),
        "accuracy_only": not timed,
        "notes": _notes(run, report, timed=timed),
    }
    write_atomically(out / "report.json", dump_json(report))
    return {"verdict": report["verdict"], "checks": {check.name: check.verdict for check in found}}


def _notes(run: _Run, report: Mapping[str, Any], *, timed: bool) -> list[str]:
    first = [] if timed else ["accuracy only: the target states no latency limit (budget.p95_ms)"]
    plan = plan_text(run.task, report["prompts"], run.accuracy, look=run.look)
    return [*first, *plan, *report.get("notes", ()), *run.facts.get("notes", ())]


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What one verify is about."""

    artifact: Path
    facts: Mapping[str, Any]
    recorded: Product
    prompts: Path
    target: Target
    task: str
    accuracy: Mapping[str, Any]
    out_of_scope: str | None
    rejection: Rejection
    look: gate.Look
    foreign_teacher: str | None
    device: Device
    runtime: str
    options: Mapping[str, Any]
    progress: Progress
    out: Path

    @property
    def file(self) -> Path:
        """The artifact's main file."""
        return self.artifact / str(self.facts["file"])


def _verify_rows(run: _Run) -> tuple[dict[str, Any], list[checks.Check]]:
    """Verify what gives one row per text."""
    facts = run.facts
    rows = PromptSet(folder=run.prompts).split("verify")
    ids = encode(run.artifact, rows, facts["settings"])
    measured = measure(
        artifact=run.artifact,
        file=str(facts["file"]),
        runtime=run.runtime,
        ids=ids,
        pad_id=int(facts["pad_id"]),
        options=run.options,
        # The tokenizer that ships cuts texts at max_length: no request is ever longer.
        sequence=min(run.target.budget_for(run.task).sequence, int(facts["max_length"])),
        device=run.device,
        is_judged=lambda first: _is_judged(run, first),
        progress=run.progress,
        out=run.out,
    )
    run.progress(0, 0, JUDGING)
    conditions, measured = _conditions(run, measured)
    answers, finite = _answers(run, rows, measured.outputs)
    truth = [row.label for row in rows]
    comparisons, margins, floors = _compare(run, answers, rows)
    if run.foreign_teacher:
        comparisons = [entry for entry in comparisons if entry.reference != "teacher"]
    found = [*_check_answers(run, comparisons), *floors]
    found.append(check_rows(run.recorded, [row.text for row in rows], ids))
    found += [*checks.check_finite(finite), *_rejected(run, answers["artifact"].labels, truth)]
    found += _check_machine(run, measured, conditions)
    return _report(run, answers, truth, comparisons, found, measured, conditions) | {"margins": margins}, found


def _verify_tokens(run: _Run) -> tuple[dict[str, Any], list[checks.Check]]:
    """Verify what gives tokens."""
    limits = margins.read_limits(run.accuracy)
    said = generation.read_said(run.recorded, with_teacher=run.foreign_teacher is None)
    measured, arrays = generation.measure(
        artifact=run.artifact,
        file=str(run.facts["file"]),
        runtime=run.runtime,
        said=said,
        options=run.options,
        budget=run.target.budget_for(run.task),
        device=run.device,
        is_judged=lambda first: _is_judged(run, first),
        progress=run.progress,
        out=run.out,
    )
    run.progress(0, 0, JUDGING)
    conditions, measured = _conditions(run, measured)
    asked = margins.limits_at(limits, float(run.facts["bits"]))
    judged = generation.judge(
        said,
        arrays,
        PromptSet(folder=run.prompts).split("verify"),
        asked,
        generation.answers_in_words(run.artifact, arrays),
        run.look.alpha,
    )
    found = _check_answers(run, judged.comparisons)
    found += checks.check_floor(judged.right, judged.groups, limits.at_least, run.look.alpha, run.look.index)
    found += [*checks.check_finite(judged.finite), *_check_machine(run, measured, conditions)]
    right = {entry.reference: entry for entry in judged.comparisons if entry.metric in {"accuracy", "agreement"}}
    accuracy = {role: entry.reference_score for role, entry in right.items()}
    if right:
        accuracy["artifact"] = next(iter(right.values())).score
    scored = int(said.facts["rows"]["verify"]) - int(said.facts["left_out"])
    report = _shared_report(run, accuracy, judged.comparisons, found, measured, scored, conditions)
    told = dict(measured.generation or {})
    return report | dict(judged.figures) | {
        "margins": asked,
        "notes": [*said.facts["warnings"], *judged.notes],
        "ttft_ms": told.pop("ttft_ms"),
        "tokens_per_second": told.pop("tokens_per_second"),
        "generation": told | hardware.roofline(measured, float(run.facts["bytes_per_token"])),
    }, found


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

    task, facts = run.task, run.facts
    kind, reference = row_task(task), run.recorded.folder
    classes, texts = list(facts["classes"]), [row.text for row in rows]
    if kind.OUTPUT == "logits" and list(run.recorded.facts["classes"]) != classes:
        raise EdgekitError(f"{reference}: its classes are not the artifact's; record the reference of this model")
    with np.load(reference / "reference.npz", allow_pickle=False) as arrays:
        recorded_outputs = {name: arrays[name] for name in arrays.files}
    if kind.OUTPUT == "logits":
        _check_labels(run.prompts, facts["file"], [*classes, str(run.out_of_scope)])
    labels = [row.label for row in PromptSet(folder=run.prompts).split("calibrate")]
    found = {}
    for name in ("teacher", "student"):
        calibrate, verify_ = recorded_outputs[f"{name}_calibrate"], recorded_outputs[f"{name}_verify"]
        settings = kind.fit(calibrate, labels, classes, run.out_of_scope, run.rejection)
        found[name] = _answer(name, verify_, task, settings, classes, texts)
    finite = bool(np.isfinite(outputs).all())
    if outputs.shape[1:] != found["student"].outputs.shape[1:]:
        raise EdgekitError(
            f"{facts['file']}: gives rows of {outputs.shape[1:]}, the reference of {found['student'].outputs.shape[1:]};"
            " they are not of one model"
        )
    if not finite:
        outputs = np.nan_to_num(outputs, nan=0.0, posinf=3e38, neginf=-3e38)
    found["artifact"] = _answer("artifact", outputs, task, facts["settings"], classes, texts)
    return found, finite


def _check_labels(prompts: Path, file: str, known: Sequence[str]) -> None:
    """Refuse verify prompts with labels that the model cannot say: it would lose nothing by never being right."""
    told = {row.label for row in PromptSet(folder=prompts).split("verify") if row.label is not None}
    unknown = sorted(told - set(known))
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
    settings: Mapping[str, Any],
    classes: Sequence[str],
    texts: Sequence[str],
) -> Answers:
    kind = row_task(task)
    labels = kind.answer(outputs, settings, classes, texts) if kind.OUTPUT == "logits" else []
    return Answers(name=name, outputs=outputs, labels=list(labels))


def _rejected(run: _Run, labels: Sequence[str], truth: Sequence[str | None]) -> list[checks.Check]:
    return check_rejection(labels, truth, run.out_of_scope, run.rejection, run.facts.get("contentless"), run.look)


def _compare(
    run: _Run, answers: Mapping[str, Answers], rows: Sequence[Prompt]
) -> tuple[list[Comparison], dict[str, Any], list[checks.Check]]:
    """Artifact to student and to teacher, and student to teacher, which is shown and not judged; the margins; other checks."""
    artifact, student, teacher = answers["artifact"], answers["student"], answers["teacher"]
    alpha, groups = run.look.alpha, [row.group for row in rows]
    shared: dict[str, Any] = {"alpha": alpha, "groups": groups}
    if TASKS[run.task].OUTPUT == "logits":
        truth = [row.label for row in rows]
        labelled = [row for row, label in enumerate(truth) if label is not None]
        asked = margins.for_prompts(margins.read_margins(run.accuracy), len(labelled) or len(rows))
        found = [
            compared.compare_labels(student, artifact, truth, margin=asked.student_margin, **shared),
            compared.compare_labels(teacher, artifact, truth, margin=asked.teacher_margin, **shared),
            compared.compare_labels(teacher, student, truth, margin=None, **shared),
        ]
        right = [artifact.labels[row] == truth[row] for row in labelled]
        own = [groups[row] for row in labelled]
        return found, vars(asked), checks.check_floor(right, own, asked.at_least, alpha, run.look.index)
    wanted = margins.read_embedding_margins(run.accuracy)
    found = [
        *compared.compare_embeddings(student, artifact, wanted, **shared),
        *compared.compare_embeddings(teacher, artifact, None, **shared),
        *compared.compare_embeddings(teacher, student, None, **shared),
    ]
    return found, vars(wanted), []


def _foreign(run: _Run, measured: Measurements) -> list[str]:
    """Why the machine that measured may not vouch for the target."""
    found = hardware.mismatches(run.target.hardware, measured.device, measured.speed, run.options["threads"])
    provider = run.options.get("provider")
    if provider is not None and provider not in measured.available:
        found.append(f"without {provider}")
    return found


def _is_judged(run: _Run, measured: Measurements) -> bool:
    """Whether times are judged: where the target limits them, and this machine may vouch for it. Else one process shows them."""
    return run.target.budget_for(run.task).limits_time and not _foreign(run, measured)


def _conditions(run: _Run, measured: Measurements) -> tuple[budgets.Conditions, Measurements]:
    """What bears on the times, and the measurements with the earlier ones of this artifact; kept where times are judged."""
    impossible = hardware.impossibilities(measured, gate.quantile(measured.times, 0.5))
    impossible += hardware.above_roofline(measured, run.facts.get("bytes_per_token"))
    threads = int(measured.shape["threads"] or measured.device["cores"])
    disturbed = neighbours.disturbances([process.neighbours for process in measured.processes], threads)
    disturbed = disturbed or [
        f"while its speed was measured, {why}" for why in neighbours.disturbances([measured.neighbours], 1)
    ]
    conditions = budgets.Conditions(
        foreign=_foreign(run, measured),
        impossible=impossible,
        disturbed=disturbed,
        scales=hardware.scales(run.target.hardware, measured.speed),
    )
    if _is_judged(run, measured):
        proves_nothing = [*disturbed, *impossible]
        measured = keep(measured, artifact=str(run.facts["sha256"]), options=run.options, disturbed=proves_nothing)
    return conditions, measured


def _check_answers(run: _Run, comparisons: Sequence[Comparison]) -> list[checks.Check]:
    """The checks of the comparisons that have a margin, and of what the record compares with."""
    scheme = str(run.facts["scheme"])
    more = None if scheme == "unknown" else finer(str(run.facts["format"]), TASKS[run.task].OUTPUT, scheme)
    found = [checks.check_accuracy(entry, run.look.index, more) for entry in comparisons if entry.margin is not None]
    if run.foreign_teacher is None:
        return found
    return [
        *found,
        checks.Check(
            name="reference",
            measured="another model as the teacher",
            limit="the recipe's teacher",
            verdict="not proven",
            remedy=run.foreign_teacher,
            detail="not judged against the teacher",
        ),
    ]


def _check_machine(run: _Run, measured: Measurements, conditions: budgets.Conditions) -> list[checks.Check]:
    target, facts, options = run.target, run.facts, run.options
    provider = options.get("provider")
    placed = (
        checks.check_offload(int(options.get("gpu_layers", 0)), measured)
        if provider is None
        else checks.check_provider(provider, measured)
    )
    return [
        *budgets.check_budget(target.budget_for(run.task), measured, int(facts["bytes"]), conditions),
        checks.check_plausible(conditions.impossible),
        *checks.check_reading(facts.get("parity"), facts.get("misread")),
        *checks.check_as_original(run.recorded.facts.get("as_original")),
        placed,
        checks.check_arithmetic(
            target.hardware,
            measured.device,
            arithmetic.saturating_share(run.file),
            exact=arithmetic.is_exact(options),
        ),
    ]


def _report(
    run: _Run,
    answers: Mapping[str, Answers],
    truth: Sequence[str | None],
    comparisons: Sequence[Comparison],
    found: Sequence[checks.Check],
    measured: Measurements,
    conditions: budgets.Conditions,
) -> dict[str, Any]:
    """report.json of what gives one row per text."""
    is_classifier = bool(answers["artifact"].labels)
    known = [row for row, label in enumerate(truth) if label is not None]
    shown = [name for name in answers if is_classifier and known and not (name == "teacher" and run.foreign_teacher)]
    accuracy = dict.fromkeys(answers) | {
        name: sum(answers[name].labels[row] == truth[row] for row in known) / len(known) for name in shown
    }
    report = _shared_report(run, accuracy, comparisons, found, measured, len(truth), conditions)
    report["latency_real"] = {
        "p50": gate.quantile(measured.real_times, 0.5),
        "p95": gate.quantile(measured.real_times, 0.95),
        "mean_tokens": sum(measured.real_lengths) / max(len(measured.real_lengths), 1),
    }
    if is_classifier:
        report["scope"] = {
            name: compared.scope(answers[name], truth, run.out_of_scope) for name in ("teacher", "student", "artifact")
        }
        told = (run.recorded.folder, run.prompts, run.task, list(run.facts["classes"]))
        report["notes"] = rejection_notes(*told, truth, run.out_of_scope, run.rejection)
        report["confusion"] = compared.confusion(answers["student"], answers["artifact"], truth)
    return report


def _shared_report(
    run: _Run,
    accuracy: Mapping[str, float | None],
    comparisons: Sequence[Comparison],
    found: Sequence[checks.Check],
    measured: Measurements,
    prompts: int,
    conditions: budgets.Conditions,
) -> dict[str, Any]:
    """report.json: the stable names first, then what is shown where it is there (see report.py)."""
    quantiles = {"p50": 0.5, "p95": 0.95}
    own = [{key: latency.level(one.times, q) for key, q in quantiles.items()} for one in measured.processes]
    times = {key: latency.centre([one[key] for one in own]) for key in quantiles}
    return {
        "verdict": checks.whole_verdict(found),
        "checks": [check.facts() for check in found],
        "accuracy": dict(accuracy),
        "comparisons": [entry.facts() for entry in comparisons],
        "latency_ms": times | {"first": measured.first_ms, "load": measured.load_ms},
        "shape": dict(measured.shape),
        "memory_mb": measured.peak_mb,
        "artifact": {key: run.facts[key] for key in ("format", "scheme", "file", "bytes", "sha256")},
        "device": dict(measured.device) | dict(measured.speed),
        "runtime": dict(measured.runtime),
        "target": run.target.name,
        "latency_raw_ms": list(measured.times),
        "work": dict(measured.work),
        "busy": measured.processes[0].neighbours.get("load"),
        "disturbed": list(conditions.disturbed),
        "measurement": measured.measurement,
        "latency_processes_ms": own,
        "vouches": {
            "scales": list(conditions.scales),
            "foreign": list(conditions.foreign),
            "told": hardware.tolerances(run.target.hardware),
        },
        "prompts": prompts,
        "look": vars(run.look),
    }
