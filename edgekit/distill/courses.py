"""Courses: which student learns what from whom. Fine-tuning, distilling and creating are three of them, taught in one way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from edgekit.distill import losses
from edgekit.distill.batches import SOURCES, Source, TrainSplit, hold_out, passage_source
from edgekit.distill.created import cut_blocks, save_tokenizer, train_tokenizer
from edgekit.distill.determinism import reproducible
from edgekit.distill.ensemble import Member, choose_weights, join
from edgekit.distill.files import KEPT, copy_files, copy_tokenizer, note_length, save_model
from edgekit.distill.finetuning import changes, splices
from edgekit.distill.lessons import Teaching, make_lesson
from edgekit.distill.loop import Outcome, Run, train
from edgekit.distill.losses import BRIER, Loss
from edgekit.distill.machine import choose_device, choose_precision, conditions
from edgekit.distill.on_grid import OnGrid, complete
from edgekit.distill.on_policy import Writer, make_reward
from edgekit.distill.options import (
    CreateOptions,
    DistillOptions,
    QadOptions,
    Schedule,
    TrainingOptions,
    answers_anew,
    loss_options,
)
from edgekit.distill.ranks import Ranks, meet
from edgekit.distill.room import Chosen
from edgekit.distill.scales import put_on_grid
from edgekit.distill.snapshot import drop_snapshot
from edgekit.distill.students import Created, Cut, Hashed, Student, Whole, load_module, make_student, narrow, widen
from edgekit.distill.tap import Tap, find_family
from edgekit.distill.teachers import Teacher, TeacherInputs, find_teacher
from edgekit.distill.vocabulary import check_same, find_tokens, write_tokenizer
from edgekit.embedding_files import read_embedding
from edgekit.grid import Grid, Packed, read_packed
from edgekit.inputs import identity
from edgekit.model import load_model
from edgekit.outputs import OUTPUTS
from edgekit.progress import Progress, silent
from edgekit.prompts import Prompt
from edgekit.stored import choose, derive
from edgekit.tasks import Task
from edgekit.tasks.encoders import dimensions
from edgekit.workspace import file_sha256, fingerprint

READING = "reading the texts"
# Texts whose tokens are looked through at a time.
_AT_ONCE = 256
_OUTPUT = frozenset({"output"})


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every course is told: the task, how many tokens of a text are read at most, and the folder that it fills."""

    task: Task
    max_length: int
    out: Path
    seed: int = 0
    out_of_scope: str | None = None
    progress: Progress = silent
    apart: Sequence[Prompt] = ()
    """Texts that no new one may be nearly."""
    chosen: Chosen = field(default_factory=Chosen)
    """How many rows each of the step's trainings lets through at once, where memory decided."""


@dataclass(frozen=True, kw_only=True)
class Teaches:
    """A teacher: its folder, and what was recorded of it (`recorded.record`), where it is not to be asked.

    others: folders of further teachers, with which it teaches by a mean of all (`ensemble`); weights: theirs and its own, before
    them, or "validation". scorer: a model that scores what the student writes. tokens: its ids of the source's, if others.
    """

    folder: Path
    recording: Path | None = None
    others: Sequence[Path] = ()
    weights: Sequence[float] | str = ()
    scorer: Path | None = None
    tokens: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Course:
    """A training, whole: who learns, from what, by which losses, and beside which teacher."""

    job: Job
    student: object
    """What the student is made of: the options of an entry of STUDENTS."""
    source: Source
    losses: Mapping[str, float | Schedule]
    options: TrainingOptions
    begins: Path | None = None
    """The folder that the student begins from, whose files go along."""
    teacher: Teaches | None = None
    judge: Loss | None = None
    """What the early stop looks at; without it, the sum of the losses."""
    epochs: int | None = None
    """After how many of the schedule's epochs it ends, whatever the held-out rows say; None: they decide."""
    sources: Sequence[Source | None] = ()
    """Of each further teacher what it reads of the same texts, None for what the student does."""
    scorer: Path | None = None
    """Who says what the student's own answers are worth, where a model does."""
    grid: Grid | None = None
    """What the student's weights are rounded to in each forward pass, and at the end; None: they are not."""


def teach(course: Course) -> tuple[Outcome, dict[str, object]]:
    """Train the course's student into its folder; a killed run continues there. Also returns the step's facts."""
    options = course.options
    precision = choose_precision(options.precision, device := choose_device(options.device))
    needs = frozenset(need for name in course.losses for need in losses.LOSSES[name].needs)
    job, ranks = course.job, meet()
    with reproducible(ranks.seed(job.seed), device):
        student = make_student(course.student, job.task)
        width = dimensions(cast(Any, student.module.model).config).hidden
        blocks = range(len(student.matched))
        on_grid = (
            None
            if course.grid is None
            else put_on_grid(student.module, course.grid, course.source, options, job.progress)
        )
        whole, tokens = _narrowed(course, student)
        tap = Tap(student.module, needs=needs, blocks=blocks, device=device, precision=precision, tokens=tokens)
        if "views" in needs and course.begins is not None:
            tap.pooling = read_embedding(course.begins).modes[0]
        writes = _writer(course, tap, ranks)
        teacher = _teacher(course, student, needs, device)
        lesson = make_lesson(
            tap,
            teacher,
            course.source,
            Teaching(
                weights=course.losses,
                options=lambda share: loss_options(options, share),
                judge=course.judge,
                micro_batch=options.micro_batch,
                per_sequence=isinstance(options, DistillOptions) and options.per == "sequence",
                ranks=ranks,
                adaptive=options.taid.adaptive if isinstance(options, DistillOptions) and options.taid else 0.0,
                rewarded=writes is not None and writes.reward is not None,
                **({} if writes is None else {"written": writes}),
            ),
        )
        run = _run(course, device, ranks, on_grid)
        outcome = train(student.module, lesson, options, run, width=width)
    if whole is not None and tokens is not None:
        widen(student.module, whole, tokens)
    if on_grid is not None:
        on_grid.settle(job.out)
    save_model(student.module, job.out)
    if course.begins is not None:
        copy_files(course.begins, job.out, KEPT[job.task.OUTPUT])
    drop_snapshot(job.out)
    told = {key: value for key, value in asdict(outcome).items() if value is not None}
    facts = told | dict(course.source.facts) | student.facts | {"precision": precision, "device": device}
    if teacher is not None:
        facts |= teacher.facts
    if student.matched:
        facts["matched_layers"] = list(student.matched) if "hidden" in needs else []
    return outcome, facts | (job.chosen.settle() if job.chosen.is_last(job.out) else {})


def _run(course: Course, device: str, ranks: Ranks, on_grid: OnGrid | None) -> Run:
    job = course.job
    return Run(
        folder=job.out,
        identity=identify(course),
        seed=job.seed,
        device=device,
        progress=job.progress,
        epochs=course.epochs,
        ranks=ranks,
        rounded=nullcontext if on_grid is None else on_grid.rounded,
        keeps_start=on_grid is not None,
        plan=job.chosen.plans.get(job.chosen.name(job.out), {}),
        keep=partial(job.chosen.keep, job.out),
    )


def _writer(course: Course, tap: Tap, ranks: Ranks) -> Writer | None:
    """What the student writes in some steps, where it is to learn from that too."""
    options, begins = course.options, course.begins
    if not isinstance(options, DistillOptions) or options.on_policy is None:
        return None
    assert begins is not None
    model, reward = load_model(begins), options.on_policy.reward
    return Writer(
        tap=tap,
        passages=course.source.passages,
        stops=model.stops,
        reward=None if reward is None else make_reward(model, reward, course.scorer, tap.device),
        options=options.on_policy,
        longest=course.job.max_length,
        seed=course.job.seed,
        ranks=ranks,
    )


def _narrowed(course: Course, student: Student) -> tuple[nn.Embedding | None, Tensor | None]:
    """An encoder's embedding, taken out while only the rows that the course's texts read are trained, and their new ids.

    No other row has a gradient, so that nothing is lost but weight decay on them, and on the example a fifth of a step's time:
    AdamW goes through all weights. (None, student.tokens) where it stays in: of decoders it may be the head too, a grid is of the
    whole model, and texts that change have other tokens in each epoch.
    """
    generates = OUTPUTS[course.job.task.OUTPUT].generates
    if generates or changes(course.options) is not None or course.grid is not None or student.tokens is not None:
        return None, student.tokens
    embedding = cast(Any, student.module.model).get_input_embeddings() if find_family(student.module).LAYERS else None
    if not isinstance(embedding, nn.Embedding):
        return None, None
    # With every id up to the padding's, which families count positions from: it stays what it is.
    seen, lengths = set(range((embedding.padding_idx or 0) + 1)), course.source.lengths
    # The longest text is in each batch, so that what fills up shorter ones is seen: only the tokenizer may know it.
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    for begin in range(0, len(lengths), _AT_ONCE):
        rows = [longest, *range(begin, min(begin + _AT_ONCE, len(lengths)))]
        seen.update(course.source.batch(rows).tokens.flatten().tolist())
    return embedding, narrow(student.module, sorted(seen))


def _teacher(course: Course, student: Student, needs: frozenset[str], device: str) -> Teacher | None:
    """The course's teacher, where any loss reads what it gives."""
    taught = course.teacher
    if taught is None or not any(losses.LOSSES[name].teacher for name in course.losses):
        return None
    first = _asked(course, taught.folder, course.source, needs, student, device)
    if not taught.others:
        return first
    members = [Member(teacher=first)]
    for folder, source in zip(taught.others, course.sources, strict=True):
        course.job.progress(0, 0, f"loading a further teacher, {folder.name}")
        one = _asked(course, folder, source or course.source, _OUTPUT, student, device)
        # Of each of the first one's classes its number in this one.
        names = [] if source is None else load_model(taught.folder).labels
        order = None if source is None else list(map(load_model(folder).labels.index, names))
        members.append(Member(teacher=one, source=source, order=order))
    if isinstance(taught.weights, str):
        weights, surprise = choose_weights(members, course.source, device, "teacher.weights")
        told = {"log_loss": surprise}
    else:
        total = sum(taught.weights)
        weights, told = [weight / total for weight in taught.weights], {}
    facts = {"teachers": {"weights": [round(weight, 6) for weight in weights], **told}}
    return replace(join(members, weights), facts=facts)


def _asked(
    course: Course, folder: Path, source: Source, needs: frozenset[str], student: Student, device: str
) -> Teacher:
    """A checkpoint as a teacher of a course."""
    taught, options = course.teacher, course.options
    assert taught is not None
    # Many new texts are read as quickly as the student reads them: nothing hangs on the last digits of an answer.
    precision = choose_precision(options.precision, device) if splices(options) else "fp32"

    @cache
    def open_checkpoint() -> Tap:
        tokens = taught.tokens if folder == taught.folder else None
        module, blocks = load_module(course.job.task, folder), student.matched
        return Tap(module, needs=needs, blocks=blocks, device=device, precision=precision, tokens=tokens)

    return find_teacher(
        TeacherInputs(
            folder=folder,
            source=source,
            open=open_checkpoint,
            progress=course.job.progress,
            channels=student.channels,
            recording=taught.recording,
            anew=answers_anew(options),
            share=1 / (1 + len(taught.others)),
        )
    )


def identify(course: Course) -> str:
    """What a snapshot must agree with to be continued."""
    return fingerprint(
        {
            "begins": _digests(course.begins),
            "teacher": _digests(course.teacher.folder if course.teacher else None),
            **_others(course.teacher),
            **({"scorer": _digests(course.scorer)} if course.scorer is not None else {}),
            "source": course.source.identity,
            "student": {"kind": type(course.student).__name__, **_without_paths(course.student)},
            "losses": {name: _plain(weight) for name, weight in course.losses.items()},
            "options": identity(course.options),
            "conditions": conditions(course.options),
            "seed": course.job.seed,
            **({"epochs": course.epochs} if course.epochs is not None else {}),
            **({"grid": [course.grid.format, course.grid.scheme, course.grid.kinds]} if course.grid else {}),
        }
    )


def _others(taught: Teaches | None) -> dict[str, object]:
    if taught is None or not taught.others:
        return {}
    return {"others": [_digests(folder) for folder in taught.others], "weights": taught.weights}


def _digests(folder: Path | None) -> dict[str, str]:
    files = [] if folder is None else [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return {path.name: file_sha256(path) for path in files}


def _without_paths(options: object) -> dict[str, object]:
    """A dataclass's fields but for where files are, since what is in them counts, and for what is not asked for."""
    return {key: value for key, value in asdict(cast(Any, options)).items() if not isinstance(value, Path | None)}


def _plain(value: float | Schedule) -> object:
    return asdict(value) if isinstance(value, Schedule) else value


def distill(
    teacher: Teaches,
    texts: Sequence[Prompt],
    student: Cut | Hashed,
    options: DistillOptions,
    weights: Mapping[str, float | Schedule],
    job: Job,
    epochs: int | None = None,
) -> dict[str, object]:
    """Train a student beside its teacher on the weighted sum of losses. Early stop: the same sum on the held-out rows.

    A student of the teacher's own family begins from its folder; one of n-grams has the teacher's tokenizer alone. With `epochs`
    it is taught for exactly so many, by losses that read no teacher, and stays what it was after the best of them: of a
    classifier by the Brier score, as in `fine_tune`.
    """
    folder = teacher.folder
    classes = load_model(folder).labels if OUTPUTS[job.task.OUTPUT].has_classes else []
    source = read_source(folder, texts, classes, options, job)
    if teacher.recording is None:
        job.progress(0, 0, f"loading the teacher, {folder.name}")
    _, facts = teach(
        Course(
            job=job,
            student=student,
            source=source,
            losses=weights,
            options=options,
            begins=folder if isinstance(student, Cut) else None,
            teacher=teacher,
            sources=[read_source(other, texts, classes, options, job) if classes else None for other in teacher.others],
            judge=BRIER if epochs is not None and classes else None,
            epochs=epochs,
            scorer=teacher.scorer,
        )
    )
    if not isinstance(student, Cut):
        copy_tokenizer(folder, job.out)
    elif student.tokens:
        write_tokenizer(folder, job.out, student.tokens)
        check_same(folder, job.out, derive(texts, lambda row: row.text), student.tokens, job.max_length)
    positions = student.sizes.positions if isinstance(student, Cut) and student.sizes is not None else 0
    if 0 < positions < (load_model(folder).max_positions or 0):
        note_length(job.out, positions)
    return facts | _taught_by(weights, options)


def train_on_grid(
    teacher: Path,
    student: Path,
    texts: Sequence[Prompt],
    grid: Grid,
    options: QadOptions,
    weights: Mapping[str, float | Schedule],
    job: Job,
) -> dict[str, object]:
    """Train a student beside its teacher with the weights that a file will hold. Early stop: the same losses, held out;
    where no epoch is better than the student rounded as it came, it stays what it was.

    Returns the facts of `teach`, and how many weights lie on the grid.
    """
    model = load_model(student)
    classes = model.labels if OUTPUTS[job.task.OUTPUT].has_classes else []
    source = read_source(student, texts, classes, options, job)
    job.progress(0, 0, f"loading the teacher, {teacher.name}")
    _, facts = teach(
        Course(
            job=job,
            student=Whole(folder=student),
            source=source,
            losses=weights,
            options=complete(options, grid, model.hidden),
            begins=student,
            teacher=Teaches(folder=teacher, tokens=find_tokens(teacher, student)),
            grid=grid,
        )
    )
    packed = cast(Packed, read_packed(job.out))
    floats = {} if packed.reads is None else {"float": sorted(packed.floats)}
    on_grid = {"format": grid.format, "scheme": grid.scheme, "weights": len(packed.kinds), **floats}
    return facts | _taught_by(weights, options) | {"grid": on_grid}


def _taught_by(weights: Mapping[str, float | Schedule], options: DistillOptions) -> dict[str, object]:
    """What a step writes of the losses that taught a student."""
    shown = {name: _plain(weight) for name, weight in weights.items()}
    more = {
        key: asdict(cast(Any, told)) for key in ("taid", "on_policy") if (told := getattr(options, key)) is not None
    }
    return {"losses": shown, "temperature": _plain(options.temperature), **more}


def create(texts: Sequence[str], options: CreateOptions, job: Job) -> dict[str, object]:
    """Train a tokenizer and a decoder on texts that end with the end token, packed into blocks of max_length tokens.

    Texts are held out whole, and neither the tokenizer nor the weights see them. Returns the facts of `teach`, and the
    perplexity on the held-out texts. Raises EdgekitError where the texts do not fill one block.
    """
    kept, held = hold_out(texts, options.holdout)
    job.progress(0, 0, f"learning {options.vocabulary} tokens")
    tokenizer = train_tokenizer(choose(texts, kept), options.vocabulary, options.tokens or ())
    job.progress(0, 0, "cutting the texts into blocks")
    sides, folder = [choose(texts, rows) for rows in (kept, held)], None if isinstance(texts, list) else job.out
    read, count = cut_blocks(tokenizer, sides, job.max_length, seed=job.seed, folder=folder)
    source = passage_source(read, range(count), range(count, len(read)))
    size = tokenizer.get_vocab_size()
    save_tokenizer(tokenizer, options.context, job.out)
    outcome, facts = teach(
        Course(
            job=job,
            student=Created(size=options, vocabulary=size),
            source=replace(source, identity={**source.identity, "tokenizer": tokenizer.to_str()}),
            losses={"labels": 1.0},
            options=replace(options, learning_rate=options.learning_rate or 2e-3 * 256 / options.hidden),
        )
    )
    return facts | {
        "vocabulary": size,
        "train_texts": len(kept),
        "held_texts": len(held),
        "train_tokens": count * job.max_length,
        "perplexity": round(math.exp(min(outcome.scores)), 4) if outcome.scores else None,
    }


def read_source(
    folder: Path, texts: Sequence[Prompt], classes: Sequence[str], options: TrainingOptions, job: Job
) -> Source:
    """The rows to learn from, as a checkpoint's tokenizer reads the texts."""
    job.progress(0, 0, READING)
    return SOURCES[job.task.OUTPUT](
        TrainSplit(
            texts=texts,
            model=job.task.open_model(folder),
            task=job.task,
            max_length=job.max_length,
            holdout=options.holdout,
            classes=classes,
            out_of_scope=job.out_of_scope,
            augment=changes(options),
            seed=job.seed,
            spliced=splices(options),
            apart=job.apart,
            packing=options.packing,
            folder=job.out,
        )
    )
