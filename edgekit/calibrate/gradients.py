"""How much each output channel of a layer matters to a decoder's likelihoods: the mean square of its gradient.

With next tokens drawn from the model itself this is the diagonal of the Fisher information at the channel (Martens, "New insights
and perspectives on the natural gradient method", JMLR 21, 2020, section 5): half of it times a squared error is, to second
order, what the error adds to the KL divergence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgekit.calibration import EMBEDDING
from edgekit.formats.source import is_judged

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# Enough that the mean squares of a channel are known to a few percent.
MOST_TOKENS = 8192


def gradient_squares(
    module: nn.Module,
    ids: Sequence[Sequence[int]],
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Per Linear, by module path: float32 [output channels], the mean over tokens of the squared gradient of a text's
    summed log-likelihood; under EMBEDDING that of the token embedding's channels.

    module: as text-generation loads one, holding transformers' model as `model`. Texts are run one by one, the first
    MOST_TOKENS tokens of them, without those on which mixtures are judged later; equal seeds draw equal tokens. At the head,
    whose gradient is p - 1 or p, its expectation p (1 - p) stands instead of a draw.
    """
    import torch

    sums: dict[str, Tensor] = {}
    chosen, tokens = [], 0
    for row in [row for row in ids if not is_judged(row)] or ids:
        if tokens >= MOST_TOKENS:
            break
        chosen.append(row)
        tokens += len(row)
    draw = torch.Generator().manual_seed(seed)
    model: PreTrainedModel = module.model
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    paths = {id(part): path for path, part in module.named_modules()}
    with _watched(module, embedding, sums):
        for place, row in enumerate(chosen):
            feed = torch.tensor([list(row)])
            likely = torch.log_softmax(module(feed, torch.ones_like(feed))[0], dim=-1)
            chances = likely.detach().exp()
            likely.gather(1, torch.multinomial(chances, 1, generator=draw)).sum().backward()  # type: ignore[no-untyped-call]
            expected = (chances * (1 - chances)).double().sum(0)
            sums["head"] = sums["head"] + expected if "head" in sums else expected
            if progress is not None:
                progress(place + 1, len(chosen))
    sums[paths[id(head)]] = sums.pop("head")
    return {path: (total / tokens).float().numpy() for path, total in sorted(sums.items())}


@contextmanager
def _watched(module: nn.Module, embedding: nn.Module, sums: dict[str, Tensor]) -> Iterator[None]:
    """Gradients flow through activations alone: no weight keeps one."""
    import torch
    from torch import nn

    def add(path: str) -> Callable[[Tensor], None]:
        def see(gradient: Tensor) -> None:
            squares = gradient.detach().double().square().flatten(0, -2).sum(0)
            sums[path] = sums[path] + squares if path in sums else squares

        return see

    def watch(path: str) -> Callable[..., None]:
        def begin(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if layer is embedding:
                output.requires_grad_()
            output.register_hook(add(path))  # type: ignore[no-untyped-call]

        return begin

    wanted = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    linears = {path: part for path, part in module.named_modules() if isinstance(part, nn.Linear)}
    handles = [part.register_forward_hook(watch(path)) for path, part in {EMBEDDING: embedding, **linears}.items()]
    module.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(wanted[name])
