"""Functions in a process of their own: what a foreign file, a regular expression or an engine can abort ends that one only.

`apart("edgekit.module:function", ...)` runs `function(**arguments)` in a child of this Python. What goes in and what comes back
is JSON; larger things go through files that the arguments name. One child answers a batch of questions: starting it takes a
third of a second.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.typed_json import as_table

# Longer than any batch that we ask for, on a slow machine: whoever still runs then goes round in circles.
MOST_SECONDS = 1800.0
_REQUEST, _ANSWER = "request.json", "answer.json"
# The lines in which engines say why they end the process (ggml's asserts, C++'s terminate, Rust's panics, Python's tracebacks).
_REASON = re.compile(r"GGML_ASSERT|what\(\):|panicked at|^[\w.]*(Error|Exception|Exit)\b")
_SHOWN = 300


def apart(function: str, *, what: str, remedy: str, seconds: float = MOST_SECONDS, **arguments: object) -> object:
    """What a function answers in a child process.

    function: "module:name" of edgekit's. what, remedy: how an error of the process begins (who is to blame) and ends.
    Raises the EdgekitError that the function raises, and one with the engine's last words where the process dies, hangs or fails
    otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        (Path(folder) / _REQUEST).write_text(
            json.dumps({"function": function, "arguments": arguments}), encoding="utf-8"
        )
        command = [sys.executable, "-m", "edgekit.apart", folder]
        try:
            ended = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as late:
            raise EdgekitError(f"{what}: no answer after {seconds:.0f} seconds; {remedy}") from late
        answer = Path(folder) / _ANSWER
        if ended.returncode != 0 or not answer.is_file():
            raise EdgekitError(
                f"{what}: it ended the process with {name_end(ended.returncode)}: {last_reason(ended.stderr)}; {remedy}"
            )
        content = as_table(json.loads(answer.read_text(encoding="utf-8")))
        if "error" in content:
            raise EdgekitError(str(content["error"]))
        return content["result"]


def name_end(code: int) -> str:
    """A process's exit code in words; negative: the signal that ended it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def last_reason(log: bytes) -> str:
    """The line in which the engine says why, else its last one."""
    lines = [line.strip() for line in log.decode("utf-8", "replace").splitlines() if line.strip()]
    reasons = [line for line in lines if _REASON.search(line)] or lines or ["it does not say why"]
    return reasons[-1][:_SHOWN].rstrip(".")


def _answer(folder: Path) -> None:
    """Answer the request in a folder: {"result": ...}, or {"error": ...} where the function raises an EdgekitError."""
    request = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
    module, _, name = request["function"].partition(":")
    try:
        answer = {"result": getattr(importlib.import_module(module), name)(**request["arguments"])}
    except EdgekitError as bad:
        answer = {"error": bad.message}
    (folder / _ANSWER).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    # An abort is an answer here: no core file of it, and no dialogue.
    if os.name == "posix":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _answer(Path(sys.argv[1]))
