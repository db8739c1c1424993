"""A causal language model becomes one float ONNX graph with a key/value cache, for prefill and for decode.

Attention, rotary embedding and RMS norm are traced as onnxruntime's own operators instead of the dozens of nodes that they
decompose to: a third of the nodes, and one graph for every number of new and past tokens. Who computes what torch does is
proven afterwards (`decoder.py`), so nothing here is believed because of a name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, TypedDict, Unpack

from edgekit.errors import EdgekitError
from edgekit.formats.onnx.float_graph import (
    EXPORT_ERRORS,
    hoist_constants,
    module_path,
    name_nodes,
    name_weights,
    quiet,
    reason,
    sets_in_order,
    split_gemms,
)
from edgekit.formats.onnx.graph import Graph, attribute

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    Attention = Callable[..., tuple[Tensor, None]]
    Rotation = Callable[..., tuple[Tensor, Tensor]]

# What transformers' registry of attention functions calls ours.
ATTENTION = "edgekit_onnx"
# Names that onnxruntime-genai, optimum and transformers.js use too.
KEY, VALUE = "past_key_values.{}.key", "past_key_values.{}.value"
PRESENT_KEY, PRESENT_VALUE = "present.{}.key", "present.{}.value"
KEEP = "num_logits_to_keep"
# Sizes of the sample: 0 and 1 would be frozen into the graph, and so would two that are equal.
NEW, PAST = 3, 7
# A replaced operator agrees with the module that it stands for within float32's rounding.
SAME = 1e-5


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The key/value cache of a decoder: [1, kv_heads, tokens, head_dim] twice per layer."""

    layers: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...] = ()
    """Of each layer: how many tokens it attends to, its own included; None where that is all."""


@dataclass(kw_only=True)
class _Trace:
    """What one forward pass has seen: the cache that each layer reads and makes, and the lengths that all share."""

    geometry: Geometry
    past: Sequence[tuple[Tensor, Tensor]]
    last: Tensor
    total: Tensor
    length: int
    present: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    windows: dict[int, int | None] = field(default_factory=dict)


@dataclass(kw_only=True)
class _Tracer:
    """Where operators find the pass that is being traced: an attention function is given neither the cache nor the lengths."""

    trace: _Trace | None = None


class _Layer(Protocol):
    """Of an attention module, which layer it is of."""

    layer_idx: int


class _Scores(TypedDict, total=False):
    """What transformers' models say of how attention scores are made, among much else."""

    scaling: float | None
    sliding_window: int | None
    softcap: float | None
    s_aux: Tensor | None


def export_decoder(model: PreTrainedModel) -> tuple[onnx.ModelProto, Geometry]:
    """The float32 graph of a causal language model of transformers, and its cache's shape. The model comes back as it was.

    Inputs: input_ids int64 [1, sequence]; attention_mask int64 [1, total], all ones, total = past + sequence;
    past_key_values.<i>.key and .value float32 [1, kv_heads, past, head_dim]; and num_logits_to_keep int64 [], which may be
    left out: 0, its default, gives every position's logits, n the last n's. Outputs: logits float32 [1, kept, vocabulary] and
    present.<i>.key, .value. Raises EdgekitError for a family whose layers do not attend to a cache of one shape, or that torch's
    exporter cannot translate.
    """
    import torch

    geometry, tracer = _geometry(model), _Tracer()
    wrapper = _wrapper(model, geometry, tracer)
    cache = (1, geometry.kv_heads, PAST, geometry.head_dim)
    # A tensor of its own each: torch takes one that comes twice for one input.
    caches = [(torch.zeros(cache), torch.zeros(cache)) for _ in range(geometry.layers)]
    sample = (torch.arange(NEW)[None], torch.ones(1, PAST + NEW, dtype=torch.int64), caches)
    free = torch.export.Dim.DYNAMIC
    names = [name.format(layer) for layer in range(geometry.layers) for name in (KEY, VALUE)]
    presents = [name.format(layer) for layer in range(geometry.layers) for name in (PRESENT_KEY, PRESENT_VALUE)]
    with quiet(), sets_in_order(model), _own_operators(model, tracer):
        try:
            program = torch.onnx.export(
                wrapper,
                sample,
                dynamo=True,
                verbose=False,
                dynamic_shapes=({1: free}, {1: free}, [({2: free}, {2: free})] * geometry.layers),
                input_names=["input_ids", "attention_mask", *names],
                output_names=["logits", *presents],
            )
        except EXPORT_ERRORS as failed:
            raise EdgekitError(
                f"{type(model).__name__}: cannot be exported to ONNX with a cache: {reason(failed)}"
            ) from failed
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    _tidy(proto)
    _keep_last(proto, head_path(model))
    return proto, replace(geometry, windows=_windows(proto))


def _geometry(model: PreTrainedModel) -> Geometry:
    text = model.config.get_text_config()
    heads = int(text.num_attention_heads)
    return Geometry(
        layers=int(text.num_hidden_layers),
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
    )


def _windows(model: onnx.ModelProto) -> tuple[int | None, ...]:
    attending = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    return tuple(attribute(node, "local_window_size", 0) or None for node in attending)


def _wrapper(model: PreTrainedModel, geometry: Geometry, tracer: _Tracer) -> nn.Module:
    """(input_ids, attention_mask, past) -> (logits, present...) as a module; the model is its attribute `model`."""
    import torch
    from torch import nn
    from transformers import DynamicCache

    class NewOnly(DynamicCache):  # type: ignore[misc]
        """A cache that gives an attention the new keys and values only: the operator joins them to the past."""

        def update(self, key: Tensor, value: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
            return key, value

    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor, past: Sequence[tuple[Tensor, Tensor]]
        ) -> tuple[Tensor, ...]:
            new, length = input_ids.shape[1], attention_mask.shape[1]
            seen = attention_mask.sum(dtype=torch.int32).reshape(1)
            trace = _Trace(geometry=geometry, past=past, last=seen - 1, total=seen, length=length)
            tracer.trace = trace
            try:
                logits = self.model(
                    input_ids=input_ids,
                    position_ids=(torch.arange(new) + (length - new))[None],
                    past_key_values=NewOnly(),
                    use_cache=True,
                ).logits
            finally:
                tracer.trace = None
            _check_layers(self.model, trace)
            return (logits, *(tensor for layer in range(geometry.layers) for tensor in trace.present[layer]))

    return Generator().eval()


def _attention(tracer: _Tracer) -> Attention:
    """transformers' attention function as GroupQueryAttention (onnxruntime's ContribOperators.md): causal, with its cache.

    query [1, heads, new, head_dim], key and value [1, kv_heads, new, head_dim] -> [1, new, heads, head_dim].
    """

    def attend(
        module: _Layer, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **scores: Unpack[_Scores]
    ) -> tuple[Tensor, None]:
        from torch.onnx import ops

        trace, layer = tracer.trace, int(module.layer_idx)
        assert trace is not None
        _check_heads(layer, key, value, trace.geometry, scores)
        batch, heads, new, width = query.shape
        kv_heads, window = trace.geometry.kv_heads, scores.get("sliding_window")
        cache = (1, kv_heads, trace.length, trace.geometry.head_dim)
        answer, new_key, new_value = ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (*(_flat(part) for part in (query, key, value)), *trace.past[layer], trace.last, trace.total),
            {"num_heads": heads, "kv_num_heads": kv_heads, **_attributes(scores, width)},
            dtypes=(query.dtype,) * 3,
            shapes=((batch, new, heads * width), cache, cache),
            version=1,
        )
        trace.present[layer] = (new_key, new_value)
        trace.windows[layer] = None if window is None else int(window)
        return answer.reshape(batch, new, heads, width), None

    return attend


def _check_heads(layer: int, key: Tensor, value: Tensor, geometry: Geometry, scores: _Scores) -> None:
    """Raises EdgekitError for keys and values that do not fit into the cache, and for attention sinks."""
    wanted = (geometry.kv_heads, geometry.head_dim)
    if (key.shape[1], key.shape[3]) != wanted or value.shape[3] != wanted[1] or scores.get("s_aux") is not None:
        raise EdgekitError(
            f"layer {layer}: attends with {key.shape[1]} heads of {key.shape[3]} (values {value.shape[3]}), not with"
            f" {wanted[0]} of {wanted[1]} as config.json says, or has attention sinks: no ONNX decoder for that; use GGUF"
        )


def _attributes(scores: _Scores, width: int) -> dict[str, int | float]:
    """The operator's attributes for heads of this width."""
    scaling, window, softcap = scores.get("scaling"), scores.get("sliding_window"), scores.get("softcap")
    attributes: dict[str, int | float] = {"scale": float(width**-0.5 if scaling is None else scaling)}
    if window is not None:
        attributes["local_window_size"] = int(window)
    if softcap is not None:
        attributes["softcap"] = float(softcap)
    return attributes


def _flat(states: Tensor) -> Tensor:
    """[batch, heads, new, width] -> [batch, new, heads * width]."""
    return states.transpose(1, 2).reshape(states.shape[0], states.shape[2], -1)


def _check_layers(model: PreTrainedModel, trace: _Trace) -> None:
    """Raises EdgekitError where a layer keeps no keys and values, or limits its view by a mask, which the trace leaves out."""
    text = model.config.get_text_config()
    kinds = list(getattr(text, "layer_types", None) or ())
    for layer in range(trace.geometry.layers):
        kind = kinds[layer] if layer < len(kinds) else None
        sliding = trace.windows.get(layer) is not None
        if (
            layer not in trace.present
            or kind not in {None, "full_attention", "sliding_attention"}
            or (kind is not None and sliding != (kind == "sliding_attention"))
        ):
            raise EdgekitError(
                f"{type(model).__name__}: layer {layer} is {kind or 'no attention with a cache'}: no ONNX decoder for that;"
                " use GGUF"
            )


@contextmanager
def _own_operators(model: nn.Module, tracer: _Tracer) -> Iterator[None]:
    """While this lasts the model attends, rotates and normalizes through onnxruntime's operators (for tracing only)."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    with ExitStack() as undo:
        ALL_ATTENTION_FUNCTIONS[ATTENTION] = _attention(tracer)
        undo.callback(ALL_ATTENTION_FUNCTIONS.pop, ATTENTION)
        for part in model.modules():
            config = getattr(part, "config", None)
            if config is not None and hasattr(config, "_attn_implementation"):
                undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
        for part in model.modules():
            config = getattr(part, "config", None)
            if config is not None and hasattr(config, "_attn_implementation"):
                config._attn_implementation = ATTENTION
            norm = _norm_of(part)
            if norm is not None:
                part.forward = norm
                undo.callback(part.__dict__.pop, "forward")
        for module in sorted({type(part).__module__ for part in model.modules()}):
            original = getattr(sys.modules[module], "apply_rotary_pos_emb", None)
            if original is not None and _rotates_halves(original):
                undo.callback(vars(sys.modules[module]).update, apply_rotary_pos_emb=original)
                vars(sys.modules[module])["apply_rotary_pos_emb"] = _rotator(original, tracer)
        yield


def _norm_of(part: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """A forward of one operator for a module that is an RMS norm with weight w or 1 + w (Gemma's), found by trying it."""
    import torch

    weight = getattr(part, "weight", None)
    if not type(part).__name__.endswith("RMSNorm") or weight is None or weight.ndim != 1:
        return None
    epsilon = getattr(part, "variance_epsilon", getattr(part, "eps", None))
    if not isinstance(epsilon, float):
        return None
    with torch.inference_mode():
        sample = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0))
        expected = part(sample)
        plain = sample * torch.rsqrt(sample.square().mean(-1, keepdim=True) + epsilon)
        factors = [weight.detach().clone(), 1.0 + weight.detach()]
        alike = [torch.allclose(plain * factor, expected, rtol=SAME, atol=SAME) for factor in factors]
    if not any(alike):
        return None
    factor = factors[alike.index(True)]

    def normalize(states: Tensor) -> Tensor:
        from torch.onnx import ops

        made: Tensor = ops.symbolic(
            "SimplifiedLayerNormalization",
            (states, factor),
            {"axis": -1, "epsilon": epsilon, "stash_type": 1},
            dtype=states.dtype,
            shape=states.shape,
            version=1,
        )
        return made

    return normalize


def _rotates_halves(apply: Rotation) -> bool:
    """Whether a family's rotary embedding pairs channel i with i + rotated / 2, over all channels or the first ones."""
    import torch

    made = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 3, 8, generator=made) for _ in "qk")
    half = torch.randn(1, 3, 4, generator=made)
    cos, sin = (torch.cat([part, part], dim=-1) for part in (half.cos(), half.sin()))
    try:
        given = apply(query, key, cos, sin)
    except (TypeError, RuntimeError, ValueError):
        return False
    for states, rotated in zip((query, key), given, strict=True):
        left, right = states.chunk(2, dim=-1)
        expected = states * cos[:, None] + torch.cat([-right, left], dim=-1) * sin[:, None]
        if rotated.shape != states.shape or not torch.allclose(rotated, expected, rtol=SAME, atol=SAME):
            return False
    return True


def _rotator(original: Rotation, tracer: _Tracer) -> Rotation:
    halves: dict[int, tuple[Tensor, Tensor]] = {}

    def rotate(
        query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *more: object, **named: object
    ) -> tuple[Tensor, Tensor]:
        """RotaryEmbedding (onnxruntime's ContribOperators.md) over the rows of this pass: position 0 is its first token."""
        import torch

        if tracer.trace is None:
            return original(query, key, cos, sin, *more, **named)
        for table in (cos, sin):
            if id(table) not in halves:  # with the table itself, so that its id stays its own
                halves[id(table)] = (table[0, :, : table.shape[-1] // 2], table)
        first = torch.zeros(1, dtype=torch.int64)
        rotated = [_rotary(part, first, halves[id(cos)][0], halves[id(sin)][0]) for part in (query, key)]
        return rotated[0], rotated[1]

    return rotate


def _rotary(states: Tensor, first: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    from torch.onnx import ops

    batch, heads, new, width = states.shape
    flat = _flat(states)
    partial = {"rotary_embedding_dim": 2 * cos.shape[-1]} if 2 * cos.shape[-1] < width else {}
    rotated = ops.symbolic(
        "com.microsoft::RotaryEmbedding",
        (flat, first, cos, sin),
        {"num_heads": heads, **partial},
        dtype=flat.dtype,
        shape=flat.shape,
        version=1,
    )
    return rotated.reshape(batch, new, heads, width).transpose(1, 2)


def head_path(model: PreTrainedModel) -> str:
    """The path of a model's output projection in the graph, which calls the model `model`."""
    head = model.get_output_embeddings()
    return next(f"model.{path}" for path, part in model.named_modules() if part is head)


def _tidy(model: onnx.ModelProto) -> None:
    """As `float_graph.tidy`: names after modules, free dimensions named, nothing that differs between machines."""
    hoist_constants(model)
    for value in (*model.graph.input, *model.graph.output):
        extents = value.type.tensor_type.shape.dim
        place = 2 if len(extents) == 4 else 1
        extents[place].dim_param = {
            "input_ids": "sequence",
            "attention_mask": "total",
            "logits": "kept",
        }.get(value.name, "past" if value.name.startswith("past") else "present")
    del model.metadata_props[:], model.graph.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "edgekit", "", ""
    model.graph.name, model.graph.doc_string = "edgekit", ""
    for node in model.graph.node:
        node.name = module_path(node)
        node.doc_string = ""
        del node.metadata_props[:]
    for tensor in model.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    graph = Graph(model)
    graph.prune()
    split_gemms(graph)
    _drop_reshapes(graph)
    name_nodes(graph)
    name_weights(graph)


def _drop_reshapes(graph: Graph) -> None:
    """Heads are split and joined again around every operator that wants them joined: [1, new, width] stays what it is."""
    widths: dict[str, int] = {}  # of values that are [1, new, width]
    for node in graph.model.graph.node:
        shape = graph.constant(node.input[1]) if node.op_type == "Reshape" else None
        if node.op_type == "MatMul" and node.input[1] in graph.initializers:
            widths[node.output[0]] = int(graph.initializers[node.input[1]].dims[-1])
        elif node.op_type == "Add" and any(_is_vector(graph, name) for name in node.input):  # a bias
            known = [widths[name] for name in node.input if name in widths]
            widths |= dict.fromkeys(node.output, known[0]) if known else {}
        elif node.op_type in {"RotaryEmbedding", "GroupQueryAttention"} and node.input[0] in widths:
            widths[node.output[0]] = widths[node.input[0]]
        if shape is None:
            continue
        before = graph.maker.get(node.input[0])
        if before is not None and before.op_type == "Reshape":
            node.input[0] = before.input[0]
        if shape.tolist() == [1, -1, widths.get(node.input[0])]:
            graph.rename_reads(node.output[0], node.input[0])
            widths[node.output[0]] = widths[node.input[0]]
    graph.prune()


def _is_vector(graph: Graph, name: str) -> bool:
    return name in graph.initializers and len(graph.initializers[name].dims) == 1


def _keep_last(model: onnx.ModelProto, head: str) -> None:
    """Put a Slice before the head, so that a prefill computes only the logits that are asked for.

    num_logits_to_keep is an input with an initializer of the same name: its default (ONNX's IR.md, "Graphs").
    """
    import numpy as np
    import onnx

    graph = Graph(model)
    nodes = list(model.graph.node)
    product = next(node for node in nodes if node.op_type == "MatMul" and node.name.split("/")[0].split("#")[0] == head)
    source = product.input[0]
    model.graph.input.append(onnx.helper.make_tensor_value_info(KEEP, onnx.TensorProto.INT64, []))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.int64), KEEP))
    graph.refresh()
    ends = graph.add_constant(f"{head}.ends", np.array([np.iinfo(np.int64).max]))
    axes = graph.add_constant(f"{head}.axes", np.array([1]))
    one = graph.add_constant(f"{head}.shape", np.array([1]))
    first, kept = f"{head}.first", f"{head}.kept"
    place = nodes.index(product)
    nodes[place:place] = [
        onnx.helper.make_node("Neg", [KEEP], [f"{first}.scalar"], name=f"{head}/Neg"),
        onnx.helper.make_node("Reshape", [f"{first}.scalar", one], [first], name=f"{head}/First"),
        onnx.helper.make_node("Slice", [source, first, ends, axes], [kept], name=f"{head}/Keep"),
    ]
    product.input[0] = kept
    graph.replace_nodes(nodes)
