"""distill: fine-tune a teacher on the recipe's labels, and teach a student that is cut from its layers.

Both fill a folder with config.json, model.safetensors and the tokenizer's files, and beside them what is told of the steps
(`journal`); while they run it also holds the snapshot from which a killed run continues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from heapq import nsmallest
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from edgekit.architectures.widths import Sizes
from edgekit.distill.finetuning import FinetuneOptions, read_finetune_table, splices
from edgekit.distill.machine import check_training, choose_device
from edgekit.distill.options import (
    CreateOptions,
    DistillOptions,
    Ngrams,
    QadOptions,
    Schedule,
    choose_blocks,
    read_create_options,
    read_distill_options,
    read_qad_options,
    why_no_control,
)
from edgekit.distill.processes import spread
from edgekit.distill.scorer import check_scorer
from edgekit.distill.several import check_assistants, check_several, check_teachers
from edgekit.errors import EdgekitError
from edgekit.inputs import BESIDE, LATER, Content
from edgekit.modalities.text import IDS
from edgekit.outputs import OUTPUTS
from edgekit.progress import Progress, silent
from edgekit.prompts import Prompt, PromptSet
from edgekit.schema import pick
from edgekit.stored import choose, derive, join
from edgekit.tasks import TASKS
from edgekit.tasks.contentless import untaught

if TYPE_CHECKING:
    from edgekit.distill.courses import Job
    from edgekit.model import Model
    from edgekit.recipe import Recipe, Student


# Of each of a step's trainings, by name: from which step on how many rows each process lets through at once (`room.Plan`).
Rows = Mapping[str, Mapping[str, Sequence[int]]]
# Texts that tell what is important: of BANKING77 four times as many choose 94 to 98 % of the same half of a BERT's neurons.
RANKED = 512
# Tokens of a text that is not cut.
_WHOLE = 1 << 20
# Texts that are encoded at a time.
_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class CreateInputs:
    """What `create` is given. machine: what of this machine the bits depend on (`machine.conditions`). rows_at_once: what memory
    made the step's trainings do when it was made before (`room.Chosen`), which is done again."""

    STEP: ClassVar[str] = "create"
    prompts: Content
    task: str
    options: CreateOptions
    max_length: int
    seed: int
    machine: Mapping[str, str | int]
    rows_at_once: Rows = field(default_factory=dict, metadata=BESIDE)


@dataclass(frozen=True, kw_only=True)
class FinetuneInputs:
    """What `finetune` is given: a model, and the prompts with their labels or answers.

    out_of_scope: the label of texts that belong to no class. machine: see `CreateInputs`.
    """

    STEP: ClassVar[str] = "finetune"
    base: Content
    prompts: Content
    task: str
    options: FinetuneOptions
    out_of_scope: str | None
    max_length: int
    seed: int
    machine: Mapping[str, str | int]
    rows_at_once: Rows = field(default_factory=dict, metadata=BESIDE)


@dataclass(frozen=True, kw_only=True)
class DistillInputs:
    """What `distill` is given: a teacher, the prompts, and which of the teacher's layers the student keeps, or its table of
    n-grams.

    layers: how many of the most influential the student keeps instead of `kept`. sizes: how wide it is, None for as wide as the
    teacher. importance: what `rank` found, where layers or widths are chosen by it.
    losses: weights by names of LOSSES. vocabulary: how many of the teacher's tokens the student keeps at most, None for all.
    signals: what was recorded of the teacher, None where it answers while the student learns. others: further teachers, which
    teach by a mean of all; weights: of the teacher and of them, or "validation" for those that held-out rows choose.
    scorer: who says what the student's own answers are worth, where a model does. out_of_scope, machine: see `FinetuneInputs`.
    """

    STEP: ClassVar[str] = "distill"
    teacher: Content
    prompts: Content
    task: str
    kept: Sequence[int]
    options: DistillOptions
    losses: Mapping[str, float | Schedule]
    out_of_scope: str | None
    max_length: int
    seed: int
    machine: Mapping[str, str | int]
    ngrams: Ngrams | None = None
    vocabulary: int | None = None
    signals: Content | None = None
    others: Sequence[Content] = field(default=(), metadata=LATER)
    weights: Sequence[float] | str = field(default=(), metadata=LATER)
    layers: int | None = field(default=None, metadata=LATER)
    sizes: Sizes | None = field(default=None, metadata=LATER)
    importance: Content | None = field(default=None, metadata=LATER)
    scorer: Content | None = field(default=None, metadata=LATER)
    rows_at_once: Rows = field(default_factory=dict, metadata=BESIDE)


@dataclass(frozen=True, kw_only=True)
class SignalsInputs:
    """What `record_teacher` is given: a teacher, the prompts, and the temperature at which a decoder's answers are recorded;
    0 where an answer is one row, which has all temperatures.

    device: that it runs on; out_of_scope, machine: see `FinetuneInputs`.
    """

    STEP: ClassVar[str] = "signals"
    teacher: Content
    prompts: Content
    task: str
    temperature: float
    device: str
    max_length: int
    seed: int
    machine: Mapping[str, str | int]
    out_of_scope: str | None = field(default=None, metadata=LATER)


@dataclass(frozen=True, kw_only=True)
class ImportanceInputs:
    """What `rank` is given: a teacher, and the prompts that it reads some of.

    device: that it runs on; machine: see `CreateInputs`.
    """

    STEP: ClassVar[str] = "importance"
    teacher: Content
    prompts: Content
    task: str
    device: str
    max_length: int
    seed: int
    machine: Mapping[str, str | int]


@dataclass(frozen=True, kw_only=True)
class ControlInputs(DistillInputs):
    """What `control` is given: the student's inputs, but labels are its only loss. epochs: how many the student was taught."""

    STEP: ClassVar[str] = "control"
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Training:
    """A recipe's training tables as options; None where the recipe has no such table.

    losses: weights of the student's; qad_losses: of the student's on its grid. control: whether the student is trained without
    its teacher too; why_no_control: why it cannot be, None where it can. assistants: how many layers each of the students between
    teacher and student has.
    """

    create: CreateOptions | None
    finetune: FinetuneOptions | None
    distill: DistillOptions
    losses: Mapping[str, float | Schedule]
    control: bool = False
    why_no_control: str | None = None
    qad: QadOptions | None = None
    qad_losses: Mapping[str, float | Schedule] = field(default_factory=dict)
    assistants: Sequence[int] = ()


def read_training(recipe: Recipe, where: str) -> Training:
    """The training tables of a recipe (`where` is its file); EdgekitError for one that cannot work, before anything runs."""
    creating = finetuning = None
    kind = pick(TASKS, recipe.task, f"{where}: task")
    generates = OUTPUTS[kind.OUTPUT].generates
    if recipe.teacher.create is not None:
        _check_create(recipe.task, f"{where}: teacher.create")
        creating = read_create_options(recipe.teacher.create, recipe.data.max_length, f"{where}: teacher.create")
        check_training(creating, f"{where}: teacher.create", generates=generates)
    if recipe.teacher.finetune is not None:
        finetuning = read_finetune_options(recipe.task, recipe.teacher.finetune, f"{where}: teacher.finetune")
        check_training(finetuning, f"{where}: teacher.finetune", generates=generates)
        if finetuning.pseudo_labels is not None and recipe.data.unlabelled is None:
            raise EdgekitError(
                f"{where}: teacher.finetune.pseudo_labels: the recipe has no texts without labels; name a file of them"
                " (data.unlabelled), or remove this key"
            )
    taught = "cut" if recipe.student is None else recipe.student.kind
    options, losses = read_distill_options(recipe.distill, kind.OUTPUT, f"{where}: distill", taught)
    check_training(options, f"{where}: distill", generates=generates)
    if options.augment is not None and recipe.student is not None and recipe.student.vocabulary is not None:
        raise EdgekitError(
            f"{where}: distill.augment: changed texts have tokens that the train texts have not, and student.vocabulary leaves"
            " those out; remove one of the two"
        )
    if (scorer := find_scorer(recipe, options)) is not None and options.on_policy and options.on_policy.reward:
        check_scorer(scorer, options.on_policy.reward, f"{where}: distill.on_policy.reward")
    no_control = "the recipe makes no [student]" if recipe.student is None else why_no_control(kind.OUTPUT, losses)
    if options.assistants:
        check_assistants(recipe.student, options, losses, f"{where}: distill.assistants")
        no_control = "its student begins from an assistant, which the teacher taught"
    if options.control and no_control:
        raise EdgekitError(f"{where}: distill.control: {no_control}; remove this key")
    if recipe.teacher.others:
        check_several(recipe, options, losses, where)
    qad, qad_losses = None, dict[str, float | Schedule]()
    if recipe.qad is not None:
        qad, qad_losses = read_qad_options(recipe.qad, kind.OUTPUT, f"{where}: qad")
        check_training(qad, f"{where}: qad", generates=generates)
    return Training(
        create=creating,
        finetune=finetuning,
        # What the student follows from is the same with a control and without.
        distill=replace(options, control=False, assistants=()),
        losses=losses,
        control=options.control,
        why_no_control=no_control,
        qad=qad,
        qad_losses=qad_losses,
        assistants=[assistant.layers for assistant in options.assistants],
    )


def find_scorer(recipe: Recipe, options: DistillOptions) -> Path | None:
    """The folder of the model that says what the student's own answers are worth; None where none does."""
    reward = None if options.on_policy is None else options.on_policy.reward
    return None if reward is None or reward.scorer is None else recipe.locate(reward.scorer)


def choose_layers(teacher: Model, student: Student, where: str) -> list[int]:
    """Which of the teacher's layers a student keeps, [] of one of n-grams; EdgekitError where the teacher does not have them."""
    if student.kind == "ngrams":
        return []
    if student.fit:
        raise EdgekitError(
            f"{where}.fit: edgekit build chooses the layers, for its target (--dry-run shows them); here give them: --set"
            " student.fit=false --set student.layers=3"
        )
    if student.layers is None and student.keep is None:
        return list(range(teacher.layers))
    return choose_blocks(teacher.layers, student.layers, student.keep, where)


def choose_ngrams(student: Student) -> Ngrams | None:
    """The table of a student of n-grams; None for another kind."""
    if student.kind != "ngrams":
        return None
    return Ngrams() if student.buckets is None else Ngrams(buckets=student.buckets)


@spread
def create(inputs: CreateInputs, out: Path, progress: Progress = silent) -> dict[str, object]:
    """Make a decoder and its tokenizer from nothing but the train split, into `out`; a killed run continues there.

    It is trained to say the next token of running text, of texts with an answer the two behind each other, in blocks of
    max_length tokens. Raises EdgekitError for a train split that is too short.
    """
    prompts = inputs.prompts.path
    rows = PromptSet(folder=prompts).split("train")
    if any(row.messages for row in rows):
        raise EdgekitError(f"{prompts}: a model made from nothing has no chat template; give texts (data.text)")
    from edgekit.distill import courses

    texts = derive(rows, lambda row: row.text + (row.label or ""))
    return courses.create(texts, inputs.options, make_job(inputs, out, progress, rows=inputs.rows_at_once))


@spread
def finetune(inputs: FinetuneInputs, out: Path, progress: Progress = silent) -> dict[str, object]:
    """Train a model on the labels of the train split, into `out`; a killed run continues there.

    text-classification: a classifier on an encoder. The classes are the labels in sorted order, without `out_of_scope`: its
    texts are taught as "no class in particular", and so are some that say nothing (`tasks.contentless`). Texts without a label
    teach where `pseudo_labels` asks for that.
    text-generation: the wanted answers, or all tokens of running text.
    Raises EdgekitError for a train split without two labels or any answer.
    """
    base, prompts = inputs.base.path, inputs.prompts.path
    rows = PromptSet(folder=prompts).split("train")
    classes: list[str] = []
    unlabelled: Sequence[Prompt] = []
    if OUTPUTS[TASKS[inputs.task].OUTPUT].has_classes:
        unlabelled = choose(rows, (index for index, prompt in enumerate(rows) if prompt.label is None))
        rows = choose(rows, (index for index, prompt in enumerate(rows) if prompt.label is not None))
        rows = join(rows, _contentless(rows, inputs.out_of_scope))
        classes = sorted({str(prompt.label) for prompt in rows} - {inputs.out_of_scope})
        if len(classes) < 2:
            raise EdgekitError(
                f"{prompts}: the train split has {len(classes)} label(s); fine-tuning needs at least two"
            )
    from edgekit.distill.self_training import fine_tune

    job = make_job(inputs, out, progress, inputs.out_of_scope, inputs.rows_at_once)
    return fine_tune(base, rows, classes, inputs.options, job, unlabelled)


@spread
def distill(inputs: DistillInputs, out: Path, progress: Progress = silent) -> dict[str, object]:
    """Make a student and teach it on the train split, into `out`; a killed run continues there.

    Raises EdgekitError for labels that are not the teacher's classes, and an empty train split.
    """
    return _teach_student(inputs, out, progress)


@spread
def control(inputs: ControlInputs, out: Path, progress: Progress = silent) -> dict[str, object]:
    """Make the same student and teach it without its teacher, into `out`; a killed run continues there.

    From the same weights, by the same batches, as many steps and the same learning rates: what `distill` makes of the teacher
    beyond that is the teacher's. Raises EdgekitError as `distill` does.
    """
    return _teach_student(inputs, out, progress, inputs.epochs)


def _teach_student(
    inputs: DistillInputs, out: Path, progress: Progress, epochs: int | None = None
) -> dict[str, object]:
    """Make a student and teach it; for exactly so many epochs, without them until it is no longer better."""
    teacher = inputs.teacher.path
    rows = student_rows(inputs.prompts.path, inputs.task, inputs.out_of_scope)
    from edgekit.distill import courses
    from edgekit.distill.batches import extend
    from edgekit.distill.importance import FILE, choose_influential, read_importance
    from edgekit.distill.students import Cut, Hashed

    job = student_job(inputs, out, progress)
    hashed = None if inputs.ngrams is None else Hashed(folder=teacher, table=inputs.ngrams)
    tokens: Sequence[int] = ()
    if inputs.vocabulary is not None:
        read, _, _ = extend(rows, inputs.options.holdout, splices(inputs.options), inputs.seed, job.apart)
        tokens = _tokens(inputs, inputs.vocabulary, read)
    importance = None if inputs.importance is None else inputs.importance.path / FILE
    kept = list(inputs.kept)
    if importance is not None and inputs.layers is not None:
        kept = choose_influential(read_importance(importance), inputs.layers)
    student = hashed or Cut(folder=teacher, keep=kept, tokens=tokens, sizes=inputs.sizes, importance=importance)
    recording = None if inputs.signals is None else inputs.signals.path
    others = [other.path for other in inputs.others]
    check_teachers(teacher, others, inputs.task)
    scorer = None if inputs.scorer is None else inputs.scorer.path
    teaches = courses.Teaches(folder=teacher, recording=recording, others=others, weights=inputs.weights, scorer=scorer)
    return courses.distill(teaches, rows, student, inputs.options, inputs.losses, job, epochs)


def record_teacher(inputs: SignalsInputs, out: Path, progress: Progress = silent) -> dict[str, object]:
    """Record what a teacher says of each text of the train split, of a decoder of each scored token, into `out`; a killed run
    continues there.

    Any student, and any training of it (of a decoder at this temperature), learns from it without the teacher. Raises
    EdgekitError for an empty train split.
    """
    rows = student_rows(inputs.prompts.path, inputs.task, inputs.out_of_scope)
    from edgekit.distill import recording

    job = make_job(inputs, out, progress, inputs.out_of_scope)
    return recording.record_teacher(inputs.teacher.path, rows, job, inputs.temperature, choose_device(inputs.device))


def rank(inputs: ImportanceInputs, out: Path, progress: Progress = silent) -> dict[str, object]:
    """Measure how much each part of a teacher does on some of the train split, into `out` (`distill.importance`).

    Any student that is cut from it by importance reads it. Raises EdgekitError for an empty train split.
    """
    rows = student_rows(inputs.prompts.path, inputs.task, None)
    drawn = nsmallest(RANKED, rows, lambda row: sha256(f"importance:{inputs.seed}:{row.text}".encode()).digest())
    from edgekit.distill import ranking

    job = make_job(inputs, out, progress)
    return ranking.rank(inputs.teacher.path, drawn, job, choose_device(inputs.device))


def _tokens(inputs: DistillInputs, most: int, rows: Sequence[Prompt]) -> list[int]:
    """The ids of the teacher's tokens that a student keeps: texts are read whole, so that a longer max_length changes nothing."""
    from edgekit.distill.vocabulary import choose_tokens

    task, folder = TASKS[inputs.task], inputs.teacher.path
    model = task.open_model(folder)
    seen = {task.pad_id(model)}
    for begin in range(0, len(rows), _AT_ONCE):
        encoded = task.encode(model, rows[begin : begin + _AT_ONCE], _WHOLE)
        seen.update(int(token) for prompt in encoded.prompts for token in prompt[IDS])
    return choose_tokens(model, seen, most, f"{folder}: student.vocabulary")


def student_rows(prompts: Path, task: str, out_of_scope: str | None) -> Sequence[Prompt]:
    """The texts that a student learns from; EdgekitError for an empty train split."""
    rows = PromptSet(folder=prompts).split("train")
    if not rows:
        raise EdgekitError(f"{prompts}: the train split is empty")
    if OUTPUTS[pick(TASKS, task, "task").OUTPUT].has_classes:
        rows = join(rows, _contentless(rows, out_of_scope))
    return rows


class Trains(Protocol):
    """What the inputs of every training have."""

    @property
    def task(self) -> str:
        """A name in TASKS."""

    @property
    def max_length(self) -> int:
        """How many tokens of a text are read at most."""

    @property
    def seed(self) -> int:
        """Of all that is drawn."""


class Learns(Trains, Protocol):
    """What the inputs of a student's trainings have beside."""

    @property
    def prompts(self) -> Content:
        """A prompts product."""

    @property
    def options(self) -> DistillOptions:
        """How it learns."""

    @property
    def out_of_scope(self) -> str | None:
        """The label of texts that have no class."""

    @property
    def rows_at_once(self) -> Rows:
        """See `CreateInputs`."""


def student_job(inputs: Learns, out: Path, progress: Progress) -> Job:
    """What a student's course is told: also the other splits' texts, which no new text may be nearly."""
    job = make_job(inputs, out, progress, inputs.out_of_scope, inputs.rows_at_once)
    return replace(job, apart=PromptSet(folder=inputs.prompts.path).apart()) if inputs.options.spliced else job


def make_job(
    inputs: Trains, out: Path, progress: Progress, out_of_scope: str | None = None, rows: Rows | None = None
) -> Job:
    """What a course is told of a step's inputs. rows: see `CreateInputs`."""
    from edgekit.distill.courses import Job
    from edgekit.distill.room import Chosen

    return Job(
        task=TASKS[inputs.task],
        max_length=inputs.max_length,
        out=out,
        seed=inputs.seed,
        out_of_scope=out_of_scope,
        progress=progress,
        chosen=Chosen() if rows is None else Chosen(out, rows),
    )


def _contentless(rows: Sequence[Prompt], out_of_scope: str | None) -> list[Prompt]:
    """Texts that say nothing, to be taught as of no class: a tenth of the rows at most, and none without such a class."""
    texts = [] if out_of_scope is None else untaught(row.text for row in rows)
    step = -(-len(texts) // max(len(rows) // 10, 1)) or 1
    return [Prompt(text=text, label=out_of_scope) for text in texts[::step]]


def _check_create(task: str, where: str) -> None:
    if task != "text-generation":
        raise EdgekitError(f"{where}: only models for text-generation can be made from nothing, not for {task}")


def read_finetune_options(task: str, options: Mapping[str, object], where: str) -> FinetuneOptions:
    """A recipe's [teacher.finetune] table; EdgekitError for a task without fine-tuning and for unknown keys."""
    if task not in {"text-classification", "text-generation"}:
        raise EdgekitError(
            f"{where}: fine-tuning is for text-classification and text-generation, not {task}; remove this table"
        )
    return read_finetune_table(options, TASKS[task].OUTPUT, where)
