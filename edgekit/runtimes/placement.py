"""Where the work of a session ran, beside where a target wants it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict


class Work(TypedDict, total=False):
    """What one call does and where, as far as the runtime tells.

    asked: the provider that was asked for. provider: the execution provider, or the kind of device, of the session. nodes and
    matmul_nodes: operators and matrix products by provider; matmul_ops: multiplications and additions of matrix products by
    provider; int8_ops: those of them that multiply bytes; weight_bytes: of the matrices that a call reads; precisions: how many
    matrix products ran in each; time_shares: the share of a call's time by operator. Of another
    provider than the CPU also attention_nodes: operators of attention by provider; copies: of tensors from it to the host within
    a call; graphs: on CUDA, why calls replay no CUDA graphs ("": they do); warnings: what onnxruntime said when it started.

    Of llama.cpp: layers (the output counted as one), offloaded (how many of them lie on which `devices`), buffers (MiB by kind
    and device), weights_mb and parameters of the file, flash_attention, threads by phase, kv (the cache's types), the
    instructions that it uses, and its warnings.
    """

    asked: str
    provider: str
    nodes: dict[str, int]
    matmul_nodes: dict[str, int]
    matmul_ops: dict[str, float]
    int8_ops: float
    weight_bytes: int
    time_shares: dict[str, float]
    precisions: dict[str, int]
    attention_nodes: dict[str, int]
    copies: int
    graphs: str
    layers: int
    offloaded: int
    devices: list[str]
    buffers: dict[str, dict[str, float]]
    weights_mb: float
    parameters: int
    flash_attention: bool
    threads: dict[str, int]
    kv: list[str]
    instructions: list[str]
    warnings: list[str]


class Found(TypedDict, total=False):
    """Where an engine computed one small product that a session with certain options asked for.

    version: the engine's. asked, used: the provider, or kind of device, that the options ask for, and the one that did it.
    available: those that this installation has. backends: what the engine was built with; devices: the GPUs that these found.
    words: what it said meanwhile.
    graphs: as in `Work`. built_for: the major version of CUDA that it was built for. other: libraries of another major version
    than one that it misses.
    right: whether the product was right. ms: of one such product.
    """

    version: str
    asked: str
    used: str
    available: list[str]
    backends: list[str]
    devices: list[str]
    words: list[str]
    graphs: str | None
    built_for: str | None
    other: list[str]
    right: bool
    ms: float


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Whether the work ran where the target wants it.

    check: the name of the verdict in a report. measured, wanted: how much of the work ran there, and how much at least should
    (None: nobody could measure it); detail: of what, in words. absent: what the target wants and the device does not have.
    on_cpu: the session ran on the CPU alone, whose speed and bandwidth were measured. remedy: what to do where it is not proven.
    """

    check: str
    detail: str
    measured: float | None
    wanted: float
    on_cpu: bool
    absent: str | None = None
    remedy: str | None = None
