"""The scheme "mixed": bits per tensor by sensitivity, with llama.cpp as the judge of the likeliest mixtures.

Calibrate prompts alone decide: the statistics are of all of them, and the KL divergence is measured on some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EdgekitError
from edgekit.formats.gguf.convert import Converted, Quantization, convert, float_rows
from edgekit.formats.gguf.ggml import row_bytes
from edgekit.formats.gguf.judge import Judge
from edgekit.formats.gguf.mixed.allocate import (
    COSTS,
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
from edgekit.formats.gguf.mixed.gptq import CODES
from edgekit.formats.gguf.schemes import OUTPUT, TOKEN_EMBEDDING, Shape, main_file_type, quantizable
from edgekit.formats.gguf.tensors import Tensor, layer_names, shapes
from edgekit.formats.gptq import feedback, input_grams, linear_paths
from edgekit.formats.smallest import Passage
from edgekit.formats.source import Source, is_judged
from edgekit.outputs import OUTPUTS
from edgekit.runtimes.machine import available_cores
from edgekit.typed_json import MAY_BE_ABSENT

if TYPE_CHECKING:
    from edgekit.calibration import Calibration
    from edgekit.formats.gguf.file import Value
    from edgekit.formats.gguf.imatrix import Imatrix
    from edgekit.formats.gguf.options import Options

# Tokens on which mixtures are compared, and mixtures that are: a difference of KL that matters shows on so many. Twenty more
# mixtures took two thirds of the time and gained 0.2 % (at the bytes of q4_k_m) and 2.6 % (of q4_0) on a Llama of 46 million
# weights, where rounding with feedback gained 32 and 39 %.
JUDGED_TOKENS, EVALUATIONS = 2048, 4


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How a mixture came about; KL divergences are from the float model's answers, in nats a token.

    predicted_kl: the sum of what its types lose by themselves. tensor_bytes: what all tensors take. Of a decoder, whose mixtures
    llama.cpp judges: measured_kl, of the file; without_feedback_kl, of the same types rounded as ggml rounds; first_kl, of the
    mixture that was predicted best; evaluations, how many mixtures were measured; types, by tensor.
    """

    predicted_kl: float
    tensor_bytes: int
    measured_kl: float | None = field(default=None, metadata=MAY_BE_ABSENT)
    without_feedback_kl: float | None = field(default=None, metadata=MAY_BE_ABSENT)
    first_kl: float | None = field(default=None, metadata=MAY_BE_ABSENT)
    evaluations: int | None = field(default=None, metadata=MAY_BE_ABSENT)
    types: Mapping[str, str] | None = field(default=None, metadata=MAY_BE_ABSENT)


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """A mixture that was found by measuring: the search's result, the file that was written of it, and its KL divergence."""

    refined: Refined
    made: Converted
    measured_kl: float


class _Write(Protocol):
    """Writes a file with these types, by tensor."""

    def __call__(self, types: Mapping[str, str], out: Path, feedback: Feedback | None = None) -> Converted:
        """feedback: as `Quantization` takes it."""


def mix(
    source: Source,
    tensors: Sequence[Tensor],
    like: Mapping[str, str],
    options: Options,
    matrix: Imatrix | None,
    metadata: Mapping[str, Value],
    out: Path,
) -> tuple[Converted, Choices]:
    """Write a model with the types of least loss at the budget's bytes.

    like: the types whose bytes are the budget, where options.bytes gives none. metadata: the file's keys, but those that tell of
    the mixture. Raises EdgekitError where no mixture is small enough.
    """
    sizes = {tensor.name: tensor.rows * row_bytes(like[tensor.name], tensor.columns) for tensor in tensors}
    matrices = {shape.name: shape for shape in shapes(tensor for tensor in tensors if len(tensor.shape) > 1)}
    free = [tensor for tensor in tensors if tensor.name in matrices and quantizable(matrices[tensor.name])]
    kept = {tensor.name: like[tensor.name] for tensor in tensors if tensor not in free}
    # The rows of an embedding that is no head are looked up.
    looked_up = frozenset({TOKEN_EMBEDDING} if OUTPUT in sizes or not OUTPUTS[source.output].generates else ())
    gathered = looked_up if options.tokens_per_second is not None else frozenset()
    kept_bytes = sum(sizes[name] for name in kept)
    budget = _budget(source, options, sizes) - kept_bytes
    multiplied = {tensor.name: matrices[tensor.name] for tensor in free if tensor.name not in looked_up}
    pace = _pace(source, options, like, multiplied)
    calibration = source.calibration()
    importance = _importance(tensors, matrix, calibration)
    steps = _Steps(source, len(free))
    sensitivities = _sensitivities(source, free, matrices, importance, calibration, steps)

    def write(types: Mapping[str, str], out: Path, feedback: Feedback | None = None) -> Converted:
        every = {**kept, **types}
        through = None if options.through == "none" else options.through
        quantization = Quantization(types=every, through=through, importance=importance, feedback=feedback)
        keys = {**metadata, "general.file_type": main_file_type(shapes(tensors), every)}
        return convert(source.model, out, quantization, keys, threads=available_cores())

    def rounding(types: Mapping[str, str]) -> Feedback | None:
        return _feedback(source, tensors, options, types, steps)

    if not OUTPUTS[source.output].generates:
        mixture = allocate(sensitivities, budget, free=gathered, pace=pace)
        made = write(mixture.types, out, rounding(mixture.types))
        return made, Choices(predicted_kl=mixture.loss, tensor_bytes=mixture.bytes + kept_bytes)

    def search(kl: Callable[[Mapping[str, str]], float]) -> Refined:
        return refine(sensitivities, budget, kl, evaluations=EVALUATIONS, free=gathered, pace=pace)

    judged = _judged_mixture(source, [tensor.name for tensor in free], write, search, rounding, out, steps)
    refined = judged.refined
    return judged.made, Choices(
        predicted_kl=refined.mixture.loss,
        tensor_bytes=refined.mixture.bytes + kept_bytes,
        measured_kl=judged.measured_kl,
        without_feedback_kl=refined.kl,
        first_kl=refined.first_kl,
        evaluations=refined.evaluations,
        types=dict(sorted(refined.mixture.types.items())),
    )


def _judged_mixture(
    source: Source,
    names: Sequence[str],
    write: _Write,
    search: Callable[[Callable[[Mapping[str, str]], float]], Refined],
    rounding: Callable[[Mapping[str, str]], Feedback | None],
    out: Path,
    steps: _Steps,
) -> _Judged:
    """Write the mixture that `search` finds by asking for the KL divergence of some."""
    with Judge(out.parent) as judge:
        write(dict.fromkeys(names, "f32"), judge.tried)
        judge.listen(judge.tried, _judged(source))

        def kl(types: Mapping[str, str]) -> float:
            steps.tell("compares mixtures")
            write(types, judge.tried)
            return judge.hear(judge.tried).mean_kl

        refined = search(kl)
        types = refined.mixture.types
        feedback_ = rounding(types)
        made = write(types, out, feedback_)
        # What was written without feedback is what was measured.
        measured = judge.hear(out).mean_kl if feedback_ else refined.kl
    if measured > refined.kl:
        # Feedback is measured as all else is, and left out where it does not help.
        made, measured = write(types, out), refined.kl
    return _Judged(refined=refined, made=made, measured_kl=measured)


def _feedback(
    source: Source, tensors: Sequence[Tensor], options: Options, types: Mapping[str, str], steps: _Steps
) -> Feedback | None:
    rounded = [tensor for tensor in tensors if types.get(tensor.name) in CODES]
    return Feedback(source, rounded, steps) if options.feedback and rounded else None


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
        self._left = [tensor.name for tensor in reversed(tensors) if tensor.name in paths]
        ids = [row for row in source.ids if not is_judged(row)] or source.ids
        order = np.random.default_rng(0).permutation(len(ids))
        wanted = [paths[name] for name in reversed(self._left)]
        self._grams = input_grams(module, [ids[index] for index in order], wanted)
        self._last: tuple[object, NDArray[np.float32]] | None = None

    def __call__(self, name: str) -> NDArray[np.float32] | None:
        """float32 [columns, columns]."""
        if not self._left or name != self._left[-1]:
            return None
        self._left.pop()
        self._steps.tell(f"rounds {name}")
        _, gram = next(self._grams)
        if self._last is None or self._last[0] is not gram:
            self._last = gram, feedback(gram)
        spread = self._last[1]
        if not self._left:
            # The float model is not needed any more.
            self._grams.close()
            self._last = None
        return spread


def _judged(source: Source) -> list[Passage]:
    """The passages that mixtures are compared on, all of whose tokens are scored. Raises EdgekitError where there are none."""
    judged = [ids for ids in source.ids if is_judged(ids)]
    passages = [(ids, 1) for ids in _some(judged or source.ids, JUDGED_TOKENS)]
    if not passages:
        raise EdgekitError('export: scheme = "mixed" is judged on calibrate prompts, and there are none; add some')
    return passages


def _some(ids: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """Passages from all over the list, no more tokens than that."""
    order = np.random.default_rng(0).permutation(len(ids))
    for index in order:
        row = list(ids[index])[:tokens]
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
    tied = not any(tensor.name == OUTPUT for tensor in tensors)
    instructions = _instructions(source)
    sensitivities = []
    for tensor in tensors:
        name = tensor.name
        steps.tell(f"measures {name}")
        sensitivities.append(
            measure(
                matrices[name],
                float_rows(tensor),
                candidates(matrices[name], instructions, tied=tied),
                layers=source.model.layers,
                importance=importance.get(name),
                gradient=gradients.get(name),
            )
        )
    return sensitivities


def _importance(
    tensors: Sequence[Tensor], matrix: Imatrix | None, calibration: Calibration
) -> dict[str, NDArray[np.float32]]:
    """Float32 [columns] by tensor: the importance matrix, and for an embedding that is no head its gradient."""
    importance = dict(matrix.importance()) if matrix is not None else {}
    if calibration.embedding is not None and any(tensor.name == OUTPUT for tensor in tensors):
        importance[TOKEN_EMBEDDING] = calibration.embedding
    return importance


def _gradients(source: Source, tensors: Sequence[Tensor], calibration: Calibration) -> dict[str, NDArray[np.float32]]:
    """The mean square of the gradient at each row's output, by GGUF name, where the calibration has it."""
    known = {
        key.rpartition("#")[0]: stats.grad_square
        for key, stats in calibration.stats.items()
        if stats.grad_square is not None
    }
    names = layer_names(source.model, known)
    gradients = {name: known[path] for path, name in names.items()}
    for tensor in tensors:
        gradient = gradients.get(tensor.name)
        if gradient is None:
            continue
        gradient = gradient[len(gradient) - tensor.rows :] if len(gradient) != tensor.rows else gradient
        # Rows of heads that llama.cpp wants interleaved: their gradients go along.
        gradients[tensor.name] = (
            gradient.reshape(-1, 2, tensor.head // 2).swapaxes(1, 2).reshape(-1) if tensor.head else gradient
        ).astype(np.float32)
    if calibration.embedding is not None and any(tensor.name == OUTPUT for tensor in tensors):
        # Its input is a token: each row weighs as often as its token is there.
        rows = next(tensor.rows for tensor in tensors if tensor.name == TOKEN_EMBEDDING)
        counts = np.bincount([token for row in source.ids for token in row], minlength=rows)[:rows]
        gradients[TOKEN_EMBEDDING] = (counts / max(counts.sum(), 1)).astype(np.float32)
    return gradients
