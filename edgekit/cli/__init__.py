"""The command line: parse, call one function, show its result. Heavy libraries are imported inside the commands."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from edgekit import __version__
from edgekit.cli import (
    build,
    cache,
    compare,
    devices,
    diff,
    doctor,
    embed,
    explain,
    history,
    init,
    inspect,
    patch,
    release,
    run,
    stages,
    targets,
)
from edgekit.cli.options import json_option
from edgekit.errors import CheckFailed, EdgekitError


class Ordered(click.Group):
    """Lists commands in the order a user meets them, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names, in the order they were added."""
        return list(self.commands)


@click.group(cls=Ordered, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgekit")
def cli() -> None:
    """From a checkpoint to a small, fast, verified model in somebody's app.

    \b
    Start here:
      edgekit build --example assistant --target raspberrypi    a packaged example
      edgekit init                                              a recipe for your own model and data
      edgekit targets list                                      where it can run
    """


COMMANDS = (
    *(build.build, run.run, embed.embed, compare.compare, diff.diff, patch.patch, history.history, init.init),
    *stages.COMMANDS,
    *(release.release, release.verify_release, release.push),
    *(targets.targets, devices.devices, inspect.inspect, explain.explain, doctor.doctor, cache.cache),
)
for command in COMMANDS:
    cli.add_command(command)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def completion(shell: str, as_json: bool) -> None:
    """Print the completion script for a shell.

    \b
    Example:
      eval "$(edgekit completion bash)"
    """
    from click.shell_completion import get_completion_class

    from edgekit.cli.terminal import print_json

    kind = get_completion_class(shell)
    script = kind(cli, {}, "edgekit", "_EDGEKIT_COMPLETE").source() if kind is not None else ""
    if as_json:
        print_json({"shell": shell, "script": script})
    else:
        click.echo(script)


class Echo(logging.Handler):
    """Warnings as lines on standard error as it is then: above a bar, where one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one of them."""
        click.echo(self.format(record), err=True)


def quiet_libraries() -> None:
    """Keep other libraries' banners, bars and telemetry off the terminal, and their waiting threads off the cores.

    A thread of OpenMP that waits spins by default: beside one other busy process, matrix products on two cores were 7.6
    times slower than with threads that sleep (measured: 17.8 against 136 a second).
    """
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "passive",
    }.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.ERROR, format="%(message)s", handlers=[Echo()])
    logging.getLogger("edgekit").setLevel(logging.WARNING)


def speak_utf8() -> None:
    """Texts and answers are UTF-8 on every system: a pipe on Windows has its code page, one in the C locale ASCII.

    What UTF-8 cannot say (an argument of bytes that were no text) is replaced, so that no answer is lost over it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def run_command_line() -> int:
    """Run the command that sys.argv names; returns the exit code, errors shown as one line."""
    speak_utf8()
    quiet_libraries()
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys() and os.environ["WORLD_SIZE"] != "1":
        return _run_as_rank()
    return _run_command()


def _run_as_rank() -> int:
    """One of the processes that torchrun started: the first runs the command, the others take part in its trainings."""
    from edgekit.distill.follow import serve
    from edgekit.distill.ranks import meet

    try:
        ranks = meet()
        if not ranks.leads:
            return serve()
    except EdgekitError as bad:
        bad.show()
        return bad.exit_code
    code = _run_command()
    if code in {0, CheckFailed.exit_code}:
        ranks.tell("")
    return code


def _run_command() -> int:
    """The command of sys.argv; its exit code."""
    try:
        result: Any = cli.main(prog_name="edgekit", standalone_mode=False)
    except click.exceptions.Abort as aborted:
        raise KeyboardInterrupt from aborted
    except click.ClickException as failed:
        if "--json" in sys.argv:
            from edgekit.cli.terminal import print_json

            print_json({"error": failed.format_message()}, exit_code=failed.exit_code)
        failed.show()
        return failed.exit_code
    except BrokenPipeError:
        return _end_quietly()
    except SystemExit as ended:
        # Where nobody reads standard output any more, click wraps it and exits.
        if ended.code == 1 and not isinstance(sys.stdout, io.TextIOBase):
            return _end_quietly()
        raise
    except OSError as failed:
        from edgekit.workspace import DISK_ERRORS, disk_error

        if failed.errno not in DISK_ERRORS or failed.filename is None:
            raise
        disk_error(Path(str(failed.filename)), failed).show()
        return 1
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _end_quietly()
    return result if isinstance(result, int) else 0


def _end_quietly() -> int:
    """Whoever read our output has enough (`| head`): no word about it; 0, but of commands whose exit code is a verdict."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 1 if sys.argv[1:2] in (["build"], ["verify"], ["package"]) else 0
