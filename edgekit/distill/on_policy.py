"""On-policy distillation: in some steps the student writes, and its teacher says what should have come next.

Agarwal et al., "On-Policy Distillation of Language Models" (GKD, arXiv:2306.13649), algorithm 1: with a probability a batch's
tokens are sampled from the student as it then is, instead of the data's; no gradient goes through the sampling.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from edgekit.distill.batches import score
from edgekit.distill.decoders import Body
from edgekit.distill.options import OnPolicy, at
from edgekit.distill.ranks import Ranks
from edgekit.distill.rewards import REWARDS, Reward, advantages
from edgekit.distill.scorer import make_scorer
from edgekit.distill.signals import Batch, Pull
from edgekit.distill.tap import Tap
from edgekit.model import Model
from edgekit.tasks.text_generation import Passage

Judge = Callable[[Sequence[Passage], Sequence[Passage]], Sequence[float]]
"""What answers are worth: of the data's passages, and of what the student wrote in the place of each."""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A student that writes behind the prompts of some passages.

    stops: the tokens that end what it says. longest: how many tokens a passage has at most, its prompt included. All that is
    drawn follows from the seed and the share of the steps that are gone.
    """

    tap: Tap
    passages: Sequence[Passage]
    stops: Sequence[int]
    options: OnPolicy
    longest: int
    seed: int
    reward: Judge | None = None
    """What its answers are worth."""
    ranks: Ranks = field(default_factory=Ranks)
    """The processes that share a batch: each writes behind its own rows, by the numbers that one process would draw."""

    def __call__(self, rows: Sequence[int], share: float) -> Callable[[Sequence[int]], Batch] | None:
        """What it writes in the place of these rows at this share of the steps, as the batch of any of them; None in a step of
        the data's own tokens."""
        if not self.writes(share):
            return None
        written = dict(zip(rows, self._write_all(rows, self._generator("words", share, self.tap.device)), strict=True))
        worth = {} if self.reward is None else self._worth(rows, written)

        def make(some: Sequence[int]) -> Batch:
            batch = score([written[row] for row in some], some)
            if not worth:
                return batch
            weights = torch.cat([worth[row].expand(len(written[row].ids) - written[row].start) for row in some])
            return replace(batch, pull=Pull(weights=weights, temperature=self.options.temperature))

        return make

    def _worth(self, rows: Sequence[int], written: Mapping[int, Passage]) -> dict[int, Tensor]:
        """Of each row what its answer is worth beyond the others', times the reward's weight."""
        assert self.reward is not None
        assert self.options.reward is not None
        found = advantages(self.reward([self.passages[row] for row in rows], [written[row] for row in rows]))
        return dict(zip(rows, found * self.options.reward.weight, strict=True))

    def writes(self, share: float) -> bool:
        """Whether the step at this share of all learns from what the student writes."""
        number = torch.rand((), generator=self._generator("share", share, "cpu"), dtype=torch.float64)
        return float(number) < at(self.options.share, share)

    def _write_all(self, rows: Sequence[int], generator: torch.Generator) -> list[Passage]:
        """`write` of a batch, of which each process does its own rows."""
        if self.ranks.count == 1:
            return self.write(rows, generator)
        places = self.ranks.own(range(len(rows)))
        own = self.write([rows[place] for place in places], generator, (places, len(rows)))
        parts = [json.loads(part) for part in self.ranks.share(json.dumps([asdict(passage) for passage in own]))]
        return [Passage(**parts[place % len(parts)][place // len(parts)]) for place in range(len(rows))]

    def write(
        self, rows: Sequence[int], generator: torch.Generator, places: tuple[Sequence[int], int] | None = None
    ) -> list[Passage]:
        """The rows' prompts, each with what the student says behind it; places: see `continue_texts`."""
        asked = [self._asked(self.passages[row]) for row in rows]
        room = [min(self.options.new_tokens, self.longest - len(ids)) for ids in asked]
        said = continue_texts(self.tap, asked, room, self.stops, (self.options.temperature, generator), places)
        return [
            Passage(ids=ids + more, start=len(ids), prompt=self.passages[row].prompt)
            for row, ids, more in zip(rows, asked, said, strict=True)
        ]

    def _asked(self, passage: Passage) -> list[int]:
        """A passage's prompt; of running text, which has none, its first part."""
        if passage.start > 1:
            return passage.asked
        return passage.ids[: min(max(1, round(self.options.prompt * len(passage.ids))), self.longest - 1)]

    def _generator(self, of: str, share: float, device: str) -> torch.Generator:
        drawn = hashlib.sha256(f"on-policy:{of}:{self.seed}:{share!r}".encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(drawn[:7], "big"))


def make_reward(model: Model, asked: Reward, scorer: Path | None = None, device: str = "cpu") -> Judge:
    """What a recipe's check says of what a student of this tokenizer wrote, 1 or 0, or what a scorer says of prompts and answers;
    special tokens are no part of a text."""
    tokenizer = model.tokenizer()
    score = None if scorer is None else make_scorer(scorer, asked.label, device)

    def reward(data: Sequence[Passage], written: Sequence[Passage]) -> Sequence[float]:
        read = [
            [tokenizer.decode(ids) for ids in (one.asked, one.ids[one.start :], own.ids[one.start :])]
            for own, one in zip(data, written, strict=True)
        ]
        if score is not None:
            return score([prompt + answer for prompt, answer, _ in read])
        assert asked.check is not None
        check = REWARDS[asked.check]
        return [float(check(prompt, answer, wanted, asked)) for prompt, answer, wanted in read]

    return reward


@torch.no_grad()
def continue_texts(
    tap: Tap,
    texts: Sequence[Sequence[int]],
    room: Sequence[int],
    stops: Sequence[int],
    drawn: tuple[float, torch.Generator],
    places: tuple[Sequence[int], int] | None = None,
) -> list[list[int]]:
    """What a decoder says behind each of some texts: at most `room` tokens each, the last of which may be one that stops.

    texts: ids, at least one each. drawn: the temperature, and what tokens are drawn with; at temperature 0 the likeliest. places:
    which of how many texts these are, where others are written elsewhere: each gets the numbers that it would get among all. All
    texts are written at once, each token's keys and values computed once; dropout is off.
    """
    if not texts:
        return []
    module, (temperature, generator) = cast(Body, tap.module), drawn
    width = max(map(len, texts))
    new = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in texts], device=tap.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in texts], device=tap.device)
    said: list[list[int]] = [[] for _ in texts]
    learning = module.training
    module.eval()
    try:
        cache = None
        while True:
            with tap.autocast():
                states, cache = module.read_on(new, mask, cache)
            ids = _draw(tap.logits(states), temperature, generator, places)
            if not _say(said, ids.tolist(), room, stops):
                return said
            new, mask = ids[:, None], torch.cat([mask, torch.ones_like(mask[:, :1])], dim=-1)
    finally:
        module.train(learning)


def _say(said: Sequence[list[int]], ids: Sequence[int], room: Sequence[int], stops: Sequence[int]) -> bool:
    """Add each text's next token where it goes on; whether any goes on after that."""
    going = False
    for words, token, most in zip(said, ids, room, strict=True):
        if len(words) < most and not (words and words[-1] in stops):
            words.append(token)
            going |= len(words) < most and token not in stops
    return going


def _draw(
    logits: Tensor, temperature: float, generator: torch.Generator, places: tuple[Sequence[int], int] | None
) -> Tensor:
    """A token of each row of logits [rows, vocabulary], int64 [rows]; places: see `continue_texts`."""
    if not temperature:
        return logits.argmax(dim=-1)
    # Of logits that are no numbers the loss is none, and the loop says so.
    likely = (logits / temperature).nan_to_num().softmax(dim=-1)
    if places is None:
        return torch.multinomial(likely, 1, generator=generator)[:, 0]
    # What torch.multinomial does for one draw a row (ATen/native/Distributions.cpp), of which these rows are some: the largest
    # of p / q with q drawn from an exponential distribution.
    own, count = places
    waits = likely.new_empty(count, likely.shape[1]).exponential_(1, generator=generator)
    return (likely / waits[list(own)]).argmax(dim=-1)
