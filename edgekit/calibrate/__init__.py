"""calibrate: prompts stream through the model, and statistics of every linear layer's input are kept in bounded memory.

The statistics serve SmoothQuant (per-channel maxima, arXiv:2211.10438), static ranges (histograms) and importance
matrices (per-channel mean squares). Padding never counts, so batches may be padded or not.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgekit.calibrate.gradients import gradient_squares
from edgekit.calibration import EMBEDDING, FILE, Calibration, Stats, load_calibration
from edgekit.duplicates import words
from edgekit.errors import EdgekitError
from edgekit.evidence import Coverage, CoveredLabels, CoveredLengths, CoveredWords
from edgekit.inputs import Content
from edgekit.modalities import MODALITIES, text
from edgekit.model import Model
from edgekit.outputs import OUTPUTS
from edgekit.progress import Progress
from edgekit.prompts import Prompt, PromptSet
from edgekit.recipe import Calibrate
from edgekit.schema import pick
from edgekit.tasks import TASKS, Task, tensors
from edgekit.typed_json import to_table
from edgekit.workspace import open_product

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from edgekit.modalities.encoded import Encoded

BINS = 2048
# Every fifth prompt is held out to see whether the others cover it; its statistics are merged in afterwards.
HELD_OUT = 5
# Prompts of another split that are run to see whether the calibration covers them.
COVERED = 256
# Values are binned in pieces of this many, so that the histogram's scratch memory does not grow with the batch.
_PIECE = 1 << 18
# The narrowest histogram is -2^-64 .. 2^-64: its bins' scale is a float32 still, and all-zero inputs have a place.
_SMALLEST_EXPONENT = -64
# Above this, squares overflow float32.
_LARGEST = 2.0**63
# Above these shares the coverage report warns.
_NEW_WORDS, _OUTSIDE, _LONGER = 0.25, 0.001, 0.02


@dataclass(frozen=True, kw_only=True)
class CalibrateInputs:
    """What `calibrate` is given: a model and the calibrate prompts.

    options.prompts limits the prompts (0: all), chosen by a hash of seed and text, so a sorted file does no harm. gradients:
    also ask a decoder how much each output channel matters (`gradients.gradient_squares`).
    """

    STEP: ClassVar[str] = "calibrate"
    student: Content
    prompts: Content
    task: str
    options: Calibrate
    max_length: int
    seed: int
    gradients: bool


def calibrate(inputs: CalibrateInputs, out: Path, progress: Progress | None = None) -> dict[str, object]:
    """Stream the calibrate split through a model and write calibration.npz into `out`.

    Returns prompts, tokens, layers, the coverage
    report and its warnings. Raises EdgekitError where there are no prompts.
    """
    task, max_length, seed, batch = inputs.task, inputs.max_length, inputs.seed, inputs.options.batch
    kind = pick(TASKS, task, "task")
    checked = kind.open_model(inputs.student.path)
    chosen = _chosen(inputs.prompts.path, inputs.options.prompts, seed)
    encoded = kind.encode(checked, chosen, max_length)
    told = [chosen[owner] for owner in encoded.owners]
    held = [index for index, owner in enumerate(encoded.owners) if owner % HELD_OUT == HELD_OUT - 1]
    kept = [index for index, owner in enumerate(encoded.owners) if owner % HELD_OUT != HELD_OUT - 1]

    watch = Watch(kind.load(inputs.student.path))
    watch.feed(encoded.subset(kept), batch, _told(progress, 0, len(encoded)))
    watch.begin_held_out()
    watch.feed(encoded.subset(held), batch, _told(progress, len(kept), len(encoded)))
    asked = inputs.gradients and OUTPUTS[kind.OUTPUT].generates
    _write(
        out / FILE, watch.stats(), _gradients(watch.module, text.token_ids(encoded), seed, progress) if asked else {}
    )
    covered, warnings = coverage(
        [told[place] for place in kept],
        [told[place] for place in held],
        encoded.subset(kept).sizes,
        encoded.subset(held).sizes,
        max_length=_cut_at(kind, checked, max_length, encoded),
        worded=MODALITIES[kind.MODALITY].WORDED,
    )
    outside = {key: share for key, share in watch.outside().items() if share > 0}
    covered = replace(covered, outside_ranges=outside)
    if outside and max(outside.values()) > _OUTSIDE:
        worst = max(outside, key=lambda key: outside[key])
        warnings.append(
            f"{outside[worst]:.2%} of the held-out activations of {worst} lie outside the calibrated range;"
            " add calibrate prompts that look like real use"
        )
    return {
        "prompts": len(chosen),
        "tokens": sum(encoded.sizes),
        "layers": len(watch.stats()),
        "task": task,
        "max_length": max_length,
        "seed": seed,
        "coverage": to_table(covered),
        "warnings": warnings,
    }


def _cut_at(kind: Task, model: Model, max_length: int, encoded: Encoded) -> int:
    """The length in tokens at which texts are cut; what a decoder reads is not: it goes on in a block of its own. Neither is what
    has one shape."""
    if OUTPUTS[kind.OUTPUT].generates or encoded.free is None:
        return sys.maxsize
    return kind.length(model, max_length)


def _chosen(prompts: Path, limit: int, seed: int) -> list[Prompt]:
    chosen = choose(PromptSet(folder=prompts).split("calibrate"), limit, seed)
    if not chosen:
        raise EdgekitError(f"{prompts}: the calibrate split is empty")
    return chosen


def _gradients(
    module: nn.Module,
    ids: Sequence[Sequence[int]],
    seed: int,
    progress: Progress | None,
) -> dict[str, NDArray[np.float32]]:
    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, "gradients")

    return gradient_squares(module, ids, seed=seed, progress=tell)


def choose(prompts: Sequence[Prompt], limit: int, seed: int) -> list[Prompt]:
    """The first `limit` prompts (0: all) in the order of a hash of seed and text: a sample whatever the file's order."""

    def place(prompt: Prompt) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed}:{prompt.text}".encode()).digest(), prompt.label or ""

    return sorted(prompts, key=place)[: limit or None]


def coverage(
    seen: Sequence[Prompt],
    held: Sequence[Prompt],
    seen_lengths: Sequence[int],
    held_lengths: Sequence[int],
    *,
    max_length: int,
    worded: bool = True,
) -> tuple[Coverage, list[str]]:
    """How well some prompts cover others: lengths in tokens, words (where they are worded), labels; and warnings that name the
    remedy."""
    vocabulary = {word for prompt in seen for word in words(prompt.text) if worded}
    spoken = [word for prompt in held for word in sorted(words(prompt.text)) if worded]
    labels = Counter(prompt.label for prompt in seen if prompt.label is not None)
    unseen = sorted({prompt.label for prompt in held if prompt.label is not None} - set(labels))
    longest = max(seen_lengths, default=0)
    new_words = sum(word not in vocabulary for word in spoken) / max(len(spoken), 1)
    longer = sum(length > longest for length in held_lengths) / max(len(held), 1)
    truncated = sum(length >= max_length for length in (*seen_lengths, *held_lengths))
    warnings = []
    if new_words > _NEW_WORDS:
        warnings.append(f"{new_words:.0%} of the held-out words are new; add more varied calibrate prompts")
    if longer > _LONGER:
        warnings.append(
            f"{longer:.1%} of the held-out prompts are longer than all others; add longer calibrate prompts"
        )
    if unseen:
        warnings.append(
            f"no calibrate prompt has the label {unseen[0]!r} ({len(unseen)} such); add prompts of every label"
        )
    if truncated > _LONGER * (len(seen) + len(held)):
        warnings.append(
            f"{truncated} prompts reach max_length = {max_length} tokens and are cut; raise data.max_length"
        )
    figures = Coverage(
        seen=len(seen),
        held_out=len(held),
        length=CoveredLengths(seen=_quartiles(seen_lengths), held_out=_quartiles(held_lengths), longer_share=longer),
        vocabulary=CoveredWords(words=len(vocabulary), new_share=new_words),
        labels=CoveredLabels(seen=len(labels), unseen=tuple(unseen), fewest=min(labels.values(), default=0)),
        truncated=truncated,
        outside_ranges={},
    )
    return figures, warnings


def cover(
    student: Path, calibration: Path, prompts: Path, *, task: str, max_length: int, split: str = "verify"
) -> Coverage:
    """How well a calibration covers another split: the figures of `coverage`, and the share of activations outside per layer.

    For information only: it is read after every choice was made. At most COVERED prompts are run, chosen by their hash.
    """
    kind = pick(TASKS, task, "task")
    model = kind.open_model(student)
    rows, facts = PromptSet(folder=prompts), open_product(calibration, "calibrate").facts
    # What was calibrated: the prompts may have been limited.
    seen = choose(rows.split("calibrate"), int(facts["prompts"]), int(facts.get("seed", 0)))
    held = rows.split(split)
    encoded = kind.encode(model, choose(held, COVERED, 0), max_length)
    outside = outside_ranges(kind.load(student), encoded, load_calibration(calibration))
    lengths = [kind.encode(model, part, max_length).sizes for part in (seen, held)]
    limit, worded = _cut_at(kind, model, max_length, encoded), MODALITIES[kind.MODALITY].WORDED
    covered, _ = coverage(seen, held, *lengths, max_length=limit, worded=worded)
    return replace(covered, outside_ranges={key: share for key, share in outside.items() if share > 0})


def outside_ranges(module: nn.Module, encoded: Encoded, calibration: Calibration, batch: int = 16) -> dict[str, float]:
    """Per layer, the share of activations on these prompts that lie outside the calibrated ranges."""
    import torch

    watch = Watch(module)
    ranges = {key: (float(one.minimum.min()), float(one.maximum.max())) for key, one in calibration.stats.items()}
    watch.begin_held_out(ranges)
    with torch.inference_mode():
        watch.feed(encoded, batch)
    return watch.outside()


class Watch:
    """Keeps running statistics of the input of every linear layer of a module while prompts go through it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._running: dict[str, _Running] = {}
        self._ranges: dict[str, tuple[float, float]] | None = None
        self._calls: Counter[str] = Counter()
        self._mask: Tensor | None = None

    def feed(
        self,
        encoded: Encoded,
        batch: int,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Run prompts through the module in batches of like size."""
        import torch

        done = 0
        with self._hooked(), torch.inference_mode():
            for indices, arrays in encoded.batches(batch):
                inputs = tensors(arrays)
                self._calls.clear()
                self._mask = inputs.get(text.MASK)
                self.module(**inputs)
                done += len(indices)
                if progress:
                    progress(done)

    def begin_held_out(self, ranges: dict[str, tuple[float, float]] | None = None) -> None:
        """From now on count what lies outside the ranges seen so far (or the given ones), per tensor."""
        self._ranges = {key: one.limits() for key, one in self._running.items()} if ranges is None else ranges

    def stats(self) -> dict[str, Stats]:
        """The statistics so far."""
        return {key: self._running[key].freeze() for key in sorted(self._running)}

    def outside(self) -> dict[str, float]:
        """Per layer, the share of values outside the ranges since `begin_held_out`."""
        return {key: one.outside / max(one.watched, 1) for key, one in sorted(self._running.items())}

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        from torch import nn

        handles = [
            layer.register_forward_pre_hook(self._hook(path))
            for path, layer in self.module.named_modules()
            if isinstance(layer, nn.Linear)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            key = f"{path}#{self._calls[path]}"
            self._calls[path] += 1
            values = inputs[0].detach().float()
            mask = self._mask
            rows = (
                values[mask.bool()] if mask is not None and values.shape[:-1] == mask.shape else values.flatten(0, -2)
            )
            if key not in self._running:
                self._running[key] = _Running(rows.shape[-1], key)
            self._running[key].add(rows, None if self._ranges is None else self._ranges.get(key))

        return see


class _Running:
    """Statistics of rows [n, channels] that come in pieces, in memory that does not grow."""

    def __init__(self, channels: int, layer: str) -> None:
        import torch

        self.layer = layer
        self.minimum = torch.full((channels,), torch.inf)
        self.maximum = torch.full((channels,), -torch.inf)
        self.squares = torch.zeros(channels, dtype=torch.float64)
        self.count = 0
        self.histogram = torch.zeros(BINS, dtype=torch.int64)
        self.exponent: int | None = None
        self.outside = 0
        self.watched = 0

    def add(self, rows: Tensor, limits: tuple[float, float] | None = None) -> None:
        if not len(rows):
            return
        low, high = rows.amin(0), rows.amax(0)
        largest = float(low.abs().maximum(high.abs()).max())
        # Not the other way round: every comparison with NaN is false.
        if not largest <= _LARGEST:
            raise EdgekitError(
                f"{self.layer}: this layer's input reaches {largest:g} on some prompt, which no INT8 range holds;"
                " the model's weights are damaged or diverged in training: fetch or train it again"
            )
        self.minimum, self.maximum = self.minimum.minimum(low), self.maximum.maximum(high)
        self.squares += rows.square().sum(0, dtype=self.squares.dtype)
        self.count += len(rows)
        if limits is not None:
            self.outside += int(((rows < limits[0]) | (rows > limits[1])).sum())
            self.watched += rows.numel()
        self._bin(rows.flatten(), largest)

    def _bin(self, values: Tensor, largest: float) -> None:
        """Count values in bins over (-2^e, 2^e), e the smallest that holds all values so far.

        Doubling the range merges bins by pairs. Edges are powers of two, so a value falls into the same final bin
        whatever the batches were.
        """
        import math

        import torch

        needed = max(math.frexp(largest)[1], _SMALLEST_EXPONENT) if largest > 0 else _SMALLEST_EXPONENT
        if self.exponent is None:
            self.exponent = needed
        while self.exponent < needed:
            middle = self.histogram.view(-1, 2).sum(1)
            self.histogram = torch.nn.functional.pad(middle, (BINS // 4, BINS // 4))
            self.exponent += 1
        scale = 2.0 ** (math.log2(BINS // 2) - self.exponent)
        for start in range(0, len(values), _PIECE):
            piece = values[start : start + _PIECE]
            places = (piece * scale).floor_().add_(BINS // 2).to(torch.int32)
            self.histogram += torch.bincount(places, minlength=BINS)

    def limits(self) -> tuple[float, float]:
        return float(self.minimum.min()), float(self.maximum.max())

    def freeze(self) -> Stats:
        import numpy as np

        edge = 2.0 ** (self.exponent or 0)
        return Stats(
            minimum=self.minimum.numpy(),
            maximum=self.maximum.numpy(),
            mean_square=(self.squares / max(self.count, 1)).float().numpy(),
            histogram=self.histogram.numpy(),
            histogram_edges=np.array([-edge, edge], dtype=np.float32),
            count=self.count,
        )


def _write(path: Path, stats: Mapping[str, Stats], squares: Mapping[str, NDArray[np.float32]]) -> None:
    import numpy as np

    # A layer that is called once has its gradients with its first call.
    arrays: dict[str, NDArray[np.generic]] = {
        f"{path}#0/grad_square": one for path, one in squares.items() if f"{path}#0" in stats
    }
    if EMBEDDING in squares:
        arrays[EMBEDDING] = squares[EMBEDDING]
    for key, one in stats.items():
        arrays |= {
            f"{key}/min": one.minimum,
            f"{key}/max": one.maximum,
            f"{key}/mean_square": one.mean_square,
            f"{key}/histogram": one.histogram,
            f"{key}/histogram_edges": one.histogram_edges,
            f"{key}/count": np.array(one.count, np.int64),
        }
    # NumPy stamps every member with one fixed date: equal arrays are equal bytes.
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def _told(progress: Progress | None, before: int, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(before + done, total, "")


def _quartiles(lengths: Sequence[int]) -> tuple[int, ...]:
    """Smallest, quartiles and largest of some lengths."""
    ordered = sorted(lengths)
    shares = (0, 0.25, 0.5, 0.75, 1) if ordered else ()
    return tuple(ordered[round(share * (len(ordered) - 1))] for share in shares)
