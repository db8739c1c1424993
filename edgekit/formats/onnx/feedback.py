"""4 bits with feedback: a model's codes as rounding on the calibrate prompts makes them (`formats.gptq`).

A fifth of the prompts takes no part (`source.is_judged`): the file is held against the one without feedback on these, and the
nearer one to the float model ships. The bytes are the same, and so is the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.formats.gptq import linear_paths, round_linears
from edgekit.formats.onnx.candidates import trial
from edgekit.formats.onnx.rounding import pack_fitted, split
from edgekit.formats.onnx.trained import ByValues, Channel
from edgekit.formats.source import is_judged
from edgekit.modalities.text import reads_texts

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray
    from torch import nn

    from edgekit.formats.onnx.candidates import Trial
    from edgekit.formats.onnx.options import Options
    from edgekit.formats.onnx.trained import Found
    from edgekit.formats.source import Source

    Floats = NDArray[np.float32]

# Prompts that take no part, at least, and others: fewer do not tell whether a file is nearer.
LEAST_JUDGED = 8
# The task's module holds transformers' as this, and so does the graph of a decoder.
_MODULE = "model."


@dataclass(frozen=True, kw_only=True)
class ByName:
    """The codes of a decoder's weights, by their names in transformers' module."""

    codes: Mapping[str, Found]

    def find(self, name: str, values: Floats, *, table: bool = False) -> Found | None:
        """See Trained: None of the head, and of what no prompt reached."""
        found = self.codes.get(name.removeprefix(_MODULE))
        return found if found is not None and len(found[0]) == len(values) else None


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A decoder's codes that were rounded with feedback, and the indices of the prompts that took no part."""

    codes: ByName
    judged: Sequence[int]


def fit_decoder(module: nn.Module, source: Source, options: Options, head: str) -> Fitted | None:
    """A decoder's weights in the options' blocks of 4 bits; None where the options or the prompts do not serve.

    head: the path of the Linear that has more bits.
    """
    if not options.feedback or options.scheme not in {"w4", "auto"} or (judged := _judged(source)) is None:
        return None
    found = _rounded(module, source, options, [path for path in linear_paths(module) if path != head])
    return Fitted(codes=ByName(codes={name: codes for name, _, codes in found}), judged=judged)


def fit_encoder(
    source: Source, options: Options, exported: onnx.ModelProto, most: int
) -> tuple[ByValues, Trial] | None:
    """An encoder's codes, as `fit_decoder`'s, found by the channels that they stand for; and the trial that judges them, of at
    most so many prompts."""
    if source.score is None or not options.fitted or not reads_texts(source.encoded):
        return None
    if (judged := _judged(source)) is None:
        return None
    module = source.load()
    channels = {
        values.tobytes(): Channel(codes, scales)
        for _, weight, found in _rounded(module, source, options, linear_paths(module))
        for values, codes, scales in zip(weight, *found, strict=True)
    }
    unseen = trial(exported, source.encoded.subset(judged), score=source.score, most=most)
    return ByValues(channels=channels, rows={}), unseen


def decide(by_itself: float, with_feedback: float, name: str) -> tuple[bool, dict[str, float | None]]:
    """Whether the file with feedback is the nearer one, by two losses on prompts that took no part, and what the facts say of it.

    A loss that is no number is the larger one, and None there.
    """
    two = by_itself, with_feedback
    plain, fed = (loss if math.isfinite(loss) else math.inf for loss in two)
    one, other = (loss if math.isfinite(loss) else None for loss in two)
    return fed < plain, {name: other, f"{name}_without": one}


def _judged(source: Source) -> list[int] | None:
    # The first of each text: one that is there often says no more.
    first = {tuple(row): index for index, row in reversed([*enumerate(source.ids)]) if len(row) > 1}
    judged = sorted(index for row, index in first.items() if is_judged(row))
    return judged if LEAST_JUDGED <= len(judged) <= len(first) - LEAST_JUDGED else None


def _rounded(
    module: nn.Module, source: Source, options: Options, paths: Iterable[str]
) -> Iterator[tuple[str, Floats, Found]]:
    """Weights of Linears, [n, columns], with their codes and scales; those that no prompt reaches are left out."""
    import numpy as np

    names = {f"{path.removeprefix(_MODULE)}.weight": f"{path}.weight" for path in paths}
    kinds = dict.fromkeys(names, f"w4/{options.block}")
    order = np.random.default_rng(0).permutation(len(source.ids))
    texts = [source.ids[index] for index in order if not is_judged(source.ids[index])]
    for done, (name, rounded) in enumerate(round_linears(module, texts, kinds, pack_fitted)):
        source.progress(done + 1, len(kinds), f"rounds {name}")
        weight = module.get_parameter(names[name]).detach().numpy()
        yield name, weight, split(rounded.packed, kinds[name], weight.shape[1])
