"""llama.cpp: the runtime of GGUF files; embeddings of encoders, next-token logits of decoders.

`library` opens llama.cpp, `loaded` holds a model, `session` and `generation` ask it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.runtimes.llamacpp.generation import Generator
from edgekit.runtimes.llamacpp.library import (
    CPU,
    GPU,
    PACKAGE,
    LlamaError,
    Options,
    load_errors,
    providers,
    resolved_attention,
    version,
)
from edgekit.runtimes.llamacpp.need import predict_memory
from edgekit.runtimes.llamacpp.session import Session
from edgekit.runtimes.memory import Demand, Memory
from edgekit.runtimes.placement import Placement
from edgekit.runtimes.request import read_options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.placement import Work
    from edgekit.runtimes.request import Arrays

__all__ = [
    "CPU",
    "DOMAINS",
    "GPU",
    "NAME",
    "OUTPUTS",
    "PACKAGE",
    "Generator",
    "LlamaError",
    "Options",
    "Session",
    "defaults",
    "distribution",
    "generator",
    "joined",
    "load",
    "load_errors",
    "memory",
    "minimum",
    "outputs",
    "placement",
    "providers",
    "version",
    "work",
]  # fmt: skip

NAME = "llama-cpp"
OUTPUTS: tuple[str, ...] = ("embedding", "tokens")
DOMAINS: tuple[str, ...] = ("",)


def joined(target: Mapping[str, object], artifact: Mapping[str, object]) -> dict[str, object]:
    """A session's options: a target's `[runtime.llama-cpp]` with what the artifact needs, which wins.

    The artifact's `longest` is the model's own context: no session has a longer one.
    """
    wanted = {**target, **artifact}
    longest = wanted.pop("longest", None)
    chosen = read_options(Options, wanted)
    context = min(chosen.context, longest) if isinstance(longest, int) and longest else chosen.context
    return vars(chosen) | {"flash_attention": resolved_attention(chosen), "context": context}


def memory(demand: Demand, options: Mapping[str, object]) -> Memory:
    """What an artifact needs here."""
    return predict_memory(demand, read_options(Options, options))


def defaults(cores: int) -> dict[str, str | int]:
    """What a target of a measured machine says in its `[runtime.llama-cpp]`."""
    return {"threads": cores, "context": 4096}


def minimum(own: str) -> str:
    """The oldest version that runs a file, which its format says of this runtime."""
    return own


def distribution(options: Mapping[str, object]) -> str:  # noqa: ARG001 - a protocol's
    """What pip installs on a device, which is one name for every kind of GPU."""
    return PACKAGE.name


def load(file: Path, options: Mapping[str, object]) -> Session:
    """Open an embedder."""
    return Session(file, options)


def generator(file: Path, options: Mapping[str, object]) -> Generator:
    """Open a decoder."""
    return Generator(file, options)


def outputs(file: Path, prompts: Sequence[Arrays], *, options: Mapping[str, object]) -> NDArray[np.float32]:
    """The outputs [n, width] of n prompts, each run by itself, as an app would."""
    import numpy as np

    session = load(file, options)
    rows = np.stack([session.run(prompt) for prompt in prompts])
    session.close()
    return rows


def work(file: Path, options: Mapping[str, object], prompt: Arrays) -> Work:
    """What one call of an embedder on a prompt does: `Loaded.work` with matmul_ops by provider and weight_bytes.

    Every parameter outside the embedding table is taken for a matrix's (a multiplication and an addition for each token), and
    the table for as densely stored as the rest: llama.cpp tells no tensor's size.
    """
    session = load(file, options)
    session.run(prompt)
    done = session.work()
    session.close()
    matrices = done["parameters"] - session.table
    operations, share = 2 * matrices * len(prompt["input_ids"]), done["offloaded"] / done["layers"]
    by_provider = {GPU: round(operations * share), CPU: round(operations * (1 - share))}
    return {
        **done,
        "matmul_ops": {name: count for name, count in by_provider.items() if count},
        "weight_bytes": round(done["weights_mb"] * (1 << 20) * matrices / done["parameters"]),
    }


def placement(asked: Mapping[str, object], work: Work, available: Sequence[str]) -> Placement:  # noqa: ARG001 - layers tell
    """Whether as many layers as the options ask for lie on the GPU (gpu_layers -1: all, the output counted as one)."""
    options, layers, there = read_options(Options, asked), work.get("layers", 0), work.get("offloaded", 0)
    wanted = layers if options.gpu_layers < 0 else min(options.gpu_layers, layers)
    remedy = (
        f"a silent fallback: {wanted - there} layers stay on the CPU: this llama.cpp was built without the GPU's backend, or its"
        f" memory is full: install {PACKAGE.name} for the GPU (CMAKE_ARGS=-DGGML_CUDA=on), or set runtime.{NAME}.gpu_layers"
        " to what fits; then `edgekit verify --fresh`"
    )
    return Placement(
        check="offload",
        detail=f"layers on the GPU, of {layers}",
        measured=there,
        wanted=wanted,
        on_cpu=not there,
        remedy=remedy if there < wanted else None,
    )
