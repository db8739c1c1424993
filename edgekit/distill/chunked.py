"""Losses of logits whose gradients are made in the forward pass: a decoder's logits are there for some tokens at a time only.

Where torch differentiates a loss of a decoder it keeps [tokens, vocabulary] several times over. Here a slice of tokens goes
through the student's head, the teacher's, the loss and back into the gradients of the hidden states and of the head at once;
then its logits are dropped. Each logit is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from edgekit.distill.divergences import Compared

# Logits of at most this many bytes are there at once (a few copies of them within a loss), however long the texts are.
LOGIT_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Head:
    """What makes logits of a decoder's last hidden states.

    cap: soft-capped, Gemma 2 (arXiv:2408.00118), section 2: cap tanh(logits / cap). dtype: that of the products, None for the
    weight's own.
    """

    weight: Tensor
    """[vocabulary, channels]"""
    bias: Tensor | None = None
    cap: float | None = None
    dtype: torch.dtype | None = None

    def __call__(self, states: Tensor) -> Tensor:
        """Hidden states [tokens, channels] -> logits [tokens, vocabulary], in float32 at least."""
        dtype = self.dtype or self.weight.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return _cap(_widen(torch.nn.functional.linear(states.to(dtype), self.weight.to(dtype), bias)), self.cap)


def mean_over_tokens(
    states: Tensor, head: Head, compare: Callable[[Tensor, slice], Compared], divisor: float
) -> Tensor:
    """The sum over tokens of a loss of their logits, divided by `divisor`.

    states: hidden states [tokens, channels]. compare: (logits of a slice of the tokens, the slice) -> values and gradients.
    Gradients reach `states` and the head's weight and bias; there is no second derivative.
    """
    work = _Work(head=head, compare=compare, divisor=divisor, learn=torch.is_grad_enabled())
    total: Tensor = cast(Any, _OfHead).apply(states, head.weight, head.bias, work)
    return total


def mean_over_rows(logits: Tensor, compare: Callable[[Tensor], Compared], divisor: float) -> Tensor:
    """The sum over rows of a loss of logits [rows, width], divided by `divisor`; its gradient is the one that `compare` gives."""
    total: Tensor = cast(Any, _OfLogits).apply(logits, compare, divisor)
    return total


@dataclass(frozen=True, kw_only=True)
class _Work:
    head: Head
    compare: Callable[[Tensor, slice], Compared]
    divisor: float
    learn: bool


class _OfLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, compare: Callable[[Tensor], Compared], divisor: float) -> Tensor:
        values, gradient = compare(_widen(logits))
        ctx.save_for_backward((gradient / divisor).to(logits.dtype))
        return values.sum() / divisor

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * scale, None, None


class _OfHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, work: _Work) -> Tensor:
        """Sums in slices. The gradients are kept for `backward`, which hands them over and keeps none."""
        ctx.made = None
        head, dtype = work.head, work.head.dtype or weight.dtype
        head = Head(weight=weight.to(dtype), bias=None if bias is None else bias.to(dtype), cap=head.cap)
        count, step = len(states), max(1, LOGIT_BYTES // (4 * len(weight)))
        total = _widen(states.new_zeros(()))
        made = _Gradients(states, weight, bias) if work.learn else None
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            logits = head(states[part])
            values, gradient = work.compare(logits, part)
            total += values.sum()
            if made is not None:
                if head.cap is not None:
                    gradient.mul_(1 - (logits / head.cap).square_())
                del logits
                made.add(part, gradient, states[part].to(dtype), head, work.divisor)
        ctx.made = made
        return total / work.divisor

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        made, ctx.made = ctx.made, None
        if made is None:
            raise RuntimeError("the gradients of this loss were handed over already; compute it again")
        return *made.scaled(float(scale)), None


class _Gradients:
    """The gradients of the hidden states, the head's weight and its bias as they grow, slice by slice."""

    def __init__(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.states = torch.zeros_like(states) if states.requires_grad else None
        self.weight = torch.zeros_like(weight) if weight.requires_grad else None
        self.bias = torch.zeros_like(bias) if bias is not None and bias.requires_grad else None

    def add(self, part: slice, gradient: Tensor, states: Tensor, head: Head, divisor: float) -> None:
        """gradient: of a slice's sum, in its logits; states: its hidden states as they were multiplied."""
        if self.bias is not None:
            self.bias += gradient.sum(dim=0) / divisor
        narrow = gradient.to(states.dtype)
        if self.states is not None:
            self.states[part] = narrow @ head.weight / divisor
        if self.weight is None:
            return
        if self.weight.dtype == states.dtype:
            self.weight.addmm_(narrow.T, states / divisor)
        else:
            self.weight += narrow.T @ (states / divisor)

    def scaled(self, scale: float) -> tuple[Tensor | None, ...]:
        """All three times a number; themselves where it is 1, so that the largest is not there twice."""
        made = (self.states, self.weight, self.bias)
        return made if scale == 1.0 else tuple(None if tensor is None else tensor * scale for tensor in made)


def _cap(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _widen(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor if tensor.dtype in {torch.float32, torch.float64} else tensor.float()
