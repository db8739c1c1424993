"""What a float model costs in torch in this process, which should do nothing else: the other side of `alone`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.evidence import FloatModel, Quantiles, Rates, TimedAt
from edgekit.modalities import text
from edgekit.modalities.encoded import Encoded
from edgekit.model import load_model
from edgekit.outputs.rows import EMBEDDING, LOGITS
from edgekit.outputs.tokens import TOKENS
from edgekit.record.alone import weight_bytes
from edgekit.record.tokens import ANSWER_TOKENS, DEPTH, stream
from edgekit.runtimes.request import Timing
from edgekit.tasks import TASKS

# Calls before those that are timed.
WARM_UP = 4
# Lengths at which a float model is timed beside an artifact, and how, by the probe's own function.
LENGTHS = (16, 32, 64, 128, 256)
SHAPED: Timing = {"warmup": 1, "repeats": 11, "least": 3, "seconds": 2.0}


@dataclass(frozen=True, kw_only=True)
class _Times:
    """The times of a model: on texts of their own lengths, at the shapes of artifacts, and of a decoder."""

    own: Quantiles
    at: Sequence[TimedAt]
    ttft_ms: float | None = None
    rates: Rates | None = None


def measure_here(folder: Path, task: str, encoded: Encoded, longest: int) -> FloatModel:
    """What `alone.measure_alone` tells of one model."""
    import torch

    from edgekit.runtimes.machine import load_average, peak_memory_mb

    threads = torch.get_num_threads()
    try:
        times = TIMERS[TASKS[task].OUTPUT](folder, task, encoded, longest)
    finally:
        torch.set_num_threads(threads)
    memory = peak_memory_mb()
    return FloatModel(
        bytes=weight_bytes(folder),
        latency_ms=times.own,
        at=tuple(times.at),
        memory_mb=memory and round(memory, 1),
        threads=threads,
        busy=load_average(),
        ttft_ms=times.ttft_ms,
        tokens_per_second=times.rates,
    )


def shapes(longest: int, cores: int) -> list[tuple[int, int]]:
    """(sequence, threads) at which artifacts are timed: texts of 16, 32, ... tokens and of `longest`; 1, 2, 4 ... cores."""
    lengths = {length for length in LENGTHS if length < longest} | {longest}
    return [(length, threads) for threads in _threads(cores) for length in sorted(lengths)]


def _threads(cores: int) -> list[int]:
    """1, 2, 4 ... cores."""
    return sorted({1 << power for power in range(cores.bit_length())} | {cores})


def _quantiles(times: Sequence[float]) -> Quantiles:
    import numpy as np

    p50, p95 = (round(float(np.percentile(times, q)), 3) for q in (50, 95))
    return Quantiles(p50=p50, p95=p95)


def _at(sequence: int, threads: int, times: Sequence[float]) -> TimedAt:
    found = _quantiles(times)
    return TimedAt(sequence=sequence, threads=threads, p50=found.p50, p95=found.p95)


def _time_rows(folder: Path, task: str, encoded: Encoded, longest: int) -> _Times:
    """One prompt a call, at its own size, and texts of the lengths of `shapes`."""
    import torch

    from edgekit.runtimes.machine import describe
    from edgekit.runtimes.probe import time_calls
    from edgekit.runtimes.torch import Session

    session = Session(TASKS[task].load(folder))
    once: Timing = {"warmup": 0, "repeats": 1, "least": 1, "seconds": 0.0}
    prompts = encoded.prompts
    times = [time_calls(session, prompt, once)[0] for prompt in [*prompts[:WARM_UP], *prompts]]
    at = []
    for length, threads in shapes(1 if encoded.free is None else longest, describe()["cores"]):
        torch.set_num_threads(threads)
        (resized,) = encoded.resized(length).prompts
        at.append(_at(length, threads, time_calls(session, resized, SHAPED)))
    return _Times(own=_quantiles(times[min(WARM_UP, len(prompts)) :]), at=at)


def _time_decoder(folder: Path, _task: str, encoded: Encoded, _longest: int) -> _Times:
    """New tokens of questions, each behind its own length; `at`: tokens behind DEPTH others (behind half its context where the
    model has less), as the probe times them."""
    import numpy as np
    import torch

    from edgekit.runtimes.machine import describe
    from edgekit.tasks.decoders import load_decoder

    decoder, ids = load_decoder(folder), text.token_ids(encoded)
    firsts, times = [], []
    for row in [*ids[:1], *ids]:
        first, *others = [ms for _, ms in stream(decoder, row, (), 1 + ANSWER_TOKENS // 4)]
        firsts.append(first)
        times += others
    times = times[len(times) // (len(ids) + 1) :]

    context = load_model(folder).size("max_position_embeddings") or DEPTH + 1
    depth = DEPTH if context > DEPTH else context // 2
    long = np.resize([token for row in ids for token in row], depth).tolist()
    at = []
    for threads in _threads(int(describe()["cores"])):
        torch.set_num_threads(threads)
        _, *others = [ms for _, ms in stream(decoder, long, (), 1 + min(ANSWER_TOKENS // 4, context - depth))]
        at.append(_at(depth, threads, others))
    prefill = sum(len(row) for row in ids) / max(sum(firsts[1:]) / 1e3, 1e-9)
    own = _quantiles(times)
    return _Times(
        own=own,
        at=at,
        ttft_ms=round(float(np.median(firsts[1:])), 3),
        rates=Rates(prefill=round(prefill, 2), decode=round(1e3 / own.p50, 2)),
    )


# How a model is timed, by the kind of its answers.
TIMERS: dict[str, Callable[[Path, str, Encoded, int], _Times]] = {
    LOGITS.name: _time_rows,
    EMBEDDING.name: _time_rows,
    TOKENS.name: _time_decoder,
}
