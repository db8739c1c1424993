"""The scheme "mixed": bits per tensor by sensitivity, with llama.cpp as the judge of the likeliest mixtures.

Calibrate prompts alone decide: the statistics are of all of them, and the KL divergence is measured on some.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EdgekitError
from edgekit.formats.gguf.convert import convert, float_rows
from edgekit.formats.gguf.ggml import row_bytes
from edgekit.formats.gguf.judge import Judge
from edgekit.formats.gguf.mixed.allocate import (
    COSTS,
    Mixture,
    Pace,
    Refined,
    Sensitivity,
    allocate,
    candidates,
    instruction_set,
    measure,
    read_budget,
    refine,
)
from edgekit.formats.gguf.mixed.gptq import CODES, feedback, input_grams, linear_paths
from edgekit.formats.gguf.schemes import OUTPUT, TOKEN_EMBEDDING, Shape, main_file_type, quantizable
from edgekit.formats.gguf.tensors import Tensor, layer_names, shapes
from edgekit.formats.smallest import Passage
from edgekit.outputs import OUTPUTS
from edgekit.runtimes.machine import available_cores

if TYPE_CHECKING:
    from edgekit.calibration import Calibration
    from edgekit.formats.gguf.imatrix import Imatrix
    from edgekit.formats.gguf.options import Options
    from edgekit.formats.source import Source

# Tokens on which mixtures are compared, and mixtures that are: a difference of KL that matters shows on so many. Twenty more
# mixtures took two thirds of the time and gained 0.2 % (at the bytes of q4_k_m) and 2.6 % (of q4_0) on a Llama of 46 million
# weights, where rounding with feedback gained 32 and 39 %.
JUDGED_TOKENS, EVALUATIONS = 2048, 4


def mix(
    source: Source,
    tensors: Sequence[Tensor],
    like: Mapping[str, str],
    options: Options,
    matrix: Imatrix | None,
    metadata: Mapping[str, Any],
    out: Path,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write a model with the types of least loss at the budget's bytes; returns what `convert` made, and what is to be known.

    like: the types whose bytes are the budget, where options.bytes gives none. metadata: the file's keys, but those that tell of
    the mixture. Raises EdgekitError where no mixture is small enough.
    """
    sizes = {one.name: one.rows * row_bytes(like[one.name], one.columns) for one in tensors}
    matrices = {one.name: one for one in shapes(one for one in tensors if len(one.shape) > 1)}
    free = [one for one in tensors if one.name in matrices and quantizable(matrices[one.name])]
    kept = {one.name: like[one.name] for one in tensors if one not in free}
    # The rows of an embedding that is no head are looked up.
    looked_up = frozenset({TOKEN_EMBEDDING} if OUTPUT in sizes or not OUTPUTS[source.output].generates else ())
    gathered = looked_up if options.tokens_per_second is not None else frozenset()
    budget = _budget(source, options, sizes) - sum(sizes[name] for name in kept)
    pace = _pace(source, options, like, {one.name: matrices[one.name] for one in free if one.name not in looked_up})
    calibration = source.calibration()
    importance = _importance(tensors, matrix, calibration)
    steps = _Steps(source, len(free))
    sensitivities = _sensitivities(source, free, matrices, importance, calibration, steps)

    def written(types: Mapping[str, str], place: Path, feedback: Feedback | None = None) -> dict[str, Any]:
        every = {**kept, **types}
        more = {"general.file_type": main_file_type(shapes(tensors), every)}
        return convert(
            source.model,
            place,
            types=every,
            metadata={**metadata, **more},
            through=None if options.through == "none" else options.through,
            importance=importance,
            feedback=feedback,
            threads=available_cores(),
        )

    def rounding(types: Mapping[str, str]) -> Feedback | None:
        return _feedback(source, tensors, options, types, steps)

    if not OUTPUTS[source.output].generates:
        mixture = allocate(sensitivities, budget, free=gathered, pace=pace)
        choices: dict[str, Any] = {"predicted_kl": mixture.loss}
        made = written(mixture.types, out, rounding(mixture.types))
    else:

        def search(kl: Callable[[Mapping[str, str]], float]) -> Refined:
            return refine(sensitivities, budget, kl, evaluations=EVALUATIONS, free=gathered, pace=pace)

        names = [one.name for one in free]
        made, choices, mixture = _judged_mixture(source, names, written, search, rounding, out, steps)
    choices["tensor_bytes"] = mixture.bytes + sum(sizes[name] for name in kept)
    return made, {"choices": choices}


def _judged_mixture(
    source: Source,
    names: Sequence[str],
    written: Callable[..., dict[str, Any]],
    search: Callable[[Callable[[Mapping[str, str]], float]], Refined],
    rounding: Callable[[Mapping[str, str]], Feedback | None],
    out: Path,
    steps: _Steps,
) -> tuple[dict[str, Any], dict[str, Any], Mixture]:
    """Write the mixture that `search` finds by asking for the KL of some; what was made, what is to be known, and the mixture."""
    with Judge(out.parent) as judge:
        written(dict.fromkeys(names, "f32"), judge.tried)
        judge.listen(judge.tried, _judged(source))

        def kl(types: Mapping[str, str]) -> float:
            steps.tell("compares mixtures")
            written(types, judge.tried)
            return judge.hear(judge.tried).mean_kl

        found = search(kl)
        choices, feedback_ = _told(found), rounding(found.mixture.types)
        made = written(found.mixture.types, out, feedback_)
        # What was written without feedback is what was measured.
        choices["measured_kl"] = judge.hear(out).mean_kl if feedback_ else found.kl
    if choices["measured_kl"] > found.kl:
        # Feedback is measured as all else is, and left out where it does not help.
        made, choices["measured_kl"] = written(found.mixture.types, out), found.kl
    return made, choices, found.mixture


def _feedback(
    source: Source, tensors: Sequence[Tensor], options: Options, types: Mapping[str, str], steps: _Steps
) -> Feedback | None:
    those = [one for one in tensors if types.get(one.name) in CODES]
    return Feedback(source, those, steps) if options.feedback and those else None


def _told(found: Refined) -> dict[str, Any]:
    return {
        "predicted_kl": found.mixture.loss,
        "without_feedback_kl": found.kl,
        "first_kl": found.first_kl,
        "evaluations": found.evaluations,
        "types": dict(sorted(found.mixture.types.items())),
    }


def _budget(source: Source, options: Options, sizes: Mapping[str, int]) -> int:
    """Bytes of all tensors, or read per token where a rate is asked for."""
    if options.tokens_per_second is None:
        # The name of the scheme is in the file, too, and a longer one may take the next 32 bytes.
        longer = 32 * (len(options.like) < len(options.scheme))
        return options.bytes or sum(sizes.values()) - longer
    bandwidth = source.processor.bandwidth_gbs if source.processor else None
    if bandwidth is None:
        raise EdgekitError(
            "export.text-generation.tokens_per_second: the target states no bandwidth_gbs; state it in [hardware], or give bytes"
        )
    return read_budget(options.tokens_per_second, bandwidth)


def _instructions(source: Source) -> str:
    processor = source.processor
    return instruction_set(processor.arch, processor.features) if processor else "other"


def _pace(source: Source, options: Options, like: Mapping[str, str], multiplied: Mapping[str, Shape]) -> Pace | None:
    """No slower than the scheme that gives the bytes; None where bytes or a rate are asked for, or nobody measured the types."""
    costs = COSTS.get(_instructions(source))
    if costs is None or options.bytes is not None or options.tokens_per_second is not None:
        return None
    return Pace(costs=costs, shapes=multiplied, like=like)


class _Steps:
    """Progress over the parts of a mixture's making: tensors measured, mixtures compared, tensors rounded."""

    def __init__(self, source: Source, tensors: int) -> None:
        self._progress, self._done, self._total = source.progress, 0, 2 * tensors + EVALUATIONS

    def tell(self, note: str) -> None:
        """One part more is done."""
        self._done = min(self._done + 1, self._total)
        self._progress(self._done, self._total, note)


class Feedback:
    """What `feedback` says for the tensors of a file, asked for in their order; None for those whose inputs nobody sees.

    Texts come from all over the calibrate prompts, without those on which mixtures are judged.
    """

    def __init__(self, source: Source, tensors: Sequence[Tensor], steps: _Steps) -> None:
        module, self._steps = source.load(), steps
        paths = {name: path for path, name in layer_names(source.model, linear_paths(module)).items()}
        self._left = [one.name for one in reversed(tensors) if one.name in paths]
        ids = [row for row in source.ids if not is_judged(row)] or source.ids
        order = np.random.default_rng(0).permutation(len(ids))
        wanted = [paths[name] for name in reversed(self._left)]
        self._grams = input_grams(module, [ids[place] for place in order], wanted)
        self._last: tuple[object, NDArray[np.float32]] | None = None

    def __call__(self, name: str) -> NDArray[np.float32] | None:
        """float32 [columns, columns]."""
        if not self._left or name != self._left[-1]:
            return None
        self._left.pop()
        self._steps.tell(f"rounds {name}")
        gram = next(self._grams)
        if self._last is None or self._last[0] is not gram:
            self._last = gram, feedback(gram)
        told = self._last[1]
        if not self._left:
            # The float model is not needed any more.
            self._grams.close()
            self._last = None
        return told


def is_judged(ids: Sequence[int]) -> bool:
    """Whether a calibrate prompt is kept for judging: a fifth of them are, and no gradient is taken of these."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).digest()[0] % 5 == 0


def _judged(source: Source) -> list[Passage]:
    """The passages that mixtures are compared on, all of whose tokens are scored. Raises EdgekitError where there are none."""
    judged = [ids for ids in source.ids if is_judged(ids)]
    found = [(ids, 1) for ids in _some(judged or source.ids, JUDGED_TOKENS)]
    if not found:
        raise EdgekitError('export: scheme = "mixed" is judged on calibrate prompts, and there are none; add some')
    return found


def _some(ids: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """Passages from all over the list, no more tokens than that."""
    order = np.random.default_rng(0).permutation(len(ids))
    for place in order:
        row = list(ids[place])[:tokens]
        if len(row) < 2:
            continue
        tokens -= len(row)
        yield row
        if tokens < 2:
            return


def _sensitivities(
    source: Source,
    tensors: Sequence[Tensor],
    matrices: Mapping[str, Shape],
    importance: Mapping[str, NDArray[np.float32]],
    calibration: Calibration,
    steps: _Steps,
) -> list[Sensitivity]:
    gradients = _gradients(source, tensors, calibration)
    tied = not any(one.name == OUTPUT for one in tensors)
    instructions = _instructions(source)
    found = []
    for one in tensors:
        steps.tell(f"measures {one.name}")
        found.append(
            measure(
                matrices[one.name],
                float_rows(one),
                candidates(matrices[one.name], instructions, tied=tied),
                layers=source.model.layers,
                importance=importance.get(one.name),
                gradient=gradients.get(one.name),
            )
        )
    return found


def _importance(
    tensors: Sequence[Tensor], matrix: Imatrix | None, calibration: Calibration
) -> dict[str, NDArray[np.float32]]:
    """Float32 [columns] by tensor: the importance matrix, and for an embedding that is no head its gradient."""
    found = dict(matrix.importance()) if matrix is not None else {}
    if calibration.embedding is not None and any(one.name == OUTPUT for one in tensors):
        found[TOKEN_EMBEDDING] = calibration.embedding
    return found


def _gradients(source: Source, tensors: Sequence[Tensor], calibration: Calibration) -> dict[str, NDArray[np.float32]]:
    """The mean square of the gradient at each row's output, by GGUF name, where the calibration has it."""
    known = {
        key.rpartition("#")[0]: stats.grad_square
        for key, stats in calibration.stats.items()
        if stats.grad_square is not None
    }
    names = layer_names(source.model, known)
    found = {name: known[path] for path, name in names.items()}
    for one in tensors:
        gradient = found.get(one.name)
        if gradient is None:
            continue
        gradient = gradient[len(gradient) - one.rows :] if len(gradient) != one.rows else gradient
        # Rows of heads that llama.cpp wants interleaved: their gradients go along.
        found[one.name] = (
            gradient.reshape(-1, 2, one.head // 2).swapaxes(1, 2).reshape(-1) if one.head else gradient
        ).astype(np.float32)
    if calibration.embedding is not None and any(one.name == OUTPUT for one in tensors):
        # Its input is a token: each row weighs as often as its token is there.
        rows = next(one.rows for one in tensors if one.name == TOKEN_EMBEDDING)
        counts = np.bincount([token for row in source.ids for token in row], minlength=rows)[:rows]
        found[TOKEN_EMBEDDING] = (counts / max(counts.sum(), 1)).astype(np.float32)
    return found
