"""Ranks: the processes of one training. Each goes through a share of every batch's rows, and gradients are added up over all.

They meet where the environment says, as torchrun writes it (RANK, LOCAL_RANK, WORLD_SIZE), through gloo or of GPUs NCCL. All that
goes between them are tensors; a text is one of its bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, nn

from edgekit.distill.machine import MEETING, RANK, count_ranks
from edgekit.errors import EdgekitError

T = TypeVar("T")
# Longer than any rank waits for another that works. One that ended is noticed at once: by gloo, and by who started them.
_PATIENCE = timedelta(days=7)
# Gradients that are added up at once, bytes.
_AT_ONCE = 1 << 25


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is."""

    index: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes."""
        return self.index == 0

    def own(self, rows: Sequence[T]) -> Sequence[T]:
        """This process's share: each rank has the next row, so that rows of one length are spread over all."""
        return rows[self.index :: self.count]

    def seed(self, seed: int) -> int:
        """What each process draws with by itself: dropout of other rows is of other draws. Weights are the first one's."""
        return seed + 1_000_003 * self.index

    def add(self, numbers: Sequence[float]) -> list[float]:
        """Numbers summed over all ranks, in float64: the same on each."""
        if self.count == 1:
            return list(numbers)
        from accelerate.utils import reduce

        total: Tensor = reduce(torch.tensor(numbers, dtype=torch.float64), reduction="sum")
        return total.tolist()

    def add_gradients(self, module: nn.Module) -> None:
        """Sum each weight's gradient over all ranks. One that no rank has stays None, so that its weight stays as it is."""
        if self.count == 1:
            return
        from accelerate.utils import reduce

        weights = [weight for weight in module.parameters() if weight.requires_grad]
        there = self.add([float(weight.grad is not None) for weight in weights])
        for group in _groups([weight for weight, ranks in zip(weights, there, strict=True) if ranks]):
            grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in group]
            summed = reduce(torch.cat([grad.flatten() for grad in grads]), reduction="sum")
            for weight, part in zip(group, summed.split([grad.numel() for grad in grads]), strict=True):
                weight.grad = part.view_as(weight)

    def copy(self, tensors: Sequence[Tensor]) -> None:
        """Fill tensors with what the first rank has in them."""
        if self.count == 1:
            return
        from accelerate.utils import broadcast

        for tensor in tensors:
            with torch.no_grad():
                tensor.copy_(broadcast(tensor.detach().clone(), from_process=0))

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Each rank's tensor of one size, in the order of ranks."""
        if self.count == 1:
            return [tensor]
        every = [torch.empty_like(tensor) for _ in range(self.count)]
        torch.distributed.all_gather(every, tensor)
        return every

    def share(self, text: str) -> list[str]:
        """Each rank's text, in the order of ranks."""
        if self.count == 1:
            return [text]
        content = text.encode()
        sizes = [int(size) for size in self.gather(torch.tensor([len(content)]))]
        whole = torch.zeros(max(sizes), dtype=torch.uint8)
        whole[: len(content)] = torch.tensor(list(content), dtype=torch.uint8)
        return [bytes(one[:size].tolist()).decode() for one, size in zip(self.gather(whole), sizes, strict=True)]

    def tell(self, text: str) -> str:
        """The first rank's text; what others give does not count."""
        if self.count == 1:
            return text
        content = torch.tensor(list(text.encode()), dtype=torch.uint8)
        size = torch.tensor([len(content)])
        torch.distributed.broadcast(size, src=0)
        content = content if self.leads else torch.zeros(int(size), dtype=torch.uint8)
        torch.distributed.broadcast(content, src=0)
        return bytes(content.tolist()).decode()


def count_beside(count: int) -> int:
    """How many of a training's processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count))


def meet() -> Ranks:
    """This process among its training's; the first call waits for the others. Alone where the environment names none.

    Raises EdgekitError where this machine has fewer GPUs than processes.
    """
    count = count_ranks()
    if count == 1:
        return Ranks()
    index, cuda = int(os.environ[RANK]), torch.cuda.is_available()
    if not torch.distributed.is_initialized():
        if cuda:
            local, there = int(os.environ.get("LOCAL_RANK", index)), torch.cuda.device_count()
            if local >= there:
                raise EdgekitError(
                    f"processes: this machine has {there} GPUs, and each process needs its own; give fewer"
                )
            torch.cuda.set_device(local)
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            init_method=os.environ.get(MEETING, "env://"),
            rank=index,
            world_size=count,
            timeout=_PATIENCE,
        )
    return Ranks(index, count)


def _groups(weights: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Weights in their order, of one type and of so many bytes together, or one that is larger."""
    group, size = list[nn.Parameter](), 0
    for weight in weights:
        if group and (size + weight.nbytes > _AT_ONCE or weight.dtype != group[0].dtype):
            yield group
            group, size = [], 0
        group.append(weight)
        size += weight.nbytes
    if group:
        yield group
