"""POOLINGS: token vectors to one embedding, inside the graph.

Each function takes hidden [batch, sequence, channels] and mask [batch, sequence, 1] (1.0 for a token that is pooled: real,
padding on the right, and not of a prompt that is left out) and gives [batch, channels]. Definitions:
sentence-transformers, sentence_transformer/modules/pooling.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.embedding_files import Step
from edgekit.errors import EdgekitError
from edgekit.tasks.encoders import Encoder


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over real tokens."""
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)


def mean_sqrt_len(hidden: Tensor, mask: Tensor) -> Tensor:
    """The sum over real tokens divided by the square root of their number."""
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9).sqrt()


def cls(hidden: Tensor, mask: Tensor) -> Tensor:
    """The first pooled token."""
    first = mask.to(torch.int32).argmax(dim=1, keepdim=True).to(torch.int64)
    return hidden.gather(1, first.expand(-1, 1, hidden.shape[-1])).squeeze(1)


def largest(hidden: Tensor, mask: Tensor) -> Tensor:
    """The largest value of each channel over real tokens."""
    return hidden.masked_fill(mask == 0, torch.finfo(hidden.dtype).min).amax(dim=1)


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The last real token."""
    places = torch.arange(hidden.shape[1], device=hidden.device, dtype=hidden.dtype).view(1, -1, 1)
    last = (mask * places).amax(dim=1, keepdim=True).to(torch.int64)
    return hidden.gather(1, last.expand(-1, 1, hidden.shape[-1])).squeeze(1)


def weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over real tokens, each weighed by its place in the text, from 1 (Muennighoff, arXiv:2202.08904, section 3)."""
    weights = mask * torch.arange(1, hidden.shape[1] + 1, device=hidden.device, dtype=hidden.dtype).view(1, -1, 1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": cls,
    "lasttoken": last_token,
    "max": largest,
    "mean": mean,
    "mean_sqrt_len_tokens": mean_sqrt_len,
    "weightedmean": weighted_mean,
}
# torch's functions without parameters that a Dense module may name, by their class.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "ELU": nn.ELU,
    "GELU": nn.GELU,
    "Hardswish": nn.Hardswish,
    "Identity": nn.Identity,
    "LeakyReLU": nn.LeakyReLU,
    "Mish": nn.Mish,
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "SELU": nn.SELU,
    "SiLU": nn.SiLU,
    "Sigmoid": nn.Sigmoid,
    "Softplus": nn.Softplus,
    "Softsign": nn.Softsign,
    "Tanh": nn.Tanh,
}


class Dense(nn.Module):
    """A linear layer and a function behind the pooling, with the input added where the file says so."""

    def __init__(self, *, bias: bool, residual: bool, inner: int, outer: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(inner, outer, bias=bias)
        self.activation = activation
        self.adds = residual
        self.residual = nn.Linear(inner, outer, bias=False) if residual and inner != outer else None

    def forward(self, pooled: Tensor) -> Tensor:
        """[batch, inner] -> [batch, outer]."""
        found: Tensor = self.activation(self.linear(pooled))
        if not self.adds:
            return found
        return found + (pooled if self.residual is None else self.residual(pooled))


class Normalize(nn.Module):
    """Embeddings of length 1."""

    def forward(self, pooled: Tensor) -> Tensor:
        """[batch, channels] -> [batch, channels]."""
        return F.normalize(pooled, p=2.0, dim=-1)


class LayerNorm(nn.Module):
    """A LayerNorm over the channels of an embedding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, pooled: Tensor) -> Tensor:
        """[batch, channels] -> [batch, channels]."""
        return cast("Tensor", self.norm(pooled))


def load_steps(steps: Sequence[Step]) -> list[nn.Module]:
    """The modules behind a pooling, with their weights.

    Raises EdgekitError for an activation that edgekit does not know, sizes that are missing, and weights that do not fit them.
    """
    return [_load_step(step) for step in steps]


def _load_step(step: Step) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if step.kind == "Normalize":
        return Normalize()
    if step.kind == "LayerNorm":
        module: nn.Module = LayerNorm(step.size("dimension"))
    else:
        module = Dense(
            bias=bool(step.settings.get("bias", True)),
            residual=bool(step.settings.get("use_residual", False)),
            inner=step.size("in_features"),
            outer=step.size("out_features"),
            activation=_activation(step),
        )
    weights = step.folder / "model.safetensors"
    try:
        module.load_state_dict({name: one.float() for name, one in load_file(weights).items()})
    except (RuntimeError, SafetensorError) as wrong:
        raise EdgekitError(f"{weights}: does not fit {step.where}: {' '.join(str(wrong).split())[:200]}") from wrong
    return module


def _activation(step: Step) -> nn.Module:
    # sentence-transformers takes Tanh where the file names none.
    package, _, name = str(step.settings.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")
    if not package.startswith("torch.nn") or name not in ACTIVATIONS:
        raise EdgekitError(
            f"{step.where}: activation_function: {package}.{name}: edgekit has torch.nn's {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]()


class Embedder(Encoder):
    """An encoder, its poolings and what follows them: (input_ids, attention_mask) -> [batch, width].

    unread: how many tokens at the beginning of each text are not pooled; width: how many numbers of an embedding are kept.
    """

    def __init__(
        self, encoder: Encoder, *, modes: Sequence[str], unread: int, steps: Sequence[nn.Module], width: int | None
    ) -> None:
        super().__init__(encoder.model, token_type_ids=encoder.token_type_ids)
        self.modes = tuple(modes)
        self.unread = unread
        # What is distilled is the encoder.
        self.steps = nn.ModuleList(steps).requires_grad_(False)
        self.width = width

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [batch, sequence] twice -> one embedding per row."""
        hidden = super().forward(input_ids, attention_mask)
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        if self.unread:
            places = torch.arange(hidden.shape[1], device=hidden.device).view(1, -1, 1)
            mask = mask * (places >= self.unread).to(hidden.dtype)
        pooled = torch.cat([POOLINGS[mode](hidden, mask) for mode in self.modes], dim=-1)
        for step in self.steps:
            pooled = step(pooled)
        return pooled if self.width is None else pooled[:, : self.width]
