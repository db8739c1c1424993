"""On-policy distillation: what a student writes, that its teacher answers it, and runs that are killed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekit.distill import loop
from edgekit.distill.batches import passage_source, score
from edgekit.distill.divergences import LossOptions
from edgekit.distill.lessons import Teaching, make_lesson
from edgekit.distill.on_policy import Writer, continue_texts
from edgekit.distill.options import DistillOptions, OnPolicy, Schedule, read_distill_options, read_qad_options
from edgekit.distill.students import load_module
from edgekit.distill.tap import Tap
from edgekit.distill.teachers import TEACHERS, TeacherInputs
from edgekit.errors import EdgekitError
from edgekit.inputs import identity
from edgekit.model import load_model
from edgekit.prompts import Prompt
from edgekit.tasks import TASKS
from edgekit.tasks.text_generation import Passage, passages
from edgekit.workspace import file_sha256
from tests.architectures.decoders import DECODERS, END, make_decoder
from tests.steps import distill

TASK = "text-generation"
FAMILIES = sorted(set(DECODERS) - {"gemma3"})
TEXTS = [list(range(5, 45)), list(range(9, 16)), [70], list(range(30, 53))]
QUESTIONS = {"What is red?": "A rose", "What is blue?": "The sky", "What is white?": "Snow", "What is green?": "Grass"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_decoder("llama", tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = [{"text": text, "label": label} for text, label in QUESTIONS.items()]
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder


def open_tap(folder: Path) -> Tap:
    return Tap(load_module(TASKS[TASK], folder))


def drawn(temperature: float = 0.0, seed: int = 0) -> tuple[float, torch.Generator]:
    return temperature, torch.Generator().manual_seed(seed)


def greedy(folder: Path, text: Sequence[int], tokens: int, stop: int) -> list[int]:
    """What transformers writes of itself."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = torch.tensor([text])
    said = model.generate(asked, do_sample=False, max_new_tokens=tokens, pad_token_id=2, eos_token_id=stop)
    return said[0, len(text) :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_likeliest_tokens_are_those_of_transformers_generate(family: str, tmp_path: Path) -> None:
    """Prompts of unlike lengths at once, past sliding windows; it ends at a stop and where no room is left."""
    folder = make_decoder(family, tmp_path / "model")
    free = [greedy(folder, text, 24, END) for text in TEXTS]
    stop = free[0][5]
    said = continue_texts(open_tap(folder), TEXTS, [24, 24, 24, 3], [stop], drawn())
    wanted = [tokens[: tokens.index(stop) + 1] if stop in tokens else tokens for tokens in free]
    assert said == [*wanted[:3], wanted[3][:3]]
    assert len(said[0]) <= 6


def test_tokens_are_drawn_as_often_as_they_are_likely(teacher: Path) -> None:
    """2,000 draws at a temperature of 0.3: Pearson's statistic is below the 99.9 % point of its distribution."""
    tap, count = open_tap(teacher), 2000
    said = continue_texts(tap, [TEXTS[1]] * count, [1] * count, [], drawn(0.3, seed=4))
    module = TASKS[TASK].load(teacher)
    with torch.no_grad():
        tokens = torch.tensor([TEXTS[1]])
        p = (module(tokens, torch.ones_like(tokens))[0, -1].double() / 0.3).softmax(-1)
    found = torch.bincount(torch.tensor(said)[:, 0], minlength=len(p)).double()
    likely = p * count >= 5
    assert 3 <= int(likely.sum()) < count / 5
    cells = torch.cat([p[likely], p[~likely].sum()[None]]) * count
    seen = torch.cat([found[likely], found[~likely].sum()[None]])
    freedom = len(cells) - 1
    statistic = float(((seen - cells) ** 2 / cells).sum())
    # Wilson and Hilferty 1931.
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_what_is_drawn_follows_from_seed_and_step(teacher: Path) -> None:
    tap = open_tap(teacher)
    read = [Passage(ids=[*range(9, 30)], start=1, prompt=0), Passage(ids=[*range(5, 20)], start=4, prompt=1)]
    writer = Writer(tap=tap, passages=read, stops=[END], options=OnPolicy(share=1.0, new_tokens=9), longest=12, seed=3)

    def write(share: float, seed: int = 3) -> list[list[int]]:
        make = replace(writer, seed=seed)([0, 1], share)
        assert make is not None
        batch, alone = make([0, 1]), make([1])
        assert batch.scored is not None
        assert torch.equal(alone.tokens[0], batch.tokens[1, : alone.tokens.shape[1]])
        # Half of running text is its prompt, of a text with an answer all before the answer; no passage is longer than 12.
        assert batch.tokens[:, :10].tolist()[0] == read[0].ids[:10]
        assert batch.tokens[1, :4].tolist() == read[1].ids[:4]
        assert batch.mask.sum(dim=1).tolist() == [12, 12]
        rows, places = batch.scored
        assert torch.equal(batch.targets, batch.tokens[rows, places + 1])
        assert torch.bincount(rows).tolist() == [2, 8]
        return batch.tokens.tolist()  # type: ignore[no-any-return]

    state = torch.get_rng_state()
    assert write(0.5) == write(0.5)
    assert write(0.5) != write(0.25)
    assert write(0.5) != write(0.5, seed=4)
    assert torch.equal(torch.get_rng_state(), state)


def test_its_share_is_that_of_the_steps(teacher: Path) -> None:
    read = [Passage(ids=[*range(9, 15)], start=1, prompt=0)]
    writer = Writer(tap=open_tap(teacher), passages=read, stops=[], options=OnPolicy(new_tokens=1), longest=12, seed=0)

    def count(share: float | Schedule) -> list[bool]:
        options = replace(writer.options, share=share)
        return [replace(writer, options=options).writes(step / 200) for step in range(200)]

    assert all(count(1.0))
    assert [writer([0], step / 8) is not None for step in range(8)] == [writer.writes(step / 8) for step in range(8)]
    assert 70 < sum(count(0.5)) < 130
    rising = count(Schedule(start=0.0, end=1.0))
    assert sum(rising[:50]) < 15
    assert sum(rising[150:]) > 35


def test_the_loss_is_of_what_the_student_wrote(teacher: Path, tmp_path: Path) -> None:
    """The reverse KL of the tokens that it wrote, by transformers' logits; labels say nothing there; whatever the micro-batch."""
    student = make_decoder("llama", tmp_path / "student", seed=5)
    tap = open_tap(student)
    read = [Passage(ids=text, start=1, prompt=index) for index, text in enumerate(TEXTS[:2])]
    source = passage_source(read, [0, 1], [])
    options = OnPolicy(share=1.0, new_tokens=6)
    writer = Writer(tap=tap, passages=read, stops=[END], options=options, longest=64, seed=0)
    teaches = TEACHERS["live"](TeacherInputs(folder=teacher, source=source, open=lambda: open_tap(teacher)))
    assert TEACHERS["kept"](TeacherInputs(folder=teacher, source=source, open=lambda: tap, anew=True)) is None
    written = writer([0, 1], 0.5)
    assert written is not None
    batch = written([0, 1])
    assert batch.scored is not None
    with torch.no_grad():
        mine, theirs = (
            TASKS[TASK].load(folder)(batch.tokens, batch.mask)[batch.scored].log_softmax(-1)
            for folder in (student, teacher)
        )
    wanted = float((mine.exp() * (mine - theirs)).sum(-1).mean())
    found = []
    for micro in (None, 1):
        teaching = Teaching(
            weights={"reverse_kl": 1.0, "labels": 5.0},
            # What corrects a teacher by the data's tokens would correct it by the student's.
            options=lambda _: LossOptions(temperature=1.0, correct_teacher=0.3),
            micro_batch=micro,
            written=writer,
        )
        lesson = make_lesson(tap, teaches, source, teaching)
        found.append(sum(float(part.detach()) for part in lesson.parts([0, 1], 0.5)))
    assert found == pytest.approx([wanted, wanted], abs=1e-5)


def test_where_no_teacher_counts_nothing_is_written(teacher: Path) -> None:
    """A schedule may begin at 0: that step learns from the data."""
    tap, read = open_tap(teacher), [Passage(ids=TEXTS[1], start=1, prompt=0)]
    source = passage_source(read, [0], [])
    writer = Writer(tap=tap, passages=read, stops=[], options=OnPolicy(share=1.0, new_tokens=4), longest=64, seed=0)
    rising = Schedule(start=0.0, end=1.0)
    for weights, wanted in (({"reverse_kl": rising, "labels": 1.0}, None), ({"reverse_kl": rising}, 0.0)):
        lesson = make_lesson(tap, None, source, Teaching(weights=weights, written=writer))
        loss = float(next(iter(lesson.parts([0], 0.0))).detach())
        plain = make_lesson(tap, None, source, Teaching(weights={"labels": 1.0}))
        assert loss == (float(next(iter(plain.parts([0], 0.0))).detach()) if wanted is None else wanted)


def test_logits_that_are_no_numbers_end_in_no_traceback(teacher: Path) -> None:
    tap = open_tap(teacher)
    with torch.no_grad():
        tap.module.model.lm_head.weight.fill_(float("nan"))  # type: ignore[union-attr, operator]
    assert len(continue_texts(tap, TEXTS[:1], [3], [], drawn(1.0))[0]) == 3


TAUGHT: dict[str, Any] = {"batch": 4, "learning_rate": 2e-3, "holdout": 0.0, "temperature": 1.0, "epochs": 4}
ON_POLICY = {"losses": {"reverse_kl": 1.0, "labels": 0.1}, "on_policy": {"share": 0.5, "new_tokens": 12}}


def test_a_killed_run_ends_in_the_same_bytes(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    made = {}
    for name in ("whole", "broken", "other"):
        (tmp_path / name).mkdir()

    def teach(name: str, seed: int = 2, progress: Any = lambda *_told: None) -> dict[str, Any]:
        asked = {"task": TASK, "layers": 2, "options": TAUGHT | ON_POLICY, "max_length": 48, "out": tmp_path / name}
        return distill(teacher, data, seed=seed, progress=progress, **asked)

    def stop(done: int, _total: int, note: str) -> None:
        if note.startswith("loss") and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach("broken", progress=stop)
    assert (tmp_path / "broken" / "snapshot.json").is_file()
    for name in ("whole", "broken"):
        made[name] = teach(name)
    assert made["whole"] == made["broken"]
    assert made["whole"]["on_policy"]["share"] == 0.5
    teach("other", seed=3)
    files = [file_sha256(tmp_path / name / "model.safetensors") for name in ("whole", "broken", "other")]
    assert files[0] == files[1] != files[2]


def test_the_student_comes_near_its_teacher_on_its_own_words(teacher: Path, data: Path, tmp_path: Path) -> None:
    """KL(student || teacher) on what each student writes, by transformers' logits."""
    before, after = tmp_path / "before", tmp_path / "after"
    for folder, more in ((before, {"epochs": 1, "learning_rate": 1e-8}), (after, {"epochs": 30})):
        folder.mkdir()
        options = TAUGHT | {"losses": {"reverse_kl": 1.0}, "on_policy": {"share": 1.0, "new_tokens": 16}} | more
        distill(teacher, data, task=TASK, layers=2, options=options, max_length=48, out=folder)
    assert away(after, teacher) < 0.7 * away(before, teacher)


def away(student: Path, teacher: Path) -> float:
    prompts = [Prompt(text=text, label=label) for text, label in QUESTIONS.items()]
    texts = [passage.asked for passage in passages(load_model(teacher), prompts, 48)] * 8
    said = continue_texts(open_tap(student), texts, [16] * len(texts), [END], drawn(1.0))
    batch = score(
        [Passage(ids=text + words, start=len(text), prompt=0) for text, words in zip(texts, said, strict=True)]
    )
    with torch.no_grad():
        mine, theirs = (
            TASKS[TASK].load(folder)(batch.tokens, batch.mask)[batch.scored].log_softmax(-1)
            for folder in (student, teacher)
        )
    return float((mine.exp() * (mine - theirs)).sum(-1).mean())


@pytest.mark.parametrize(
    ("table", "output", "said"),
    [
        ({"on_policy": {}}, "logits", r"distill.on_policy: is for text-generation"),
        ({"on_policy": {}, "signals": "recorded"}, "tokens", r"distill.on_policy: what a student will write"),
        ({"on_policy": {}, "losses": {"labels": 1.0}}, "tokens", r"distill.on_policy: none of the losses reads"),
        ({"on_policy": {"shares": 1.0}}, "tokens", r"distill.on_policy.shares: unknown key \(did you mean share\?\)"),
        ({"on_policy": {"share": 1.5}}, "tokens", r"distill.on_policy.share"),
        ({"on_policy": {"share": {"start": 0, "end": 2}}}, "tokens", r"distill.on_policy.share: start and end must"),
        ({"on_policy": {"share": {"begin": 0}}}, "tokens", r"distill.on_policy.share.begin: unknown key"),
        ({"on_policy": {"new_tokens": 0}}, "tokens", r"distill.on_policy.new_tokens"),
        ({"on_policy": {"prompt": 1.0}}, "tokens", r"distill.on_policy.prompt"),
        ({"on_policy": True}, "tokens", r"distill.on_policy"),
    ],
)
def test_a_table_that_cannot_work_is_refused(table: dict[str, object], output: str, said: str) -> None:
    with pytest.raises(EdgekitError, match=said):
        read_distill_options(table, output, "recipe.toml: distill")


def test_only_the_float_student_writes() -> None:
    with pytest.raises(EdgekitError, match=r"qad.on_policy: only \[distill\]"):
        read_qad_options({"on_policy": {}}, "tokens", "recipe.toml: qad")


def test_recipes_without_it_have_the_fingerprints_that_they_had() -> None:
    assert "on_policy" not in identity(DistillOptions())
    assert identity(DistillOptions(on_policy=OnPolicy()))["on_policy"] == {
        "share": 0.5,
        "new_tokens": 128,
        "temperature": 1.0,
        "prompt": 0.5,
    }
