"""What is proposed where a gate failed: by what failed, and as arguments that build exactly that."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.evidence import Report
from edgekit.formats import FLOATS, FORMATS, coarser
from edgekit.outputs import OUTPUTS
from edgekit.pipeline import Session, check_recipe, gather_prompts, resolve
from edgekit.pipeline.ladder import _choose, _holds, _keeping, _within
from edgekit.pipeline.plan import Plan
from edgekit.pipeline.rungs import Change, find_changes, find_failures, is_wrong, rungs
from edgekit.pipeline.verdict import _offer
from edgekit.prompts import PromptSet
from edgekit.recipe import load_recipe, read_override
from edgekit.recovery import Recovery, Rung, Tried
from edgekit.report.recovery import rung_cells
from edgekit.target import load_target, with_export
from edgekit.typed_json import read_table
from edgekit.workspace import Product, Workspace
from tests.architectures.decoders import make_decoder
from tests.artifacts import bare_report, check_entry, comparison_entry
from tests.conftest import Answer

STUDENT = "\n[student]\nlayers = 1\n\n[calibrate]\nprompts = 3\n\n[distill]\nepochs = 4\n"


def report_of(
    *failed: str, float_loss: float = 0.0, scheme: str = "int8-static", right: dict[str, float] | None = None
) -> Report:
    """A report in which these checks fail; float_loss: of the float student against the teacher, whose limit is 0.03."""
    limits = {"accuracy": 0.9, "p95_ms": 10.0, "bytes": 1000}
    checks = [check_entry(name, verdict="fail", measured=0.5, limit=limits.get(name, 0.03)) for name in failed]
    own = comparison_entry("teacher", "accuracy", candidate="student", loss=float_loss)
    table = bare_report() | {"checks": checks, "comparisons": [own], "accuracy": right or {}}
    table["artifact"] = table["artifact"] | {"scheme": scheme, "bytes": 50_000}
    return read_table(Report, table, "report.json")


CASES: list[tuple[Report, tuple[str, ...]]] = [
    (report_of("accuracy_vs_student"), ("quantization",)),
    (report_of("accuracy_vs_teacher"), ("quantization",)),
    (report_of("accuracy_vs_teacher", float_loss=0.1), ("student",)),
    (report_of("accuracy_vs_student", "accuracy_vs_teacher", float_loss=0.1), ("quantization", "student")),
    (report_of("accuracy", right={"teacher": 0.95, "student": 0.92, "artifact": 0.8}), ("quantization",)),
    (report_of("accuracy", right={"teacher": 0.95, "student": 0.85, "artifact": 0.8}), ("student",)),
    (report_of("accuracy", right={"teacher": 0.8, "student": 0.85, "artifact": 0.8}), ("teacher",)),
    (report_of("p95_ms", "bytes"), ("speed", "size")),
    (report_of("tokenizer", "finite_outputs"), ()),
    (report_of(), ()),
]


@pytest.mark.parametrize(("report", "failures"), CASES, ids=[", ".join(found) or "none" for _, found in CASES])
def test_what_failed_is_told_by_its_checks(report: Report, failures: tuple[str, ...]) -> None:
    assert find_failures(report, lambda check: is_wrong(check, strict=False)) == failures


@pytest.fixture
def planned(project: Path, command: Callable[..., Answer]) -> tuple[Plan, Product, Session]:
    """The plan of a student of one of the teacher's two blocks, in static INT8."""
    project.write_text(project.read_text() + STUDENT)
    session = Session(workspace=Workspace(project.parent / "cache"), out=project.parent / "dist")
    return (*plan_of(project, session), session)


def plan_of(
    recipe: Path, session: Session, arguments: Sequence[str] = ("--export", 'scheme="int8-static"')
) -> tuple[Plan, Product]:
    """What the command with these arguments resolves."""
    pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
    read = load_recipe(recipe, tuple(value for name, value in pairs if name == "--set"))
    exports = dict(read_override(name, value, "") for name, value in pairs if name == "--export")
    target = with_export(load_target("laptop-cpu"), read.task, exports)
    prompts = gather_prompts(read, session)
    schemes = [value for name, value in pairs if name == "--scheme"]
    return resolve(
        check_recipe(read, prompts, session), target, prompts, session, (None, schemes[-1] if schemes else None)
    ), prompts


def test_arguments_build_exactly_the_rung(planned: tuple[Plan, Product, Session], project: Path) -> None:
    """Of every kind of failure, each rung's arguments, read as the command line reads them, resolve to the plan that is tried."""
    plan, prompts, session = planned
    seen = set()
    for report, failures in CASES:
        changes = find_changes(plan, report, failures, prompts)
        for change, rung in rungs(plan, changes, prompts, session):
            made = change.applied(plan, prompts)
            own = [] if "scheme" in change.options else ["--export", 'scheme="int8-static"']
            again, _ = plan_of(project, session, [*own, *rung.arguments])
            assert (made.settings, made.options, made.mixes) == (again.settings, again.options, again.mixes), rung
            assert (made.settings, made.options) != (plan.settings, plan.options), rung
            seen.add(rung.name)
    wanted = {
        "keep the worst layers float",
        "calibrate on more",
        "scheme w8",
        "train on the grid",
        "2 layers",
        "n-grams",
    }
    assert wanted <= seen
    assert {"train longer (distill)", "scheme w4", "2 layers, keep the worst layers float"} <= seen


def test_only_what_can_help_is_proposed(planned: tuple[Plan, Product, Session]) -> None:
    """A float student that is too weak is helped by no scheme; a scheme that rounds nothing loses nothing by rounding."""
    plan, prompts, _ = planned
    weak = find_changes(plan, report_of(), ("student",), prompts)
    assert [one.name for one in weak] == ["train longer (distill)", "2 layers"]
    assert all(not one.options for one in weak)
    assert find_changes(plan, report_of(scheme="fp32"), ("quantization",), prompts) == []
    assert find_changes(plan, report_of(), ("teacher",), prompts) == []
    both = find_changes(plan, report_of(), ("quantization", "student"), prompts)
    assert all("student.layers" in one.keys or "distill.epochs" in one.keys for one in both)


@pytest.mark.parametrize(
    ("choice", "told", "name"),
    [
        ((None, "int8-static"), {"scheme w8": ["--scheme", "w8"]}, "-int8-static"),
        (("onnx", None), {"scheme w8": ["--format", "onnx", "--export", "scheme=w8"]}, "-onnx"),
        (("onnx", "int8-static"), {"scheme w8": ["--format", "onnx", "--scheme", "w8"]}, "-onnx-int8-static"),
    ],
    ids=str,
)
def test_what_was_chosen_by_name_is_told_anew(
    choice: tuple[str | None, str | None],
    told: dict[str, list[str]],
    name: str,
    planned: tuple[Plan, Product, Session],
) -> None:
    """Of several formats and schemes a command builds all: the arguments of a rung name the one that failed, or the new one."""
    plan, prompts, _ = planned
    chosen = replace(plan, choice=choice)
    changes = {one.name: one for one in find_changes(chosen, report_of(), ("quantization",), prompts)}
    for change, arguments in told.items():
        assert list(changes[change].arguments(chosen)) == arguments
        assert changes[change].applied(chosen, prompts).name.endswith(name.replace("int8-static", "w8"))
    others = changes["keep the worst layers float"]
    flags = [part for pair in zip(("--format", "--scheme"), choice, strict=True) if pair[1] for part in pair]
    assert list(others.arguments(chosen)) == [*flags, "--export", "float_layers=4"]
    assert others.applied(chosen, prompts).name.endswith(name)
    rung = Rung(name="a", gain="b", seconds=1, arguments=others.arguments(chosen))
    (cells,) = rung_cells(replace(report_of(), recovery=Recovery(failures=("quantization",), rungs=(rung,))))
    assert cells[-1].endswith("--export float_layers=4 (instead of every --format and --scheme)")


def test_a_format_that_a_scheme_found_is_named_with_its_options(planned: tuple[Plan, Product, Session]) -> None:
    """--export is of the target's own format, unless another one is named."""
    plan, _, _ = planned
    found = replace(plan, format="gguf", choice=(None, "q4_k_m"))
    change = Change(name="a", gain="b", options={"block": 32})
    assert change.arguments(found) == ("--format", "gguf", "--scheme", "q4_k_m", "--export", "block=32")
    assert replace(change, options={"scheme": "q5_k_m"}).arguments(found) == ("--scheme", "q5_k_m")


def test_scales_are_trained_before_weights(planned: tuple[Plan, Product, Session], project: Path) -> None:
    """Where a scheme's scales can be learned; of a recipe that trains them the weights are next."""
    _, prompts, session = planned
    plan, _ = plan_of(project, session, ("--export", 'scheme="w4"'))
    found = rungs(plan, find_changes(plan, report_of(scheme="w4"), ("quantization",), prompts), prompts, session)
    names = [rung.name for _, rung in found]
    assert names.index("train the scales") < names.index("train on the grid")
    keys = {change.name: change.keys for change, _ in found}
    assert keys["train the scales"] == {"qad.train": "scales", "qad.epochs": 1}
    assert keys["train on the grid"] == {"qad.train": "both", "qad.epochs": 3}
    trained, _ = plan_of(project, session, ("--export", 'scheme="w4"', "--set", "qad.train=scales"))
    again = [one.name for one in find_changes(trained, report_of(scheme="w4"), ("quantization",), prompts)]
    assert again[-2:] == ["train longer (qad)", "train the weights too"]


def test_an_onnx_decoder_is_trained_on_its_grid(project: Path, tmp_path: Path) -> None:
    """4 bits by scales first, int8 whole, since its scales follow from the weights; and what the arguments build is planned."""
    make_decoder("llama", tmp_path / "decoder", num_hidden_layers=1)
    for split in ("train", "calibrate", "verify"):
        path = tmp_path / "data" / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        told = [{"text": row["text"], "answer": f"it is {row['label']}"} for row in rows]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in told))
    table = 'task = "text-generation"\n[teacher]\nsource = "decoder"\n[data]\npath = "data"\nanswer = "answer"\nmax_length = 64\n'
    project.write_text(table)
    session = Session(workspace=Workspace(tmp_path / "cache"), out=tmp_path / "dist")
    for scheme, names in {
        "w4": ["train the scales", "train on the grid"],
        "int8-dynamic": ["train on the grid"],
    }.items():
        given = ("--export", 'format="onnx"', "--export", f'scheme="{scheme}"')
        plan, prompts = plan_of(project, session, given)
        changes = find_changes(plan, report_of(scheme=scheme), ("quantization",), prompts)
        found = [change for change in changes if "qad" in change.makes]
        assert [change.name for change in found] == names
        for change in found:
            again, _ = plan_of(project, session, (*given, *change.arguments(plan)))
            assert change.applied(plan, prompts).settings == again.settings


def test_what_is_not_proven_is_wrong_where_accuracy_is_not() -> None:
    """With --strict too, no artifact is called slow because this machine may not vouch for the target's speed."""
    checks = [
        check_entry(name, verdict="not proven", measured=0.5, limit=0.3)
        for name in ("p95_ms", "tokens_per_second", "memory_mb", "accuracy_vs_student")
    ]
    report = read_table(Report, bare_report() | {"checks": checks}, "report.json")
    assert find_failures(report, lambda check: is_wrong(check, strict=True)) == ("quantization",)
    assert find_failures(report, lambda check: is_wrong(check, strict=False)) == ()


def test_what_helps_one_failure_does_not_worsen_another(planned: tuple[Plan, Product, Session], project: Path) -> None:
    """Of several failures only that is proposed which is good for all of them."""
    _, prompts, session = planned
    two, _ = plan_of(project, session, ("--export", 'scheme="int8-static"', "--set", "student.layers=2"))

    def names(*failures: str) -> list[str]:
        return [one.name for one in find_changes(two, report_of(), failures, prompts)]

    assert names("size") == ["scheme w4", "1 layers", "n-grams"]
    both = names("quantization", "size")
    assert {"1 layers, keep the worst layers float", "1 layers, calibrate on more", "1 layers, scheme w8"} <= {*both}
    assert all(name.startswith("1 layers, ") or name == "n-grams" for name in both)
    assert "1 layers, train on the grid" not in both
    assert names("student", "speed") == ["train longer (distill), scheme w4"]
    assert names("student", "quantization", "speed") == []


def test_fewer_bits_are_fewer_bytes(planned: tuple[Plan, Product, Session]) -> None:
    """Static INT8 is as large as dynamic: no remedy for size, and for speed none that is told to be smaller."""
    plan, prompts, _ = planned
    report = report_of(scheme="int8-dynamic")
    assert [one.name for one in find_changes(plan, report, ("size",), prompts) if one.options] == ["scheme w4"]
    gains = {one.name: one.gain for one in find_changes(plan, report, ("speed",), prompts) if one.options}
    assert list(gains) == ["scheme int8-static", "scheme w4"]
    assert "as many bytes" in gains["scheme int8-static"]
    assert "to read instead of" in gains["scheme w4"]


def test_a_control_that_is_asked_for_is_not_offered(planned: tuple[Plan, Product, Session], project: Path) -> None:
    """A recovered artifact of another student has none: its recipe asks for one already."""
    plan, _, session = planned
    assert "--set distill.control=true" in str(_offer(plan))
    asked, _ = plan_of(project, session, ("--set", "distill.control=true"))
    assert _offer(asked) is None


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_format_proposes_it_can_write(name: str) -> None:
    """`gentler` of each scheme gives options that the format reads, and never those that there are."""
    format_ = FORMATS[name]
    assert {one for one in FLOATS if one in format_.BY_BITS} >= set(format_.BY_BITS[-1:])
    for output in (one for one in OUTPUTS if one in format_.SCHEMES):
        for scheme in (one for one in format_.SCHEMES[output] if one != "auto"):
            options = format_.Options(scheme=scheme)
            for way in options.gentler(scheme):
                assert replace(options, **way.options) != options
            assert scheme not in coarser(name, output, scheme)


def test_a_recovery_split_is_held_out_of_train(project: Path) -> None:
    """A share of the train rows, each label's last row not among them; what another split has too leaves the recovery split."""
    session = Session(workspace=Workspace(project.parent / "cache"), out=project.parent / "dist")
    project.write_text(project.read_text() + STUDENT)
    splits = {}
    for share in ("0.4", "0.5"):
        prompts = gather_prompts(load_recipe(project, (f"data.recover={share}",)), session)
        held, train = (PromptSet(folder=prompts.folder).split(name) for name in ("recover", "train"))
        assert {row.text for row in held}.isdisjoint({row.text for row in train})
        assert {row.label for row in train} == {"light_off", "light_on", "music"}
        splits[share] = (len(held), len(train))
    assert splits == {"0.4": (4, 8), "0.5": (6, 6)}
    whole = gather_prompts(load_recipe(project, ()), session)
    assert "recover" not in whole.facts["rows"]
    rows = [json.loads(line) for line in (project.parent / "data" / "train.jsonl").read_text().splitlines()[:3]]
    rows += [{**row, "text": row["text"].replace("big kitchen", "cold pantry")} for row in rows]
    (project.parent / "more.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    named = gather_prompts(load_recipe(project, ("data.recover=more.jsonl",)), session)
    assert (named.facts["rows"]["recover"], named.facts["rows"]["train"]) == (3, 12)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--recover", "--set", "data.recover=1.5"), 1, "data.recover: 1.5: a file, or a share"),
        (("--recover", "--set", 'data.recover=""'), 1, 'data.recover: "" names no file'),
        (("--final", "--set", 'data.final=""'), 1, 'data.final: "" names no file'),
        (("--recover", "--set", "data.recover=gone.csv"), 1, "data.recover: no such file"),
        (("--recover", "0"), 2, "--recover"),
        (("--recover", "--final"), 2, "give one of them"),
        (("--export", "float_layers"), 1, "--export float_layers: expected key=value"),
        (("--export", "float_layer=4"), 1, "float_layer: unknown key"),
        (("--export", "block=32", "--format", "onnx", "--format", "gguf"), 2, "--export goes with one --format"),
    ],
    ids=str,
)
def test_bad_input_is_told(
    arguments: tuple[str, ...], code: int, told: str, project: Path, command: Callable[..., Answer]
) -> None:
    answer: Any = command("build", "-t", "laptop-cpu", *arguments)
    assert (answer.code, told in answer.err) == (code, True), answer.err


def test_why_a_ladder_ended() -> None:
    """Time is blamed only where it was short; a rung that is within its limits goes to the gate where none passes."""
    missed = Tried(name="a", seconds=1.0, check="kl_vs_student", loss=0.3, limit=0.1)
    near, nearer = (replace(missed, name=name, within=True, loss=loss) for name, loss in (("b", 0.09), ("c", 0.07)))
    assert _choose([missed], ran_out=False) == (
        None,
        "no rung is left, and none passes there: the artifact that failed stays as it is",
    )
    assert _choose([missed, replace(missed, reason="not begun")], ran_out=True)[1].startswith("the time was spent, ")
    assert _choose([], ran_out=False)[1].startswith("nothing suits what failed, ")
    assert _choose([near, missed, nearer], ran_out=True)[0] == "c"
    assert _choose([near, replace(missed, name="d", holds=True)], ran_out=False)[0] == "d"


@pytest.mark.parametrize(
    ("facts", "holds", "within"),
    [
        ({"loss": 0.004, "limit": 0.01, "verdict": "not proven"}, True, True),
        ({"loss": 0.008, "limit": 0.01, "verdict": "not proven"}, False, True),
        ({"loss": 0.02, "limit": 0.01, "verdict": "not proven"}, False, False),
        ({"loss": 0.02, "limit": 0.01, "verdict": "fail"}, False, False),
        ({"loss": 0.008, "limit": 0.01, "verdict": "pass"}, True, True),
        ({"measured": 0.92, "limit": 0.9, "verdict": "not proven", "name": "accuracy"}, True, True),
        ({"measured": 0.88, "limit": 0.9, "verdict": "not proven", "name": "accuracy"}, False, False),
        ({"measured": 5.0, "limit": 10.0, "verdict": "not proven", "name": "p95_ms"}, True, True),
        ({"measured": 12.0, "limit": 10.0, "verdict": "not proven", "name": "p95_ms"}, False, False),
        ({"measured": "differs", "limit": None, "verdict": "fail", "name": "tokenizer"}, False, False),
        ({"measured": None, "limit": None, "verdict": "not proven", "name": "reference"}, True, True),
    ],
    ids=str,
)
def test_what_passes_on_a_small_split(facts: dict[str, Any], holds: bool, within: bool) -> None:
    """Half of a limit, as it is seen, stands for a proof; a failure never passes."""
    table = bare_report() | {"checks": [check_entry(facts.pop("name", "accuracy_vs_student"), **facts)]}
    (check,) = read_table(Report, table, "report.json").checks
    assert (_holds(check), _within(check)) == (holds, within)


def test_the_share_that_was_held_out_is_kept(planned: tuple[Plan, Product, Session], project: Path) -> None:
    """Where nothing is trained too: what is held out is not among the rows that labels are counted by. A file takes no row."""
    change = Change(name="a", gain="b", options={"float_layers": 4})
    project.write_text(project.read_text().replace(STUDENT, ""))
    for given, keep in (("0.4", ("--set", "data.recover=0.4")), ("data/train.jsonl", ())):
        plan, _ = plan_of(project, planned[2], ("--set", f"data.recover={given}"))
        assert _keeping(plan, change) == (*keep, "--export", "float_layers=4")
