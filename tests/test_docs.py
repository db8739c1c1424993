"""README is held to the code: its tables are generated, its commands exist, its exit codes are the code's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from edgekit.cli import cli
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
    words = shlex.split(line)[1:]
    with cli.make_context("edgekit", words, resilient_parsing=False) as context:
        name, command, rest = cli.resolve_command(context, [*context.protected_args, *context.args])
        while isinstance(command, click.Group):
            name, command, rest = command.resolve_command(context, rest)
        assert command is not None
        command.make_context(name or "", rest, parent=context)


def test_readme_names_every_exit_code() -> None:
    from edgekit.errors import CheckFailed, DeviceFailed, EdgekitError

    codes = set(re.findall(r"^\| (\d+) \|", TEXT, flags=re.MULTILINE))
    assert codes == {"0", "2", "130"} | {str(kind.exit_code) for kind in (EdgekitError, CheckFailed, DeviceFailed)}


def test_changelog_names_the_version() -> None:
    from edgekit import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
