"""Recipe: what to make. A TOML file names the task, the teacher, the student, the data and the accuracy margins."""

from __future__ import annotations

import re
import tomllib
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Len, Lt, MinLen

from edgekit.errors import EdgekitError
from edgekit.schema import parse, read_toml

MAX_LENGTH = 128
# Semantic versions (semver.org) of numbers alone; of nine digits at most, which a C long holds.
_VERSION = re.compile(r"(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){2}")


@dataclass(frozen=True, kw_only=True)
class OtherTeacher:
    """A further teacher, used as it is: where it comes from, as the first does."""

    source: str
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Where the teacher comes from: a folder, a hub id ("org/name") or a package resource ("package:name/path").

    `finetune` is the raw table of `[teacher.finetune]`; where it is absent, the teacher is used as it is. `create` is that of
    `[teacher.create]`: a new model instead of a source, trained on the train split from nothing. `others` teach the student
    beside it, by a mean of what all find probable; the student begins from the first one, and is verified against it. `weights`:
    of all of them, the first one's first, or those that held-out train rows choose; without it all count alike.
    """

    source: str | None = None
    revision: str | None = None
    finetune: dict[str, object] | None = None
    create: dict[str, object] | None = None
    others: list[OtherTeacher] = field(default_factory=list)
    weights: list[Annotated[float, Ge(0)]] | Literal["validation"] | None = None

    @property
    def shares(self) -> tuple[float, ...] | str:
        """The weights of several teachers, () of one."""
        if not self.others:
            return ()
        return self.weights if isinstance(self.weights, str) else tuple(self.weights or [1.0] * (1 + len(self.others)))


@dataclass(frozen=True, kw_only=True)
class Student:
    """What learns from the teacher. `student = "ngrams"` is a table of that kind alone.

    cut: some of the teacher's layers: how many, or which ones (`keep`, indices into them). With `vocabulary` it has so many of
    its tokens at most: those of the train texts, all single characters, and the most frequent of the others. `depth` says how
    `layers` are picked: evenly spaced, or those that change most of what passes through them. `hidden` (channels between
    layers), `heads`, `kv_heads` and `intermediate` (neurons of an MLP) make it narrower: what is most active on the train texts
    stays. With `positions` it reads so many tokens of a text at most, and has no more rows of where they stand. With `fit`
    it has as many layers, and is as wide, as the target's budget has room for, which `build` predicts and keeps in the lock file
    ("layers": as many layers, as wide as the teacher). ngrams: a table of hashed n-grams of the teacher's tokens, of `buckets`
    rows (36 bytes each in int8; without it 20,000).
    """

    kind: Literal["cut", "ngrams"] = "cut"
    buckets: Annotated[int, Ge(1024), Lt(2**24)] | None = None
    layers: Annotated[int, Ge(1)] | None = None
    keep: Annotated[list[Annotated[int, Ge(0)]], MinLen(1)] | None = None
    depth: Literal["even", "influence"] = "even"
    hidden: Annotated[int, Ge(1)] | None = None
    heads: Annotated[int, Ge(1)] | None = None
    kv_heads: Annotated[int, Ge(1)] | None = None
    intermediate: Annotated[int, Ge(1)] | None = None
    positions: Annotated[int, Ge(1)] | None = None
    vocabulary: Annotated[int, Ge(1)] | None = None
    fit: bool | Literal["layers"] = False

    @property
    def widths(self) -> list[str]:
        """The keys that make it narrower than its teacher, those that are given."""
        return [key for key in ("hidden", "heads", "kv_heads", "intermediate") if getattr(self, key) is not None]

    @property
    def by_importance(self) -> bool:
        """Whether what stays of the teacher is measured, not ruled."""
        return bool(self.widths) or self.depth == "influence"


@dataclass(frozen=True, kw_only=True)
class Split:
    """Shares of one file's rows that go to the calibrate and verify splits; a row's text decides where it goes."""

    calibrate: Annotated[float, Gt(0), Lt(1)] = 0.1
    verify: Annotated[float, Gt(0), Lt(1)] = 0.2


@dataclass(frozen=True, kw_only=True)
class Data:
    """The prompts: a folder with train / calibrate / verify files, one file to split, a `datasets` id, or a file per split.

    `final` is a file of more prompts: judged with `--final` instead of verify, and read by nothing else. On those of `recover`
    (a file, or a share of the train rows, which then train nothing) `build --recover` chooses; nothing else reads them.
    `unlabelled` is a file of more texts, whose labels nobody knows: what the teacher says of them teaches the student.
    `out_of_scope` is the label of texts that belong to no class. `max_length` counts tokens, special tokens included.
    `near_duplicates` says what to do with texts that are nearly equal, of different splits or within verify: refuse them, or
    drop the text of the earlier split (verify keeps its texts) and verify's repeats. `group` is a column of what texts have in
    common that are not independent (speaker, document, template, ticket): no group is in two splits. A column may lie within
    another ("data.text"). `labels` renames labels, of the data and of the teacher.

    `delimiter` and `encoding` are those of files that are no plain CSV in UTF-8. `bad_rows` says what to do with rows that
    cannot be read: refuse them all in one message, or drop and count them. Labels of fewer rows than `min_per_label` are left
    out.

    Of text-generation there are no labels but, in the column `answer`, the wanted answers, and in `choices` those to choose
    from; or, in `messages`, whole conversations instead of texts, and in `tools` the functions that the model may call.
    """

    path: str | None = None
    train: str | None = None
    calibrate: str | None = None
    verify: str | None = None
    final: str | None = None
    recover: str | float | None = None
    unlabelled: str | None = None
    text: str = "text"
    label: str | None = "label"
    answer: str | None = None
    choices: str | None = None
    messages: str | None = None
    tools: str | None = None
    group: str | None = None
    labels: dict[str, str] | None = None
    out_of_scope: str | None = None
    delimiter: Annotated[str, Len(1, 1)] | None = None
    encoding: str | None = None
    bad_rows: Literal["refuse", "drop"] = "refuse"
    min_per_label: Annotated[int, Ge(1)] | None = None
    max_length: Annotated[int, Ge(3)] = MAX_LENGTH
    split: Split | None = None
    near_duplicates: Literal["refuse", "drop"] = "refuse"
    license: str | None = None


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers that a language model writes to the train prompts; the student learns from them in place of the data's own.

    `by` is "teacher", the folder of a checkpoint, a .gguf file, or the URL of an endpoint that speaks OpenAI's chat completions.
    Of an endpoint `model` is the model's name there, and `key_variable` names the environment variable that holds the key, which
    is written nowhere. Each prompt has `samples` answers of `max_tokens` at most; a temperature of 0 takes the likeliest token
    each time, any other draws among the likeliest whose probabilities sum to `top_p`.

    `begin` is the share of a running text (one without a wanted answer, of a model without a chat template) that is asked: its
    beginning, up to the end of a line. `own` keeps the data's own answers beside the written ones. Left out are answers that are
    empty, repeat themselves, or have fewer characters than `shortest` or more than `longest`; unless `cut_off` says "keep" also
    those that were still going on at the limit.

    Of an endpoint: a request that fails (no connection, no answer in `timeout` seconds, status 429 or 500 and above, something
    that is no answer) is tried again `retries` times, after `wait` seconds, then twice as long, and so on; `parallel` requests
    run at once; where more than `failures` have no answer after all that, the build ends and keeps those that it has.
    """

    by: str = "teacher"
    model: str | None = None
    key_variable: str | None = None
    samples: Annotated[int, Ge(1)] = 1
    temperature: Annotated[float, Ge(0)] = 0.0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    max_tokens: Annotated[int, Ge(1)] = 256
    begin: Annotated[float, Gt(0), Le(1)] = 1.0
    own: bool = False
    cut_off: Literal["drop", "keep"] = "drop"
    shortest: Annotated[int, Ge(1)] = 1
    longest: Annotated[int, Ge(1)] | None = None
    timeout: Annotated[float, Gt(0)] = 60.0
    retries: Annotated[int, Ge(0)] = 5
    wait: Annotated[float, Ge(0)] = 1.0
    parallel: Annotated[int, Ge(1), Le(64)] = 4
    failures: Annotated[int, Ge(0)] = 0

    @property
    def is_endpoint(self) -> bool:
        """Whether `by` is a URL."""
        return "://" in self.by


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """Labels that a language model gives to texts without one, which then train beside the data's own.

    `by` is the folder of a checkpoint, or a .gguf file; `texts` a file of texts (in the column `data.text`), without it the train
    rows without a label are meant (`data.unlabelled`). The model is asked
    `question`, with the text in the place of {text} and the labels in that of {labels}, and how likely it finds each label is its
    `score`: the mean, or the sum, of the log-probabilities of the label's tokens. With `calibrate` that is held against how
    likely it finds the label where the text says nothing. `names` is what the model is told a label is called; without it,
    underscores are spaces.

    Before anything is trained on them, the labels that it gives to `audit` labelled train rows are held against theirs. Where the
    share that agrees is not proven to be `agreement` or more, the build ends. Labels whose probability is under `least` are left
    out.
    """

    by: str
    texts: str | None = None
    question: str | None = None
    names: dict[str, str] | None = None
    score: Literal["mean", "sum"] = "mean"
    calibrate: bool = True
    audit: Annotated[int, Ge(10)] = 200
    agreement: Annotated[float, Gt(0), Lt(1)] = 0.8
    least: Annotated[float, Ge(0), Lt(1)] = 0.0


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """The threshold under which a text is answered with `data.out_of_scope`; it is fitted on the calibrate split.

    share: how many of the texts in use belong to no class, as a fraction; without it, as many as in the calibrate split.
    recall: the least share of those texts that must be rejected, which verify then judges (1 - recall is the false-accept rate).
    """

    share: Annotated[float, Gt(0), Lt(1)] | None = None
    recall: Annotated[float, Gt(0), Lt(1)] | None = None


AS_CALIBRATED = Rejection()


@dataclass(frozen=True, kw_only=True)
class Issue:
    """Which version its bundle is: MAJOR.MINOR.PATCH, without what semver.org lets follow these numbers, so that a loader in any
    language puts two in order. compatible_with: the oldest version whose apps can use it as they are."""

    version: str
    compatible_with: str | None = None


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """How many prompts of the calibrate split to use (0: all) and how many go through the model at once."""

    prompts: Annotated[int, Ge(0)] = 0
    batch: Annotated[int, Ge(1)] = 16


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to make. The tables `distill`, `qad` and `accuracy` stay raw: the entries that they steer check them.

    With `qad` the student of each target is trained with the weights that its file will hold (quantization-aware distillation).
    `bundle` is what the bundle says of its version, where it says one.
    """

    task: str
    teacher: Teacher
    data: Data
    seed: Annotated[int, Ge(0), Lt(2**32)] = 0
    student: Student | None = None
    answers: Answers | None = None
    labelling: Labelling | None = None
    distill: dict[str, object] = field(default_factory=dict)
    qad: dict[str, object] | None = None
    rejection: Rejection = AS_CALIBRATED
    calibrate: Calibrate = Calibrate()
    accuracy: dict[str, object] = field(default_factory=dict)
    bundle: Issue | None = None
    license: str | None = None
    # Set by load_recipe, not by the file.
    name: str = ""
    path: Path = Path("recipe.toml")

    @property
    def folder(self) -> Path:
        """Where the recipe lies: its paths are relative to it."""
        return self.path.resolve().parent

    def locate(self, path: str) -> Path:
        """A path of the recipe, relative to the recipe's own folder."""
        return (self.folder / Path(path).expanduser()).resolve()


_SET_BY_LOADER = ("name", "path")


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe.toml; `overrides` are key=value pairs with dotted keys and TOML values (or bare words).

    Raises EdgekitError for a missing file, bad TOML, and unknown, missing or wrongly typed keys.
    """
    if path.is_dir():
        path = path / "recipe.toml"
    table = read_toml(path)
    for override in overrides:
        _apply_override(table, override)
    return read_table_of(table, path)


def read_table_of(table: dict[str, object], path: Path) -> Recipe:
    """The recipe in a table, as it would be in the file at `path`. Raises EdgekitError as `load_recipe` does."""
    for key in _SET_BY_LOADER:
        if key in table:
            raise EdgekitError(f"{path}: {key}: this key is set by edgekit; remove it")
    if "export" in table:
        raise EdgekitError(
            f"{path}: export: format and scheme are the target's: --scheme NAME or --format NAME chooses for one run, and a"
            " target of your own keeps it: edgekit targets copy NAME my-NAME, then its [export.<task>] table"
        )
    if isinstance(table.get("student"), str):
        table = {**table, "student": {"kind": table["student"]}}
    name = path.resolve().parent.name if path.name == "recipe.toml" else path.stem
    recipe = parse(Recipe, table, str(path))
    data = table.get("data")
    if recipe.task != "text-classification" and isinstance(data, dict) and "label" not in data:
        recipe = replace(recipe, data=replace(recipe.data, label=None))
    _check_sizes(recipe, str(path))
    return replace(recipe, name=name, path=path)


def _check_sizes(recipe: Recipe, where: str) -> None:
    split, student, teacher = recipe.data.split, recipe.student, recipe.teacher
    if (teacher.source is None) == (teacher.create is None):
        raise EdgekitError(f"{where}: teacher: give either source, a model that is there, or a [teacher.create] table")
    if teacher.create is not None and teacher.finetune is not None:
        raise EdgekitError(f"{where}: teacher: a created model is trained already; remove [teacher.finetune]")
    _check_teachers(teacher, recipe.student, f"{where}: teacher")
    if empty := next((key for key in ("final", "recover") if getattr(recipe.data, key) == ""), None):
        raise EdgekitError(f'{where}: data.{empty}: "" names no file; remove the key, or name a file of prompts')
    if isinstance(recipe.data.recover, float) and not 0.0 < recipe.data.recover < 1.0:
        raise EdgekitError(
            f"{where}: data.recover: {recipe.data.recover:g}: a file, or a share of the train rows between 0 and 1, such as 0.1"
        )
    if split is not None and split.calibrate + split.verify >= 1:
        raise EdgekitError(f"{where}: data.split: calibrate and verify take all rows; leave a share for train")
    _check_unlabelled(recipe, where)
    if recipe.rejection != AS_CALIBRATED and recipe.data.out_of_scope is None:
        raise EdgekitError(
            f"{where}: rejection: nothing is rejected without data.out_of_scope, the label of texts that belong to no class"
        )
    told = [key for key in ("answer", "choices", "messages", "tools") if getattr(recipe.data, key) is not None]
    if told and recipe.task != "text-generation":
        raise EdgekitError(f"{where}: data.{told[0]}: for text-generation only; remove it, or change task")
    if recipe.data.messages is not None and recipe.data.answer is not None:
        raise EdgekitError(
            f"{where}: data.answer: a conversation ends with its wanted answer (data.messages); remove it"
        )
    if student is not None:
        _check_student(student, recipe.task, recipe.data.max_length, f"{where}: student")
    if recipe.bundle is not None:
        _check_issue(recipe.bundle, f"{where}: bundle")


def _check_issue(issue: Issue, where: str) -> None:
    numbers = read_version(issue.version, f"{where}.version")
    if issue.compatible_with is None:
        return
    if read_version(issue.compatible_with, f"{where}.compatible_with") > numbers:
        raise EdgekitError(
            f"{where}.compatible_with: {issue.compatible_with}: newer than version {issue.version} itself; name the oldest"
            " version whose apps can use it, or remove this key"
        )


def read_version(text: str, where: str) -> tuple[int, ...]:
    """The three numbers of a bundle's version, in the order of versions; EdgekitError where it is none."""
    if not _VERSION.fullmatch(text):
        raise EdgekitError(f"{where}: {text!r}: not a version; write three numbers, such as 1.2.0")
    return tuple(map(int, text.split(".")))


def _check_teachers(teacher: Teacher, student: Student | None, where: str) -> None:
    if teacher.others and student is None:
        raise EdgekitError(
            f"{where}.others: several teachers teach a student, and the recipe makes no [student]; add one"
        )
    if teacher.weights is None:
        return
    if not teacher.others:
        raise EdgekitError(
            f"{where}.weights: one teacher needs none; name more in [[teacher.others]], or remove this key"
        )
    if isinstance(teacher.weights, list) and (
        len(teacher.weights) != 1 + len(teacher.others) or not sum(teacher.weights) > 0
    ):
        raise EdgekitError(
            f"{where}.weights: {teacher.weights}: give one for each of the {1 + len(teacher.others)} teachers, the first one's"
            " first, of which one at least is above 0"
        )


def _check_unlabelled(recipe: Recipe, where: str) -> None:
    if recipe.data.unlabelled is None:
        return
    if recipe.task != "text-classification" or not recipe.data.label:
        raise EdgekitError(
            f"{where}: data.unlabelled: for classifiers whose other texts have labels; name all texts as train data, or remove it"
        )
    labelled = recipe.labelling is not None and recipe.labelling.texts is None
    if recipe.student is None and not labelled and not (recipe.teacher.finetune or {}).get("pseudo_labels"):
        raise EdgekitError(
            f"{where}: data.unlabelled: teaches a student, and the recipe makes no [student]; add one, or have the teacher learn"
            " from it (teacher.finetune.pseudo_labels, or [labelling])"
        )


def _check_student(student: Student, task: str, longest: int, where: str) -> None:
    blocks = student.layers is not None or student.keep is not None
    widths = student.widths
    if student.vocabulary is not None and (student.kind == "ngrams" or task == "text-generation"):
        of = "a student of n-grams" if student.kind == "ngrams" else "a model that writes text"
        raise EdgekitError(f"{where}.vocabulary: {of} keeps its teacher's tokens; remove this key")
    if student.kind == "ngrams":
        if task != "text-classification":
            raise EdgekitError(f"{where}.kind: ngrams: such a student classifies texts; it is none for {task}")
        if blocks:
            raise EdgekitError(f"{where}: a student of n-grams has no layers; remove layers and keep")
        if widths or student.depth != "even" or student.positions is not None:
            key = [*widths, "depth" if student.depth != "even" else "positions"][0]
            raise EdgekitError(f"{where}.{key}: a student of n-grams has no layers; remove this key")
        if student.fit:
            raise EdgekitError(f"{where}.fit: a student of n-grams has the size that buckets says; remove fit")
    elif student.buckets is not None:
        raise EdgekitError(f"{where}.buckets: for kind = 'ngrams' alone; remove it")
    elif student.fit and blocks:
        raise EdgekitError(
            f"{where}.fit: the target's budget decides on the layers then; remove fit, or layers and keep"
        )
    elif (
        not student.fit
        and (student.layers is None) == (student.keep is None)
        and (blocks or not (widths or student.positions))
    ):
        raise EdgekitError(
            f"{where}: give either layers, such as 3, or keep, such as [0, 2, 5], or fit = true for as many as the target has"
            " room for; without them a width, such as intermediate"
        )
    elif student.depth == "influence" and student.layers is None and not student.fit:
        raise EdgekitError(f"{where}.depth: picks so many layers as `layers` says; give layers, or remove depth")
    if student.positions is not None and student.positions < longest:
        raise EdgekitError(
            f"{where}.positions: {student.positions}: texts have up to {longest} tokens (data.max_length); give as many"
        )
    if student.hidden is not None and task == "feature-extraction":
        raise EdgekitError(
            f"{where}.hidden: embeddings of another width could not be compared with the teacher's; remove this key, and cut"
            " intermediate or layers"
        )


def find_recipes(folder: Path) -> list[Path]:
    """The TOML files of a folder, and the recipe.toml one below it, that look like recipes: they name a task."""
    found = []
    for path in sorted([*folder.glob("*.toml"), *folder.glob("*/recipe.toml")]):
        with suppress(OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            if "task" in tomllib.loads(path.read_text(encoding="utf-8")):
                found.append(path)
    return found


def packaged(relative: str) -> Path:
    """A file or folder that travels with edgekit: inside the installed package, or beside it in a source tree."""
    inside = Path(str(resources.files("edgekit"))) / "data" / relative
    return inside if inside.exists() else Path(__file__).resolve().parents[1] / relative


def read_override(option: str, override: str, such_as: str) -> tuple[str, object]:
    """The key and the value of an option's KEY=VALUE, which is TOML or a bare word; EdgekitError for anything else."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise EdgekitError(f"{option} {override}: expected key=value, such as {option} {such_as}")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text


def _apply_override(table: dict[str, object], override: str) -> None:
    key, value = read_override("--set", override, "distill.epochs=3")
    *parents, last = key.split(".")
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise EdgekitError(f"--set {override}: {parent} is not a table")
        table = inner
    table[last] = value
