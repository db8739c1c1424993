"""Whether a device's engines take the work where a target wants it: asked before anything is built, by a session of a second."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgekit.devices.code import copy_runtimes
from edgekit.errors import DeviceFailed
from edgekit.runtimes.proof import Proof

if TYPE_CHECKING:
    from edgekit.devices import Device, Finished

# A first session of a GPU may compile its kernels, for a minute.
_SECONDS = 180.0


def ask(device: Device, runtime: str, options: Mapping[str, object]) -> Proof:
    """Where a session with these options computes a small product on the device.

    An engine that does not load, or ends its process, is an answer too (`failed`).
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        code = Path(scratch, "code")
        copy_runtimes(code)
        # A person's own folders of packages count where edgekit itself finds them.
        folders = [device.push(code), *([] if device.REMOTE else os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        try:
            ended = device.run(
                [device.python, "-m", "edgekit.runtimes.proof", runtime, json.dumps(dict(options))],
                timeout_s=_SECONDS,
                env={"PYTHONPATH": os.pathsep.join(filter(None, folders))},
            )
        except DeviceFailed as failed:
            return {"failed": failed.message, "distributions": {}}
    last = next((line for line in reversed(ended.stdout.splitlines()) if line.startswith("{")), None)
    if ended.returncode != 0 or last is None:
        return {"failed": _how(ended), "distributions": {}}
    return cast("Proof", json.loads(last))


def _how(ended: Finished) -> str:
    """How the process ended, in the engine's last words."""
    last = next((line.strip() for line in reversed(ended.stderr.splitlines()) if line.strip()), "")
    # A shell there says 128 + the signal.
    code = -ended.returncode if ended.returncode < 0 else ended.returncode - 128
    try:
        how = f"it ended the process with {signal.Signals(code).name}"
    except ValueError:
        how = f"it ended the process with exit code {ended.returncode}"
    return f"{how}: {last[:300]}" if last else how
