"""How fast a call should be by what the machine can do, beside how fast it is: where both differ, the report says why.

predicted = max(operations / (threads x speed of products), bytes of weights / bandwidth) + operators x dispatch

(Williams et al., "Roofline", CACM 52, 2009, with what a runtime takes for an operator beside its work.) The speeds were measured
on the device by the process that answered: products and dispatch in onnxruntime, for OpenVINO in its own; reading in as many
threads as the artifact has and of as many bytes, so that weights that a cache holds are read from there. llama.cpp tells neither
its operators nor what they cost; its products of blocks are held against onnxruntime's of bytes. Nothing is judged by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgekit.runtimes import llamacpp, onnxruntime, openvino
from edgekit.runtimes.onnxruntime.operators import OPERATORS
from edgekit.runtimes.onnxruntime.throughput import PRODUCT_OPS
from edgekit.times import Roofline
from edgekit.verify.phases import latency_of

if TYPE_CHECKING:
    from edgekit.artifact import ModelFile
    from edgekit.verify.measurements import Measurements

_SPEEDS = {"read_gbs", "int8_gops", "fp32_gflops"}
# What a runtime's call is held against.
_KNOWN = {
    onnxruntime.NAME: _SPEEDS | {"dispatch_us"},
    openvino.NAME: {"read_gbs", "own_int8_gops", "own_fp32_gflops", "dispatch_us"},
    llamacpp.NAME: _SPEEDS,
}
# Measured speed by predicted speed, where nothing has to be explained.
LOW, HIGH = 0.6, 1.1
# A share of a call's time, or of its operations, that explains something; how many operators are named.
_MUCH, _NAMED = 0.1, 3
# Products below this share of the one that was measured are slower: more of their time goes to packing and to edges.
_SMALL = 1 / 4
# llama.cpp multiplies weights of up to so many bits by activations of eight.
_BYTE = 8
# A token that is predicted to take less mostly takes what an engine does beside its work.
_SHORT_MS = 1.0


@dataclass(frozen=True, kw_only=True)
class Around:
    """What bears on all times: whether the work was the CPU's, whether that is emulated, what disturbed it, and its threads."""

    on_cpu: bool
    emulated: bool
    disturbed: Sequence[str]
    threads: int


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a call needs, in ms: of products, of reading weights, and of operators beside their work."""

    compute: float
    memory: float
    dispatch: float = 0.0

    @property
    def total(self) -> float:
        """The prediction."""
        return max(self.compute, self.memory) + self.dispatch

    @property
    def bound(self) -> Literal["compute", "memory", "dispatch"]:
        """What most of it is."""
        if self.dispatch > max(self.compute, self.memory):
            return "dispatch"
        return "compute" if self.compute >= self.memory else "memory"


def of_call(file: ModelFile, measured: Measurements, around: Around) -> Roofline | None:
    """Of a call on the CPU, of a decoder of one new token. None where a speed was not measured, or nobody counted the work."""
    speed, work = measured.speed, measured.work
    is_decoder = measured.generation is not None
    if not _is_known(measured, around):
        return None
    if is_decoder:
        operations, weights = 2.0 * work.get("parameters", 0), file.bytes_per_token or 0
    elif "matmul_ops" in work:
        operations, weights = sum(work["matmul_ops"].values()), work["weight_bytes"]
    else:
        return None
    in_bytes = work.get("int8_ops", operations if (file.bits or 32) <= _BYTE else 0.0)
    need = Need(
        compute=_compute_ms(in_bytes, operations - in_bytes, speed, around.threads),
        memory=weights / speed["read_gbs"] / 1e6,
        dispatch=_nodes(measured) * speed.get("dispatch_us", 0.0) / 1000,
    )
    return _beside(need, latency_of(measured).p50, measured, around)


def of_prompt(file: ModelFile, measured: Measurements, around: Around) -> Roofline | None:
    """Of the longest prompt that a decoder was timed with, to its first token; None as in `of_call`."""
    speed, parameters = measured.speed, measured.work.get("parameters", 0)
    if measured.generation is None or not parameters or not _is_known(measured, around):
        return None
    length = max(measured.generation.ttft_ms, key=int)
    operations = 2.0 * parameters * int(length)
    in_bytes = operations if (file.bits or 32) <= _BYTE else 0.0
    need = Need(
        compute=_compute_ms(in_bytes, operations - in_bytes, speed, around.threads),
        memory=(file.bytes_per_token or 0) / speed["read_gbs"] / 1e6,
    )
    return _beside(need, measured.generation.ttft_ms[length], measured, around)


def _is_known(measured: Measurements, around: Around) -> bool:
    return around.on_cpu and _KNOWN.get(measured.runtime.name, {""}) <= measured.speed.keys()


def _compute_ms(in_bytes: float, in_floats: float, speed: Mapping[str, float], threads: int) -> float:
    """Of products, in as many threads; by the runtime's own speeds where they are known."""
    of_bytes, of_floats = (speed.get(f"own_{key}") or speed[key] for key in ("int8_gops", "fp32_gflops"))
    return (in_bytes / of_bytes + in_floats / of_floats) / threads / 1e6


def _nodes(measured: Measurements) -> int:
    return sum(measured.work.get("nodes", {}).values())


def _beside(need: Need, measured_ms: float, measured: Measurements, around: Around) -> Roofline:
    ratio = need.total / max(measured_ms, 1e-9)
    note = None
    if not LOW <= ratio <= HIGH:
        reasons = list(_shared(around) or (_slower(need, ratio, measured, around) if ratio < LOW else _faster(need)))
        note = "; ".join(reasons) or "unexplained: see the checks of placement, and the clock and its governor above"
    return Roofline(
        predicted_ms=round(need.total, 6),
        measured_ms=measured_ms,
        ratio=round(ratio, 4),
        bound=need.bound,
        note=note,
    )


def _shared(around: Around) -> list[str]:
    """What makes any comparison of times one of something else."""
    if around.emulated:
        return ["emulated: neither is a speed of the device"]
    return [f"other load: {'; '.join(around.disturbed)}"] if around.disturbed else []


def _faster(need: Need) -> Iterator[str]:
    if need.bound == "memory":
        yield "its weights are read faster than a buffer of their size, so part of them stays in a cache nearer to the core"


def _slower(need: Need, ratio: float, measured: Measurements, around: Around) -> Iterator[str]:
    """The facts of this call that make it slower than the prediction."""
    work, nodes = measured.work, _nodes(measured)
    if need.bound == "dispatch":
        yield f"a small graph: its {nodes} operators take longer to be called than to compute"
    shares = work.get("time_shares", {})
    others = {name: share for name, share in shares.items() if OPERATORS.get(name) is None}
    if (other := sum(others.values())) >= _MUCH:
        named = ", ".join(f"{name} {share:.0%}" for name, share in list(others.items())[:_NAMED])
        yield f"operators that multiply no matrices take {other:.0%} of a call ({named})"
    products, operations = sum(work.get("matmul_nodes", {}).values()), sum(work.get("matmul_ops", {}).values())
    in_floats = 1 - work.get("int8_ops", 0.0) / operations if operations else 0.0
    if _MUCH <= in_floats < 1:
        yield f"{in_floats:.0%} of the multiplications are in float"
    if need.bound == "compute" and products and operations / products < _SMALL * PRODUCT_OPS:
        mean, large = operations / products / 1e6, PRODUCT_OPS / 1e6
        yield f"small products ({mean:.3g} million operations each, {large:.0f} where the speed was measured)"
    if measured.generation is not None:
        if need.total < _SHORT_MS:
            yield "a small model: what the engine does beside reading weights and multiplying takes longer"
        elif need.bound == "compute":
            yield "llama.cpp multiplies blocks of few bits, whose bytes are unpacked first; the speed is of products of bytes"
    if around.threads > 1 and ratio < LOW:
        yield f"{around.threads} threads wait for each other after each operator, and share the memory"
