"""New texts of old ones: which there may be, how often, the same always; who answers them, and that none is held out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from edgekit.distill import loop, read_training, splice
from edgekit.distill.batches import Source, TrainSplit, read_texts
from edgekit.distill.options import DistillOptions, QadOptions, read_distill_options
from edgekit.distill.splice import Splicer
from edgekit.distill.tap import Tap
from edgekit.distill.teachers import TeacherInputs, find_teacher
from edgekit.errors import EdgekitError
from edgekit.inputs import Content, identity
from edgekit.model import load_model
from edgekit.pipeline import steps
from edgekit.prompts import Prompt, PromptSet
from edgekit.recipe import Data, Recipe, Teacher
from edgekit.stored import Lazy
from edgekit.tasks import TASKS
from edgekit.workspace import file_sha256
from tests.conftest import LABELS, PATTERNS, SUBJECTS, make_checkpoint, make_data
from tests.steps import distill

TEXTS = [
    "How do I get a new card?",
    "how long does a transfer take to get here",
    "Why is my transfer still pending?",
    "I still wait for a new PIN",
]
KNOWN = [pattern.format(subject) for subject in SUBJECTS[:5] for pattern in PATTERNS.values()]


def followers(texts: Sequence[str]) -> Counter[tuple[str, str]]:
    """How often a word stands behind another one, whatever their case."""
    return Counter(pair for text in texts for pair in zip(text.lower().split(), text.lower().split()[1:], strict=False))


def test_behind_each_word_stands_one_that_does_so_in_some_text() -> None:
    splicer, pairs = Splicer(TEXTS), followers(TEXTS)
    made = [splicer.splice(text, Random(number)) for number in range(200) for text in TEXTS]
    assert len(set(made)) > 20
    assert not followers(made).keys() - pairs.keys()
    assert all(one.split()[0] == text.split()[0] for one, text in zip(made, TEXTS * 200, strict=True))
    longest = max(len(text.split()) for text in TEXTS)
    assert max(len(one.split()) for one in made) <= longest
    # The same on every machine and for good.
    assert splicer.splice(TEXTS[1], Random("splice:0:0:4")) == PINNED


PINNED = "how long does a new card?"


def test_where_every_word_may_go_on_otherwise_words_follow_as_often_as_in_the_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a bigram model, in 4,000 draws within four standard deviations: b stands behind a twice as often as c."""
    monkeypatch.setattr(splice, "JUMPS", 1.0)
    monkeypatch.setattr(splice, "_TRIES", 1)
    texts = ["a b", "a b", "a c"]
    splicer = Splicer(texts)
    made = Counter(splicer.splice(texts[2], Random(number)) for number in range(4000))
    assert made.keys() == {"a b", "a c"}
    assert abs(made["a b"] / 4000 - 2 / 3) < 4 * (2 / 9 / 4000) ** 0.5


@pytest.mark.parametrize("text", ["", " ", "one", "a word that  nobody has", "  in a\nline"])
def test_a_text_that_none_goes_on_as_stays_itself(text: str) -> None:
    assert Splicer([*TEXTS[2:3], text]).splice(text, Random(1)) == text.strip()


def read(
    checkpoint: Path, texts: Sequence[Prompt], holdout: float = 0.3, spliced: int = 3, apart: Sequence[Prompt] = ()
) -> Source:
    """The train texts of a classifier, and new ones of them."""
    return read_texts(
        TrainSplit(
            texts=texts,
            model=load_model(checkpoint),
            task=TASKS["text-classification"],
            max_length=32,
            holdout=holdout,
            classes=LABELS,
            spliced=spliced,
            apart=apart,
            seed=5,
            folder=checkpoint,
        )
    )


def test_new_texts_are_made_of_train_texts_have_no_label_and_are_never_held_out(checkpoint: Path) -> None:
    texts = [Prompt(text=text, label=LABELS[0]) for text in KNOWN]
    plain, source = read(checkpoint, texts, spliced=0), read(checkpoint, texts)
    old = len(texts)
    assert source.held == plain.held
    assert [row for row in source.train if row < old] == [*plain.train]
    new = [row for row in source.train if row >= old]
    assert len(new) == 3 * len(plain.train) == source.facts["spliced_texts"]
    assert len(source.lengths) == old + len(new)
    assert source.identity != plain.identity
    tokenizer = load_model(checkpoint).tokenizer(32)
    batch = source.batch(new)
    said = [tokenizer.decode(ids.tolist()) for ids in batch.tokens]
    taught = followers([tokenizer.decode(tokenizer.encode(KNOWN[row]).ids) for row in plain.train])
    assert not followers(said).keys() - taught.keys()
    assert len(set(said)) > len(new) / 4
    assert batch.targets.sum() == 0
    assert source.batch([0]).targets.sum() == 1
    # None is a text of another split, but for how it is written.
    told = [text for text in said if text]
    other = tokenizer.decode(batch.tokens[0].tolist())
    fewer = read(checkpoint, texts, apart=[Prompt(text=other.upper(), label="nobody's")])
    assert 0 < len(new) - int(cast(int, fewer.facts["spliced_texts"])) < len(new) / 2
    kept = [tokenizer.decode(ids.tolist()) for ids in fewer.batch(range(old, len(fewer.lengths))).tokens]
    assert other in told
    assert other not in kept
    # Of texts that lie in a file, the same.
    assert read(checkpoint, Lazy(old, texts.__getitem__)).batch(new).tokens.tolist() == batch.tokens.tolist()


def test_the_teacher_answers_the_new_texts_as_they_stand(checkpoint: Path) -> None:
    source, module = (
        read(checkpoint, [Prompt(text=text) for text in KNOWN]),
        TASKS["text-classification"].load(checkpoint),
    )
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(10)
    tap = Tap(module)
    rows = [source.train[-1], source.train[0], source.train[-5]]
    inputs = TeacherInputs(folder=checkpoint, source=source, open=lambda: tap)
    with torch.no_grad():
        wanted = tap(source.batch(rows)).output
    torch.testing.assert_close(find_teacher(inputs).ask(source.batch(rows)).output, wanted)


class Killed(BaseException):
    """Stands for a kill at a step's end."""


def test_a_run_that_was_stopped_reads_the_same_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    teacher, data = make_checkpoint(tmp_path / "teacher", labels=LABELS), make_data(tmp_path / "data")

    def run(out: Path, stop: int | None = None, **more: object) -> dict[str, Any]:
        def progress(done: int, _total: int, _note: str) -> None:
            if done == stop:
                raise Killed

        out.mkdir(exist_ok=True)
        given: dict[str, Any] = {"task": "text-classification", "max_length": 32, "out": out, "progress": progress}
        options = {"epochs": 2, "batch": 16, "holdout": 0.2, **more}
        facts = distill(teacher, data, layers=1, options=options, **given)
        return facts | {"sha256": file_sha256(out / "model.safetensors")}

    whole, plain = run(tmp_path / "whole", spliced=2), run(tmp_path / "plain")
    assert whole["train_texts"] == 3 * plain["train_texts"]
    assert whole["spliced_texts"] == 2 * plain["train_texts"]
    assert "spliced_texts" not in plain
    with pytest.raises(Killed):
        run(tmp_path / "stopped", 3, spliced=2)
    assert run(tmp_path / "stopped", spliced=2)["sha256"] == whole["sha256"] != plain["sha256"]


@pytest.mark.parametrize(
    ("table", "output", "message"),
    [
        ({"spliced": -1}, "logits", r"distill.spliced: .*greater than or equal to 0"),
        ({"spliced": 101}, "logits", r"distill.spliced: .*less than or equal to 100"),
        ({"spliced": 0.5}, "logits", r"distill.spliced: "),
        ({"splice": 1}, "logits", r"distill.splice: unknown key \(did you mean spliced\?\)"),
        ({"spliced": 1}, "tokens", r"distill.spliced: a model that writes would learn .* remove this key"),
        ({"spliced": 1, "signals": "recorded"}, "logits", r"distill.spliced: no recording has .* give signals"),
        (
            {"spliced": 1, "losses": {"labels": 1.0}},
            "logits",
            r"distill.spliced: .* no loss reads one; remove this key",
        ),
    ],
)
def test_what_cannot_be_spliced_is_told(table: dict[str, object], output: str, message: str) -> None:
    with pytest.raises(EdgekitError, match="recipe.toml: " + message):
        read_distill_options(table, output, "recipe.toml: distill")


def test_texts_without_spaces_are_told(checkpoint: Path) -> None:
    with pytest.raises(EdgekitError, match=r"distill.spliced: no train text goes on behind a word of another one"):
        read(checkpoint, [Prompt(text=text) for text in ("開燈", "關燈", "one two", "three four")])


def test_recipes_without_it_are_known_by_what_they_were_known_by() -> None:
    assert "spliced" not in identity(DistillOptions())
    assert "spliced" not in identity(QadOptions())
    assert identity(DistillOptions(spliced=2))["spliced"] == 2
    recipe = Recipe(
        task="feature-extraction", teacher=Teacher(source="."), data=Data(), distill={"spliced": 2}, qad={"spliced": 1}
    )
    training = read_training(recipe, "r")
    assert (training.distill.spliced, cast(QadOptions, training.qad).spliced) == (2, 1)


def test_a_student_of_new_texts_follows_from_all_splits_and_not_from_which_is_which(tmp_path: Path) -> None:
    """The recovery split in the place of verify, which lies aside, teaches no other student; another text in any of them may."""

    def learned(name: str, spliced: int, **splits: str) -> Content:
        folder = tmp_path / name
        folder.mkdir()
        for split, text in ({"train": "a b"} | splits).items():
            (folder / f"{split}.jsonl").write_text(json.dumps({"text": text, "label": None}) + "\n")
        files = {path.name: {"sha256": file_sha256(path)} for path in folder.glob("*.jsonl")}
        product = SimpleNamespace(folder=folder, manifest={"files": files})
        return steps._learned(cast(Any, product), DistillOptions(spliced=spliced))

    first = learned("first", 1, calibrate="c", verify="v", recover="r")
    swapped = learned("swapped", 1, calibrate="c", verify="r", aside="v")
    other = learned("other", 1, calibrate="c", verify="w", recover="r")
    plain = [learned(f"plain{text}", 0, calibrate="c", verify=text) for text in "vw"]
    assert first.digest == swapped.digest != other.digest
    assert plain[0].digest == plain[1].digest == {"train": file_sha256(tmp_path / "first" / "train.jsonl")}
    assert {row.text for row in PromptSet(folder=swapped.path).apart()} == {"c", "r", "v"}
