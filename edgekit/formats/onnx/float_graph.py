"""A torch module becomes a float ONNX graph whose Linears carry their modules' paths, checked against torch."""

from __future__ import annotations

import ast
import io
import logging
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.formats.onnx.graph import Graph, attribute, copy_node, tensor_attribute
from edgekit.formats.onnx.session import Session

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

    from edgekit.modalities.encoded import Arrays, Encoded, Input

log = logging.getLogger("edgekit")

SCOPES = "pkg.torch.onnx.name_scopes"  # where torch's exporter writes a node's module path
# The older exporter has no newer opset (torch.onnx.utils, torch 2.13).
OLD_OPSET = 18
# Float32 sums in another order: about sqrt(layers) times 1e-6 of the largest output was measured on BERT, DeBERTa and
# ModernBERT; a wrong graph is off by whole units.
TOLERANCE = 2e-4
# What the exporters raise for a model that they cannot translate: their own errors derive from these.
EXPORT_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    NotImplementedError,
    AssertionError,
    ImportError,
)


def export_float(module: nn.Module, encoded: Encoded, *, output_name: str) -> onnx.ModelProto:
    """The module of these prompts' inputs -> [batch, width] as a float32 graph; the batch and what differs in them are free.

    Its Linears are MatMul nodes named after their modules. `encoded` are real prompts: they are the samples and the proof of
    parity. Raises EdgekitError naming the operator where no exporter can translate the module, and naming the worst
    difference where the graph does not compute what torch does.
    """
    module.eval()  # a wrapper left in train mode makes the older exporter switch dropout on
    reasons: list[str] = []
    sample = _sample(encoded)
    for exporter in (_with_transformers, _with_torch, _with_old_torch):
        try:
            with quiet(), sets_in_order(module):
                model = exporter(module, _tensors(sample), encoded.inputs)
        except EXPORT_ERRORS as failed:
            reasons.append(reason(failed))
            log.info("export: %s: %s; trying the next exporter", exporter.__name__.removeprefix("_"), reasons[-1])
            continue
        tidy(model, encoded.inputs, output_name)
        try:
            check_parity(module, model, encoded)
        except EdgekitError as wrong:
            reasons.append(wrong.message)
            log.info("export: %s: %s; trying the next exporter", exporter.__name__.removeprefix("_"), wrong.message)
            continue
        return model
    raise EdgekitError(f"{type(module).__name__}: cannot be exported to ONNX: {_most_telling(reasons)}")


def check_parity(module: nn.Module, model: onnx.ModelProto, encoded: Encoded) -> float:
    """Compare a graph with torch at several shapes; returns the worst difference over the output's largest magnitude.

    Shapes: single prompts (shortest, middle, longest, and one cut to two tokens) and a padded batch of several. Raises
    EdgekitError where the difference is above TOLERANCE.
    """
    import numpy as np
    import torch

    session = Session(model)
    worst, where = 0.0, ""
    for batch in _parity_batches(encoded):
        inputs = batch.batch()
        with torch.inference_mode():
            expected = module(**_tensors(inputs)).float().numpy()
        given = session.run(inputs)
        shape = f"batch {len(batch)}, sequence {max(batch.sizes)}"
        if given.shape != expected.shape:
            raise EdgekitError(f"the graph gives shape {given.shape} where torch gives {expected.shape} ({shape})")
        difference = float(np.abs(given - expected).max() / max(1e-6, float(np.abs(expected).max())))
        if not difference <= worst:  # a NaN is worse than anything
            worst, where = difference, shape
    if not worst <= TOLERANCE:
        raise EdgekitError(
            f"the float graph differs from torch by {worst:.2g} of its largest output (limit {TOLERANCE:.0e}) at {where}"
        )
    return worst


def _parity_batches(encoded: Encoded) -> Iterator[Encoded]:
    by_size = encoded.by_size()
    longest, middle, shortest = by_size[-1], by_size[len(by_size) // 2], by_size[0]
    for single in (shortest, middle, longest):
        yield encoded.subset([single])
    yield encoded.subset([longest]).cut(2)
    yield encoded.subset([middle, longest, shortest])
    yield encoded.subset(range(min(5, len(encoded))))


def _sample(encoded: Encoded) -> Arrays:
    """Two prompts, one filled up where prompts differ in size: a batch of one or a mask of ones only is frozen into the graph."""
    longest = encoded.subset(encoded.by_size()[-1:])
    row = longest.resized(max(8, min(16, *longest.sizes)))
    return replace(row, prompts=[*row.prompts, *row.cut(5).prompts], owners=[0, 0]).batch()


def _tensors(inputs: Arrays) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def _dynamic_shapes(inputs: Mapping[str, Input], longest: int) -> dict[str, dict[int, torch.export.Dim]]:
    import torch

    batch = torch.export.Dim("batch", min=1, max=4096)
    free = {given.axis for given in inputs.values() if given.axis is not None}
    axes = {axis: torch.export.Dim(axis, min=2, max=longest) for axis in sorted(free)}
    return {
        name: {0: batch} if given.axis is None else {0: batch, 1: axes[given.axis]} for name, given in inputs.items()
    }


def _longest(module: nn.Module) -> int:
    """The most positions that any part's config allows; 512 where none says."""
    limits = [getattr(getattr(part, "config", None), "max_position_embeddings", None) for part in module.modules()]
    known = [int(limit) for limit in limits if limit and int(limit) > 0]
    # RoBERTa and MPNet number positions from padding_idx + 1, so two of the table's rows are no positions.
    return max(8, min(known) - 2) if known else 512


def _with_transformers(
    module: nn.Module, sample: dict[str, torch.Tensor], inputs: Mapping[str, Input]
) -> onnx.ModelProto:
    import onnx_ir
    from transformers.exporters import OnnxConfig, OnnxExporter

    config = OnnxConfig(dynamic_shapes=_dynamic_shapes(inputs, _longest(module)))
    exported = OnnxExporter().export(module, sample, config=config)
    return onnx_ir.to_proto(exported.program)


def _with_torch(module: nn.Module, sample: dict[str, torch.Tensor], inputs: Mapping[str, Input]) -> onnx.ModelProto:
    import torch

    program = torch.onnx.export(
        module, (), kwargs=sample, dynamic_shapes=_dynamic_shapes(inputs, _longest(module)), dynamo=True, verbose=False
    )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto


def _with_old_torch(module: nn.Module, sample: dict[str, torch.Tensor], inputs: Mapping[str, Input]) -> onnx.ModelProto:
    import onnx
    import torch

    free = {name: dict(enumerate(_axes(given))) for name, given in inputs.items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "old.onnx"
        torch.onnx.export(
            module,
            tuple(sample[name] for name in inputs),
            file,
            input_names=list(inputs),
            output_names=["output"],
            dynamic_axes=free | {"output": {0: "batch"}},
            opset_version=OLD_OPSET,
            dynamo=False,
        )
        return onnx.load(file)


def _axes(given: Input) -> list[str]:
    """The names of an input's first axes, those that are free."""
    return ["batch", *([] if given.axis is None else [given.axis])]


@contextmanager
def quiet() -> Iterator[None]:
    """The exporters print and warn about their own insides; a user learns what went wrong from our error."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _InOrder(set[str]):
    """A set that is gone through in one order."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(super().__iter__()))


@contextmanager
def sets_in_order(module: nn.Module) -> Iterator[None]:
    """While this lasts, the sets that a model of transformers makes are gone through in one order.

    ModernBERT and Gemma 3 make the tables of their rotary embeddings in the order of `set(config.layer_types)`, which differs
    from process to process (PYTHONHASHSEED), and with it differed the file's bytes.
    """
    names = sorted({type(part).__module__ for part in module.modules()})
    spaces = [vars(sys.modules[name]) for name in names if name.startswith("transformers.")]
    for space in spaces:
        space["set"] = _InOrder
    try:
        yield
    finally:
        for space in spaces:
            del space["set"]


def reason(failed: BaseException) -> str:
    """Why an exporter gave up, in a line: the operator that it lacks, where it names one."""
    text = str(failed)
    operator = re.search(
        r"(?:operator|op=|function for|kernel for|Unsupported:?)[ '\"]*((?:aten|torchvision|quantized|prim)::?[\w.:]+)",
        text,
    )
    if operator:
        return (
            f"operator {operator.group(1)} has no ONNX translation; use a model whose code avoids it (for attention:"
            " attn_implementation='eager'), or a newer torch"
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(failed).__name__)
    return f"{type(failed).__name__}: {first[:200]}"


def _most_telling(reasons: Sequence[str]) -> str:
    return next((reason for reason in reasons if reason.startswith("operator ")), reasons[0])


def tidy(model: onnx.ModelProto, inputs: Mapping[str, Input], output_name: str) -> None:
    """Give an exported graph our names and nothing that differs between machines.

    Linears become MatMul (+ Add) nodes named after their modules, weights are named after their Linears, free
    dimensions are batch and sequence, the output has its name; traces, stale value_info and unread nodes are dropped.
    """
    hoist_constants(model)
    graph = Graph(model)
    for (wanted, given), value in zip(inputs.items(), model.graph.input, strict=True):
        _rename_value(graph, value.name, wanted)
        value.name = wanted
        for extent, name in zip(value.type.tensor_type.shape.dim, _axes(given), strict=False):
            extent.dim_param = name
    output = model.graph.output[0]
    _rename_value(graph, output.name, output_name)
    output.name = output_name
    output.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.output[1:], model.metadata_props[:], model.graph.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "edgekit", "", ""
    model.graph.name, model.graph.doc_string = "edgekit", ""
    paths = {index: module_path(node) for index, node in enumerate(model.graph.node)}
    for index, node in enumerate(model.graph.node):
        node.name = paths[index]
        node.doc_string = ""
        del node.metadata_props[:]
    for tensor in model.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    graph.refresh()
    graph.prune()
    split_gemms(graph)
    name_nodes(graph)
    name_weights(graph)


def _rename_value(graph: Graph, old: str, new: str) -> None:
    """Give a value another name; a value that has that name already (the exporters name values freely) gets another."""
    if old == new:
        return
    swapped = {old: new, new: f"{new}.inner"}
    for node in graph.model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = swapped.get(name, name)
    for tensor in graph.model.graph.initializer:
        tensor.name = swapped.get(tensor.name, tensor.name)


def hoist_constants(model: onnx.ModelProto) -> None:
    """Constants that are nodes (the older exporter's) become initializers."""
    kept = []
    for node in model.graph.node:
        value = tensor_attribute(node, "value") if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
            continue
        value.name = node.output[0]
        model.graph.initializer.append(value)
    fresh = [copy_node(node) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(fresh)


def module_path(node: onnx.NodeProto) -> str:
    """The path of the torch module whose forward made a node; empty for the outermost."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            # "['', 'model', 'model.bert', ..., 'linear_3']": enclosing modules, then the traced operation.
            scopes = ast.literal_eval(entry.value)
            return str(scopes[-2]) if len(scopes) > 1 else ""
    # The older exporter names nodes "/model/bert/encoder/layer.0/.../query/MatMul".
    return ".".join(part for part in node.name.split("/")[:-1] if part)


def split_gemms(graph: Graph) -> None:
    """A Gemm with a constant weight becomes MatMul and Add, so that every Linear looks alike."""
    import onnx

    rewritten = []
    for node in graph.model.graph.node:
        weight = graph.constant(node.input[1]) if node.op_type == "Gemm" else None
        plain = all(attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta")) and not attribute(
            node, "transA", 0
        )
        if weight is None or weight.ndim != 2 or not plain:
            rewritten.append(node)
            continue
        name = node.input[1]
        if attribute(node, "transB", 0):
            name = graph.add_constant(f"{node.input[1]}.transposed", weight.T)
        if len(node.input) < 3 or not node.input[2]:
            rewritten.append(onnx.helper.make_node("MatMul", [node.input[0], name], [node.output[0]], name=node.name))
            continue
        product = f"{node.output[0]}.product"
        rewritten += [
            onnx.helper.make_node("MatMul", [node.input[0], name], [product], name=node.name),
            onnx.helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=node.name),
        ]
    graph.replace_nodes(rewritten)


def name_nodes(graph: Graph) -> None:
    """Node names: a Linear's MatMul is its path (then path#1, ... for more calls), everything else path/operator, numbered."""
    linears = {linear.matmul.output[0]: linear for linear in graph.linears()}
    seen: Counter[str] = Counter()
    for node in graph.model.graph.node:
        linear = linears.get(node.output[0])
        if linear:
            node.name = linear.name
            continue
        name = f"{node.name}/{node.op_type}".lstrip("/")
        node.name = name if not seen[name] else f"{name}.{seen[name]}"
        seen[name] += 1


def name_weights(graph: Graph) -> None:
    """Weights of Linears that no other node reads are called as in torch: <module path>.weight."""
    for linear in graph.linears():
        if not linear.path or len(graph.readers[linear.weight]) != 1:
            continue
        name = f"{linear.path}.weight"
        if name not in graph.initializers and linear.call == 0:
            graph.initializers[linear.weight].name = name
            graph.rename_reads(linear.weight, name)
            graph.refresh()
