"""Where a quantized graph loses its accuracy: the error of every Linear's output against the float graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.evidence import LayerError
from edgekit.formats.onnx.graph import Graph, copy_model
from edgekit.formats.onnx.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

    from edgekit.modalities.encoded import Encoded

# Every prompt gives as many values per Linear as it has tokens: a few prompts settle two digits.
MOST_PROMPTS = 16


def layer_errors(
    exact: onnx.ModelProto,
    quantized: onnx.ModelProto,
    encoded: Encoded,
    entries: Mapping[str, str] | None = None,
) -> list[LayerError]:
    """{name, error} of every Linear in graph order: error = sum |y - y'|^2 / sum |y|^2 over prompts, tokens and channels.

    y: what the float graph's Linear makes, y': what the quantized one makes of the quantized graph's own values, so that
    an error includes what came from the layers before. Channels that only the quantized graph has (the ladder's) don't count.
    Linears whose values the quantized graph no longer has are left out.
    """
    import numpy as np

    made = {output for node in quantized.graph.node for output in node.output}
    linears = [linear for linear in Graph(exact).linears() if linear.result in made]
    names = [linear.result for linear in linears]
    sessions = [Session(_exposing(model, names), entries=entries) for model in (exact, quantized)]
    lost, power = np.zeros(len(names)), np.zeros(len(names))
    for index in range(0, len(encoded), max(1, -(-len(encoded) // MOST_PROMPTS))):
        inputs = encoded.subset([index]).batch()
        wanted, got = (session.values(names, inputs) for session in sessions)
        for place, (y, other) in enumerate(zip(wanted, got, strict=True)):
            difference = other[..., : y.shape[-1]].astype(np.float64) - y
            lost[place] += (difference**2).sum()
            power[place] += (y.astype(np.float64) ** 2).sum()
    errors = lost / np.maximum(power, 1e-12)
    return [
        LayerError(name=linear.key, error=float(f"{error:.4g}")) for linear, error in zip(linears, errors, strict=True)
    ]


def _exposing(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy that also gives these values."""
    import onnx

    fresh = copy_model(model)
    known = {value.name for value in fresh.graph.output}
    fresh.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return fresh
