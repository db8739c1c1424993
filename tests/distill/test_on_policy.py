"""On-policy distillation: what a student writes, that its teacher answers it, and runs that are killed."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from edgekit.distill import loop
from edgekit.distill.batches import passage_source, score
from edgekit.distill.divergences import LossOptions, pull_tokens
from edgekit.distill.lessons import Teaching, make_lesson
from edgekit.distill.on_policy import Writer, continue_texts
from edgekit.distill.options import DistillOptions, OnPolicy, Schedule, read_distill_options, read_qad_options
from edgekit.distill.rewards import REWARDS, Reward, advantages
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


def test_some_of_the_texts_get_the_words_that_they_get_among_all(teacher: Path) -> None:
    """So processes that write each its own rows write what one would; torch's own draws are those of all."""
    tap = open_tap(teacher)
    room, stops = [6, 9, 3, 8], [END]
    said = continue_texts(tap, TEXTS, room, stops, drawn(1.0, seed=6))
    for places in ([0, 2], [1, 3], [3], [], [0, 1, 2, 3]):
        some = [TEXTS[place] for place in places], [room[place] for place in places]
        assert continue_texts(tap, *some, stops, drawn(1.0, seed=6), (places, 4)) == [said[place] for place in places]


def test_logits_that_are_no_numbers_end_in_no_traceback(teacher: Path) -> None:
    tap = open_tap(teacher)
    with torch.no_grad():
        tap.module.model.lm_head.weight.fill_(float("nan"))  # type: ignore[union-attr, operator]
    assert len(continue_texts(tap, TEXTS[:1], [3], [], drawn(1.0))[0]) == 3


TAUGHT: dict[str, Any] = {"batch": 4, "learning_rate": 2e-3, "holdout": 0.0, "temperature": 1.0, "epochs": 4}
REWARD: dict[str, Any] = {"check": "format", "pattern": "[a-z ].*"}
ON_POLICY = {
    "losses": {"reverse_kl": 1.0, "labels": 0.1},
    "on_policy": {"share": 0.5, "new_tokens": 12, "reward": REWARD},
}


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


def test_a_reward_rises_while_its_teacher_holds_it(teacher: Path, tmp_path: Path) -> None:
    """Answers that begin with a small letter become more frequent; the losses keep the student nearer where they weigh more."""
    write_questions(tmp_path)
    found = {}
    for name, held in (("loose", 0.02), ("held", 1.0)):
        (tmp_path / name).mkdir()
        written = {"share": 1.0, "new_tokens": 6, "reward": REWARD}
        options = TAUGHT | {"losses": {"reverse_kl": held}, "on_policy": written, "epochs": 30, "batch": 14}
        options |= {"learning_rate": 5e-3, "warmup": 0.0}
        distill(teacher, tmp_path, task=TASK, layers=3, options=options, max_length=48, out=tmp_path / name)
        found[name] = (worth(tmp_path / name), away(tmp_path / name, teacher))
    before = worth(teacher)
    assert found["held"][0] > before + 0.1
    assert found["loose"][0] > before + 0.25
    assert found["held"][1] < 0.75 * found["loose"][1]


def write_questions(folder: Path) -> None:
    """A train split of questions that are all answered alike."""
    words = [
        "red",
        "blue",
        "white",
        "green",
        "black",
        "grey",
        "pink",
        "gold",
        "old",
        "new",
        "hot",
        "cold",
        "wet",
        "dry",
    ]
    rows = [json.dumps({"text": f"What is {word}?", "label": "A rose"}) for word in words]
    (folder / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")


def worth(folder: Path) -> float:
    """The share of answers that the reward calls good."""
    texts, tokenizer = asked(folder) * 25, load_model(folder).tokenizer()
    said = continue_texts(open_tap(folder), texts, [6] * len(texts), [END], drawn(1.0, seed=8))
    return sum(re.fullmatch(REWARD["pattern"], tokenizer.decode(words), re.DOTALL) is not None for words in said) / len(
        said
    )


def asked(folder: Path) -> list[list[int]]:
    prompts = [Prompt(text=text, label=label) for text, label in QUESTIONS.items()]
    return [passage.asked for passage in passages(load_model(folder), prompts, 48)]


def away(student: Path, teacher: Path) -> float:
    texts = asked(teacher) * 8
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
    ("asked", "good", "bad"),
    [
        ({"check": "exact"}, [" A rose\n"], ["A rose.", ""]),
        ({"check": "format", "pattern": "yes|no"}, ["yes", "no"], ["yes.", "no\n", ""]),
        ({"check": "json"}, ['{"a": [1]}', " []\n"], ["1", "{'a': 1}", "{", "[" * 100_000, ""]),
        ({"check": "length", "least": 2, "most": 3}, ["ab", "abc"], ["a", "abcd", ""]),
        ({"check": "length", "most": 1}, ["", "a"], ["ab"]),
        (
            {"check": "python"},
            ["    return 1", "    return '\\d'", "    pass\n\n\nf()"],
            ["    return (", "return 1", "\0", "(" * 5000],
        ),
    ],
)
def test_a_check_tells_good_answers_from_bad_ones(asked: dict[str, Any], good: list[str], bad: list[str]) -> None:
    reward = Reward(**asked)
    with warnings.catch_warnings(record=True) as told:
        for answers, wanted in ((good, True), (bad, False)):
            for answer in answers:
                assert REWARDS[str(reward.check)]("def f():\n", answer, "A rose", reward) is wanted, answer
    assert not told


def test_each_check_can_be_named() -> None:
    named, _ = get_args(get_type_hints(Reward)["check"])
    assert set(REWARDS) == set(get_args(named))


def test_advantages_are_over_the_other_answers() -> None:
    found = advantages([1.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(found, torch.tensor([1 - 1 / 3, -2 / 3, -2 / 3, 1 - 1 / 3]))
    assert advantages([0.5]).tolist() == [0.5]
    assert advantages([1.0, 1.0]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("heat", [1.0, 0.7])
def test_the_pull_is_the_gradient_of_the_mean_reward(heat: float) -> None:
    """Two answers of one word: over all that may be drawn its mean is sum(q r (1_y - q)) / T, whatever the baseline."""
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64)
    worth, q = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64), (logits / heat).softmax(-1)
    total = torch.zeros(3, dtype=torch.float64)
    for one, other in itertools.product(range(3), repeat=2):
        ids = torch.tensor([one, other])
        weights = advantages([float(worth[one]), float(worth[other])]).double()
        given = logits.repeat(2, 1).requires_grad_()
        values, gradient = pull_tokens(given.detach(), ids, weights, heat)
        surprise = -weights * (given / heat).log_softmax(-1)[[0, 1], ids]
        torch.testing.assert_close(values, surprise.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(surprise.sum(), given)[0])
        total += q[one] * q[other] * gradient.sum(0) / 2
    torch.testing.assert_close(-total, (q * (worth - q @ worth)) / heat)


@pytest.mark.parametrize("per_sequence", [False, True])
def test_a_reward_pulls_whole_answers(teacher: Path, per_sequence: bool) -> None:
    """Beside the losses: of each answer's tokens the sum, mean over answers, whatever the micro-batch; as autograd has it."""
    tap = open_tap(teacher)
    read = [Passage(ids=text, start=3, prompt=index) for index, text in enumerate((TEXTS[0], TEXTS[1], TEXTS[3]))]
    source = passage_source(read, [0, 1, 2], [])
    weighed = Reward(check="length", most=1, weight=2.0)
    options = OnPolicy(share=1.0, new_tokens=9, reward=weighed, temperature=0.8)
    said = {0: 1.0, 1: 0.0, 2: 0.25}
    writer = Writer(
        tap=tap,
        passages=read,
        stops=[],
        options=options,
        longest=11,
        seed=0,
        reward=lambda data, _: [said[one.prompt] for one in data],
    )
    teaching = Teaching(weights={"reverse_kl": 0.0}, written=writer, per_sequence=per_sequence, rewarded=True)
    written = writer([0, 1, 2], 0.5)
    assert written is not None
    batch = written([0, 1, 2])
    assert batch.scored is not None
    lengths = torch.bincount(batch.scored[0])
    assert batch.pull is not None
    torch.testing.assert_close(batch.pull.weights, (2 * advantages([*said.values()])).repeat_interleave(lengths))
    found = []
    for micro in (None, 1):
        lesson = make_lesson(tap, None, source, replace(teaching, micro_batch=micro))
        tap.module.zero_grad()
        total = 0.0
        for part in lesson.parts([0, 1, 2], 0.5):
            part.backward()  # type: ignore[no-untyped-call]
            total += float(part.detach())
        told = lesson.by_name()
        assert told["reward"] == pytest.approx(total, abs=1e-6)  # the other loss weighs nothing
        assert sum(told.values()) == pytest.approx(total, abs=1e-6)
        found.append((total, tap.head.weight.grad.clone()))  # type: ignore[union-attr]
    tap.module.zero_grad()
    likely = (tap.logits(tap(batch).output[batch.scored]) / 0.8).log_softmax(-1)
    wanted = -(batch.pull.weights * likely[torch.arange(len(batch.targets)), batch.targets]).sum() / 3
    wanted.backward()  # type: ignore[no-untyped-call]
    for loss, gradient in found:
        assert loss == pytest.approx(float(wanted.detach()), abs=1e-5)
        torch.testing.assert_close(gradient, tap.head.weight.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ({"check": "lengths"}, r"distill.on_policy.*reward.check"),
        ({}, r"reward.check: missing"),
        ({"check": "length"}, r"on_policy.reward.most: missing; the check length needs least or most"),
        ({"check": "format"}, r"on_policy.reward.pattern: missing"),
        ({"check": "json", "most": 3}, r"on_policy.reward.most: has no use for the check json"),
        ({"check": "length", "least": 4, "most": 3}, r"on_policy.reward.least: 4 is above most \(3\)"),
        ({"check": "format", "pattern": "("}, r"on_policy.reward.pattern: no regular expression"),
        ({"check": "json", "weight": 0}, r"reward.weight"),
        ({"check": "json", "code": "x"}, r"code: unknown key"),
    ],
)
def test_a_reward_that_cannot_work_is_refused(reward: dict[str, object], said: str) -> None:
    with pytest.raises(EdgekitError, match=said):
        read_distill_options({"on_policy": {"reward": reward}}, "tokens", "recipe.toml: distill")


def test_a_reward_needs_answers_that_are_drawn() -> None:
    table = {"on_policy": {"temperature": 0.0, "reward": {"check": "json"}}}
    with pytest.raises(EdgekitError, match=r"on_policy.temperature: a reward compares answers that are drawn"):
        read_distill_options(table, "tokens", "recipe.toml: distill")


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
