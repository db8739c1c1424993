"""What the probe is asked, as types, and how an engine reads the options of a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, TypeVar, cast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

T = TypeVar("T")


class Timing(TypedDict, total=False):
    """What is timed: see `probe` for texts, `generation` for tokens, `phases` for sustained, tune and cold."""

    warmup: int
    repeats: int
    least: int
    seconds: float
    sequence: int
    only: bool
    prompts: Sequence[int]
    new: int
    sweep: bool
    sustained: float
    tune: bool
    cold: bool


class Settings(TypedDict, total=False):
    """Of a session's options what the probe itself looks at; the rest is its engine's."""

    threads: int | None
    threads_batch: int | None
    context: int
    batch: int
    provider: str
    gpu_layers: int


class Request(TypedDict, total=False):
    """One request of the protocol (see `probe`)."""

    kind: str
    runtime: str
    file: str
    inputs: str
    outputs: str
    options: Settings
    timing: Timing


def wants_accelerator(options: Settings) -> bool:
    """Whether a session is to run elsewhere than on the CPU."""
    return bool(options.get("gpu_layers")) or options.get("provider", "") not in {"", "CPUExecutionProvider"}


def read_options(kind: type[T], options: Mapping[str, object]) -> T:
    """An engine's Options. Raises TypeError for a key that it does not have."""
    return cast("Callable[..., T]", kind)(**options)


def pack(prompts: Sequence[Arrays], prefix: str = "") -> dict[str, NDArray[np.generic]]:
    """Prompts of any sizes as arrays of an .npz, two for each input: `values.NAME`, those of all prompts behind each other, and
    `shapes.NAME`, int64 [prompts, axes]."""
    import numpy as np

    arrays: dict[str, NDArray[np.generic]] = {}
    for name in prompts[0] if prompts else ():
        arrays[f"{prefix}values.{name}"] = np.concatenate([prompt[name].ravel() for prompt in prompts])
        arrays[f"{prefix}shapes.{name}"] = np.array([prompt[name].shape for prompt in prompts], dtype=np.int64)
    return arrays


def unpack(arrays: Arrays, prefix: str = "") -> list[dict[str, NDArray[np.generic]]]:
    """The prompts that `pack` wrote; other arrays are ignored."""
    import numpy as np

    prompts: list[dict[str, NDArray[np.generic]]] = []
    before = f"{prefix}values."
    for key in arrays:
        if not key.startswith(before):
            continue
        name = key.removeprefix(before)
        shapes = np.asarray(arrays[f"{prefix}shapes.{name}"], dtype=np.int64)
        pieces = np.split(arrays[key], np.cumsum(shapes.prod(axis=1))[:-1])
        prompts = prompts or [{} for _ in pieces]
        for prompt, piece, shape in zip(prompts, pieces, shapes, strict=True):
            prompt[name] = piece.reshape(shape)
    return prompts


def feeds(prompt: Arrays, wanted: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """What a session is fed for one prompt: the inputs that its model wants, each as a batch of one.

    Files that something else exported may want token_type_ids, which are zeros: all of one text. Raises ValueError for an input
    that the prompt does not have.
    """
    import numpy as np

    known = {name: array[None] for name, array in prompt.items()}
    if "input_ids" in known:
        known["token_type_ids"] = np.zeros_like(known["input_ids"])
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(f"the model wants the input {unknown[0]}; edgekit gives {', '.join(known)}")
    return {name: known[name] for name in wanted}
