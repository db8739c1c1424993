"""OpenVINO: a second runtime of ONNX files that answer with rows, on the CPU.

It runs ONNX's own operators: files that edgekit exports with layout = "qdq". `library` opens OpenVINO, `session` asks a model,
`work` says what ran in which precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from edgekit.runtimes.memory import Demand, Memory
from edgekit.runtimes.openvino.library import (
    CPU,
    MINIMUM,
    PACKAGE,
    Options,
    load_errors,
    providers,
    read_options,
    version,
)
from edgekit.runtimes.openvino.session import Session
from edgekit.runtimes.openvino.work import work
from edgekit.runtimes.placement import Placement

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.placement import Work
    from edgekit.runtimes.request import Arrays

__all__ = [
    "CPU", "DOMAINS", "NAME", "OUTPUTS", "PACKAGE", "Options", "Session",
    "defaults", "distribution", "generator", "joined", "load", "load_errors", "memory", "minimum", "outputs", "placement",
    "providers", "version", "work",
]  # fmt: skip

NAME = "openvino"
OUTPUTS: tuple[str, ...] = ("logits", "embedding")
DOMAINS: tuple[str, ...] = ("",)
# Measured peaks of the process (2026.4.1): 100 MB of a file of nothing, 162 of 24 MB in int8, 258 of 91 MB in float32.
_PREPARED, _PROCESS_BYTES = 2.0, 100e6


def joined(target: Mapping[str, object], artifact: Mapping[str, object]) -> dict[str, object]:  # noqa: ARG001 - onnxruntime's
    """A session's options: a target's `[runtime.openvino]`. What an ONNX artifact asks for is about onnxruntime's optimizers."""
    return dict(vars(read_options(target)))


def minimum(own: str) -> str:  # noqa: ARG001 - onnxruntime's
    """The oldest OpenVINO that edgekit knows to run its files rightly."""
    return MINIMUM


def memory(demand: Demand, options: Mapping[str, object]) -> Memory:  # noqa: ARG001 - one signature for all
    """What an artifact needs here: its weights with what OpenVINO prepares of them, and the process itself."""
    return Memory(needed=_PREPARED * demand.weights + _PROCESS_BYTES)


def defaults(cores: int) -> dict[str, str | int]:  # noqa: ARG001 - one signature for all
    """Nothing: a target names this runtime where someone wants it, since it does not run every file of the format."""
    return {}


def distribution(options: Mapping[str, object]) -> str:  # noqa: ARG001 - one signature for all
    """What pip installs on a device."""
    return PACKAGE.name


def load(file: Path, options: Mapping[str, object]) -> Session:
    """Open an artifact with the options of its target."""
    return Session(file, options)


def generator(file: Path, options: Mapping[str, object]) -> NoReturn:  # noqa: ARG001 - one signature for all
    """Nothing: raises ValueError. The decoders that edgekit writes have onnxruntime's own operators."""
    raise ValueError(f"{file}: OpenVINO runs no decoder of edgekit; onnxruntime or llama.cpp does")


def outputs(file: Path, prompts: Sequence[Arrays], *, options: Mapping[str, object]) -> NDArray[np.float32]:
    """The outputs [n, width] of n prompts, each run by itself, as an app would."""
    import numpy as np

    session = load(file, options)
    return np.stack([session.run(prompt) for prompt in prompts])


def placement(asked: Mapping[str, object], work: Work, available: Sequence[str]) -> Placement:
    """Whether every matrix product ran in the precision that the options ask for, or in the file's own integers, on the CPU."""
    wanted, ran = read_options(asked).precision, work.get("precisions", {})
    total, there = sum(ran.values()), CPU in available
    right = sum(count for name, count in ran.items() if name in {wanted, "i8", "u8"})
    remedy: str | None = None
    if not total:
        remedy = "OpenVINO named no matrix product of this file: `edgekit inspect` on the artifact lists its operators"
    elif right < total:
        remedy = (
            f"OpenVINO computes in another precision than runtime.{NAME}.precision says: set it to what this CPU has (f32"
            " always), then `edgekit verify --fresh`"
        )
    shown = ", ".join(f"{count} in {name}" for name, count in sorted(ran.items()))
    return Placement(
        check="provider",
        detail=f"share of the matrix products in {wanted} or the file's integers on the CPU ({shown or 'none'})",
        measured=right / total if total else None,
        wanted=1.0,
        on_cpu=True,
        absent=None if there else CPU,
        remedy=remedy,
    )
