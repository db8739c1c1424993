"""Encoded: prompts as a model reads them, whatever they are made of: each is named arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of a model.

    axis: what its first axis is called, where prompts differ in its size ("sequence": the tokens of a text); None where all
    prompts have one shape. padding: the value that fills a prompt up behind where a larger one shares its batch.
    """

    axis: str | None = None
    padding: float = 0


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Prompts as a model reads them.

    inputs: by name, in the order in which the module takes them. prompts: each with all of the inputs, not padded and without
    a batch's axis. owners: for each the index of what it was made from, since a long text may be several.
    """

    inputs: Mapping[str, Input]
    prompts: Sequence[Arrays]
    owners: Sequence[int]

    def __len__(self) -> int:
        """How many prompts there are."""
        return len(self.prompts)

    @property
    def free(self) -> str | None:
        """The first input in whose size prompts differ; None where all have one shape."""
        return next((name for name, given in self.inputs.items() if given.axis is not None), None)

    @cached_property
    def sizes(self) -> list[int]:
        """How large each prompt is along the axis in which they differ: a text's tokens. 1 where all have one shape."""
        return [1 if self.free is None else prompt[self.free].shape[0] for prompt in self.prompts]

    @property
    def digest(self) -> str:
        """sha256 over all prompts."""
        whole = hashlib.sha256()
        for prompt in self.prompts:
            for name in self.inputs:
                array = prompt[name]
                whole.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
        return whole.hexdigest()

    def by_size(self) -> list[int]:
        """The prompts' indices, the smallest first."""
        return sorted(range(len(self)), key=lambda index: self.sizes[index])

    def subset(self, indices: Sequence[int]) -> Encoded:
        """The prompts of these indices, in this order."""
        prompts, owners = [self.prompts[index] for index in indices], [self.owners[index] for index in indices]
        return replace(self, prompts=prompts, owners=owners)

    def batch(self) -> dict[str, NDArray[np.generic]]:
        """All prompts as one batch, [n, ...] each, filled up behind to the largest one's size."""
        import numpy as np

        joined: dict[str, NDArray[np.generic]] = {}
        for name, given in self.inputs.items():
            arrays = [prompt[name] for prompt in self.prompts]
            largest = max(array.shape for array in arrays)
            joined[name] = np.full((len(arrays), *largest), given.padding, dtype=arrays[0].dtype)
            for row, array in zip(joined[name], arrays, strict=True):
                row[: len(array)] = array
        return joined

    def batches(self, size: int) -> Iterator[tuple[list[int], dict[str, NDArray[np.generic]]]]:
        """Batches of prompts of like size: their indices, and the module's inputs.

        The largest come first: later batches fit into the memory that the first ones took, so it does not fragment.
        """
        order = sorted(range(len(self)), key=lambda index: (-self.sizes[index], index))
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            yield indices, self.subset(indices).batch()

    def cut(self, size: int) -> Encoded:
        """Each prompt's beginning, of this size at most."""
        prompts = [
            {name: prompt[name] if given.axis is None else prompt[name][:size] for name, given in self.inputs.items()}
            for prompt in self.prompts
        ]
        return replace(self, prompts=prompts)

    def resized(self, size: int) -> Encoded:
        """One prompt of this size: all of them behind each other, again and again; the first where all have one shape."""
        import numpy as np

        prompt: dict[str, NDArray[np.generic]] = {}
        for name, given in self.inputs.items():
            arrays = [prompt[name] for prompt in self.prompts]
            if given.axis is None:
                prompt[name] = arrays[0]
                continue
            joined = np.concatenate(arrays)
            prompt[name] = np.resize(joined, (size, *joined.shape[1:]))
        return replace(self, prompts=[prompt], owners=[0])


def same_reading(ours: Arrays, theirs: Arrays) -> bool:
    """Whether two prompts are the same arrays, value by value."""
    import numpy as np

    return ours.keys() == theirs.keys() and all(np.array_equal(array, theirs[name]) for name, array in ours.items())
