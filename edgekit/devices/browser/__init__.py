"""A browser as a device: Chromium without a window, or the user's own browser through a page on loopback.

A command is a module's address below the page's and its arguments: the page runs the module's `main` in a worker. A pushed folder
is served from where it lies. Each command has a browser process of its own, but for the one that asks what the browser is.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Literal, Self
from urllib.parse import unquote, urlsplit

from edgekit.devices.browser.exchange import Exchange, Job
from edgekit.devices.browser.program import CHROMIUM, Running, find_program, start
from edgekit.devices.device import Facts, Finished, copy_out
from edgekit.errors import DeviceFailed, EdgekitError
from edgekit.schema import parse

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger("edgekit")

OWN = "own"
_DESCRIBE = "describe.mjs"
# A page says every two seconds that it is there; half a minute of silence was seen of one on a machine with ten times as many
# programs as cores. A tab that is not in front may do so once a minute only
# (developer.chrome.com/blog/timer-throttling-in-chrome-88).
_SILENT_S, _SILENT_OWN_S = 120.0, 180.0
# A busy machine may take long to start a browser; a person, to open a page.
_START_S, _START_OWN_S = 180.0, 600.0
_LOOK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class BrowserOptions:
    """`[device]` of a target that is a browser on this machine.

    program: "chromium", the path of another build of Chromium, or "own": the page's address is shown, and the user opens it.
    """

    kind: Literal["browser"]
    program: str = CHROMIUM


class BrowserDevice:
    """A browser on this machine, started when it is first asked for something."""

    Options: ClassVar[type[DataclassInstance]] = BrowserOptions
    REMOTE: ClassVar[bool] = True
    PROBE: ClassVar[str] = "web"

    def __init__(self, table: Mapping[str, object], where: str = "device") -> None:
        options = parse(BrowserOptions, dict(table), where)
        if not options.program:
            raise EdgekitError(f'{where}.program: empty; write "{CHROMIUM}", a path, or "{OWN}"')
        self._program = options.program
        self._work: tempfile.TemporaryDirectory[str] | None = None
        self._exchange: Exchange | None = None
        self._running: Running | None = None

    @property
    def identity(self) -> str:
        """Which browser, as the user wrote it."""
        return f"browser://{self._program}"

    @property
    def work(self) -> str:
        """A temporary folder on this machine, where the page's files go; made when it is first asked for."""
        if self._work is None:
            self._work = tempfile.TemporaryDirectory(prefix="edgekit-")
        return self._work.name

    @property
    def python(self) -> str:
        """Raises DeviceFailed: there is none."""
        raise DeviceFailed(f"{self.identity}: a browser has no Python; its probe is JavaScript")

    @property
    def _open(self) -> Exchange:
        if self._exchange is None:
            self._exchange = Exchange(Path(self.work))
        return self._exchange

    def push(self, folder: Path) -> str:
        """Serve a folder's files; its address below the page's. DeviceFailed where it is not there."""
        if not folder.is_dir():
            raise DeviceFailed(f"{folder}: no such folder to show to {self.identity}")
        folder, folders = folder.resolve(), self._open.folders
        if folder not in folders:
            folders.append(folder)
        return f"folder/{folders.index(folder)}"

    def run(self, command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Finished:
        """Run a module's `main` in a worker of the page and wait; DeviceFailed where it does not start or end.

        command: the module's address, then its arguments; what it throws is its standard error, with return code 1.
        """
        describes = command[0] == _DESCRIBE
        if self._program != OWN and self._running is None:
            program = find_program(self._program)
            self._running = start(program, self._open.address)
        job = self._open.begin(command, env or {})
        if self._program == OWN:
            log.warning("open this in the browser that is to be measured, and keep it in front: %s", self._open.address)
        try:
            self._await(job, command[0], timeout_s)
        finally:
            self._open.end()
            if not describes or not job.is_over():
                self._stop()
        if job.cannot is not None:
            # Its address has the token.
            why = job.cannot.replace(self._open.address, "")
            raise DeviceFailed(f"{self.identity}: {command[0]}: cannot be started: {why}")
        if job.loud:
            raise DeviceFailed(f"{self.identity}: {command[0]}: said more than a probe can have to say; it was stopped")
        return Finished(
            returncode=job.code or 0,
            stdout=b"".join(job.out).decode("utf-8", errors="replace"),
            stderr=b"".join(job.error).decode("utf-8", errors="replace").replace(self._open.address, ""),
        )

    def _await(self, job: Job, name: str, timeout_s: float) -> None:
        """Wait for a command's end; DeviceFailed where the deadline passes, or the page or the browser is gone."""
        own = self._program == OWN
        begun = time.monotonic()
        while not job.is_over():
            self._open.wait(job, min(_LOOK_S, timeout_s))
            now = time.monotonic()
            if job.is_over():
                return
            if self._running is not None and (last := self._running.ended) is not None:
                raise DeviceFailed(f"{self.identity}: the browser ended by itself: {last}")
            if not job.taken and now - begun > (_START_OWN_S if own else _START_S):
                what = "nobody opened the page" if own else "the browser did not open the page"
                raise DeviceFailed(f"{self.identity}: {what} within {now - begun:.0f} s; run it again")
            if job.taken and now - begun > timeout_s:
                raise DeviceFailed(f"{self.identity}: {name}: no end after {timeout_s:g} s; it was stopped")
            if job.taken and now - job.heard > (_SILENT_OWN_S if own else _SILENT_S):
                raise DeviceFailed(
                    f"{self.identity}: {name}: the page stopped answering: the tab was closed or crashed, most likely for want of"
                    " memory; free some, or use a smaller student or scheme"
                )

    def fetch(self, path: str, out: Path) -> None:
        """Copy a folder that the page wrote, whose path is relative to `work` or absolute, into `out`."""
        source = Path(self.work, path)
        if not source.is_dir():
            raise DeviceFailed(f"{self.identity}: {path}: no such folder; the command that should have made it did not")
        copy_out(source, out)

    def facts(self) -> Facts:
        """What the page tells of its browser, with the keys of `edgekit.runtimes.machine.Machine`."""
        ended = self.run([_DESCRIBE], timeout_s=120)
        try:
            facts = json.loads(ended.stdout)
        except ValueError:
            facts = None
        if ended.returncode != 0 or not isinstance(facts, dict):
            last = (ended.stderr.strip().splitlines() or ["nothing on standard error"])[-1]
            raise DeviceFailed(
                f"{self.identity}: does not say what it is: {last[:300]}; is it a browser of these years?"
            )
        return facts

    def _stop(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None

    def close(self) -> None:
        """End the browser, stop serving, and remove `work`."""
        self._stop()
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
        if self._work is not None:
            self._work.cleanup()
            self._work = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def browser_table(address: str) -> dict[str, object]:
    """The `[device]` table of `browser:`, `browser://chromium`, `browser:///path/to/chrome` or `browser://own`.

    Raises EdgekitError for what is no such address.
    """
    refused = EdgekitError(
        f"{address}: not a browser's address; write browser://{CHROMIUM}, browser:///path/to/chrome, or browser://{OWN} for a"
        " page that you open yourself"
    )
    try:
        parts = urlsplit(address)
    except ValueError:  # a bracket that is not closed
        raise refused from None
    program = unquote(parts.netloc + parts.path).rstrip("/") or CHROMIUM
    known = program in {CHROMIUM, OWN} or program.startswith("/")
    if parts.scheme != "browser" or parts.query or parts.fragment or not known:
        raise refused
    return {"kind": "browser", "program": program}
