"""onnxruntime: the runtime of ONNX files.

`library` opens onnxruntime, `session` and `generation` ask a model, `profile` says what ran where, `operators` is the table of
quantized operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.runtimes.memory import Demand, Memory
from edgekit.runtimes.onnxruntime.faults import explain, install_line
from edgekit.runtimes.onnxruntime.generation import Generator
from edgekit.runtimes.onnxruntime.library import (
    CPU,
    CUDA,
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
    "CPU", "CUDA", "DOMAINS", "NAME", "OUTPUTS", "PACKAGE", "Generator", "Options", "Session",
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
    options = vars(wanted) | {"disabled_optimizers": off, "config_entries": entries}
    if wanted.provider != CUDA:
        del options["cuda_graphs"]
    return options


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
    """What pip installs on a device where sessions ask for this provider: names with a space between them."""
    provider = str(options.get("provider", CPU))
    plugin = PACKAGE.plugin_for(provider)
    return f"{PACKAGE.name} {plugin}" if plugin else PACKAGE.build_for(provider) or PACKAGE.name


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
    """Whether the provider that the options ask for does the matrix products, and the attention; one that the device lacks proves
    nothing.

    A small operator that is left to the CPU costs more than its arithmetic: each step waits for copies there and back. So the
    share is the smaller one of the products' operations and of the operators of attention.
    """
    wanted, used = read_options(asked).provider, work["provider"]
    # A decoder on the CPU is not profiled: nothing of it can lie elsewhere.
    products = work.get("matmul_ops", {used: 1.0} if CPU in {used, wanted} else {})
    there = wanted in available
    shares = [_share(counts, wanted) for counts in (products, work.get("attention_nodes", {})) if sum(counts.values())]
    share = min(shares) if there and shares and products else None
    remedy: str | None = None
    if not there:
        remedy = _install(wanted, available)
    elif share is None:
        remedy = "no matrix product that edgekit knows: `edgekit inspect` on the artifact lists its operators"
    elif share < SHARE and used == CPU:
        remedy = f"a silent fallback: {explain(wanted, work.get('warnings', ()))}; then `edgekit verify --fresh`"
    elif share < SHARE:
        remedy = (
            f"a silent fallback: {_left(work, wanted)}; the provider lacks these operators or their types: export another scheme"
            ' (fp16 for GPUs), or of a decoder format = "gguf"; then `edgekit verify --fresh`'
        )
    return Placement(
        check="provider",
        detail=f"share of the matrix products that {wanted} does{_graphs(work)}",
        measured=share,
        wanted=SHARE,
        on_cpu=used == CPU,
        absent=None if there else wanted,
        remedy=remedy,
    )


def _graphs(work: Work) -> str:
    """How the GPU's kernels are launched, where that was seen."""
    why = work.get("graphs")
    if why is None:
        return ""
    return f"; no CUDA graphs: {why}" if why else "; calls replay CUDA graphs, one for each length"


def _share(counts: Mapping[str, float], wanted: str) -> float:
    return counts.get(wanted, 0.0) / sum(counts.values())


def _left(work: Work, wanted: str) -> str:
    """What others than the wanted provider do."""
    parts = []
    for what, counts in (("products", work.get("matmul_ops", {})), ("attention", work.get("attention_nodes", {}))):
        total = sum(counts.values())
        others = ", ".join(
            f"{key} {count / total:.0%}" for key, count in sorted(counts.items()) if key != wanted and count
        )
        parts += [f"{what}: {others}"] if others else []
    copies = work.get("copies", 0)
    return "; ".join([*parts, *([f"{copies} copies to the host within a call"] if copies else [])])


def _install(provider: str, available: Sequence[str]) -> str:
    line = install_line(provider)
    return (
        f"this machine's onnxruntime has no {provider} (it has {', '.join(available)}), so the CPU answered;"
        f" run `edgekit verify` on the target{f', after: {line}' if line else ''}"
    )
