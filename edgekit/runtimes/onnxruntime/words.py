"""What onnxruntime says while a session starts: in its log on standard error, and in what its Python part prints.

A provider that cannot start is no error to onnxruntime: it says so there, once, and the CPU answers.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

_COLOURS = re.compile(r"\x1b\[[\d;]*m")
# A line of its log: time, severity and source, then the words; of an error code, what follows it.
_LOGGED = re.compile(r"^\d{4}-\d\d-\d\d \S+ \[[EFW]:onnxruntime:[^\]]*\] (.*)$")
_CODED = re.compile(r"^.*\[ONNXRuntimeError\] : \d+ : \w+ : (.*)$")
# A failed call of CUDA's: the rest of the line is where in the source.
_CUDA = re.compile(r"^.*?((?:CUDA|CUDNN|CUBLAS) failure \d+: .*?)(?: *;.*)?$")
_SOURCE = re.compile(r"^(?:EP Error )?(?:/onnxruntime_src/.* was false\. )?")
# What its Python part prints of libraries that it could not load beforehand, and of a provider that raised.
_PRINTED = re.compile(r"^(?:Failed to load |EP Error )")
_FOLDER = re.compile(r"(?:[A-Za-z]:)?(?:[\\/][^\\/\s:]+)+[\\/](?=[^\\/\s:]+\.(?:so|dll|dylib)\b)")
_LONGEST = 400


@contextmanager
def heard() -> Iterator[list[str]]:
    """What is said meanwhile, one line each, in the list when the block ends; nothing of it is shown.

    Both ways are turned aside for the whole process: no other thread should write meanwhile.
    """
    lines: list[str] = []
    printed = io.StringIO()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log:
        kept = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            with redirect_stdout(printed):
                yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            log.seek(0)
            lines += read(log.read().decode("utf-8", "replace") + "\n" + printed.getvalue())


def read(text: str) -> list[str]:
    """The different things that onnxruntime said, without colours, times, sources and folders; other lines are left out."""
    found = []
    for line in _COLOURS.sub("", text).splitlines():
        logged = _LOGGED.match(line)
        if logged or _PRINTED.match(line):
            found.append(_shorten(logged.group(1) if logged else line))
    return list(dict.fromkeys(found))


def _shorten(line: str) -> str:
    for pattern in (_CUDA, _CODED):
        if match := pattern.match(line):
            line = match.group(1)
            break
    return _FOLDER.sub("", _SOURCE.sub("", line)).strip()[:_LONGEST]
