"""The scheme "auto" of decoders: the smallest file whose answers stay within the recipe's limits on the calibrate prompts.

Candidates are tried from the fewest bytes up, each in the runtime that ships, against the float model in that same runtime. What
is compared are the tokens that `verify` would score: wanted answers, running text, and where a prompt has neither, the float
model's own greedy answer. Limits are those of `[accuracy]` that tokens can show: kl, top1, perplexity, far_kl with far_share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EdgekitError
from edgekit.progress import Progress
from edgekit.runtimes import Generator, scores
from edgekit.runtimes.generation import continuation
from edgekit.typed_json import IN_ITS_TABLE, to_table

Passage = tuple[list[int], int]
"""Token ids, and the index of the first one that is scored (at least 1)."""
# A weight of so many bits or more is held to the limits of eight.
EIGHT_BITS = 7.5
# Passages that candidates are compared on, scored tokens of all and of one, and new ones where a prompt has no answer. A mean KL
# over 64 answers has a standard error of a tenth of itself or so.
PASSAGES, TOKENS, LONGEST, NEW = 64, 2048, 128, 16
# What a candidate may take of a limit: calibrate prompts have made the importance matrix, and unseen text loses up to 1.2 times
# as much (measured on a Llama of 46 million weights); two standard errors are added for these being few.
SHARE, ERRORS = 0.8, 2.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a decoder may lose, by the bits of a weight: kl, top1, perplexity, far_kl and far_share each."""

    fewer_bits: Mapping[str, float]
    eight_bits: Mapping[str, float]

    def at(self, bits: float) -> Mapping[str, float]:
        """The limits for an artifact most of whose weights have so many bits."""
        return self.fewer_bits if bits < EIGHT_BITS else self.eight_bits


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a candidate says against the float model, summed over each passage's scored tokens, float64 [passages].

    tokens: how many; kl: KL divergences in nats; changed: likeliest tokens that are others; rise: how much less likely, in nats,
    the tokens are that the passage says.
    """

    tokens: NDArray[np.float64]
    kl: NDArray[np.float64]
    changed: NDArray[np.float64]
    rise: NDArray[np.float64]

    @property
    def mean_kl(self) -> float:
        """Nats a token."""
        return float(self.kl.sum() / self.tokens.sum())


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A file that was made: its bytes, the bits of a weight that limits follow, and what it says."""

    bytes: int
    bits: float
    heard: Heard


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a candidate loses, means per token, None for what is not a number: KL divergence in nats, share of equal likeliest
    tokens, factor of the perplexity; far is the share of passages beyond far_kl.

    used: what it takes of each limit, its mean with ERRORS standard errors (1: all of it). passes: whether it keeps the limits.
    """

    kl: float | None
    top1: float | None
    perplexity: float | None
    far: float | None
    used: Mapping[str, float | None]
    passes: bool


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A candidate that was tried, on so many passages and scored tokens."""

    scheme: str
    bytes: int
    passages: int
    tokens: int
    figures: Figures = field(metadata=IN_ITS_TABLE)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How a scheme was decided: on how many passages and tokens of what was taken, what was tried, and whether what was taken
    keeps the limits."""

    passages: int
    tokens: int
    passes: bool
    tried: tuple[Tried, ...]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The scheme that was taken, how it was decided, and a sentence on it."""

    scheme: str
    decision: Decision
    note: str

    @property
    def passes(self) -> bool:
        """Whether it keeps the limits."""
        return self.decision.passes

    @property
    def facts(self) -> dict[str, object]:
        """The decision, for the artifact's facts."""
        return to_table(self.decision)


def needed(limits: Limits | None) -> Limits:
    """The limits; EdgekitError where there are none to keep."""
    if limits is None:
        raise EdgekitError("export: scheme = 'auto' keeps limits, and none are given; name a scheme")
    return limits


def passages(ids: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Passage]:
    """Some of the prompts, from all over the list, always the same; no more than TOKENS to score.

    starts: of each row the index of its first token that is said; its length where nothing is yet.
    """
    order, left, found = np.random.default_rng(0).permutation(len(ids)), TOKENS, list[Passage]()
    for place in order.tolist():
        row, start = list(ids[place]), max(1, starts[place])
        said = min(len(row) - start, LONGEST) or NEW
        if not row or len(found) == PASSAGES or said > left:
            continue
        left -= said
        found.append((row[: start + LONGEST], start))
    return found


def with_answers(generator: Generator, rows: Iterable[Passage], stops: Iterable[int]) -> Iterator[Passage]:
    """The same passages, the float model's own answer behind those that have none; without those that it does not answer."""
    ends = frozenset(stops)
    for ids, start in rows:
        most = min(NEW, generator.context - len(ids))
        said = ids if len(ids) > start else [*ids, *continuation(generator, np.array(ids), most, ends)]
        if len(said) > start:
            yield said, start


def scored_logits(generator: Generator, passage: Passage) -> NDArray[np.float32]:
    """The logits that foretell each scored token of a passage, float32 [tokens, vocabulary]."""
    ids, start = passage
    generator.clear()
    return generator.logits(ids[:-1], slice(start - 1, None))


def hear(generator: Generator, rows: Sequence[Passage], reference: Iterable[NDArray[np.floating]]) -> Heard:
    """What a generator makes of passages, against the float model's `scored_logits` of each."""
    sums = []
    for (ids, start), exact in zip(rows, reference, strict=True):
        own, wanted = scored_logits(generator, (ids, start)), np.asarray(exact, np.float32)
        changed = scores.top1(wanted) != scores.top1(own)
        p, q = scores.log_softmax(wanted), scores.log_softmax(own)
        said = np.arange(len(p)), np.array(ids[start:])
        kl = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0)
        sums.append((len(p), kl.sum(), changed.sum(), (p[said] - q[said]).sum()))
    columns = np.array(sums, np.float64).reshape(-1, 4).T
    return Heard(tokens=columns[0], kl=columns[1], changed=columns[2], rise=columns[3])


def figures(heard: Heard, limits: Mapping[str, float]) -> Figures:
    """What a candidate loses, and takes of each limit."""
    far = limits["far_kl"]
    beyond = float(np.mean(~(heard.kl / heard.tokens <= far)))
    ends = {name: _upper(sums, heard.tokens) for name, sums in vars(heard).items() if name != "tokens"}
    taken = {
        "kl": ends["kl"] / limits["kl"],
        "top1": ends["changed"] / max(1.0 - limits["top1"], 1e-9),
        "perplexity": ends["rise"] / math.log(limits["perplexity"]),
    }
    used = {name: round(value, 4) if math.isfinite(value) else None for name, value in taken.items()}
    passes = all(value is not None and value <= SHARE for value in used.values()) and beyond <= limits["far_share"]
    with np.errstate(over="ignore"):
        return Figures(
            kl=_shown(heard.mean_kl),
            top1=_shown(1.0 - float(heard.changed.sum() / heard.tokens.sum())),
            perplexity=_shown(float(np.exp(heard.rise.sum() / heard.tokens.sum()))),
            far=_shown(beyond),
            used=used,
            passes=passes,
        )


def _shown(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def choose(
    names: Sequence[str],
    make: Callable[[str], Candidate],
    limits: Limits | None,
    progress: Progress,
    remedy: str,
) -> Chosen:
    """Try schemes in their order until one keeps the limits; where none does, the one with the least KL divergence.

    remedy: what a person may do where none does. Raises EdgekitError where there are no limits to keep.
    """
    limits = needed(limits)
    tried: list[Tried] = []
    for index, name in enumerate(names):
        progress(index + 1, len(names) + 2, f"tries {name}")
        made = make(name)
        found = Tried(
            scheme=name,
            bytes=made.bytes,
            passages=len(made.heard.tokens),
            tokens=int(made.heard.tokens.sum()),
            figures=figures(made.heard, limits.at(made.bits)),
        )
        tried.append(found)
        if found.figures.passes:
            break
    taken = tried[-1] if tried[-1].figures.passes else min(tried, key=_loss)
    on = f"on {taken.passages} calibrate prompts ({taken.tokens} tokens)"
    lost = "; ".join(
        f"{each.scheme} loses {_worst(each.figures)}{f' on {each.passages}' if each.passages != taken.passages else ''}"
        for each in tried
        if not each.figures.passes
    )
    if taken.figures.passes:
        smaller = f"; {lost}" if lost else ""
        note = f"auto: {taken.scheme} ({_size(taken)}) is the smallest that keeps the limits {on}{smaller}"
    else:
        note = f"auto: no scheme keeps the limits {on}; {taken.scheme} loses least: {lost}; {remedy}"
    decision = Decision(passages=taken.passages, tokens=taken.tokens, passes=taken.figures.passes, tried=tuple(tried))
    return Chosen(scheme=taken.scheme, decision=decision, note=note)


def _loss(tried: Tried) -> tuple[bool, float]:
    """What candidates that keep no limits are ordered by: numbers before what is none, the smaller first."""
    return tried.figures.kl is None, tried.figures.kl or 0.0


def check_asked(rows: Sequence[Passage]) -> None:
    """Raises EdgekitError where there is nothing to compare candidates on."""
    if not rows:
        raise EdgekitError(
            "export: scheme = 'auto' is decided on calibrate prompts, and there are none to which the model says anything; add"
            " some, or name a scheme (--scheme)"
        )


def _worst(found: Figures) -> str:
    """The limit that a candidate takes most of, in words."""
    used = found.used
    if any(value is None for value in used.values()):
        return "all: its likelihoods are not numbers"
    name = max(used, key=lambda limit: used[limit] or 0.0)
    if (used[name] or 0.0) <= SHARE:
        return f"too much on {found.far:.1%} of the prompts"
    figure = {
        "kl": f"KL {found.kl:.3g}",
        "top1": f"top-1 {found.top1:.1%}",
        "perplexity": f"perplexity x {found.perplexity:.3f}",
    }[name]
    return f"too much ({figure}, with its error {used[name]:.2g} of the limit)"


def _size(tried: Tried) -> str:
    return f"{tried.bytes / 1e6:.1f} MB, KL {tried.figures.kl:.3g}"


def _upper(sums: NDArray[np.float64], tokens: NDArray[np.float64]) -> float:
    """A mean per token with ERRORS of its standard errors: a ratio of sums over passages (Cochran, Sampling Techniques, 6.3)."""
    mean, count = sums.sum() / tokens.sum(), len(tokens)
    if count < 2:
        return float(mean)
    spread = count / (count - 1) * np.square(sums - mean * tokens).sum()
    return float(mean + ERRORS * math.sqrt(spread) / tokens.sum()) if math.isfinite(spread) else math.inf
