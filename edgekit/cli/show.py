"""What a user sees: progress on standard error, results on standard output, colours only on a terminal."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edgekit.build import Listener, Progress
from edgekit.schema import dump_json

# Between two lines of progress where the output is a file or a CI log, seconds.
PLAIN_INTERVAL = 15.0
LIVE_INTERVAL = 0.1
# A rate needs so many seconds.
SHORTEST = 0.5
COLOURS = {"pass": "green", "fail": "red", "not proven": "yellow"}


def paint(text: str, colour: str) -> str:
    """Coloured text; click strips it where standard output is no terminal, and NO_COLOR turns it off."""
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour)


def paint_verdict(verdict: str, text: str | None = None) -> str:
    """A verdict, or a text about it, in the verdict's colour."""
    return paint(text or verdict, COLOURS.get(verdict, "white"))


# Raised where a key of --json goes or changes its meaning; json_schema.json beside this file says what there is.
JSON_VERSION = 1


def print_json(value: Mapping[str, Any], *, exit_code: int = 0) -> None:
    """One JSON object on standard output: which version, command and exit code it is of, and what the command says."""
    context = click.get_current_context(silent=True)
    command = context.command_path.removeprefix("edgekit").strip() if context else " ".join(_named(sys.argv[1:]))
    click.echo(dump_json({"json_version": JSON_VERSION, "command": command, "exit_code": exit_code, **value}), nl=False)


def _named(words: Sequence[str]) -> Sequence[str]:
    """The command that a command line names, where it ended before click knew."""
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    return names[: 2 if names[:1] in (["targets"], ["cache"]) else 1]


class Terminal(Listener):
    """Shows a build on standard error: a live line on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._begun = 0.0
        self._shown = 0.0
        self._first: int | None = None
        self._paced = 0.0
        self._width = 0

    def begin(self, step: str, note: str = "", *, bundle: str = "") -> Progress:
        """A line that says which step runs."""
        self._begun = self._shown = time.monotonic()
        self._first = None
        self._draw(f"  {step:<10} {_of(note, bundle)}", keep=not self.live)
        return lambda done, total, text: self._advance(step, done, total, _of(text, bundle))

    def end(self, step: str, product: Path, *, kept: bool, bundle: str = "") -> None:
        """A line that says what is finished, where, and how long it took."""
        took = "kept from before" if kept else f"{time.monotonic() - self._begun:.1f} s"
        self._draw(f"  {step:<10} {_of(f'done, {took}', bundle)}", keep=True)

    def say(self, text: str) -> None:
        """A line of its own."""
        self._draw(f"             {text}", keep=True)

    def _advance(self, step: str, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if self._first is None:
            # A step that goes on where it was killed begins late: what was done before is not today's rate.
            self._first, self._paced = max(done - 1, 0), now
        if now - self._shown < (LIVE_INTERVAL if self.live else PLAIN_INTERVAL) and done < total:
            return
        if not self.live and done >= total:
            return
        self._shown = now
        share = 100 * done // max(total, 1)
        pace = ""
        if now - self._paced >= SHORTEST and done > self._first:
            rate = (done - self._first) / (now - self._paced)
            pace = f"{rate:.1f}/s  ETA {_clock((total - done) / rate)}  "
        line = f"  {step:<10} {share:3d} %  {done}/{total}  {pace}{text}"
        self._draw(line.rstrip(), keep=not self.live)

    def _draw(self, line: str, *, keep: bool) -> None:
        if not self.live:
            click.echo(line, err=True)
            return
        columns = shutil.get_terminal_size().columns
        shown = line if keep else line[: columns - 1]
        click.echo("\r" + shown.ljust(self._width) + ("\n" if keep else ""), nl=False, err=True)
        self._width = 0 if keep else len(shown)


def _of(text: str, bundle: str) -> str:
    """A text and which of several bundles it is about; one that names it already stays."""
    return f"{text} for {bundle}".lstrip() if bundle and bundle not in text else text


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes}:{rest:02d}"
