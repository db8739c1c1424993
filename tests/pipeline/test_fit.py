"""The largest student that keeps a target's budget: what is predicted, what is chosen and why, and the lock file that keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import tiny_project

from edgekit.architectures import ARCHITECTURES
from edgekit.cost import Fit
from edgekit.devices import open_device
from edgekit.distill.sizes import choose_sizes, find_widths, propose_widths
from edgekit.errors import EdgekitError
from edgekit.model import Model
from edgekit.pace import Pace, Sample, pace, read_pace
from edgekit.pipeline import Session, check_recipe, gather_prompts, plan_for
from edgekit.pipeline.fit import Fitting, keep_choice
from edgekit.pipeline.plan import Listener, Plan
from edgekit.pipeline.predicted import Machines, Timed, Work, find_misses, line, time_of
from edgekit.pipeline.rungs import Change
from edgekit.recipe import Student, load_recipe
from edgekit.report.fit import fit_lines
from edgekit.target import Hardware, load_target
from edgekit.workspace import NotMade, Workspace
from tests.conftest import Answer
from tests.stories import need_stories

Command = Callable[..., Answer]
STUDENT = '\n[student]\nfit = "layers"\n'
TARGET = tiny_project.TARGET.format(scheme="auto") + "\n[budget]\nsequence = 16\n"


def samples(*times: tuple[int, str, float]) -> Pace:
    """What was measured, of (layers, scheme, ms)."""
    made = tuple(Sample(layers=n, scheme=name, bytes=0, times={"p50_ms": ms}) for n, name, ms in times)
    return Pace(
        device="local", cpu="a CPU", runtime="onnxruntime", threads=1, on_cpu=True, speed={}, peak_mb=None, samples=made
    )


PACE = samples((1, "int8-dynamic", 1.0), (1, "int8-static", 2.0), (2, "int8-dynamic", 1.5), (2, "int8-static", 3.0))


@pytest.fixture
def asked(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe that leaves the student of a teacher of two blocks to the budget of target.toml, in the current folder."""
    monkeypatch.chdir(project.parent)
    project.write_text(project.read_text() + STUDENT)
    Path("target.toml").write_text(TARGET)
    return project


class Heard(Listener):
    """What was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def session_of(*, makes: bool = True) -> Session:
    return Session(workspace=Workspace(Path("cache"), makes=makes), out=Path("dist"), listener=Heard())


def fitting_of(recipe: Path, budget: str) -> Fitting:
    """What is to fit the target with these limits."""
    Path("target.toml").write_text(TARGET + budget)
    read, session = load_recipe(recipe), session_of()
    prompts = gather_prompts(read, session)
    return Fitting.of(check_recipe(read, prompts, session), load_target("target.toml"), prompts)


def test_a_time_is_what_is_no_block_and_each_block() -> None:
    """0.3 ms beside blocks of 0.2 ms a million weights; noise that makes the deeper sample the quicker one promises no gain."""
    points = [(n, 0.3 + 0.2 * n) for n in (1, 3)]
    assert [line(points, n) for n in (1, 2, 6, 12)] == pytest.approx([0.5, 0.7, 1.5, 2.7])
    assert line([(1, 2.0), (3, 1.0)], 6) == 2.0
    assert line([(4, 1.5)], 2) == 1.5


def test_a_narrower_students_time_is_less_by_what_its_width_took() -> None:
    """Of 0.4 ms beside blocks of 0.3 ms and 0.1 ms a million weights: exact at all depths and widths; without a narrow sample, or
    where it was no quicker, what is known of the others."""

    def took(layers: int, core: int) -> float:
        return 0.4 + 0.3 * layers + 0.1 * core

    wide = [Timed(layers=n, core=8 * n, ms=took(n, 8 * n)) for n in (1, 4)]
    narrow = Timed(layers=4, core=8, ms=took(4, 8))
    for layers in (1, 2, 6):
        for core in (2, 5, 8):
            assert time_of(wide, narrow, layers, core * layers) == pytest.approx(took(layers, core * layers))
        assert time_of(wide, None, layers, 8 * layers) == pytest.approx(took(layers, 8 * layers))
    assert time_of(wide, None, 4, 8) == pytest.approx(wide[0].ms), "every weight takes the same"
    slow = replace(narrow, ms=wide[1].ms + 1)
    assert time_of(wide, slow, 6, 12) == pytest.approx(took(6, 48)), "what is narrower is promised no gain"
    quick = replace(narrow, ms=0.1)
    assert time_of(wide, quick, 4, 8) == pytest.approx(wide[0].ms), "nor more than its weights"
    assert time_of(wide[:1], replace(narrow, layers=1, core=4, ms=took(1, 4)), 1, 6) == pytest.approx(took(1, 6))


def test_another_machine_is_slower_by_its_roofline() -> None:
    """Half the speed of products in as many threads: twice the time; a tenth of the memory's: ten times, where that binds."""
    speed = {"fp32_gflops": 100.0, "int8_gops": 400.0, "read_gbs": 20.0, "bandwidth_gbs": 30.0}
    hardware = Hardware(arch="aarch64", cpu="c", cores=4, features=[], memory_mb=1024, sources=["s"])
    computes = Work(operations=4e9, bytes=1e3, in_floats=False)
    reads = Work(operations=1e3, bytes=4e8, in_floats=False)

    def slower(work: Work, threads: int = 1, **stated: float) -> float:
        there = replace(hardware, **stated)
        return Machines(hardware=there, speed=speed, threads=1, target_threads=threads).slower(work)

    assert slower(computes) == slower(reads) == 1.0
    assert slower(computes, int8_gops=200.0) == pytest.approx(2.0)
    assert slower(computes, fp32_gflops=25.0) == pytest.approx(4.0), "integers that are not stated: as its floats"
    assert slower(replace(computes, in_floats=True), int8_gops=200.0) == pytest.approx(1.0)
    assert slower(computes, threads=4, int8_gops=200.0) == pytest.approx(0.5)
    assert slower(reads, bandwidth_gbs=3.0) == pytest.approx(10.0)


def test_times_leave_room_for_what_a_prediction_misses() -> None:
    """A tenth of a limit of time stays free; bytes and memory are told exactly."""
    limits = {"p50_ms": 1.1, "bytes": 100.0, "tokens_per_second": 10.0}
    assert find_misses({"p50_ms": 0.999, "bytes": 100.0, "tokens_per_second": 11.01}, limits) == {}
    missed = find_misses({"p50_ms": 1.2, "bytes": 150.0, "tokens_per_second": 5.5}, limits)
    assert missed == pytest.approx({"p50_ms": 1.2, "bytes": 1.5, "tokens_per_second": 2.0})


def test_the_largest_that_fits_is_chosen(asked: Path) -> None:
    """The whole depth where all that "auto" may become fits; the scheme alone that fits; fewer blocks where none does."""

    def choice(budget: str) -> tuple[Mapping[str, int], str]:
        chosen = fitting_of(asked, budget).choose(PACE).choice
        return chosen.student, chosen.scheme

    assert choice("p50_ms = 4.0\n") == ({"layers": 2}, "auto")
    assert choice("p50_ms = 2.0\n") == ({"layers": 2}, "int8-dynamic")
    assert choice("p50_ms = 1.2\n") == ({"layers": 1}, "int8-dynamic")
    found = fitting_of(asked, "p95_ms = 2.0\n").choose(PACE)
    told = list(fit_lines(found))
    assert found.choice.limits["p95_ms"] == pytest.approx(1.2 * found.choice.limits["p50_ms"], rel=1e-3)
    assert [line_.startswith(("2 layers, auto", "2 layers, int8-dynamic")) for line_ in told[:2]] == [True, True]
    assert sum("chosen: the largest" in line_ for line_ in told) == 1


def test_a_narrower_student_may_be_the_largest_that_fits(asked: Path) -> None:
    """Half of 64 neurons are proposed (32 channels in heads of 16 leave no whole step): two layers of them, which multiply more
    than one whole layer, where those of the teacher do not fit; and the lock file keeps that."""
    asked.write_text(asked.read_text().replace('"layers"', "true"))
    fitting = fitting_of(asked, "p50_ms = 1.55\n")
    assert fitting.widths == [{"intermediate": 32}]
    assert fitting.inputs(["int8-dynamic"]).widths == [{}, {}, {"intermediate": 32}]
    narrow = Sample(layers=2, scheme="int8-dynamic", bytes=0, times={"p50_ms": 1.3}, widths={"intermediate": 32})
    static = replace(narrow, scheme="int8-static", times={"p50_ms": 2.9})
    found = fitting.choose(replace(PACE, samples=(*PACE.samples, narrow, static)))
    assert [dict(one.student) for one in found.candidates if one.scheme == "auto"] == [
        {"layers": 2}, {"layers": 2, "intermediate": 32}, {"layers": 1}, {"layers": 1, "intermediate": 32},
    ]  # fmt: skip
    assert (dict(found.choice.student), found.choice.scheme) == ({"layers": 2, "intermediate": 32}, "int8-dynamic")
    assert found.choice.limits["p50_ms"] == pytest.approx(1.3)
    assert any(told.startswith("2 layers, intermediate 32, int8-dynamic: ") for told in fit_lines(found))
    keep_choice(replace(fitting.plan, fit=found), session_of())
    plan = planned(asked, Heard())
    assert plan.recipe.student == replace(plan.recipe.student, layers=2, intermediate=32, fit=False)
    assert "importance" in plan.steps
    (path,) = Path("dist").glob("*.lock.json")
    path.write_text(path.read_text().replace('"intermediate": 32', '"intermediate": 33'))
    with pytest.raises(EdgekitError, match="2 layers, intermediate 33 as int8-dynamic cannot be made of this teacher"):
        planned(asked, Heard())


@pytest.mark.parametrize("family", sorted(set(ARCHITECTURES) - {"ngrams"}))
def test_what_is_proposed_can_be_cut(family: str) -> None:
    """Of every family, with sizes that are multiples of 256, 64 and 32: what is left is one of the same, and passes the recipe's own
    check."""
    for hidden, heads, inner in ((768, 12, 3072), (384, 12, 1536), (96, 3, 160)):
        config = {"model_type": family, "hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": inner}
        config |= {"head_dim": hidden // heads, "dim": hidden, "n_heads": heads, "hidden_dim": inner, "pad_token_id": 0}
        config |= {"max_position_embeddings": 512, "num_hidden_layers": 4, "n_layers": 4}
        model = Model(folder=Path("none"))
        vars(model).update(config=config, tensors={})
        found = propose_widths(model, channels=True)
        assert bool(found) == (find_widths(model) is not None)
        for keys in found:
            sizes = choose_sizes(model, Student(layers=1, **cast("dict[str, Any]", keys)), "student")
            assert sizes is not None
            for had, now in ((inner, keys.get("intermediate", inner)), (hidden, keys.get("hidden", hidden))):
                assert now <= had
                step = max(step for step in (256, 64, 32) if had % step == 0)
                assert now % (step if had // 2 >= step else 32) == 0


def test_what_cannot_fit_names_the_nearest(asked: Path) -> None:
    fitting = fitting_of(asked, "bytes = 1000\np50_ms = 0.5\n")
    with pytest.raises(EdgekitError) as told:
        fitting.choose(PACE)
    size = min(option.most for option in fitting.options({"layers": 1}))
    assert "1 layer as int8-dynamic" in told.value.message or "1 layer as auto" in told.value.message
    assert f"({size / 1000:.2f} times too much)" in told.value.message
    assert "target.toml" in told.value.message
    assert "student.vocabulary" in told.value.message


def test_the_lock_keeps_the_choice(asked: Path) -> None:
    """The next plan measures nothing (its workspace makes nothing); another recipe or target is chosen for anew, and it is said."""
    plan = locked(asked, "p50_ms = 2.0\n")
    assert (plan.recipe.student, plan.scheme) == (replace(plan.recipe.student, layers=2, fit=False), "int8-dynamic")
    asked.write_text(asked.read_text() + "vocabulary = 30\n")
    heard = Heard()
    with pytest.raises(NotMade):
        planned(asked, heard)
    assert "the recipe changed" in heard.lines[-1]
    asked.write_text(asked.read_text().replace("vocabulary = 30\n", ""))
    Path("target.toml").write_text(TARGET + "p50_ms = 2.5\n")
    with pytest.raises(NotMade):
        planned(asked, heard)
    assert "the target changed" in heard.lines[-1]


def planned(recipe: Path, heard: Heard) -> Plan:
    """The plan of a session whose workspace makes nothing beyond prompts and checks."""
    read, session = load_recipe(recipe), session_of()
    prompts = gather_prompts(read, session)
    checked = check_recipe(read, prompts, session)
    looking = replace(session_of(makes=False), listener=heard)
    return plan_for(checked, load_target("target.toml"), prompts, looking)


def locked(recipe: Path, budget: str) -> Plan:
    """The plan of a lock file that keeps what fits these limits."""
    fitting = fitting_of(recipe, budget)
    keep_choice(replace(fitting.plan, fit=fitting.choose(PACE)), session_of())
    return planned(recipe, Heard())


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda _: "{ not json", "not valid JSON"),
        (lambda _: "[]", "edgekit did not write it"),
        (lambda text: text.replace('"chosen": 0', '"chosen": 99'), "names no student"),
        (lambda text: text.replace('"layers": 2', '"layers": 7'), "7 layers as auto cannot be made"),
        (lambda text: text.replace('"layers": 2', '"colour": 7'), "names no student"),
        (lambda text: text.replace('"chosen"', '"picked"'), "picked: unknown key"),
    ],
    ids=["no JSON", "a list", "no candidate", "too deep", "an unknown key", "another shape"],
)
def test_a_damaged_lock_is_told(asked: Path, damage: Callable[[str], str], told: str) -> None:
    locked(asked, "p50_ms = 4.0\n")
    (path,) = Path("dist").glob("*.lock.json")
    path.write_text(damage(path.read_text()))
    with pytest.raises(EdgekitError) as said:
        planned(asked, Heard())
    assert told in said.value.message
    assert str(path) in said.value.message
    assert "move it away" in said.value.message or "remove it" in said.value.message


def test_a_rung_names_what_was_chosen(asked: Path) -> None:
    """What is proposed of a fitted plan is built from its arguments alone, whatever the lock file says."""
    plan = locked(asked, "p50_ms = 2.0\n")
    wanted = ("--set", "student.fit=false", "--set", "student.layers=2")
    assert Change(name="longer", gain="", keys={"distill.epochs": 20}).arguments(plan) == (
        *wanted, "--set", "distill.epochs=20", "--export", "scheme=int8-dynamic",
    )  # fmt: skip
    fewer = Change(name="fewer", gain="", keys={"student.layers": 1}, options={"scheme": "w8"}).arguments(plan)
    assert fewer == (*wanted[:3], "student.layers=1", "--export", "scheme=w8")
    table = Change(name="n-grams", gain="", keys={"student": {"kind": "ngrams"}}).arguments(plan)
    assert not any("student.fit" in part for part in table)


@pytest.mark.parametrize(
    ("more", "budget", "told"),
    [
        ("layers = 1\n", "bytes = 1000\n", "student.fit: the target's budget decides on the layers"),
        ("keep = [0]\n", "bytes = 1000\n", "student.fit: the target's budget decides on the layers"),
        ('kind = "ngrams"\n', "bytes = 1000\n", "student.fit: a student of n-grams has the size that buckets says"),
        ("", "", "student.fit: target.toml has no [budget] to fit"),
    ],
    ids=["layers", "keep", "ngrams", "no budget"],
)
def test_what_cannot_be_asked_is_told(asked: Path, command: Command, more: str, budget: str, told: str) -> None:
    asked.write_text(asked.read_text() + more)
    Path("target.toml").write_text(TARGET + budget)
    answer = command("build", "-r", asked, "-t", "target.toml", "--dry-run")
    assert (answer.code, told in answer.err) == (1, True), answer.err


def test_a_stage_without_a_target_cannot_choose(asked: Path, command: Command) -> None:
    answer = command("distill", "teacher", "-r", asked, "--out", "student")
    assert answer.code == 1
    assert "student.fit: edgekit build chooses the layers" in answer.err
    assert not Path("student").exists()


def test_a_decoder_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real storyteller's blocks as GGUF are timed, and the file is as large as was told."""
    monkeypatch.chdir(tmp_path)
    stories = need_stories()
    target = TARGET.replace("text-classification", "text-generation").replace("onnxruntime", "llama-cpp")
    target = target.replace('format = "onnx"\nscheme = "auto"', 'format = "gguf"\nscheme = "q8_0"')
    Path("target.toml").write_text(target + "tokens_per_second = 1\nttft_ms = 10000\n")
    rows = "".join(
        f"{json.dumps({'text': f'Once upon a time there was number {n} of the {n * 7} birds.'})}\n" for n in range(60)
    )
    Path("texts.jsonl").write_text(rows)
    Path("recipe.toml").write_text(
        f'task = "text-generation"\n[teacher]\nsource = {json.dumps(str(stories))}\n[student]\nfit = true\n'
        '[data]\npath = "texts.jsonl"\nnear_duplicates = "drop"\nmax_length = 32\nsplit = { calibrate = 0.3, verify = 0.3 }\n'
    )
    read, session = load_recipe(Path("recipe.toml")), session_of()
    prompts = gather_prompts(read, session)
    fitting = Fitting.of(check_recipe(read, prompts, session), load_target("target.toml"), prompts)
    inputs = fitting.inputs(["q8_0"])
    Path("pace").mkdir()
    pace(inputs, Path("pace"), device=open_device({"kind": "local"}, "device"))
    found: Fit = fitting.choose(read_pace(Path("pace")))
    assert found.choice.student == {"layers": fitting.whole.layers}
    made = read_pace(Path("pace")).samples
    assert [(one.layers, dict(one.widths)) for one in made] == [(1, {}), (4, {}), (4, fitting.widths[-1])]
    assert min(one.times["p50_ms"] for one in made) > 0
    for sample in made:
        (option,) = fitting.options({"layers": sample.layers, **sample.widths})
        assert option.cost.file.value == pytest.approx(sample.bytes, rel=0.02)
