"""A browser's program: found, and started so that it cannot outlive edgekit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import DeviceFailed

CHROMIUM = "chromium"
# How Chromium is called by those who package it; Debian's name first.
_CHROMIUM = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
# Nothing but the page: no first-run dialogs, no requests of the browser's own, no extensions. A tab's memory is told at once, not
# with the next garbage collection.
_FLAGS = (
    "--headless=new",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--password-store=basic",
    "--enable-blink-features=ForceEagerMeasureMemory",
)

# Its reporter of crashes comes last, and says nothing of why; a machine without a desktop has no message bus.
_NOISE = ("crashpad", "dbus/")
# Lines of standard error: those of a stack are some dozens.
_KEPT = 200


def find_program(name: str) -> str:
    """The program of a browser by its name or path; DeviceFailed where it is not installed."""
    found = next(filter(None, map(shutil.which, _CHROMIUM if name == CHROMIUM else (name,))), None)
    if found is None:
        raise DeviceFailed(
            f"browser://{name}: no such browser here; install it (Debian, Ubuntu: sudo apt install chromium), give the path of"
            " another build of Chromium (--device browser:///path/to/chrome), or open a page in the browser that you have:"
            " --device browser://own"
        )
    return found


@dataclass
class Running:
    """A browser that runs until `stop`."""

    process: subprocess.Popen[bytes]
    errors: list[bytes]
    collector: threading.Thread

    @property
    def ended(self) -> str | None:
        """What it said last, where it has ended by itself; None where it runs."""
        if self.process.poll() is None:
            return None
        self.collector.join(timeout=5)
        told = b"".join(self.errors).decode(errors="replace").splitlines()
        lines = [line.strip() for line in told if line.strip() and not any(noise in line for noise in _NOISE)]
        # What ended it comes before the addresses of its stack.
        why = next((line for line in lines if ":FATAL:" in line), lines[-1] if lines else "")
        return why[:300] or f"exit code {self.process.returncode}"

    def stop(self) -> None:
        """End it and all that it started, and remove its profile."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        self.process.wait()
        self.collector.join(timeout=5)


def start(program: str, address: str) -> Running:
    """Open an address in a browser without a window and with a profile of its own."""
    # As root Chromium does not start in its own sandbox (its `zygote_host_impl_linux.cc`); the page is ours.
    as_root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command = [program, *_FLAGS, *as_root, address]
    process = subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).with_name("keep.py")), json.dumps(command)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # A key that interrupts edgekit is not for its keeper, which ends with edgekit anyway.
        start_new_session=True,
    )
    errors: list[bytes] = []
    collector = threading.Thread(target=_collect, args=(process, errors), daemon=True)
    collector.start()
    return Running(process=process, errors=errors, collector=collector)


def _collect(process: subprocess.Popen[bytes], errors: list[bytes]) -> None:
    """Keep the last lines of standard error, so that the browser never waits for a reader."""
    assert process.stderr is not None
    for line in process.stderr:
        errors.append(line)
        del errors[:-_KEPT]
