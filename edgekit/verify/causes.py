"""Why an artifact answers otherwise on another machine: each cause is looked for by doing on this machine what it does there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.verify import arithmetic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.request import Arrays

# Saturation is the cause where it predicts so much of what differs, and so much of what it predicts differs.
RECALL, PRECISION = 0.9, 0.7
# Flushing denormals is the cause where with it so little of the difference is left here.
_LEFT = 0.01
# Sums of 16-bit floats differ by at most about a hundredth of the largest answer: 2^-8 of a number (bfloat16), twice.
_HALF = 0.01
# A process's first session decides it for all (onnxruntime/core/session/inference_session.cc), so a new process is asked.
FLUSH = {"session.set_denormal_as_zero": "1"}
CAUSES = {
    "saturation": (
        "saturation: products of bytes are added in 16 bits there and do not fit; set reduce_range = true in the target's export"
        " table and run `edgekit build`"
    ),
    "not a number": (
        "answers there are not finite: an overflow of 16-bit floats, or a kernel that is wrong; export another scheme (w8, fp32)"
        " and run `edgekit build`"
    ),
    "denormals": (
        "denormals: numbers below 1.2e-38 are taken for zero there, and with session.set_denormal_as_zero this machine gives the"
        " same answers; such weights are next to nothing: train longer, or export a scheme of fewer bits, which has none"
    ),
    "half precision": (
        "sums of fewer bits: answers differ by what 16-bit floats round (fp16 or bf16 accumulation); switch the engine's fast"
        " mathematics off there"
    ),
    "kernel": (
        "a kernel there computes something else: compare the engine's version and build there with this machine's, install it"
        " again (edgekit devices setup), and try another scheme"
    ),
}

# Causes that are named because nothing else explains a difference.
UNSPECIFIC = ("half precision", "kernel")


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Why answers differ: its name in CAUSES, None where nothing differs.

    Of one that says which prompts: how many it predicts, the share of those that differ that it predicts, and the share of those
    that it predicts that differ.
    """

    name: str | None = None
    predicted: int | None = None
    recall: float | None = None
    precision: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a cause is looked for in: the artifact's file, the prompts as its session is fed them, and the answers there and here.

    again: what the artifact answers here with other entries of the session's configuration; None where it does not run.
    """

    file: Path
    prompts: Sequence[Arrays]
    there: NDArray[Any]
    here: NDArray[Any]
    again: Callable[[Mapping[str, str]], NDArray[Any] | None]


def find_cause(known: Evidence, moved: NDArray[np.bool_]) -> Cause:
    """The first cause that explains the difference; moved: which prompts differ."""
    import numpy as np

    if not np.isfinite(known.there).all():
        return Cause(name="not a number")
    saturation = _saturation(known, moved)
    if saturation.name:
        return saturation
    apart = np.abs(known.there.astype(np.float64) - known.here)
    flushed = known.again(FLUSH)
    if flushed is not None and np.abs(known.there.astype(np.float64) - flushed).sum() < _LEFT * apart.sum():
        return Cause(name="denormals")
    name = "half precision" if apart.max() < _HALF * np.abs(known.here).max() else "kernel"
    return Cause(name=name, predicted=saturation.predicted)


def _saturation(known: Evidence, moved: NDArray[np.bool_]) -> Cause:
    """Saturation, where the prompts in which it must happen are those that differ."""
    if known.file.suffix != ".onnx" or not arithmetic.saturating_share(known.file):
        return Cause()
    predicted = arithmetic.saturated(known.file, known.prompts)
    if predicted is None:
        return Cause()
    count, both = int(predicted.sum()), int((predicted & moved).sum())
    recall, precision = both / max(int(moved.sum()), 1), both / max(count, 1)
    explained = recall >= RECALL and precision >= PRECISION
    return Cause(name="saturation" if explained else None, predicted=count, recall=recall, precision=precision)
