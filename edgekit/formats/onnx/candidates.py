"""Which smoothing, which float Linears, static or dynamic: decided on the calibrate prompts.

Candidates are compared in emulated arithmetic (float products of quantized values), so that a choice does not depend on the
CPU that builds: an AVX2 CPU saturates where the target may not. No choice looks at a clock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from edgekit.errors import EdgekitError
from edgekit.formats.onnx.graph import Graph, copy_model
from edgekit.formats.onnx.outliers import add_rungs
from edgekit.formats.onnx.quantize import Int8, quantize_int8, rounding_noise
from edgekit.formats.onnx.session import Session
from edgekit.formats.onnx.smooth import Range, after_activation, groups, smooth
from edgekit.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from edgekit.modalities.encoded import Encoded

log = logging.getLogger("edgekit")

Score = Callable[["NDArray[np.float32]", "NDArray[np.float32]"], float]
Mode = Literal["static", "dynamic"]
Treatment = Literal["plain", "ladder", "smoothed"]
# From "leave the outliers in the activations" to "put them in the weights". The best one differs between models: .8 for
# the bare MiniLM, .75 for its BANKING77 classifier (measured with the ladder), .5 for OPT in the paper.
ALPHAS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85)
# A candidate that costs time must be this much nearer to the float answers (share of the loss).
WORTH_SMOOTHING = 0.1
WORTH_A_FLOAT_LAYER = 0.15
# How many Linears, by what rounding costs them, are tried as float ones.
SHORT_LIST = 6
# Within this share of each other, static and dynamic are alike, and static wins: its time does not depend on the input.
ALIKE = 0.02


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The prompts that candidates answer, and what the float graph answers, float32 [n, width]."""

    encoded: Encoded
    reference: NDArray[np.float32]
    score: Score

    def loss(self, model: onnx.ModelProto) -> float:
        """The mean over prompts of |answer - float answer|^2 / |float answer|^2, each without its mean; infinite for NaN.

        The mean is taken off because a softmax does not see it. This ranks candidates with fewer prompts than a score that
        only sees labels or saturated probabilities.
        """
        import numpy as np

        answers = Session(model, entries={"session.disable_quant_qdq": "1"}).outputs(self.encoded)
        if not np.isfinite(answers).all():
            return float("inf")
        wanted = self.reference - self.reference.mean(axis=1, keepdims=True)
        error = answers - answers.mean(axis=1, keepdims=True) - wanted
        return float(np.mean((error**2).sum(axis=1) / np.maximum((wanted**2).sum(axis=1), 1e-12)))

    def scores(self, model: onnx.ModelProto, entries: Mapping[str, str]) -> NDArray[np.float64]:
        """The task's score of a graph's answer to each prompt, in onnxruntime's integers, float64 [n]."""
        import numpy as np

        answers = Session(model, entries=entries).outputs(self.encoded)
        rows = range(len(answers))
        return np.array([self.score(self.reference[row : row + 1], answers[row : row + 1]) for row in rows])


def trial(model: onnx.ModelProto, encoded: Encoded, *, score: Score, most: int) -> Trial:
    """A Trial on at most `most` prompts, taken evenly over the list."""
    step = max(1, -(-len(encoded) // most))
    some = encoded.subset(range(0, len(encoded), step))
    return Trial(encoded=some, reference=Session(model).outputs(some), score=score)


@dataclass(frozen=True, kw_only=True)
class Recipe8:
    """A way to quantize to 8 bits, and how far its answers are from the float ones."""

    mode: Mode
    alpha: float | None  # of SmoothQuant; None: no smoothing
    activated: Treatment = "plain"  # what is done about outliers behind an activation function
    keep_float: tuple[str, ...] = ()
    loss: float = float("inf")
    tried: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For the record of what was tried."""
        float_layers = f", float: {', '.join(self.keep_float)}" if self.keep_float else ""
        return f"smoothing {self.alpha}, {self.activated}{float_layers}"

    def describe(self) -> dict[str, object]:
        """For the artifact's facts."""
        return {
            "mode": self.mode,
            "smoothing": self.alpha,
            "behind_activation": self.activated,
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
        graph, ranges = self.prepared(recipe)
        settings = replace(
            self.settings, ranges=ranges if recipe.mode == "static" else None, keep_float=recipe.keep_float
        )
        return graph.model, quantize_int8(graph, replace(settings, layout="emulated") if emulated else settings)

    def config_entries(self, recipe: Recipe8) -> dict[str, str]:
        """What a session of the quantized graph needs."""
        return replace(self.settings, ranges=self.ranges if recipe.mode == "static" else None).config_entries

    def prepared(self, recipe: Recipe8) -> tuple[Graph, Mapping[str, Range]]:
        """A copy of the float graph with its outliers dealt with, and its Linears' input ranges."""
        graph, ranges = Graph(copy_model(self.model)), self.ranges
        kept = Graph(self.model)
        if recipe.activated == "ladder":
            ranges = add_rungs(graph, {key: seen for key, seen in ranges.items() if key not in recipe.keep_float})
            ranges = {**self.ranges, **ranges}
        if recipe.alpha is not None:
            skip = [source for source in groups(kept) if after_activation(kept, source)]
            ranges = smooth(graph, ranges, recipe.alpha, skip=() if recipe.activated == "smoothed" else skip)
        return graph, ranges

    def exact(self, recipe: Recipe8) -> onnx.ModelProto:
        """The float graph with a recipe's smoothing and nothing else: what its quantized graph's values stand for."""
        graph, _ = self.prepared(
            replace(recipe, activated="plain" if recipe.activated == "ladder" else recipe.activated)
        )
        return graph.model

    def noisiest(self, recipe: Recipe8) -> list[str]:
        """The keys of the Linears that a recipe quantizes, the one that loses most of its input first."""
        graph, ranges = self.prepared(recipe)
        noise = {}
        for linear in graph.linears():
            if linear.key in ranges and linear.key not in recipe.keep_float:
                noise[linear.key] = rounding_noise(graph.weights(linear.weight), ranges[linear.key])
        return sorted(noise, key=lambda key: (-noise[key], key))


def choose(
    source: Source,
    on: Trial,
    mode: Mode,
    *,
    float_layers: int,
    smoothing: bool = True,
    progress: Progress = silent,
) -> Recipe8:
    """The best recipe of a mode: see `search`."""
    # Fixed ranges clip, so outliers can climb a ladder; ranges taken at run time do not.
    first = Recipe8(mode=mode, alpha=None, activated="ladder" if mode == "static" else "plain")
    ways = Ways(
        loss=lambda recipe: on.loss(source.quantized(recipe, emulated=True)[0]),
        noisiest=source.noisiest,
        float_layers=float_layers,
        smoothing=smoothing,
    )
    return search(ways, first, progress)


@dataclass(frozen=True, kw_only=True)
class Ways:
    """What `search` goes through: how far a recipe's answers are from the float ones (`Trial.loss`), and the names of what it
    rounds, the one that loses most of its input first; how many of those may stay float, and whether inputs may be smoothed."""

    loss: Callable[[Recipe8], float]
    noisiest: Callable[[Recipe8], list[str]]
    float_layers: int
    smoothing: bool


def search(ways: Ways, first: Recipe8, progress: Progress = silent) -> Recipe8:
    """The best recipe of a mode: the smoothing, what is done behind activation functions, then Linears left float.

    first: without smoothing. progress: told how many of the most that may be tried are.
    """
    tried: dict[str, float] = {}
    mode = first.mode
    most = 2 + (len(ALPHAS) + 1 if ways.smoothing else 0) + ways.float_layers * SHORT_LIST

    def measured(recipe: Recipe8) -> Recipe8:
        progress(len(tried), most, f"trying int8-{mode}, {recipe.name}")
        loss = ways.loss(recipe)
        tried[recipe.name] = loss
        return replace(recipe, loss=loss)

    best = measured(first)
    if ways.smoothing:
        swept = [measured(replace(best, alpha=alpha)) for alpha in ALPHAS]
        smoothest = min(swept, key=lambda recipe: recipe.loss)
        best = smoothest if _worth(smoothest, best, WORTH_SMOOTHING) else best
        if first.activated != "smoothed":
            everywhere = measured(replace(smoothest, activated="smoothed"))
            best = everywhere if _worth(everywhere, best, WORTH_SMOOTHING) else best
    if first.activated == "ladder":
        plain = measured(replace(best, activated="plain"))
        best = plain if plain.loss < best.loss else best
    if best.loss == float("inf"):
        raise EdgekitError(f"int8-{mode}: every way to quantize gives answers that are not numbers; use --scheme fp32")
    log.info("int8-%s: %s: loss %.3g", mode, best.name, best.loss)
    for _ in range(ways.float_layers):
        improved = _leave_one_float(ways, best, measured)
        if improved is None:
            break
        best = improved
    return replace(best, tried=tried)


def _worth(costly: Recipe8, cheap: Recipe8, share: float) -> bool:
    return costly.loss < cheap.loss * (1 - share)


def _leave_one_float(ways: Ways, best: Recipe8, measured: Callable[[Recipe8], Recipe8]) -> Recipe8 | None:
    """The Linear whose quantization costs most, left float; None where that is not worth its time and bytes."""
    candidates = [replace(best, keep_float=(*best.keep_float, key)) for key in ways.noisiest(best)[:SHORT_LIST]]
    winner = min((measured(candidate) for candidate in candidates), key=lambda recipe: recipe.loss, default=None)
    if winner is None or not _worth(winner, best, WORTH_A_FLOAT_LAYER):
        return None
    log.info("%s stays float: loss %.3g instead of %.3g", winner.keep_float[-1], winner.loss, best.loss)
    return winner


def better(source: Source, on: Trial, static: Recipe8, dynamic: Recipe8) -> tuple[Recipe8, dict[str, float]]:
    """The recipe whose answers the task scores higher, and both mean scores.

    Where the mean of the paired differences is within two of its standard errors the scores can't tell, and the smaller
    loss wins; static where the losses are alike too.
    """
    import numpy as np

    by_mode = {
        recipe.mode: on.scores(source.quantized(recipe)[0], source.config_entries(recipe))
        for recipe in (static, dynamic)
    }
    gained = by_mode["static"] - by_mode["dynamic"]
    error = float(gained.std(ddof=1) / np.sqrt(len(gained))) if len(gained) > 1 else 0.0
    means: dict[str, float] = {mode: float(scores.mean()) for mode, scores in by_mode.items()}
    if abs(float(gained.mean())) > 2 * error:
        return (static if gained.mean() > 0 else dynamic), means
    return (static if static.loss <= dynamic.loss * (1 + ALIKE) else dynamic), means
