"""What a user sees: progress on standard error, results on standard output, colours only on a terminal."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.pipeline import Listener
from edgekit.pipeline import Progress as Told
from edgekit.schema import dump_json

if TYPE_CHECKING:
    from rich.progress import Progress, Task

# From a phase's first line to its second, and between two of those that follow, where the output is a file or a CI log, seconds.
FIRST_INTERVAL, PLAIN_INTERVAL = 5.0, 15.0
# After so many seconds without a line one says that it goes on.
STILL_INTERVAL = 30.0
# A rate is of the last so many seconds: a training's steps may be a minute apart.
SPEED_SECONDS = 300.0
COLOURS = {"pass": "green", "fail": "red", "not proven": "yellow"}


def paint(text: str, colour: str) -> str:
    """Coloured text; click strips it where standard output is no terminal, and NO_COLOR turns it off."""
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour)


def paint_verdict(verdict: str, text: str | None = None) -> str:
    """A verdict, or a text about it, in the verdict's colour."""
    return paint(text or verdict, COLOURS.get(verdict, "white"))


# Raised where a key of --json goes or changes its meaning; json_schema.json beside this file says what there is.
JSON_VERSION = 1


def print_json(value: Mapping[str, object], *, exit_code: int = 0) -> None:
    """One JSON object on standard output: which version, command and exit code it is of, and what the command says."""
    context = click.get_current_context(silent=True)
    command = context.command_path.removeprefix("edgekit").strip() if context else " ".join(_named(sys.argv[1:]))
    click.echo(dump_json({"json_version": JSON_VERSION, "command": command, "exit_code": exit_code, **value}), nl=False)


def _named(words: Sequence[str]) -> Sequence[str]:
    """The command that a command line names, where it ended before click knew."""
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    return names[: 2 if names[:1] in (["targets"], ["cache"]) else 1]


class Terminal(Listener):
    """Shows a build on standard error: a live bar on a terminal, plain lines elsewhere (a pipe, a CI log, TERM=dumb).

    rich keeps count, rate and time left of both. A step may have several phases, each with a total of its own (0: nobody
    knows it): a line says which one begins, and its rate is its own.
    """

    def __init__(self) -> None:
        self._live = is_live()
        self._bar: Progress | None = None
        self._ended = threading.Event()
        self._begun = self._shown = self._next = 0.0

    def begin(self, step: str, note: str = "", *, bundle: str = "") -> Told:
        """A line that says which step runs."""
        bar = self._open(step, _of(note, bundle), STILL_INTERVAL)
        if not self._live:
            self._line(step, _of(note, bundle))
        return lambda done, total, text: self._advance(bar, done, total, _of(text, bundle))

    def end(self, step: str, product: Path, *, kept: bool, bundle: str = "") -> None:
        """A line that says what is finished, where, and how long it took."""
        self.close()
        took = "kept from before" if kept else f"{time.monotonic() - self._begun:.1f} s"
        self._line(step, _of(f"done, {took}", bundle))

    @contextmanager
    def during(self, what: str, note: str = "") -> Iterator[None]:
        """Plain lines tell it only where it takes long."""
        self._open(what, note, FIRST_INTERVAL)
        try:
            yield
        finally:
            self.close()

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        click.echo(f"             {text}", err=True)

    def close(self) -> None:
        """Take the bar off the terminal; a command that ends in an error does so too."""
        self._ended.set()
        if self._live and self._bar is not None:
            self._bar.stop()
        self._bar = None

    def _open(self, step: str, text: str, wait: float) -> Progress:
        self.close()
        self._begun = self._shown = time.monotonic()
        bar = self._bar = make_bar()
        bar.add_task(step, total=None, text=text)
        if self._live:
            bar.start()
        else:
            self._ended = threading.Event()
            threading.Thread(target=self._still, args=(bar, self._ended, wait), daemon=True).start()
        return bar

    def _still(self, bar: Progress, ended: threading.Event, wait: float) -> None:
        """Say that it goes on, where nothing else was said for so long: what a phase does may be one long call."""
        while not ended.wait(wait):
            now, task = time.monotonic(), bar.tasks[0]
            if now - self._shown >= wait:
                self._line(task.description, f"{_clock(now - self._begun)}  {task.fields['text']}")
            wait = STILL_INTERVAL

    def _advance(self, bar: Progress, done: int, total: int, text: str) -> None:
        task, now = bar.tasks[0], time.monotonic()
        if begins := (
            task.total != (total or None) or done < task.completed or (not total and text != task.fields["text"])
        ):
            # A rate is of what comes from now on: of a step that goes on where it was killed, the rest.
            bar.add_task(task.description, total=total or None, completed=done - 1, text=text)
            bar.remove_task(task.id)
            task = bar.tasks[0]
        bar.update(task.id, completed=done, text=text)
        if self._live or (not begins and (now < self._next or done >= total > 0)):
            return
        self._next = now + (FIRST_INTERVAL if begins else PLAIN_INTERVAL)
        counted = f"{100 * done // total:3d} %  {done}/{total}" if total else ""
        self._line(task.description, "  ".join(part for part in (counted, pace(task), text) if part))

    def _line(self, step: str, text: str) -> None:
        self._shown = time.monotonic()
        click.echo(f"  {step:<10} {text}".rstrip(), err=True)


def is_live() -> bool:
    """Whether standard error is a terminal that can draw over a line, with somebody before it."""
    return (
        sys.stderr.isatty()
        and os.environ.get("TERM", "").lower() not in {"dumb", "unknown"}
        and not os.environ.get("CI")
    )


def make_bar() -> Progress:
    """rich's bar: the step, how far it is, its rate and time left, and what it works on; it vanishes when it stops."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Pace(ProgressColumn):
        """Count, rate and time left."""

        def render(self, task: Task) -> Text:
            """As a plain line has them; without a total the time that it takes already."""
            counted = f"{task.completed:.0f}/{task.total:.0f}" if task.total else _clock(task.elapsed or 0)
            return Text("  ".join(part for part in (counted, pace(task)) if part))

    return Progress(
        SpinnerColumn("line"),
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=12),
        Pace(Column(no_wrap=True)),
        TextColumn(
            "{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        ),
        console=Console(stderr=True, force_terminal=True, force_interactive=True, highlight=False),
        transient=True,
        expand=True,
        redirect_stdout=False,
        speed_estimate_period=SPEED_SECONDS,
        get_time=time.monotonic,
    )


def pace(task: Task) -> str:
    """A phase's rate and the time that it still takes; nothing where nobody knows yet."""
    speed, left = task.speed, task.time_remaining
    if not speed or left is None or task.finished:
        return ""
    return f"{f'{speed:.1f}/s' if speed >= 1 else f'{60 * speed:.1f}/min'}  ETA {_clock(left)}"


def _of(text: str, bundle: str) -> str:
    """A text and which of several bundles it is about; one that names it already stays."""
    return f"{bundle}: {text}".removesuffix(": ") if bundle and bundle not in text else text


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes}:{rest:02d}"
