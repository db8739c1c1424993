"""The probe's requests of kind "tokens": how fast a decoder reads and writes, and what it makes of given sequences.

inputs is an .npz with `ids` (int64, all sequences in a row), `offsets` (int64 [n + 1]) and `starts` (int64 [n], at least 1): the
tokens from `start` on are scored, each given all before it. For each reference r there is (`student`, `teacher`), `r_ids` (int32
[T, K]) and `r_logprobs` (float32 [T, K], natural, likeliest first) at the T scored tokens of the first `referenced` sequences.
The first `generate` sequences also get an answer to what lies before their start: the likeliest token each time, until one of
`stop` (which is not part of it) or `max_new`.

outputs becomes an .npz with `nll` (float32) and `top1` (int32) of every scored token, `r_kl` (float32; a lower bound, see
`scores.sparse_kl`) and `r_top1` (bool: the same likeliest token) of those with a reference, `answers` (int32, in a row) and
`answer_offsets` (int64 [generate + 1]).

timing is {prompts, new, repeats, seconds, sweep, only}: prompt lengths, tokens to write behind the longest, calls of each kind,
fewer when `seconds` are over. The lines: load, first (a token behind the shortest prompt), prefill, decode, threads (with sweep),
memory, outputs, energy, work, machine; with timing.only, which asks for times and nothing else, load, first, prefill, decode.
Behind decode there may be sustained and tuning (see `phases`), where a call is one new token.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from edgekit.runtimes import energy, machine, neighbours, phases, scores
from edgekit.runtimes.request import wants_accelerator
from edgekit.runtimes.timing import Laps

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes import Generator, Runtime
    from edgekit.runtimes.placement import Work
    from edgekit.runtimes.request import Request, Settings
    from edgekit.runtimes.request import Timing as Asked

    Integers = NDArray[np.int64]
    Say = Callable[..., None]

REFERENCES = ("student", "teacher")
# A vocabulary of logits for every token would be gigabytes: so many bytes of them at once.
_LOGITS_BYTES = 64 << 20
_LAST = slice(-1, None)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a request's .npz holds (see the module); references: r -> (ids, logprobs)."""

    ids: Integers
    offsets: Sequence[int]
    starts: Sequence[int]
    references: Mapping[str, tuple[NDArray[np.int32], NDArray[np.float32]]]
    referenced: int
    generate: int
    max_new: int
    stop: frozenset[int]

    @property
    def sequences(self) -> Iterator[tuple[Integers, int]]:
        """(ids, start) of each sequence."""
        for (begin, end), start in zip(itertools.pairwise(self.offsets), self.starts, strict=True):
            yield self.ids[begin:end], start

    @property
    def context(self) -> int:
        """The tokens that the longest sequence, or the longest prompt with its answer, takes."""
        longest = [len(ids) for ids, _ in self.sequences]
        asked = [start + self.max_new for start in self.starts[: self.generate]]
        return max([*longest, *asked], default=1)


def read_inputs(file: Path) -> Inputs:
    """A request's inputs. Raises ValueError where they contradict each other."""
    import numpy as np

    with np.load(file, allow_pickle=False) as arrays:
        found = Inputs(
            ids=arrays["ids"].astype(np.int64, copy=False),
            offsets=arrays["offsets"].tolist(),
            starts=arrays["starts"].tolist(),
            references={
                name: (arrays[f"{name}_ids"], arrays[f"{name}_logprobs"])
                for name in REFERENCES
                if f"{name}_ids" in arrays
            },
            referenced=int(arrays["referenced"]),
            generate=int(arrays["generate"]),
            max_new=int(arrays["max_new"]),
            stop=frozenset(arrays["stop"].tolist()),
        )
    if any(not 1 <= start <= len(ids) for ids, start in found.sequences):
        raise ValueError(f"{file}: starts: a sequence starts to be scored within itself, at 1 or later")
    scored = sum(len(ids) - start for ids, start in itertools.islice(found.sequences, found.referenced))
    for name, (ids, logprobs) in found.references.items():
        if not len(ids) == len(logprobs) == scored:
            raise ValueError(
                f"{file}: {name}_ids: {len(ids)} rows for {scored} tokens of the {found.referenced} sequences"
            )
    return found


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What is timed: prompts (ascending lengths of ids), `new` tokens behind the longest, up to `repeats` calls in `seconds`."""

    ids: Integers
    prompts: Sequence[int]
    new: int
    repeats: int
    seconds: float


def answer(runtime: Runtime, request: Request, folder: Path, say: Say) -> None:
    """Answer a request of kind "tokens"; `say` writes a line of the protocol."""
    inputs, file = read_inputs(folder / request["inputs"]), folder / request["file"]
    options: Settings = {**request["options"]}
    # The engine's own library is imported before the baseline is taken: it is not the artifact's memory.
    version, available, baseline = runtime.version(), runtime.providers(), machine.peak_memory_mb()
    if request["timing"].get("cold"):
        phases.forget(file)
    begun = time.perf_counter()
    generator = runtime.generator(file, options)
    say("load", ms=_since(begun), runtime=runtime.NAME, version=version, available=available)
    limit, loaded = generator.context, machine.peak_memory_mb()
    if inputs.context > limit:
        raise ValueError(
            f"{file}: the sequences take {inputs.context} tokens of context, the model has {limit}; shorten the prompts"
            " (data.max_length) or their answers"
        )
    timing = fit(request["timing"], inputs.ids, limit)
    begun = time.perf_counter()
    _likeliest(generator, timing.ids[: timing.prompts[0]])
    say("first", ms=_since(begun), alive_ms=phases.alive_ms())
    generator.close()
    if options.get("context") == 0:
        # Reserved once, so that none of the timed calls does, and the memory is that of what was asked.
        options["context"] = min(limit, max(inputs.context, timing.prompts[-1] + timing.new))

    work = time_calls(lambda: runtime.generator(file, options), timing, options, say)
    _time_more(runtime, file, options, request["timing"], timing, say)
    if request["timing"].get("only"):
        return
    if request["timing"]["sweep"]:
        sweep(lambda threads: runtime.generator(file, _with_threads(options, threads)), timing, say)
    # Before what follows asks for more logits than an answer takes, and measures the machine.
    say("memory", peak_mb=machine.peak_memory_mb(), baseline_mb=baseline, loaded_mb=loaded)
    with closing(runtime.generator(file, options)) as generator:
        found = score(generator, inputs, options.get("batch", 512)) | answers(generator, inputs)
        spent = energy.spent(writer(generator, timing.ids[: timing.prompts[0]]))
    write(Path(request["outputs"]), found, say)
    say("energy", **spent)
    say("work", **{**work, "asked": options.get("provider", "")})
    told = neighbours.watch()
    speed = machine.measure(accelerated=wants_accelerator(options))
    threads = _threads(options)
    # A token reads nearly all of the file.
    roof = machine.measure_roof(runtime.NAME, file.stat().st_size, threads)
    say("machine", speed={**speed, **roof, "copy_gbs": machine.bandwidth_gbs(threads)}, neighbours=told())


def _time_more(runtime: Runtime, file: Path, options: Settings, asked: Asked, timing: Timing, say: Say) -> None:
    """Say the phases that were asked for (see `phases`), a call being one new token behind the longest prompt."""

    def timed(threads: int) -> list[float]:
        with closing(runtime.generator(file, _with_threads(options, threads))) as generator:
            laps = Laps()
            _time_tokens(generator, timing, laps)
            return laps.ms

    if seconds := asked.get("sustained"):
        with closing(runtime.generator(file, options)) as generator:
            say("sustained", **phases.sustained(lambda laps: _time_tokens(generator, timing, laps), seconds))
    if asked.get("tune"):
        say("tuning", **phases.tune(timed))


def fit(asked: Asked, ids: Integers, limit: int) -> Timing:
    """The timing that a request asks for, as far as the model's context reaches: prompts that are too long are left out."""
    import numpy as np

    prompts = sorted(length for length in asked["prompts"] if length < limit) or [limit // 2]
    return Timing(
        ids=np.resize(ids if len(ids) else np.zeros(1, dtype=np.int64), prompts[-1]),
        prompts=prompts,
        new=min(asked["new"], limit - prompts[-1]),
        repeats=asked["repeats"],
        seconds=asked["seconds"],
    )


def time_calls(opened: Callable[[], Generator], timing: Timing, options: Settings, say: Say) -> Work:
    """Say how long prompts take to their first token and how long each token behind the longest; what ran where.

    Each prompt length has an artifact of its own, freshly opened: the first of its times is of a first call.
    """
    prefill: list[list[float]] = []
    tokens = Laps()
    ended: Literal["calls", "time"] = "calls"
    work: Work = {}
    around = phases.around()
    for length in timing.prompts:
        with closing(opened()) as generator:
            prefill.append(_time_prompt(generator, timing.ids[:length], timing, timing.seconds / len(timing.prompts)))
            if length == timing.prompts[-1]:
                ended = _time_rounds(generator, timing, tokens)
                work = generator.work()
    threads = {"threads": _threads(options), "threads_batch": options.get("threads_batch") or _threads(options)}
    say("prefill", lengths=timing.prompts, ms=prefill, cold=True, **threads)
    how = {"spell": tokens.spell(ended), **around(tokens)}
    say("decode", depth=timing.prompts[-1], new=timing.new, ms=tokens.ms, **how, **threads)
    return work


def sweep(opened: Callable[[int], Generator], timing: Timing, say: Say) -> None:
    """Say the tokens per second of the longest prompt and behind it with 1, 2, 4 ... threads, up to one per core."""
    cores = machine.describe()["cores"]
    counts = sorted({*(1 << power for power in range(cores.bit_length())), cores})
    seconds = timing.seconds / (2 * len(counts))
    length, prefill, decode = timing.prompts[-1], {}, {}
    for threads in counts:
        with closing(opened(threads)) as generator:
            _, *warm = _time_prompt(generator, timing.ids, timing, seconds)
            tokens = Laps()
            _time_tokens(generator, timing, tokens)
            prefill[str(threads)] = round(1000 * length / median(warm), 3)
            decode[str(threads)] = round(1000 / median(tokens.ms), 3)
    say("threads", length=length, prefill=prefill, decode=decode)


def score(generator: Generator, inputs: Inputs, batch: int) -> dict[str, NDArray[np.generic]]:
    """nll, top1 and of each reference r_kl and r_top1 (see the module), from at most `batch` tokens' logits at once."""
    import numpy as np

    step = max(1, min(batch, _LOGITS_BYTES // (4 * generator.vocabulary)))
    nll: list[NDArray[np.float64]] = [np.empty(0)]
    top1: list[NDArray[np.intp]] = [np.empty(0, np.intp)]
    places = 0
    divergence: dict[str, list[NDArray[np.float64]]] = {name: [np.empty(0)] for name in inputs.references}
    for place, (ids, start) in enumerate(inputs.sequences):
        for logits, wanted in _scored(generator, ids, start, step):
            sums = scores.log_sum_exp(logits)
            nll.append(sums - logits[np.arange(len(wanted)), wanted])
            top1.append(scores.top1(logits))
            if place >= inputs.referenced:
                continue
            here, places = slice(places, places + len(wanted)), places + len(wanted)
            for name, (known, logprobs) in inputs.references.items():
                divergence[name].append(scores.sparse_kl(known[here], logprobs[here], logits, sums))
    best = np.concatenate(top1).astype(np.int32)
    found: dict[str, NDArray[np.generic]] = {"nll": np.concatenate(nll).astype(np.float32), "top1": best}
    for name, (known, _) in inputs.references.items():
        found[f"{name}_kl"] = np.concatenate(divergence[name]).astype(np.float32)
        found[f"{name}_top1"] = best[: len(known)] == known[:, 0]
    return found


def _scored(
    generator: Generator, ids: Integers, start: int, step: int
) -> Iterator[tuple[NDArray[np.float32], Integers]]:
    """(logits, the tokens that they should foretell) of a sequence, in pieces; its last token is not fed."""
    generator.clear()
    for begin in range(0, len(ids) - 1, step):
        piece = ids[begin : min(begin + step, len(ids) - 1)]
        first = max(start - 1 - begin, 0)
        if first >= len(piece):
            generator.logits(piece, slice(0))
        else:
            yield generator.logits(piece, slice(first, None)), ids[begin + first + 1 : begin + len(piece) + 1]


def answers(generator: Generator, inputs: Inputs) -> dict[str, NDArray[np.generic]]:
    """answers and answer_offsets: what the generator says to the first sequences' prompts."""
    import numpy as np

    said = [
        list(continuation(generator, ids[:start], inputs.max_new, inputs.stop))
        for ids, start in itertools.islice(inputs.sequences, inputs.generate)
    ]
    return {
        "answers": np.array([token for row in said for token in row], dtype=np.int32),
        "answer_offsets": np.cumsum([0, *map(len, said)], dtype=np.int64),
    }


def continuation(generator: Generator, prompt: Integers, most: int, stop: frozenset[int]) -> Iterator[int]:
    """The likeliest token after the prompt, the likeliest after that, and so on, until one stops it or there are `most`."""
    generator.clear()
    fed: Sequence[int] | Integers = prompt
    for _ in range(most):
        token = _likeliest(generator, fed)
        if token in stop:
            return
        yield token
        fed = [token]


def writer(generator: Generator, prompt: Integers) -> Callable[[], None]:
    """What writes one more token each time; behind the prompt, which is read again where the context is full."""
    fed: list[int] = []

    def call() -> None:
        if not fed or len(prompt) + len(fed) >= generator.context:
            generator.clear()
            fed[:] = [_likeliest(generator, prompt)]
        fed.append(_likeliest(generator, fed[-1:]))

    return call


def write(file: Path, found: Mapping[str, NDArray[np.generic]], say: Say) -> None:
    """Write the outputs and say so."""
    import numpy as np

    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, allow_pickle=False, **found)
    say("outputs", file=str(file), scored=len(found["nll"]), answers=len(found["answer_offsets"]) - 1)


def _likeliest(generator: Generator, ids: Sequence[int] | Integers) -> int:
    return int(scores.top1(generator.logits(ids, _LAST))[0])


def _time_prompt(generator: Generator, prompt: Integers, timing: Timing, seconds: float) -> list[float]:
    """Milliseconds from the prompt's ids to the first token, the first call's first; at least one more."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or (len(times) <= timing.repeats and time.perf_counter() < end):
        generator.clear()
        begun = time.perf_counter()
        _likeliest(generator, prompt)
        times.append(_since(begun))
    return times


def _time_rounds(generator: Generator, timing: Timing, laps: Laps) -> Literal["calls", "time"]:
    """Time rounds of new tokens, one at least, until there are `repeats` of them or the time is over; which of the two it was."""
    end = time.perf_counter() + timing.seconds
    for turn in range(max(timing.repeats, 1)):
        if turn and time.perf_counter() > end:
            return "time"
        _time_tokens(generator, timing, laps)
    return "calls"


def _time_tokens(generator: Generator, timing: Timing, laps: Laps) -> None:
    """Time each token of one round of `new` ones behind the longest prompt."""
    generator.clear()
    token = _likeliest(generator, timing.ids)
    for _ in range(timing.new):
        fed = [token]
        token = laps.time(lambda: _likeliest(generator, fed))  # noqa: B023 - called before the next turn


def _threads(options: Settings) -> int:
    return options.get("threads") or machine.describe()["cores"]


def _with_threads(options: Settings, threads: int) -> Settings:
    changed: Settings = {**options, "threads": threads}
    if "threads_batch" in options:
        changed["threads_batch"] = threads
    return changed


def _since(begun: float) -> float:
    return round(1000 * (time.perf_counter() - begun), 6)
