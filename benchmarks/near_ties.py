"""Does another engine write a decoder's tokens, but for those that are a matter of rounding?

llama.cpp rounds a file's inputs of matrices to 8 bits (16 for matrices of 16 bits). The last bit of a sum decides which way, and
sums are made in another order by each engine, and by the same one when it reads tokens in one batch, not one by one. So the
two likeliest tokens may change places where they are nearly as likely. How nearly is measured here, in this machine's engine
alone: it reads its own answers both ways, and the gap between its two likeliest tokens moves. Three times the root mean square of
that is the bound (of a normal distribution 99.7 % lie within). How many tokens may be others is bounded too: by twice as many as
reading in one batch turns here, and two. Nothing of the other engine is in either. An answer that ends before its time, or goes
on behind it, is not a matter of rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.reference import read_reference
from edgekit.runtimes import llamacpp
from edgekit.runtimes.generation import continuation
from edgekit.workspace import open_product

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.runtimes import Generator

    Logits = NDArray[np.float32]

RANGE, TIMES, FEW = 3.0, 2, 2


@dataclass(frozen=True, kw_only=True)
class Written:
    """answers, and how many are the `same` as here; other: tokens that are not the likeliest here behind the same text; below:
    how far at most one of them is below the likeliest, in logits; bound, most: up to where both are rounding (see the module);
    cut: answers of another length than here that no other token explains."""

    answers: int
    same: int
    other: int
    below: float
    bound: float
    most: int
    cut: int

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains every token that differs."""
        return self.below <= self.bound and self.other <= self.most and not self.cut


def compare_written(
    file: Path,
    options: Mapping[str, object],
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    ends: tuple[int, frozenset[int]],
) -> Written:
    """Another engine's greedy answers to prompts, held against what llama.cpp writes here with the same options.

    ends: how many tokens an answer has at most, and which end it.
    """
    moved: list[NDArray[np.float64]] = []
    same, turned, cut, behind = 0, 0, 0, [0.0]
    with closing(llamacpp.generator(file, options)) as generator:
        for prompt, answer in zip(prompts, answers, strict=True):
            own = [*continuation(generator, np.array(prompt), *ends)]
            same += list(answer) == own
            shared = min(len(own), len(answer))
            cut += len(own) != len(answer) and list(answer[:shared]) == own[:shared]
            if own:
                gaps, flips = _moved(generator, prompt, own)
                moved.append(gaps)
                turned += flips
            if not answer:
                continue
            logits = _one_by_one(generator, prompt, answer)
            below = logits.max(axis=-1) - logits[np.arange(len(answer)), list(answer)]
            behind += below[below > 0].tolist()
    noise = float(np.sqrt((np.concatenate(moved) ** 2).mean()))
    return Written(
        answers=len(answers),
        same=same,
        other=len(behind) - 1,
        below=round(max(behind), 6),
        bound=round(RANGE * noise, 6),
        most=TIMES * turned + FEW,
        cut=cut,
    )


def _moved(generator: Generator, prompt: Sequence[int], answer: Sequence[int]) -> tuple[NDArray[np.float64], int]:
    """By how much the gap between the two likeliest tokens [n] is another where an answer is read in one batch, and how many
    tokens are not the likeliest then."""
    written = _one_by_one(generator, prompt, answer)
    two = np.argsort(-written, axis=-1, kind="stable")[:, :2]
    generator.clear()
    whole = generator.logits([*prompt, *answer[:-1]], slice(len(prompt) - 1, None))
    one, other = (np.diff(np.take_along_axis(logits.astype(np.float64), two, axis=-1)) for logits in (written, whole))
    return (one - other)[:, 0], int((whole.argmax(axis=-1) != two[:, 0]).sum())


def _one_by_one(generator: Generator, prompt: Sequence[int], answer: Sequence[int]) -> Logits:
    """The logits [n, vocabulary] of which each of an answer's n tokens is chosen, read as it is written."""
    generator.clear()
    last = slice(-1, None)
    read = [generator.logits(prompt, last), *(generator.logits([token], last) for token in answer[:-1])]
    return np.concatenate(read)


def read_ends(recorded: Path) -> tuple[int, frozenset[int]]:
    """Where answers end that were asked for beside a record's folder."""
    sequences = read_reference(open_product(recorded, "record")).sequences
    assert sequences is not None
    return sequences.max_new, frozenset(sequences.stop)


def split(ids: NDArray[Any], offsets: NDArray[Any]) -> Iterator[list[int]]:
    """The rows of what lies in one array, row i between offsets i and i + 1."""
    return (ids[begin:end].tolist() for begin, end in itertools.pairwise(offsets.tolist()))
