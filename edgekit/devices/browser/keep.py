"""Keeps one browser: started with a profile of its own, ended with this program's standard input, and nothing left of it.

`python keep.py '["chromium", "--headless", ...]'`: so a browser cannot outlive edgekit, whatever ends that. The standard library
only, run as a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# prctl(2): descendants whose parent ends become ours, so that none is missed.
_SUBREAPER = 36
# The path of a Unix socket has 108 bytes at most (unix(7)), and a browser makes one some folders below its profile.
_LONGEST = 40


def keep(command: Sequence[str]) -> int:
    """Run a browser until it or standard input ends; its exit code, 0 where it was ended here."""
    usual = tempfile.gettempdir()
    profile = tempfile.mkdtemp(prefix="edgekit-browser-", dir="/tmp" if len(usual) > _LONGEST else usual)  # noqa: S108
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    # A browser writes to its user's folders in spite of its own: it gets others.
    folders = dict.fromkeys(("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"), profile)
    try:
        browser = subprocess.Popen(
            [*command[:1], f"--user-data-dir={profile}/profile", *command[1:]],
            env=os.environ | folders,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        while browser.poll() is None:
            if select.select([0], [], [], 0.1)[0] and not os.read(0, 1):
                break
        code = browser.poll()
        with contextlib.suppress(OSError):
            os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()
        _end_orphans()
        return code or 0
    finally:
        shutil.rmtree(profile, ignore_errors=True)


def _end_orphans() -> None:
    """End what became ours: processes that had left the browser's group."""
    listing = Path(f"/proc/self/task/{os.getpid()}/children")
    while listing.exists() and (children := listing.read_text(encoding="ascii").split()):
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(int(child), signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.waitpid(int(child), 0)


if __name__ == "__main__":
    sys.exit(keep(json.loads(sys.argv[1])))
