"""README is held to the code: its tables are generated, its commands exist, its exit codes are the code's."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import yaml

from edgekit.cli import cli
from edgekit.distill import read_training
from edgekit.recipe import load_recipe
from tests import readme

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(kind: str) -> list[str]:
    """The lines of README's code blocks of a kind."""
    blocks = re.findall(rf"```{kind}\n(.*?)```", TEXT, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("edgekit ")]


def test_generated_tables_are_current() -> None:
    assert readme.fill(TEXT) == TEXT, "run: make docs"


@pytest.mark.parametrize("line", [*commands("console"), *commands("bash")])
def test_every_command_in_readme_parses(line: str) -> None:
    parse(shlex.split(line)[1:])


def parse(words: list[str]) -> None:
    """Have the command line read words, and run nothing."""
    with cli.make_context("edgekit", words, resilient_parsing=False) as context:
        name, command, rest = cli.resolve_command(context, [*context.protected_args, *context.args])
        while isinstance(command, click.Group):
            name, command, rest = command.resolve_command(context, rest)
        assert command is not None
        command.make_context(name or "", rest, parent=context)


def test_the_recipe_of_the_strategy_is_one(tmp_path: Path) -> None:
    told = TEXT.partition("### Choosing a strategy")[2]
    (tmp_path / "recipe.toml").write_text(told.partition("```toml\n")[2].partition("```")[0])
    recipe = load_recipe(tmp_path / "recipe.toml")
    training = read_training(recipe, "recipe.toml")
    assert training.finetune is not None
    assert training.control
    assert recipe.student is not None
    assert recipe.student.layers == 3


WORKFLOW = (ROOT / "examples/fleet/edgekit-boards.yml").read_text(encoding="utf-8")
STEPS = yaml.safe_load(WORKFLOW)["jobs"]["board"]["steps"]
SCRIPTS = [step["run"] for step in STEPS if "run" in step]


def test_the_workflow_for_boards_says_what_edgekit_understands(tmp_path: Path) -> None:
    """Its actions are pinned, nothing of the matrix becomes a shell's text, and its commands are edgekit's."""
    assert all(re.search(r"@[0-9a-f]{40}$", step["uses"]) for step in STEPS if "uses" in step)
    assert not any("${{" in script for script in SCRIPTS)
    filled = {"$TARGET": "raspberrypi", "$DEVICE": "ssh://pi@board", "${gate[@]}": f"--baseline={tmp_path}"}
    lines = [line.strip() for script in SCRIPTS for line in script.splitlines() if line.strip().startswith("edgekit ")]
    found = [shlex.split(line.partition(" >")[0]) for line in lines]
    assert [words[1] for words in found] == ["doctor", "build", "history"]
    for words in found:
        parse([filled.get(word, word) for word in words[1:]])


@pytest.mark.skipif(os.name == "nt", reason="its runner has bash")
@pytest.mark.parametrize(
    ("code", "message"),
    [(0, ""), (3, "a check failed"), (4, "the board did not answer: nothing is known"), (1, "edgekit ended with 1")],
)
def test_the_workflow_for_boards_tells_a_bad_artifact_from_a_board_that_is_away(
    tmp_path: Path, code: int, message: str
) -> None:
    """Its script in a real bash, with an edgekit that ends with a code; where something was measured before, it is the gate."""
    script = next(text for text in SCRIPTS if "edgekit build" in text)
    program = tmp_path / "edgekit"
    program.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n', encoding="utf-8")
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "EDGEKIT_STATE": str(tmp_path / "a state")}
    environment |= {"TARGET": "raspberrypi", "DEVICE": "ssh://pi@board"}
    for gate in ("", f" --baseline {tmp_path}/a state/history"):
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (code, "")
        assert message in done.stdout if message else not done.stdout
        asked = (tmp_path / "build.json").read_text(encoding="utf-8").strip()
        assert asked.endswith(f"--device ssh://pi@board --strict --json --junit junit.xml{gate}")
        (tmp_path / "a state/history/x.jsonl").touch()


@pytest.mark.parametrize("name", ["edgekit-release.yml", "gitlab-ci.yml"])
def test_the_examples_for_releases_say_what_edgekit_understands(name: str) -> None:
    """Actions are pinned, nothing that a workflow fills in becomes a shell's text, commands are edgekit's, no secret is an argument."""
    table = yaml.safe_load((ROOT / "examples/release" / name).read_text(encoding="utf-8"))
    steps = (
        table["jobs"]["release"]["steps"] if "jobs" in table else [{"run": line} for line in table["release"]["script"]]
    )
    assert all(re.search(r"@[0-9a-f]{40}$", step["uses"]) for step in steps if "uses" in step)
    scripts = [step["run"] for step in steps if "run" in step]
    assert not any("${{" in script or "PASSWORD" in script or "KEY" in script for script in scripts)
    lines = [line for script in scripts for line in script.splitlines() if line.startswith("edgekit ")]
    found = [shlex.split(line) for line in lines]
    assert [words[1] for words in found] == ["build", "release", "verify-release", "push"]
    for words in found:
        parse(["raspberrypi" if word == "$TARGET" else word for word in words[1:]])


def test_the_example_of_a_policy_is_one() -> None:
    from edgekit.release.policy import read_policy

    assert read_policy(ROOT / "examples/release/policy.toml").evidence.verdict == "pass"


def test_the_packages_are_the_same_bytes_when_built_again(tmp_path: Path) -> None:
    from tests.packages import build_twice

    assert {name.rpartition(".")[2] for name in build_twice(tmp_path)} == {"whl", "gz"}


def test_readme_names_every_exit_code() -> None:
    from edgekit.errors import CheckFailed, DeviceFailed, EdgekitError

    codes = set(re.findall(r"^\| (\d+) \|", TEXT, flags=re.MULTILINE))
    assert codes == {"0", "2", "130"} | {str(kind.exit_code) for kind in (EdgekitError, CheckFailed, DeviceFailed)}


def test_changelog_names_the_version() -> None:
    from edgekit import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
