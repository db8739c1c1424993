"""Two bundles, or one in two ways, compared on one device: they take turns, and the ratio of their times has an interval."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from edgekit.bundle.open import Bundle, open_bundle
from edgekit.errors import EdgekitError
from edgekit.formats import FORMATS, candidates, domains_of
from edgekit.modalities import text as text_prompts
from edgekit.outputs import OUTPUTS
from edgekit.probes.turns import Round, take_turns
from edgekit.progress import Progress, silent
from edgekit.runtimes import RUNTIMES, neighbours
from edgekit.schema import parse, pick
from edgekit.tasks import TASKS
from edgekit.verify.paired import PAIRS, ROUNDS, interval, log_ratio, verdict

if TYPE_CHECKING:
    from edgekit.devices import Device

# How many tokens are read, unless the user says it: what targets have in their budgets (`sequence`).
TOKENS = 64
_TAIL = re.compile(r":(?=[A-Za-z_]\w*=)")


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two: an opened bundle, and the runtime that answers with its options."""

    name: str
    bundle: Bundle
    runtime: str
    options: Mapping[str, object]

    @property
    def file(self) -> Path:
        """The model's file."""
        return self.bundle.folder / self.bundle.manifest.model

    @property
    def generates(self) -> bool:
        """Whether it writes tokens, one behind the other."""
        return OUTPUTS[self.bundle.manifest.output].generates


@dataclass(frozen=True, kw_only=True)
class SideTimes:
    """What is told of one side: its file, what ran it, and the median of its turns' times in ms."""

    name: str
    format: str
    scheme: str
    sha256: str
    bytes: int
    runtime: str
    version: str
    options: Mapping[str, object]
    p50_ms: float


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The ratio of the first side's time to the second's, above 1 where the second is faster, and its 95 % interval.

    verdict: what is proven of the second side: "faster", "slower" or "not proven". what: what one time is of. disturbed: what
    else the machine did meanwhile, which widens the interval and moves nothing.
    """

    ratio: float
    interval: tuple[float, float]
    pairs: int
    verdict: str
    what: str
    a: SideTimes
    b: SideTimes
    device: str
    cpu: str
    disturbed: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The result in words."""
        low, high = self.interval
        if self.verdict == "faster":
            return f"B is {self.ratio:.2f}x faster [{low:.2f}, {high:.2f}]"
        if self.verdict == "slower":
            return f"B is {1 / self.ratio:.2f}x slower [{1 / high:.2f}, {1 / low:.2f}]"
        return f"no difference found: A takes {low:.3f} to {high:.3f} times as long as B"


def read_side(text: str, like: str | None = None) -> Side:
    """A side as a user writes it: a bundle's folder or archive and, behind a colon, its runtime and options other than the
    bundle's own: `dist/chat:threads=1`, `dist/chat:runtime=openvino,threads=2`.

    like: the other side's text, whose bundle is taken where this one begins with the colon. Raises EdgekitError for what is no
    bundle, a runtime that does not run it, and an option that the runtime does not have.
    """
    path, given = _split(text)
    if not path and like is not None:
        path = _split(like)[0]
    bundle = open_bundle(Path(path))
    manifest = bundle.manifest
    own = {key: value for key, value in manifest.runtime.items() if key not in {"name", "minimum"}}
    name = str(given.pop("runtime", manifest.runtime_name))
    runtime = pick(RUNTIMES, name, f"{text}: runtime")
    if pick(TASKS, manifest.task, f"{path}: task").MODALITY != text_prompts.NAME:
        raise EdgekitError(f"{path}: its prompts are no texts, and only those are compared")
    format_ = pick(FORMATS, manifest.artifact.format, "format")
    if name not in format_.RUNTIMES:
        raise EdgekitError(
            f"{text}: {name} does not run {format_.NAME} files; take one of {', '.join(format_.RUNTIMES)}"
        )
    candidates(format_, {name: {}}, manifest.output, domains_of(manifest.artifact.operators or ()), text)
    if name != manifest.runtime_name:
        # As many threads, where it knows them: another number of them would be compared, too.
        own = {key: own[key] for key in ("threads",) if key in own and key in runtime.Options.__annotations__}
    asked = vars(parse(runtime.Options, {**own, **given}, text))
    return Side(name=text, bundle=bundle, runtime=name, options=runtime.joined(asked, {}))


def _split(text: str) -> tuple[str, dict[str, object]]:
    """The path, and the options behind the colon that a key and "=" follow; a path that is there may have such colons itself."""
    tails = list(_TAIL.finditer(text))
    if not tails or Path(text).exists():
        return text, {}
    found = next((tail for tail in tails if tail.start() and Path(text[: tail.start()]).exists()), tails[0])
    given: dict[str, object] = {}
    for part in text[found.end() :].split(","):
        key, equals, value = part.partition("=")
        if not (key and equals):
            raise EdgekitError(f"{text}: {part!r}: write options as key=value, with commas between them")
        given[key] = _value(value)
    return text[: found.start()], given


def _value(text: str) -> object:
    """An option's value as TOML has it; a text needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def compare(
    a: Side,
    b: Side,
    device: Device,
    *,
    pairs: int = PAIRS,
    tokens: int = TOKENS,
    first: bool = False,
    progress: Progress = silent,
) -> Compared:
    """Let both sides take turns on the device: ROUNDS times in new processes, so many pairs in all.

    tokens: how many are read, of a text or of the prompt of a decoder. first: of decoders, time the first token behind the prompt
    instead of each new one. Raises EdgekitError where the two do not answer in the same way, DeviceFailed where one fails there.
    """
    if a.generates != b.generates:
        raise EdgekitError(f"{a.name} and {b.name}: one writes tokens and the other does not: no call of both is alike")
    if first and not a.generates:
        raise EdgekitError(f"{a.name}: writes no tokens, so none is the first: leave --first-token out")
    longest = min(tokens, *(side.bundle.manifest.max_length for side in (a, b)))
    # Which tokens they are changes no time; every vocabulary has these.
    ids = [1 + index % 7 for index in range(max(longest, 1))]
    prompt = {name: values.tolist() for name, values in text_prompts.of_tokens([ids], 0).prompts[0].items()}
    each = -(-pairs // ROUNDS)
    rounds: list[Round] = []
    for index in range(ROUNDS):
        progress(index, ROUNDS, f"rounds of {each} pairs")
        sides = [(side.file, side.runtime, side.options) for side in (a, b)]
        request = {"prompt": prompt, "ids": ids, "tokens": a.generates, "first": first, "pairs": each, "seed": index}
        rounds.append(take_turns(device, sides, request))
    return _compared((a, b), rounds, device, _what(a, len(ids), first=first))


def _what(side: Side, tokens: int, *, first: bool) -> str:
    if not side.generates:
        return f"a call of {tokens} tokens"
    return f"the first token behind {tokens}" if first else f"a new token behind {tokens}"


def _compared(sides: tuple[Side, Side], rounds: Sequence[Round], device: Device, what: str) -> Compared:
    ratio, bounds = interval([log_ratio(one.ms) for one in rounds])
    threads = max(one.sides[index].threads or one.device["cores"] for one in rounds for index in (0, 1))
    a, b = (_told(side, index, rounds) for index, side in enumerate(sides))
    return Compared(
        ratio=ratio,
        interval=bounds,
        pairs=sum(len(one.ms) for one in rounds),
        verdict=verdict(bounds),
        what=what,
        a=a,
        b=b,
        device=device.identity,
        cpu=rounds[0].device["cpu"],
        disturbed=tuple(neighbours.disturbances([seen for one in rounds for seen in one.neighbours], threads)),
    )


def _told(side: Side, index: int, rounds: Sequence[Round]) -> SideTimes:
    artifact, answered = side.bundle.manifest.artifact, rounds[0].sides[index]
    return SideTimes(
        name=side.name,
        format=artifact.format,
        scheme=artifact.scheme,
        sha256=artifact.sha256,
        bytes=artifact.bytes,
        runtime=answered.runtime,
        version=answered.version,
        options={**side.options, "threads": answered.threads},
        p50_ms=round(median(pair[index] for one in rounds for pair in one.ms), 6),
    )
