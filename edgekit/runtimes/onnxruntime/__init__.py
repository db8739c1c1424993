"""onnxruntime: the runtime of ONNX files.

`library` opens onnxruntime, `session` and `generation` ask a model, `profile` says what ran where, `operators` is the table of
quantized operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.runtimes.memory import Demand, Memory
from edgekit.runtimes.onnxruntime.generation import Generator
from edgekit.runtimes.onnxruntime.library import (
    CPU,
    PACKAGE,
    Options,
    load_errors,
    providers,
    read_options,
    version,
)
from edgekit.runtimes.onnxruntime.profile import work
from edgekit.runtimes.onnxruntime.session import Session
from edgekit.runtimes.placement import Placement

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.placement import Work
    from edgekit.runtimes.request import Arrays

__all__ = [
    "CPU", "DOMAINS", "NAME", "OUTPUTS", "PACKAGE", "Generator", "Options", "Session",
    "defaults", "distribution", "generator", "joined", "load", "load_errors", "memory", "minimum", "outputs", "placement",
    "providers", "version", "work",
]  # fmt: skip

NAME = "onnxruntime"
OUTPUTS: tuple[str, ...] = ("logits", "embedding", "tokens")
DOMAINS: tuple[str, ...] = ("", "com.microsoft")
# A provider that does less of the matrix products than this left the rest to the CPU without a word.
SHARE = 0.8
# What weights with their packed copies take of their own bytes, roughly; and onnxruntime and Python themselves.
_PREPARED, _PROCESS_BYTES = 1.2, 40e6


def joined(target: Mapping[str, object], artifact: Mapping[str, object]) -> dict[str, object]:
    """A session's options: a target's `[runtime.onnxruntime]` with what the artifact needs, which wins."""
    wanted, needed = read_options(target), read_options(artifact)
    off = sorted({*wanted.disabled_optimizers, *needed.disabled_optimizers})
    entries = dict(sorted({**wanted.config_entries, **needed.config_entries}.items()))
    return vars(wanted) | {"disabled_optimizers": off, "config_entries": entries}


def defaults(cores: int) -> dict[str, str | int]:
    """What a target of a measured machine says in its `[runtime.onnxruntime]`."""
    return {"provider": CPU, "threads": cores}


def memory(demand: Demand, options: Mapping[str, object]) -> Memory:  # noqa: ARG001 - one signature for all
    """What an artifact needs here: its weights with what onnxruntime prepares of them, and the process itself."""
    return Memory(needed=_PREPARED * demand.weights + _PROCESS_BYTES)


def minimum(own: str) -> str:
    """The oldest version that runs a file, which its format says of this runtime."""
    return own


def distribution(options: Mapping[str, object]) -> str:
    """What pip installs on a device where sessions ask for this provider."""
    return PACKAGE.build_for(str(options.get("provider", CPU))) or PACKAGE.name


def load(file: Path, options: Mapping[str, object]) -> Session:
    """Open an artifact with the options of its export and of its target."""
    return Session(file, options)


def generator(file: Path, options: Mapping[str, object]) -> Generator:
    """Open a decoder that edgekit exported, with the options of its export and of its target."""
    return Generator(file, options)


def outputs(file: Path, prompts: Sequence[Arrays], *, options: Mapping[str, object]) -> NDArray[np.float32]:
    """The outputs [n, width] of n prompts, each run by itself, as an app would."""
    import numpy as np

    session = load(file, options)
    return np.stack([session.run(prompt) for prompt in prompts])


def placement(asked: Mapping[str, object], work: Work, available: Sequence[str]) -> Placement:
    """Whether the provider that the options ask for does the matrix products; one that the device lacks proves nothing."""
    wanted, used = read_options(asked).provider, work["provider"]
    # Of a decoder nobody profiled the products. A session that fell back to the CPU as a whole is known; of another provider it
    # is not: its operators may lie on the CPU one by one.
    products = work.get("matmul_ops", {used: 1.0})
    total = sum(products.values())
    share = products.get(wanted, 0.0) / total if total and wanted in available else None
    remedy: str | None = None
    if wanted not in available:
        remedy = _install(wanted, available)
    elif "matmul_ops" not in work and used == wanted and wanted != CPU:
        share = None
        remedy = (
            f"the session runs on {wanted}, but a decoder's matrix products are not counted there, and some may lie on the"
            ' CPU; for a GPU take format = "gguf", whose layers are counted'
        )
    elif share is None:
        remedy = "no matrix product that edgekit knows: `edgekit inspect` on the artifact lists its operators"
    elif share < SHARE:
        others = ", ".join(f"{key} {value / total:.0%}" for key, value in sorted(products.items()) if key != wanted)
        remedy = (
            f"a silent fallback: {others}; the provider lacks these operators or their types, or could not start: export another"
            " scheme (fp16 for GPUs), check its libraries with `edgekit doctor`, then `edgekit verify --fresh`"
        )
    return Placement(
        check="provider",
        detail=f"share of the matrix products that {wanted} does",
        measured=share,
        wanted=SHARE,
        on_cpu=used == CPU,
        absent=None if wanted in available else wanted,
        remedy=remedy,
    )


def _install(provider: str, available: Sequence[str]) -> str:
    build = PACKAGE.build_for(provider)
    return (
        f"this machine's onnxruntime has no {provider} (it has {', '.join(available)}), so the CPU answered;"
        f" run `edgekit verify` on the target{f', with {build} installed there' if build else ''}"
    )
