"""Reading and rewriting an ONNX graph: who makes a value, who reads it, which nodes are a torch Linear, what a file needs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgekit.errors import EdgekitError
from edgekit.runtimes.onnxruntime.operators import MICROSOFT, OPERATORS

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

Value = TypeVar("Value")
Proto = TypeVar("Proto", "onnx.ModelProto", "onnx.NodeProto")
# What an attribute of a node can be that is made here.
Attribute = int | float | str | list[int]
# Protobuf's limit on one message (https://protobuf.dev/programming-guides/proto-limits/), with room for the graph itself.
LARGEST_FILE = 2**31 - 2**24
# The first onnxruntime with an opset and an IR version (https://onnxruntime.ai/docs/reference/compatibility.html up to 1.20;
# later ones by the onnx release that each was built with).
RUNTIME_BY_OPSET = {17: "1.12", 18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18", 22: "1.21", 23: "1.23", 24: "1.24"}
RUNTIME_BY_IR = {8: "1.10", 9: "1.16", 10: "1.18", 11: "1.23", 12: "1.24", 13: "1.24"}
# Operators that multiply activations by weights that were quantized.
QUANTIZED_MATMULS = tuple(
    name for name, operator in OPERATORS.items() if operator.kind == "matmul" and operator.quantized
)


@dataclass(kw_only=True)
class Linear:
    """A MatMul with a constant weight [inputs, outputs], and the Add of its bias where there is one."""

    path: str  # the torch module's path
    call: int  # 0 for the module's first call in the graph
    matmul: onnx.NodeProto
    add: onnx.NodeProto | None
    weight: str  # initializer names
    bias: str | None

    @property
    def key(self) -> str:
        """The calibration's name of this Linear's input."""
        return f"{self.path}#{self.call}"

    @property
    def name(self) -> str:
        """What its nodes are named after: the path, and the call where a module is called again (DeBERTa shares projections)."""
        return self.path if self.call == 0 else self.key

    @property
    def source(self) -> str:
        """The value that it multiplies."""
        return str(self.matmul.input[0])

    @property
    def result(self) -> str:
        """The value that it makes, bias included."""
        return str((self.add or self.matmul).output[0])


class Graph:
    """An index over a model: initializers, makers and readers of values. `refresh` after nodes were added or removed."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.refresh()

    def refresh(self) -> None:
        """Read the nodes again."""
        self.initializers = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.maker = {output: node for node in self.model.graph.node for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.model.graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.outputs = {value.name for value in self.model.graph.output}

    def constant(self, name: str) -> NDArray[np.generic] | None:
        """An initializer's values, or None for a value that is computed."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.initializers[name]) if name in self.initializers else None

    def weights(self, name: str) -> NDArray[np.float32]:
        """The values of a float initializer."""
        from onnx import numpy_helper

        values: NDArray[np.float32] = numpy_helper.to_array(self.initializers[name])
        return values

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads a value, or None where it is read more than once or is an output."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def add_constant(self, name: str, values: NDArray[np.generic]) -> str:
        """Add an initializer, or replace the one of that name; returns the name."""
        import numpy as np
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        if name in self.initializers:
            self.initializers[name].CopyFrom(tensor)
        else:
            self.model.graph.initializer.append(tensor)
            self.initializers[name] = self.model.graph.initializer[-1]
        return name

    def replace_nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Make these the graph's nodes, in this order, and drop what nobody reads."""
        kept = [_copy(node) for node in nodes]
        del self.model.graph.node[:]
        self.model.graph.node.extend(kept)
        self.prune()

    def rename_reads(self, old: str, new: str) -> None:
        """Let every reader of one value read another."""
        for node in self.model.graph.node:
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = new

    def prune(self) -> None:
        """Drop nodes and initializers that no output depends on, and the value_info, which rewrites make stale."""
        wanted = {value.name for value in self.model.graph.output}
        kept = []
        for node in reversed(self.model.graph.node):
            if wanted & set(node.output):
                kept.append(_copy(node))
                wanted.update(node.input)
        del self.model.graph.node[:], self.model.graph.value_info[:]
        self.model.graph.node.extend(reversed(kept))
        tensors = self.model.graph.initializer
        for place in reversed(range(len(tensors))):  # in place: a copy of all weights takes as long as a trial
            if tensors[place].name not in wanted:
                del tensors[place]
        self.refresh()

    def sort(self) -> None:
        """Put every node behind the makers of what it reads, otherwise keeping the order."""
        known = set(self.initializers) | {value.name for value in self.model.graph.input} | {""}
        waiting, ordered = list(self.model.graph.node), []
        while waiting:
            blocked = []
            for node in waiting:
                if known.issuperset(node.input):
                    ordered.append(node)
                    known.update(node.output)
                else:
                    blocked.append(node)
            assert len(blocked) < len(waiting), "the graph has a cycle"
            waiting = blocked
        self.replace_nodes(ordered)

    def linears(self) -> list[Linear]:
        """Every MatMul of a computed value with a constant matrix of real numbers, in graph order."""
        calls: Counter[str] = Counter()
        found = []
        for node in self.model.graph.node:
            if node.op_type != "MatMul" or not self._is_weight(node.input[1]) or node.input[0] in self.initializers:
                continue
            path = module_path(node)
            add, bias = self._bias(node)
            found.append(Linear(path=path, call=calls[path], matmul=node, add=add, weight=node.input[1], bias=bias))
            calls[path] += 1
        return found

    def _is_weight(self, name: str) -> bool:
        import onnx

        integers = {onnx.TensorProto.INT32, onnx.TensorProto.INT64}
        tensor = self.initializers.get(name)
        return tensor is not None and len(tensor.dims) == 2 and tensor.data_type not in integers

    def _bias(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto | None, str | None]:
        add = self.only_reader(node.output[0])
        if add is None or add.op_type != "Add":
            return None, None
        names = [name for name in add.input if name != node.output[0]]
        if len(names) == 1 and names[0] in self.initializers and len(self.initializers[names[0]].dims) == 1:
            return add, names[0]
        return None, None


def _copy(proto: Proto) -> Proto:
    fresh = type(proto)()
    fresh.CopyFrom(proto)
    return fresh


def copy_node(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node that can be changed without touching this one."""
    return _copy(node)


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that can be rewritten without touching this one."""
    return _copy(model)


def module_path(node: onnx.NodeProto) -> str:
    """The torch module's path that a node was named after (`path` or `path#call`)."""
    return str(node.name).split("#", 1)[0]


def attribute(node: onnx.NodeProto, name: str, default: Value) -> Value:
    """A node's attribute, which is of the default's type; the default where it has none of that name."""
    import onnx

    for entry in node.attribute:
        if entry.name == name:
            value: Value = onnx.helper.get_attribute_value(entry)
            return value
    return default


def tensor_attribute(node: onnx.NodeProto, name: str) -> onnx.TensorProto | None:
    """A node's attribute that is a tensor, None where it has none of that name."""
    return next((entry.t for entry in node.attribute if entry.name == name), None)


def operators(model: onnx.ModelProto) -> list[str]:
    """The operators that a model needs, sorted, with their domain where it is not ONNX's own."""
    return sorted({f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes(model.graph)})


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for entry in node.attribute:
            if entry.HasField("g"):
                yield from nodes(entry.g)


def opset(model: onnx.ModelProto) -> int:
    """The model's version of ONNX's own operators."""
    return max(int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"})


def minimum_runtime(model: onnx.ModelProto) -> str:
    """The oldest onnxruntime that has the model's opset, IR version and operators, as "major.minor"."""
    needs = [_at_least(RUNTIME_BY_OPSET, opset(model)), _at_least(RUNTIME_BY_IR, model.ir_version)]
    needs += [
        operator.since
        for node in nodes(model.graph)
        if (operator := OPERATORS.get(node.op_type)) and operator.since and operator.domain == node.domain
    ]
    return latest(needs)


def latest(versions: Iterable[str]) -> str:
    """The latest of versions "major.minor"."""
    return max(versions, key=lambda version: [int(part) for part in version.split(".")])


def _at_least(table: dict[int, str], wanted: int) -> str:
    later = [version for version in sorted(table) if version >= wanted]
    return table[later[0]] if later else table[max(table)]


def import_microsoft(model: onnx.ModelProto) -> None:
    """Declare onnxruntime's own operators where a node uses one."""
    import onnx

    used = any(node.domain == MICROSOFT for node in model.graph.node)
    if used and all(entry.domain != MICROSOFT for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))


def save(model: onnx.ModelProto, path: Path, *, largest: int = LARGEST_FILE) -> int:
    """Write a model, its weights beside it in `<name>.data` where one file can't hold them; returns the bytes of all.

    Equal models give equal bytes. Raises EdgekitError where the disk does not take them.
    """
    import onnx

    external = path.with_name(path.name + ".data")
    weights = weight_bytes(model)
    try:
        external.unlink(missing_ok=True)
        if weights > largest:
            fresh = _copy(model)  # onnx.save moves the weights out of the model that it is given
            onnx.save_model(fresh, str(path), save_as_external_data=True, location=external.name, size_threshold=1024)
        else:
            path.write_bytes(model.SerializeToString(deterministic=True))
    except OSError as failed:
        raise EdgekitError(
            f"{path}: cannot be written: {failed.strerror or failed}; free space or choose another folder"
        ) from failed
    return path.stat().st_size + (external.stat().st_size if external.exists() else 0)


def check_size(weights: int, where: str) -> None:
    """Raises EdgekitError for a model whose weights, in bytes, protobuf cannot hold in one message."""
    if weights > LARGEST_FILE:
        raise EdgekitError(
            f"{where}: float weights of {weights / 1e9:.3g} GB: over the 2 GB that one ONNX graph in memory can hold"
            " (protobuf's limit); choose a smaller model or a student of fewer layers ([student] layers in the recipe)"
        )


def weight_bytes(model: onnx.ModelProto) -> int:
    """How many bytes a model's initializers take."""
    return sum(tensor_bytes(tensor) for tensor in model.graph.initializer)


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """How many bytes an initializer's values take."""
    import math

    import onnx

    kind = tensor.data_type
    bits = (
        4
        if kind in {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
        else 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    )
    return int(math.prod(tensor.dims)) * int(bits) // 8


def float_array(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """The values as contiguous float32."""
    import numpy as np

    return np.ascontiguousarray(values, dtype=np.float32)
