"""Several teachers as one: what each finds probable, in a mean.

The loss compares softmax(z / T), and so the mean is of those: KL(sum w_k p_k || q) differs from sum w_k KL(p_k || q) by what no
student changes, so that a student of the mean learns of each teacher by its weight. What one teacher finds probable stays so in
it; in a mean of logits one that is sure of the contrary would take it away, and logits of two networks have no common scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgekit.distill.batches import Source
from edgekit.distill.signals import IGNORED, Batch, Signal
from edgekit.distill.teachers import Teacher
from edgekit.errors import EdgekitError

# Held-out rows that are asked at a time, and scored tokens whose logits are there at once.
_AT_A_TIME, _TOKENS = 32, 256
# Nats a row that the weights may be from the best there are, and the most steps towards them.
_NEAR, _STEPS = 1e-6, 10_000


@dataclass(frozen=True, kw_only=True)
class Member:
    """A teacher among others.

    source: whose batches it is asked, by the rows of the student's; None for the student's own batches. order: of a classifier,
    its own number of each class of the first teacher; None where they are the same.
    """

    teacher: Teacher
    source: Source | None = None
    order: Sequence[int] | None = None

    def ask(self, batch: Batch) -> Signal:
        """Its signal for the student's batch, classes in the first teacher's order."""
        device = str(batch.tokens.device)
        signal = self.teacher.ask(batch if self.source is None else self.source.batch(batch.rows).to(device))
        return signal if self.order is None else replace(signal, output=signal.output[..., list(self.order)])


def mix(logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Logits of several teachers [..., teachers, width] -> logits [..., width] whose softmax at T is the weighted mean of theirs.

    weights: [teachers], at least 0, of sum 1.
    """
    each = (logits / temperature).log_softmax(dim=-1) + weights.to(logits).log()[:, None]
    return each.logsumexp(dim=-2) * temperature


def join(members: Sequence[Member], weights: Sequence[float]) -> Teacher:
    """One teacher of several: their outputs, and of what is inside that of the first alone."""
    first, *others = members
    shares, widths = torch.tensor(weights, dtype=torch.float64), list[int]()

    def ask(batch: Batch) -> Signal:
        signal = first.ask(batch)
        outputs = [signal.output, *(member.ask(batch).output for member in others)]
        if batch.scored is None:
            return replace(signal, output=torch.stack(outputs, dim=-2))
        widths[:] = [output.shape[-1] for output in outputs]
        return replace(signal, output=torch.cat(outputs, dim=-1))

    def logits(states: Tensor) -> Tensor:
        parts = zip(members, torch.split(states, widths, dim=-1), strict=True)
        said = [member.teacher.logits(part) for member, part in parts]
        # What only pads the vocabulary of one is no token of another.
        shared = min(one.shape[-1] for one in said)
        return torch.stack([one[..., :shared] for one in said], dim=-2)

    return Teacher(ask=ask, logits=logits, mix=lambda given, temperature: mix(given, shares, temperature))


def choose_weights(
    members: Sequence[Member], source: Source, device: str, where: str
) -> tuple[list[float], list[float]]:
    """Weights by which the members' mean is right most probably on the rows that are held out, and its surprise there.

    Returns the weights, and the log-loss of each member and of the mean, in nats a row or token, at T = 1. Raises EdgekitError,
    beginning with `where`, where no held-out row has a wanted answer.
    """
    found = [
        torch.stack([_surprise(member, batch) for member in members], dim=-1)
        for batch in (source.batch(rows).to(device) for rows in _in_turn(source.held))
    ]
    logs = -torch.cat(found) if found else torch.zeros(0, len(members))
    if not len(logs):
        raise EdgekitError(
            f'{where}: "validation" chooses by held-out train rows with right answers, and there are none; give labels, a larger'
            " distill.holdout, or the weights as a list"
        )
    weights = best_weights(logs.cpu().double())
    mean = (logs.cpu().double() + weights.log()).logsumexp(dim=-1)
    told = [*(-logs.double().mean(dim=0)).tolist(), -float(mean.mean())]
    return weights.tolist(), [round(value, 6) for value in told]


def best_weights(logs: Tensor) -> Tensor:
    """Weights [teachers] of the least log-loss -mean(log sum_k w_k p_k).

    logs: log p_k of what is right, float64 [rows, teachers].

    Convex in w: expectation-maximisation (Dempster, Laird, Rubin 1977) from equal weights, as Smyth and Wolpert 1999 stack
    densities. It ends where the bound log max_k mean(p_k / mean) says that no weights are better by _NEAR (Lindsay 1983).
    """
    weights = torch.full((logs.shape[1],), 1 / logs.shape[1], dtype=logs.dtype)
    for _ in range(_STEPS):
        # mean(p_k / sum_j w_j p_j): what EM multiplies a weight with.
        gains = (logs - (logs + weights.log()).logsumexp(dim=-1, keepdim=True)).exp().mean(dim=0)
        if math.log(float(gains.max())) <= _NEAR:
            break
        weights = weights * gains
        weights = weights / weights.sum()
    return weights


def _in_turn(rows: Sequence[int]) -> list[Sequence[int]]:
    return [rows[start : start + _AT_A_TIME] for start in range(0, len(rows), _AT_A_TIME)]


def _surprise(member: Member, batch: Batch) -> Tensor:
    """-log p of each right answer of a batch at T = 1, float32 [rows that have one]; of a decoder of each learned token."""
    with torch.no_grad():
        output = member.ask(batch).output
        if batch.scored is None:
            right = batch.targets.max(dim=-1)
            known = right.values == 1
            return torch.nn.functional.cross_entropy(output[known], right.indices[known], reduction="none")
        rows, positions = batch.scored
        states = output[rows, positions]
        parts = zip(torch.split(states, _TOKENS), torch.split(batch.targets, _TOKENS), strict=True)
        losses = [_cross_entropy(member.teacher.logits(part), ids) for part, ids in parts]
        return torch.cat(losses)[batch.targets != IGNORED]


def _cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, ids, reduction="none", ignore_index=IGNORED)
