"""Which smoothing, which float Linears, static or dynamic: decided on the calibrate prompts by the task's score.

Candidates are compared in emulated arithmetic (float products of quantized values), so that the choice does not depend on
the CPU that builds: an AVX2 CPU saturates where the target may not. No choice looks at a clock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from edgekit.errors import EdgekitError
from edgekit.formats.onnx.graph import Graph
from edgekit.formats.onnx.quantize import Int8, quantize_int8
from edgekit.formats.onnx.session import Session
from edgekit.formats.onnx.smooth import Range, after_activation, groups, smooth

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

log = logging.getLogger("edgekit")

Score = Callable[["NDArray[np.float32]", "NDArray[np.float32]"], float]
# From "leave the outliers in the activations" to "put them in the weights". The best one differs between models: .65 for
# the bare MiniLM, .75 for its BANKING77 classifier (measured), .5 for OPT in the paper.
ALPHAS = (None, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8)
# A candidate must be this much nearer to the float answers (share of the loss) to be worth its cost at run time.
WORTH_SMOOTHING = 0.05
WORTH_A_FLOAT_LAYER = 0.15
# Linears to leave float are ranked on few prompts; the first ones of the ranking are compared on all.
SHORT_LIST_PROMPTS = 64
SHORT_LIST = 3
# Within this share of each other, static and dynamic score alike, and static wins: its time does not depend on the input.
ALIKE = 0.02


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The prompts that candidates answer, and what the float graph answers."""

    ids: Sequence[Sequence[int]]
    pad_id: int
    reference: NDArray[np.float32]
    score: Score
    perfect: float

    def loss(self, model: onnx.ModelProto) -> float:
        """How far a graph's answers are from the float graph's: the score of equal answers minus its score; NaN is the worst."""
        import numpy as np

        answers = Session(model, entries={"session.disable_quant_qdq": "1"}).outputs(self.ids, self.pad_id)
        if not np.isfinite(answers).all():
            return float("inf")
        return max(0.0, self.perfect - self.score(self.reference, answers))

    def part(self, share: int) -> Trial:
        """Every `share`-th prompt."""
        reference = self.reference[::share]
        return replace(self, ids=self.ids[::share], reference=reference, perfect=self.score(reference, reference))


def trial(model: onnx.ModelProto, ids: Sequence[Sequence[int]], *, pad_id: int, score: Score, most: int) -> Trial:
    """A Trial on at most `most` prompts, taken evenly over the list."""
    step = max(1, -(-len(ids) // most))
    some = list(ids[::step])
    reference = Session(model).outputs(some, pad_id)
    return Trial(ids=some, pad_id=pad_id, reference=reference, score=score, perfect=score(reference, reference))


@dataclass(frozen=True, kw_only=True)
class Recipe8:
    """A way to quantize to 8 bits, and how it did."""

    mode: Literal["static", "dynamic"]
    alpha: float | None
    everywhere: bool  # whether inputs behind an activation function are smoothed too
    keep_float: tuple[str, ...] = ()
    loss: float = float("inf")
    tried: Mapping[str, float] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """For the artifact's facts."""
        return {
            "mode": self.mode,
            "smoothing": self.alpha,
            "smoothed_after_activation": self.everywhere if self.alpha is not None else False,
            "float_layers": list(self.keep_float),
            "loss": self.loss,
            "tried": dict(self.tried),
        }


@dataclass(frozen=True, kw_only=True)
class Source:
    """What quantization starts from: the float graph and the calibrated ranges by calibration key."""

    model: onnx.ModelProto
    ranges: Mapping[str, Range]
    settings: Int8  # activation, reduce_range and layout; ranges and keep_float are filled in by the recipe

    def quantized(self, recipe: Recipe8, *, emulated: bool = False) -> tuple[onnx.ModelProto, list[str]]:
        """The graph quantized by a recipe, and the keys of the Linears that were."""
        graph, ranges = self.smoothed(recipe.alpha, everywhere=recipe.everywhere)
        settings = replace(
            self.settings,
            ranges=ranges if recipe.mode == "static" else None,
            keep_float=recipe.keep_float,
            layout="emulated" if emulated else self.settings.layout,
        )
        return graph.model, quantize_int8(graph, settings)

    def smoothed(self, alpha: float | None, *, everywhere: bool) -> tuple[Graph, Mapping[str, Range]]:
        """A copy of the float graph with smoothed inputs, and the ranges of those."""
        graph = Graph(copy_model(self.model))
        if alpha is None:
            return graph, self.ranges
        skip = () if everywhere else tuple(source for source in groups(graph) if after_activation(graph, source))
        return graph, smooth(graph, self.ranges, alpha, skip=skip)


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that can be rewritten without touching this one."""
    fresh = type(model)()
    fresh.CopyFrom(model)
    return fresh


def choose(
    source: Source, on: Trial, mode: Literal["static", "dynamic"], *, float_layers: int, smoothing: bool = True
) -> Recipe8:
    """The best recipe of a mode: first the smoothing, swept end to end, then Linears to leave float, one by one."""
    tried: dict[str, float] = {}
    best = Recipe8(mode=mode, alpha=None, everywhere=False)
    for alpha in ALPHAS if smoothing else (None,):
        for everywhere in (False,) if alpha is None else (False, True):
            candidate = Recipe8(mode=mode, alpha=alpha, everywhere=everywhere)
            loss = on.loss(source.quantized(candidate, emulated=True)[0])
            tried[_name(candidate)] = loss
            costs_more = (alpha is not None, everywhere) > (best.alpha is not None, best.everywhere)
            if loss < best.loss * (1 - WORTH_SMOOTHING if costs_more else 1):
                best = replace(candidate, loss=loss)
    if best.loss == float("inf"):
        raise EdgekitError(
            f"int8-{mode}: every way to quantize gives answers that are not numbers; use scheme = 'fp32'"
        )
    log.info("int8-%s: smoothing %s, loss %.3g", mode, best.alpha, best.loss)
    for _ in range(float_layers):
        improved = _leave_one_float(source, on, best, tried)
        if improved is None:
            break
        best = improved
    return replace(best, tried=tried)


def _name(recipe: Recipe8) -> str:
    if recipe.alpha is None:
        return "none"
    return f"{recipe.alpha}{' everywhere' if recipe.everywhere else ''}"


def _leave_one_float(source: Source, on: Trial, best: Recipe8, tried: dict[str, float]) -> Recipe8 | None:
    """The Linear whose quantization costs most, left float; None where that is not worth its time and bytes."""
    few = on.part(max(1, len(on.ids) // SHORT_LIST_PROMPTS))

    def loss_without(key: str, prompts: Trial) -> float:
        candidate = replace(best, keep_float=(*best.keep_float, key))
        return prompts.loss(source.quantized(candidate, emulated=True)[0])

    quick = {key: loss_without(key, few) for key in source.quantized(best, emulated=True)[1]}
    short_list = sorted(quick, key=lambda key: (quick[key], key))[:SHORT_LIST]
    losses = {key: loss_without(key, on) for key in short_list}
    tried |= {f"{_name(best)}, float: {', '.join((*best.keep_float, key))}": loss for key, loss in losses.items()}
    winner = min(losses, key=lambda key: (losses[key], key), default=None)
    if winner is None or losses[winner] > best.loss * (1 - WORTH_A_FLOAT_LAYER):
        return None
    loss = losses[winner]
    log.info("%s stays float: loss %.3g instead of %.3g", winner, loss, best.loss)
    return replace(best, keep_float=(*best.keep_float, winner), loss=loss)


def better(static: Recipe8, dynamic: Recipe8) -> Recipe8:
    """The recipe with the smaller loss; static where they are alike."""
    return static if static.loss <= dynamic.loss * (1 + ALIKE) else dynamic
