"""How much each output channel of a layer matters to a decoder's likelihoods: the mean square of its gradient.

With next tokens drawn from the model itself this is the diagonal of the Fisher information at the channel (Martens, "New insights
and perspectives on the natural gradient method", JMLR 21, 2020, section 5): half of it times a squared error is, to second
order, what the error adds to the KL divergence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

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
    summed log-likelihood.

    module: (input_ids, attention_mask) -> logits [batch, sequence, vocabulary], as text-generation loads one. Texts are run one
    by one, the first MOST_TOKENS tokens of them; equal seeds draw equal tokens.
    """
    import torch

    sums: dict[str, Tensor] = {}
    chosen, tokens = [], 0
    for row in ids:
        if tokens >= MOST_TOKENS:
            break
        chosen.append(row)
        tokens += len(row)
    draw = torch.Generator().manual_seed(seed)
    with _watched(module, sums):
        for place, row in enumerate(chosen):
            feed = torch.tensor([list(row)])
            likely = torch.log_softmax(module(feed, torch.ones_like(feed))[0], dim=-1)
            said = torch.multinomial(likely.detach().exp(), 1, generator=draw)
            likely.gather(1, said).sum().backward()  # type: ignore[no-untyped-call]
            if progress is not None:
                progress(place + 1, len(chosen))
    return {path: (total / tokens).float().numpy() for path, total in sorted(sums.items())}


@contextmanager
def _watched(module: nn.Module, sums: dict[str, Tensor]) -> Iterator[None]:
    """Gradients flow through activations alone: no weight keeps one."""
    import torch
    from torch import nn

    def add(path: str) -> Callable[..., None]:
        def see(_layer: nn.Module, _inputs: Any, outputs: tuple[Tensor, ...]) -> None:
            squares = outputs[0].detach().double().square().flatten(0, -2).sum(0)
            sums[path] = sums[path] + squares if path in sums else squares

        return see

    def begin(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output.requires_grad_()

    wanted = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    handles = [
        layer.register_full_backward_hook(add(path))
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    handles += [part.register_forward_hook(begin) for part in module.modules() if isinstance(part, nn.Embedding)]
    module.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(wanted[name])
