"""The first stage of a classifier of few labels: what is near to what, which texts meet, and whether it is kept."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekit.distill import few_labels, loop, read_finetune_options
from edgekit.distill.batches import TrainSplit, read_texts
from edgekit.distill.divergences import LossOptions
from edgekit.distill.encoder_losses import TOGETHER, supervised_contrastive
from edgekit.distill.few_labels import fold, pair
from edgekit.distill.finetuning import Contrastive, FinetuneOptions, passes
from edgekit.distill.options import TrainingOptions
from edgekit.distill.signals import Batch, Signal
from edgekit.distill.tap import Tap, find_head
from edgekit.errors import EdgekitError
from edgekit.inputs import identity
from edgekit.model import load_model
from edgekit.prompts import Prompt, PromptSet
from edgekit.tasks import TASKS
from edgekit.tasks.encoders import load_encoder
from edgekit.workspace import file_sha256
from tests.architectures.families import make_family
from tests.conftest import LABELS, PATTERNS, SUBJECTS, make_checkpoint, make_data
from tests.steps import finetune

CLASSIFY = "text-classification"
ROWS = [Prompt(text=text.format(one), label=label) for one in SUBJECTS[:3] for label, text in PATTERNS.items()]
ROWS += [
    Prompt(text="what a day", label="oos"),
    Prompt(text="is it raining", label="oos"),
    Prompt(text="hm", label="rare"),
]
CLASSES = [*LABELS, "rare"]


def read(checkpoint: Path, texts: list[Prompt] = ROWS) -> Any:
    return read_texts(
        TrainSplit(
            texts=texts,
            model=load_model(checkpoint),
            task=TASKS[CLASSIFY],
            max_length=32,
            holdout=0.0,
            classes=CLASSES,
            out_of_scope="oos",
        )
    )


def test_the_loss_is_the_papers(checkpoint: Path) -> None:
    """Equation 2 of arXiv:2004.11362, written as sums over anchors, positives and all others."""
    torch.manual_seed(0)
    targets = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0.5, 0.5], [0, 0]], dtype=torch.float64)
    views = [torch.randn(5, 4, dtype=torch.float64).requires_grad_() for _ in range(2)]
    signal = Signal(output=targets, views=tuple(views))
    batch = Batch(rows=tuple(range(5)), tokens=targets, mask=targets, targets=targets)
    found = supervised_contrastive(signal, signal, batch, LossOptions())
    classes = ["a", "b", "a", "none", "unknown"] * 2
    z = [row / row.norm() for view in views for row in view]
    total = 0.0
    for i, anchor in enumerate(z):
        others = [k for k in range(10) if k != i]
        below = sum(math.exp(float(anchor @ z[k]) / TOGETHER) for k in others)
        positives = [k for k in others if classes[k] == classes[i]]
        terms = [math.log(math.exp(float(anchor @ z[k]) / TOGETHER) / below) for k in positives]
        total -= sum(terms) / len(positives)
    assert float(found.detach()) == pytest.approx(total / 10, rel=1e-12)
    found.backward()  # type: ignore[no-untyped-call]
    assert all(view.grad is not None and bool(view.grad.isfinite().all()) for view in views)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "deberta-v2", "modernbert"])
def test_views_are_what_transformers_pools_and_what_its_classifier_reads(family: str, tmp_path: Path) -> None:
    base = make_family(family, tmp_path / family)
    module = load_encoder(base, CLASSIFY, {"num_labels": 3})
    tap = Tap(module, needs=frozenset({"views", "output"}))
    tokens, mask = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]]), torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    with torch.no_grad():
        signal = tap(Batch(rows=(0, 1), tokens=tokens, mask=mask, targets=torch.zeros(2, 3)))
        model: Any = module.model
        states = model.base_model(input_ids=tokens, attention_mask=mask)[0]
    pooled, given = signal.views
    torch.testing.assert_close(pooled, torch.stack([states[0].mean(0), states[1, :3].mean(0)]))
    torch.testing.assert_close(find_head(module.model)(given), signal.output)


def test_each_text_meets_another_of_its_class_in_each_epoch_another_time(checkpoint: Path) -> None:
    source, plain = pair(read(checkpoint), ROWS, "oos", 3), read(checkpoint)
    assert source.varied is not None
    rows = list(range(len(ROWS)))
    met = []
    for epoch in range(12):
        batch = source.varied(rows, epoch)
        assert batch.rows[: len(rows)] == tuple(rows)
        met.append(batch.rows[len(rows) :])
        assert batch.tokens.tolist() == plain.batch(batch.rows).tokens.tolist()
    for row, prompt in enumerate(ROWS):
        partners = {partner[row] for partner in met}
        alone = prompt.label in {"oos", "rare"}
        wanted = {row} if alone else {i for i, other in enumerate(ROWS) if other.label == prompt.label} - {row}
        assert partners == wanted, prompt
    assert source.varied(rows, 4).rows == pair(read(checkpoint), ROWS, "oos", 3).varied(rows, 4).rows
    assert {pair(read(checkpoint), ROWS, "oos", seed).varied(rows, 4).rows for seed in range(4)} != {met[4]}


def test_parts_have_all_labels_and_a_text_that_is_there_twice_once() -> None:
    texts, labels = [f"{label} {number}" for label in "abc" for number in range(7)], [*"a" * 7, *"b" * 7, *"c" * 7]
    parts = fold([*texts, "a 0"], [*labels, "b"])
    assert sorted(row for part in parts for row in part) == list(range(22))
    for part in parts:
        counts = Counter(labels[row] for row in part if row < 21)
        assert set(counts) == {"a", "b", "c"}
        assert set(counts.values()) <= {2, 3}
    assert [0 in part for part in parts] == [21 in part for part in parts]
    assert fold(texts, labels) == fold(texts, labels)
    assert sorted(fold(["one", "two"], ["a", "b"])) == [[0], [1]]


class Killed(BaseException):
    """Stands for a kill at a step's end."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base") / "base")


def train(base: Path, data: Path, out: Path, stop: int | None = None, **more: Any) -> dict[str, Any]:
    """Fine-tune into `out`; killed at the step of this number, counted over all trainings of the run."""
    steps = 0

    def progress(_done: int, _total: int, note: str) -> None:
        nonlocal steps
        steps += note.startswith("loss")
        if steps == stop:
            raise Killed

    out.mkdir(exist_ok=True)
    options = {"epochs": 2, "batch": 6, "holdout": 0.2} | more
    return finetune(base, data, task=CLASSIFY, options=options, max_length=32, out=out, progress=progress)


@pytest.mark.parametrize("when", ["always", "auto"])
def test_a_run_stopped_in_any_stage_ends_in_the_same_bytes(
    when: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    data = make_data(tmp_path / "data")
    asked = {"contrastive": {"when": when, "epochs": 1, "batch": 6}}
    facts = train(base, data, tmp_path / "whole", **asked)
    stops = [1, 3] if when == "always" else [5, 7]
    for stop in stops:
        with pytest.raises(Killed):
            train(base, data, tmp_path / "stopped", stop, **asked)
    assert train(base, data, tmp_path / "stopped", **asked) == facts
    wanted = file_sha256(tmp_path / "whole" / "model.safetensors")
    assert file_sha256(tmp_path / "stopped" / "model.safetensors") == wanted
    left = {path.name for path in (tmp_path / "stopped").iterdir()}
    assert left == {path.name for path in (tmp_path / "whole").iterdir()}
    assert not left & {"contrastive", "tried"}
    if when == "auto":
        assert facts["contrastive"] == (facts["tried"]["contrastive"] < facts["tried"]["plain"])
        other = {**asked["contrastive"], "when": "always"} if facts["contrastive"] else False
        train(base, data, tmp_path / "chosen", contrastive=other)
        assert file_sha256(tmp_path / "chosen" / "model.safetensors") == wanted
    else:
        train(base, data, tmp_path / "plain")
        assert file_sha256(tmp_path / "plain" / "model.safetensors") != wanted


def test_the_better_one_on_held_out_rows_is_kept(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are planted, the choice and what is tried of which rows are not."""
    data = make_data(tmp_path / "data")
    rows = PromptSet(folder=data).split("train")
    tried: list[tuple[bool, tuple[int, ...], tuple[int, ...]]] = []
    plain, better = 0.5, [0.4]

    def planted(_given: object, source: Any, _job: object, first: Contrastive | None) -> Any:
        tried.append((first is not None, tuple(source.train), tuple(source.held)))
        return [0.9, plain if first is None else better[0]], {"made": True}

    monkeypatch.setattr(few_labels, "train_on", planted)
    for score, kept in ((0.4, True), (0.6, False), (0.5, False)):
        better[0] = score
        tried.clear()
        facts = train(base, data, tmp_path / f"{score}", contrastive="auto")
        assert facts == {"made": True, "tried": {"plain": 0.5, "contrastive": score}, "contrastive": kept}
        *parts, last = tried
        assert last[0] == kept
        held = [row for stage, _, part in parts if stage for row in part]
        assert sorted(held) == list(range(len(rows)))
        assert all(not set(train) & set(part) and len(train) + len(part) == len(rows) for _, train, part in parts)


def test_the_first_stage_brings_texts_of_a_class_together(base: Path, tmp_path: Path) -> None:
    """Of texts that it has not read: the cosine to others of the class rises above that to other classes."""
    data = make_data(tmp_path / "data")
    given = few_labels.Given(
        base=base,
        texts=PromptSet(folder=data).split("train"),
        classes=LABELS,
        options=TrainingOptions(learning_rate=1e-3),
    )
    from edgekit.distill.courses import Job, read_source

    (tmp_path / "out").mkdir()
    job = Job(task=TASKS[CLASSIFY], max_length=32, out=tmp_path / "out")
    source = read_source(base, given.texts, LABELS, given.options, job)
    first = Contrastive(epochs=60, batch=12, learning_rate=2e-3)
    made = few_labels._bring_together(given, source, job, first)
    texts = PromptSet(folder=data).split("verify")
    same = torch.tensor([[one.label == other.label for other in texts] for one in texts])
    apart = ~torch.eye(len(texts), dtype=torch.bool)
    gaps = {}
    for name, folder in (("before", base), ("after", made)):
        tap = Tap(load_encoder(folder, CLASSIFY, {"num_labels": 3}), needs=frozenset({"views"}))
        unread = read_texts(
            TrainSplit(texts=texts, model=load_model(base), task=job.task, max_length=32, holdout=0.0, classes=LABELS)
        )
        with torch.no_grad():
            views = tap(unread.batch(range(len(texts)))).views
        cosines = [torch.nn.functional.normalize(view, dim=-1) for view in views]
        gaps[name] = [float((z @ z.T)[same & apart].mean() - (z @ z.T)[~same].mean()) for z in cosines]
    assert min(gaps["after"]) > 0.3, gaps
    # What its classifier says before it has learned anything is the softmax of the cosines to the classes' means.
    read_rows = tap(source.batch(range(len(given.texts)))).views[1].detach()
    classes = torch.tensor([LABELS.index(str(row.label)) for row in given.texts])
    normal = torch.nn.functional.normalize
    means = normal(torch.stack([normal(read_rows[classes == one], dim=-1).sum(0) for one in range(3)]), dim=-1)
    head = find_head(TASKS[CLASSIFY].load(made).model)
    wanted = means / (TOGETHER * read_rows.norm(dim=-1).mean())
    torch.testing.assert_close(head.weight.detach(), wanted, rtol=1e-4, atol=1e-5)
    assert not head.bias.detach().any()
    assert min(gaps["after"]) > 2 * max(gaps["before"]), gaps


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("maybe", r"^r: teacher.finetune.contrastive: 'maybe': give true, \"auto\" or a table"),
        ({"epochs": 0}, r"contrastive.epochs: .*greater than 0"),
        ({"batch": 1}, r"contrastive.batch: .*greater than 1"),
        ({"when": "often"}, r"contrastive.when: "),
        ({"rate": 1}, r"contrastive.rate: unknown key"),
    ],
)
def test_tables_that_cannot_work_are_told(asked: object, message: str) -> None:
    with pytest.raises(EdgekitError, match=message):
        read_finetune_options(CLASSIFY, {"contrastive": asked}, "r: teacher.finetune")


def test_short_forms_and_costs() -> None:
    def options(asked: object) -> FinetuneOptions:
        return read_finetune_options(CLASSIFY, {"contrastive": asked, "epochs": 10}, "r")

    assert options(True).contrastive == Contrastive()
    assert options("auto").contrastive == Contrastive(when="auto")
    assert options(False).contrastive is None
    assert "contrastive" not in identity(options(False))
    assert identity(options(False)) == identity(TrainingOptions(epochs=10))
    # Twice the texts in each of 8 epochs; three times two thirds of both arms beside that.
    assert [passes(options(asked)) for asked in (False, True, "auto")] == [10, 26, 26 + 2 * 36]
    with pytest.raises(EdgekitError, match=r"contrastive: for text-classification alone"):
        read_finetune_options("text-generation", {"contrastive": True}, "r")
