"""Texts that are changed as people write them in a hurry: what changes, how often, for whom, and always in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from edgekit.distill import loop, read_finetune_options, read_training
from edgekit.distill.augment import NEIGHBOURS, Augment, vary
from edgekit.distill.batches import Source, TrainSplit, read_texts
from edgekit.distill.cost import training_cost
from edgekit.distill.finetuning import FinetuneOptions
from edgekit.distill.lessons import Teaching, make_lesson
from edgekit.distill.options import DistillOptions, TrainingOptions, answers_anew, read_distill_options
from edgekit.distill.signals import Batch, Signal
from edgekit.distill.tap import Tap
from edgekit.distill.teachers import TeacherInputs, find_teacher
from edgekit.errors import EdgekitError
from edgekit.inputs import identity
from edgekit.model import load_model
from edgekit.prompts import Prompt
from edgekit.recipe import Data, Recipe, Student, Teacher
from edgekit.tasks import TASKS
from edgekit.workspace import file_sha256
from tests.conftest import LABELS, PATTERNS, SUBJECTS, make_checkpoint, make_data
from tests.steps import distill, finetune

TEXT = "Please turn the BIG kitchen light on, my friend: it is 9 o'clock"
TEXTS = [pattern.format(subject) for subject in SUBJECTS[:4] for pattern in PATTERNS.values()]


PINNED = "Turn tbe KITCHEN My friend: is o'clock"


def test_keys_touch_those_beside_them_and_in_the_rows_next_to_theirs() -> None:
    """Of a QWERTY keyboard, as ISO 9995 and ANSI INCITS 154 lay it out: a quarter and three quarters of a key to the right."""
    assert {key: "".join(sorted(NEIGHBOURS[key])) for key in "qsgmp"} == {
        "q": "aw",
        "s": "adewxz",
        "g": "bfhtvy",
        "m": "jkn",
        "p": "lo",
    }
    assert set(NEIGHBOURS) == set("abcdefghijklmnopqrstuvwxyz")
    assert all(key in NEIGHBOURS[other] for key, others in NEIGHBOURS.items() for other in others)


def test_a_text_is_changed_by_what_was_drawn_for_seed_epoch_and_row() -> None:
    asked = Augment(typo=0.3, case=0.3, drop=0.3)
    told = {vary(TEXT, asked, seed, epoch, row) for seed in range(3) for epoch in range(3) for row in range(3)}
    assert len(told) > 20
    assert vary(TEXT, asked, 1, 2, 3) == vary(TEXT, asked, 1, 2, 3)
    # The same on every machine and for good: a build of last year must come out as it did.
    assert vary(TEXT, asked, 7, 0, 0) == PINNED


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_as_many_words_are_changed_as_were_asked_for(share: float) -> None:
    """Shares of 4,000 words within four standard deviations; one kind changes nothing else."""
    words, spread = TEXT.split(), 4 * (share * (1 - share) / 4000) ** 0.5
    texts = {
        kind: [vary(TEXT, Augment(**{kind: share}), 0, 0, row).split() for row in range(400)]
        for kind in ("typo", "case", "drop")
    }
    many = 400 * len(words)
    dropped = 1 - sum(map(len, texts["drop"])) / many
    assert abs(dropped - share) < spread
    assert all(_is_part(text, words) for text in texts["drop"])
    cased = [pair for text in texts["case"] for pair in zip(text, words, strict=True)]
    # "9" has no case: 12 of 13 words can change.
    assert abs(sum(one != other for one, other in cased) / many - share * 12 / 13) < spread
    assert all(one.casefold() == other.casefold() for one, other in cased)
    typed = [pair for text in texts["typo"] for pair in zip(text, words, strict=True)]
    assert abs(sum(one != other for one, other in typed) / many - share * 12 / 13) < spread
    for one, other in typed:
        wrong = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
        assert len(wrong) <= 1
        assert all(a.lower() in NEIGHBOURS[b.lower()] and a.isupper() == b.isupper() for a, b in wrong)


def _is_part(text: Sequence[str], words: Sequence[str]) -> bool:
    rest = iter(words)
    return all(word in rest for word in text)


@pytest.mark.parametrize("text", ["", " ", "one", " one ", "one  two\nthree", "ünïcödé 日本語", "?!"])
def test_a_word_stays_and_spaces_are_nobodys(text: str) -> None:
    for row in range(30):
        left = vary(text, Augment(drop=0.99), 0, 0, row)
        assert left.split() and set(left.split()) <= set(text.split()) if text.split() else left == text
        changed = vary(text, Augment(typo=0.99, case=0.99), 0, 0, row)
        assert [piece for piece in changed if piece.isspace()] == [piece for piece in text if piece.isspace()]


def read(checkpoint: Path, asked: Augment | None, holdout: float = 0.0) -> Source:
    """The train texts of a classifier, changed as asked."""
    return read_texts(
        TrainSplit(
            texts=[Prompt(text=text, label=LABELS[0]) for text in TEXTS],
            model=load_model(checkpoint),
            task=TASKS["text-classification"],
            max_length=32,
            holdout=holdout,
            classes=LABELS,
            augment=asked,
            seed=5,
        )
    )


def loud(checkpoint: Path) -> torch.nn.Module:
    """The classifier with larger weights: what it says of two texts differs."""
    module = TASKS["text-classification"].load(checkpoint)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(10)
    return module


def test_only_texts_that_are_trained_on_are_changed(checkpoint: Path) -> None:
    """A model that notes what it reads: in each epoch other texts, held-out ones as they are."""
    source, plain = read(checkpoint, Augment(drop=0.5), 0.3), read(checkpoint, None, 0.3)
    seen: list[Batch] = []

    class Reader:
        device = "cpu"

        def __call__(self, batch: Batch) -> Signal:
            seen.append(batch)
            return Signal(output=torch.zeros(len(batch.rows), len(LABELS)))

    lesson = make_lesson(cast(Any, Reader()), None, source, Teaching(weights={"labels": 1.0}, micro_batch=4))
    assert source.held
    for epoch in (0, 1, 0):
        lesson.begin(epoch)
        list(lesson.parts(list(source.train), 0.0))
    lesson.judge(list(source.held))
    *trained, held = seen
    size = len(trained) // 3
    texts = [[row.tolist() for batch in trained[start : start + size] for row in batch.tokens] for start in (0, size)]
    assert [batch.tokens.tolist() for batch in trained[:size]] == [batch.tokens.tolist() for batch in trained[-size:]]
    assert texts[0] != texts[1]
    assert held.tokens.tolist() == plain.batch(source.held).tokens.tolist()


def test_the_teacher_says_what_it_thinks_of_the_changed_text_or_of_the_text_as_it_was(checkpoint: Path) -> None:
    source = read(checkpoint, Augment(drop=0.5))
    assert source.varied is not None
    tap = Tap(loud(checkpoint))
    rows = [3, 0, 7]
    changed = source.varied(rows, 2)
    with torch.no_grad():
        of_changed, of_texts = tap(changed).output, tap(source.batch(rows)).output
    assert not torch.allclose(of_changed, of_texts, atol=0.01)
    for anew, wanted in ((True, of_changed), (False, of_texts)):
        inputs = TeacherInputs(folder=checkpoint, source=source, open=lambda: tap, anew=anew)
        torch.testing.assert_close(find_teacher(inputs).ask(changed).output, wanted)


def test_live_answers_are_kept_too_where_memory_is_short(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.distill.teachers.SIGNAL_BYTES", 0)
    source = read(checkpoint, Augment(drop=0.5))
    assert source.varied is not None
    tap = Tap(loud(checkpoint))
    teacher = find_teacher(TeacherInputs(folder=checkpoint, source=source, open=lambda: tap))
    with torch.no_grad():
        wanted = tap(source.batch([1, 2])).output
    torch.testing.assert_close(teacher.ask(source.varied([1, 2], 0)).output, wanted)


class Killed(BaseException):
    """Stands for a kill at a step's end."""


@pytest.mark.parametrize("verb", ["finetune", "distill"])
def test_a_run_that_was_stopped_reads_the_same_texts(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    teacher, data = make_checkpoint(tmp_path / "teacher", labels=LABELS), make_data(tmp_path / "data")

    def run(out: Path, stop: int | None = None, **more: object) -> str:
        def progress(done: int, _total: int, _note: str) -> None:
            if done == stop:
                raise Killed

        out.mkdir(exist_ok=True)
        given = {"task": "text-classification", "max_length": 32, "out": out, "progress": progress}
        options = {"epochs": 3, "batch": 4, "holdout": 0.2, **more}
        if verb == "finetune":
            finetune(teacher, data, options=options, **cast(Any, given))
        else:
            distill(teacher, data, layers=1, options=options, **cast(Any, given))
        return file_sha256(out / "model.safetensors")

    asked = {"augment": {"typo": 0.2, "case": 0.1, "drop": 0.3}}
    whole = run(tmp_path / "whole", **asked)
    for stop in (2, 5):
        with pytest.raises(Killed):
            run(tmp_path / "stopped", stop, **asked)
    assert run(tmp_path / "stopped", **asked) == whole
    assert run(tmp_path / "plain") != whole


@pytest.mark.parametrize(
    ("table", "output", "message"),
    [
        ({"typo": 1.0}, "logits", r"distill.augment.typo: .*less than 1"),
        ({"typos": 0.1}, "logits", r"distill.augment.typos: unknown key \(did you mean typo\?\)"),
        ({}, "logits", r"distill.augment: changes nothing; give a share of words"),
        ({"typo": 0.0, "answers": "asked"}, "logits", r"distill.augment: changes nothing"),
        ({"typo": 0.1}, "tokens", r"distill.augment: a model that writes would learn to write the mistakes"),
        ({"typo": 0.1, "answers": "both"}, "logits", r"distill.augment.answers: "),
        (
            {"typo": 0.1, "answers": "kept"},
            "logits",
            r"distill.augment.answers: attention_relation, hidden: .*answers = .asked",
        ),
    ],
)
def test_tables_that_cannot_work_are_told(table: dict[str, object], output: str, message: str) -> None:
    with pytest.raises(EdgekitError, match=message):
        read_distill_options({"augment": table}, output, "recipe.toml: distill")


def test_what_augments_where_it_cannot_is_told() -> None:
    def recipe(task: str = "text-classification", **more: Any) -> Recipe:
        return Recipe(task=task, teacher=Teacher(source=".", finetune=more.pop("finetune", None)), data=Data(), **more)

    changed = {"typo": 0.1}
    with pytest.raises(EdgekitError, match=r"^r: teacher.finetune.augment: a model that writes"):
        read_training(recipe("text-generation", finetune={"augment": changed}), "r")
    with pytest.raises(EdgekitError, match=r"^r: teacher.finetune.augment.answers: unknown key"):
        read_training(recipe(finetune={"augment": changed | {"answers": "kept"}}), "r")
    with pytest.raises(EdgekitError, match=r"^r: distill.augment: changed texts have tokens .* student.vocabulary"):
        read_training(recipe(student=Student(layers=1, vocabulary=90), distill={"augment": changed}), "r")
    kept = {"augment": changed | {"answers": "kept"}, "losses": {"logits": 1.0, "labels": 0.5}}
    options = read_training(recipe(student=Student(layers=1), distill=kept), "r").distill
    assert not answers_anew(options)
    asked = read_training(recipe(student=Student(layers=1), distill={"augment": changed}), "r").distill
    assert answers_anew(asked)
    assert read_finetune_options("text-classification", {"augment": changed}, "r").augment == Augment(typo=0.1)


def test_recipes_without_it_are_known_by_what_they_were_known_by() -> None:
    assert identity(FinetuneOptions()) == identity(TrainingOptions())
    assert "augment" not in identity(DistillOptions())
    assert "augment" in identity(FinetuneOptions(augment=Augment(typo=0.1)))


def test_a_teacher_that_is_asked_in_each_epoch_costs_more() -> None:
    from edgekit.cost import Size

    size = Size(weights=20, embedding=10, layers=2, hidden=4)
    once, anew = (
        training_cost(size, tokens=100, epochs=5, teacher=size, anew=anew).operations.value for anew in (False, True)
    )
    assert (once, anew) == (6 * 10 * 500 + 2 * 10 * 100, 6 * 10 * 500 + 2 * 10 * 500)
