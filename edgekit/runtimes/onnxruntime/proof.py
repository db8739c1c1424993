"""Which execution provider takes the work of a session here: one product of two matrices, profiled."""

from __future__ import annotations

import ctypes
import json
import re
import site
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.runtimes.onnxruntime.library import CUDA, Options, built_for, providers, read_options, start, version
from edgekit.runtimes.onnxruntime.profile import kernels
from edgekit.runtimes.onnxruntime.throughput import product_model
from edgekit.runtimes.timing import fastest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.placement import Found

_SIDE = 128
_LIBRARY = re.compile(r"\blib(\w+)\.so\.(\d+)")
# Major versions of CUDA's libraries that may lie about: cublas and cudart are at 13, curand at 10, cufft at 12.
_MAJORS = range(8, 16)
# What operators other than matrix products need; onnxruntime opens it when the first one of them runs.
_CUDNN = "libcudnn.so.9" if sys.platform == "linux" else "cudnn64_9.dll"


def prove(options: Mapping[str, object]) -> Found:
    """Run a product with these options; raises what onnxruntime raises where it does not load."""
    import numpy as np

    asked = read_options(options)
    numbers = np.random.default_rng(0)
    left, right = (numbers.integers(-8, 8, (_SIDE, _SIDE)).astype(np.float32) for _ in range(2))
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        model = product_model("MatMul", left, right)
        started = start(model, asked, profile=Path(scratch) / "profile")
        run = partial(started.session.run, None, {"a": left})
        answer = run()[0]
        seconds = fastest(run)
        events = json.loads(Path(started.session.end_profiling()).read_text(encoding="utf-8"))
    ran = [str(facts["provider"]) for facts in kernels(events) if "MatMul" in str(facts["op_name"])]
    used = ran[0] if ran else started.session.get_providers()[0]
    said = list(started.words)
    if used == CUDA:
        said += _unloadable(_CUDNN)
    return {
        "version": version(),
        "asked": asked.provider,
        "used": used,
        "available": providers(),
        "words": said,
        "graphs": _graphs(model, asked, left) if used == CUDA else None,
        "built_for": built_for(),
        "other": list(_others(said)),
        "right": bool(np.allclose(answer, left @ right, rtol=1e-2, atol=1.0)),
        "ms": round(1000 * seconds, 3),
    }


def _graphs(model: bytes, asked: Options, left: NDArray[np.float32]) -> str | None:
    """Why a product replays no CUDA graph; "" where it does, None where none is wanted."""
    session = start(model, asked, graphs=True).session
    for _ in range(2):
        session.run(None, {"a": left})
    why: str | None = getattr(session, "why", None)
    return why


def _unloadable(library: str) -> list[str]:
    """Why a library does not load, in the loader's words; nothing where it does."""
    try:
        ctypes.CDLL(library)
    except OSError as failed:
        return [f"Failed to load {library}: {failed}"]
    return []


def _others(said: Sequence[str]) -> Iterator[str]:
    """The libraries that are here in another major version than the one that onnxruntime misses."""
    missing = {match.group(1, 2) for line in said for match in _LIBRARY.finditer(line)}
    for stem, major in sorted(missing):
        for other in _MAJORS:
            name = f"lib{stem}.so.{other}"
            if str(other) != major and (_installed_by_pip(name) or not _unloadable(name)):
                yield name


def _installed_by_pip(name: str) -> bool:
    """Whether one of NVIDIA's packages brought the library, which no loader finds by itself."""
    folders = {Path(folder) for folder in (*sys.path, *site.getsitepackages()) if folder}
    return any(next(folder.glob(f"nvidia/*/lib/{name}"), None) for folder in folders)
