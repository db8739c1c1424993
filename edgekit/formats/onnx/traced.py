"""The float graph that every scheme of a model begins with: traced and proven once, kept for the next scheme or target."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.formats.onnx import graph
from edgekit.schema import dump_json

if TYPE_CHECKING:
    import onnx

    from edgekit.calibration import Calibration, Stats
    from edgekit.formats.source import Source

_GRAPH, _WATCHED = "float.onnx", "linears.json"


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A module as a float graph that computes what torch does, and the paths of its torch Linears: a calibration saw those."""

    model: onnx.ModelProto
    watched: frozenset[str]


def trace(source: Source) -> Traced:
    """The float graph of a source's module: what `Source.keep` kept, or traced now.

    Raises EdgekitError where there are no prompts to prove it on, where its weights are more than protobuf holds, and as
    `float_graph.export_float` does.
    """
    import onnx

    if not len(source.encoded):
        raise EdgekitError("export: no calibrate prompts; the float graph's parity with torch is proven on them")
    if source.keep is None:
        return _trace(source)
    folder = source.keep(lambda out: _write(_trace(source), out))
    watched = json.loads((folder / _WATCHED).read_text(encoding="utf-8"))
    return Traced(model=onnx.load(str(folder / _GRAPH)), watched=frozenset(watched))


def _trace(source: Source) -> Traced:
    from torch import nn

    from edgekit.formats.onnx.float_graph import export_float

    module = source.load()
    graph.check_size(4 * sum(weight.numel() for weight in module.parameters()), type(module).__name__)
    source.progress(0, 0, "tracing the float graph")
    return Traced(
        model=export_float(module, source.encoded, output_name=source.output),
        watched=frozenset(path for path, part in module.named_modules() if isinstance(part, nn.Linear)),
    )


def _write(traced: Traced, out: Path) -> None:
    graph.save(traced.model, out / _GRAPH)
    (out / _WATCHED).write_text(dump_json(sorted(traced.watched)), encoding="utf-8", newline="\n")


def float_size(traced: Traced) -> int:
    """How many bytes the graph takes as a file."""
    bare = type(traced.model)()
    bare.CopyFrom(traced.model)
    del bare.graph.initializer[:]
    return int(bare.ByteSize()) + graph.weight_bytes(traced.model)


def refuse_other_calibration(traced: Traced, calibration: Calibration) -> None:
    """Raises EdgekitError where the calibration does not fit the module's Linears: they would silently stay float.

    A product that is no torch Linear was never calibrated, and stays float.
    """
    found = graph.Graph(traced.model)
    linears = found.linears()
    missing = []
    for linear in linears:
        seen = calibration.stats.get(linear.key)
        if linear.path in traced.watched and (seen is None or not fits(seen, found.initializers[linear.weight])):
            missing.append(linear.key)
    if missing:
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise EdgekitError(
            f"calibration: no statistics that fit {len(missing)} of the model's {len(linears)} Linears ({named}), which a"
            " static scheme would leave float; calibrate this very model (a calibration of another model is the usual"
            " cause), or use --scheme int8-dynamic"
        )


def fits(seen: Stats, weight: onnx.TensorProto) -> bool:
    """Whether statistics are of as many channels as a weight [inputs, outputs] multiplies."""
    return bool(seen.minimum.shape[0] == weight.dims[0])
