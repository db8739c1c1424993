"""Files that other tools exported, fitted to edgekit's interface by nodes before and behind their own, which stay as they are.

Taken are int32 inputs, inputs of a fixed length (padded and masked), and of several outputs the one that answers the task by
its name; token vectors are pooled as the checkpoint's modules.json says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    import onnx

    from edgekit.embedding_files import Embedding

# Names of outputs that are one row per text, by the task's output: sentence-transformers', optimum's and transformers.js'.
ROWS = {"logits": ("logits",), "embedding": ("sentence_embedding", "sentence_embeddings", "text_embeds")}
# Names of outputs that are one vector per token.
TOKENS = ("token_embeddings", "last_hidden_state")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Since here ReduceSum takes its axes as an input; before, nodes of ours would need another form.
_OLDEST = 13


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a task needs of a file: its OUTPUT, and of the checkpoint the pooling, the padding's id and the longest text."""

    output: str
    embedding: Embedding | None
    pad_id: int
    max_length: int


def fit(path: Path, wanted: Wanted, named: Path) -> list[str]:
    """Rewrite an .onnx file where it is not (int64 ids of any length) -> [batch, width]; says what was changed, nothing if not.

    named: what errors call the file. Raises EdgekitError where texts are longer than what the file takes, and where the
    checkpoint pools in a way that no nodes here do.
    """
    from edgekit.formats.onnx.files import read

    model = read(path, named=named)
    if any(value.name not in _INPUTS for value in model.graph.input if value.name not in _constants(model)):
        return []  # `interface.check_interface` says what is wrong
    work = _Work(model=model, wanted=wanted, named=named)
    work.take_inputs()
    work.choose_output()
    if work.notes:
        path.write_bytes(work.finished().SerializeToString())
    return work.notes


def _constants(model: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


class _Work:
    """One file's nodes to come before and behind."""

    def __init__(self, *, model: onnx.ModelProto, wanted: Wanted, named: Path) -> None:
        self.model, self.wanted, self.named = model, wanted, named
        self.notes: list[str] = []
        self.before: list[onnx.NodeProto] = []
        self.behind: list[onnx.NodeProto] = []
        self.renamed: dict[str, str] = {}
        self.fixed: int | None = None

    def take_inputs(self) -> None:
        """int64 ids of any length become what the file takes."""
        import onnx

        told = {value.name: value.type.tensor_type for value in self.model.graph.input if value.name in _INPUTS}
        lengths = {name: _extent(kind, 1) for name, kind in told.items()}
        self.fixed = next((length for length in lengths.values() if length), None)
        narrow = [name for name, kind in told.items() if kind.elem_type == onnx.TensorProto.INT32]
        if self.fixed is not None:
            self._check_fixed(self.fixed, list(told))
            self.notes.append(
                f"it takes {self.fixed} tokens: shorter texts are padded and masked by nodes that edgekit put before"
            )
        if narrow:
            self.notes.append("it takes int32: ids are cast by nodes that edgekit put before")
        for name in told if self.fixed or narrow else ():
            source = f"{name}.given"
            self.renamed[name] = f"{name}.fitted"
            self._pad_and_cast(name, source, lengths[name], name in narrow)
        for value in self.model.graph.input:
            if value.name in self.renamed:
                value.CopyFrom(
                    onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.INT64, ["batch", "sequence"])
                )

    def _check_fixed(self, length: int, names: list[str]) -> None:
        if length < self.wanted.max_length:
            raise EdgekitError(
                f"{self.named}: takes texts of {length} tokens, data.max_length is {self.wanted.max_length}: set"
                f" data.max_length = {length}, or export it with a free sequence (dynamic axes)"
            )
        if "attention_mask" not in names:
            raise EdgekitError(
                f"{self.named}: takes {length} tokens and no attention_mask, so the padding of a shorter text would be read:"
                " export it with an attention_mask"
            )

    def _pad_and_cast(self, name: str, source: str, length: int | None, narrow: bool) -> None:
        import numpy as np
        import onnx

        self.before.append(onnx.helper.make_node("Identity", [name], [source]))
        if length:
            value = self.wanted.pad_id if name == "input_ids" else 0
            size = self._constant(f"{name}.length", np.array([length], np.int64))
            place = self._constant(f"{name}.axis", np.array([1], np.int64))
            zeros = self._constant(f"{name}.zeros", np.zeros(3, np.int64))
            filler = self._constant(f"{name}.filler", np.array(value, np.int64))
            steps = [
                ("Shape", [source], f"{name}.shape", {}),
                ("Gather", [f"{name}.shape", place], f"{name}.own", {}),
                ("Sub", [size, f"{name}.own"], f"{name}.lacks", {}),
                ("Concat", [zeros, f"{name}.lacks"], f"{name}.pads", {"axis": 0}),
                ("Pad", [source, f"{name}.pads", filler], f"{name}.padded", {}),
            ]
            self.before += [onnx.helper.make_node(kind, given, [to], **more) for kind, given, to, more in steps]
            source = f"{name}.padded"
        kind = onnx.TensorProto.INT32 if narrow else onnx.TensorProto.INT64
        self.before.append(onnx.helper.make_node("Cast", [source], [self.renamed[name]], to=kind))

    def choose_output(self) -> None:
        """The output that answers the task by its name; token vectors are pooled; else the first stays."""
        names = [value.name for value in self.model.graph.output]
        found = next((name for name in ROWS[self.wanted.output] if name in names), None)
        tokens = next((name for name in TOKENS if name in names), None)
        if found is None and tokens is not None and self.wanted.embedding is not None:
            self._pool(tokens, self.wanted.embedding)
        elif found is not None and names[0] != found:
            self.notes.append(f"its output {found} answers, not {names[0]}, its first")
            self._leave_output(found)

    def _leave_output(self, name: str) -> None:
        import onnx

        kept = onnx.ValueInfoProto()
        kept.CopyFrom(next(value for value in self.model.graph.output if value.name == name))
        del self.model.graph.output[:]
        self.model.graph.output.append(kept)

    def _pool(self, tokens: str, said: Embedding) -> None:
        import numpy as np
        import onnx

        lacks = [f"a module {step.kind}" for step in said.steps if step.kind != "Normalize"]
        lacks += ["a pooling that leaves the prompt out"] if said.prompt and not said.include_prompt else []
        if lacks:
            raise EdgekitError(
                f"{self.named}: gives token vectors ({tokens}) and no sentence_embedding, and the checkpoint has {lacks[0]}:"
                " export it with the modules of modules.json (optimum-cli export onnx --library sentence_transformers)"
            )
        for name, value in (("axis", 1), ("channels", 2), ("one", 1)):
            self._constant(f"pool.{name}", np.array([value], np.int64))
        self._constant("pool.tiny", np.array([[1e-9]], np.float32))
        self._add("Cast", [tokens], "pool.tokens", to=onnx.TensorProto.FLOAT)
        self._add("Cast", [self._mask()], "pool.flat", to=onnx.TensorProto.FLOAT)
        self._add("Unsqueeze", ["pool.flat", "pool.channels"], "pool.mask")
        parts = [getattr(self, f"_{mode}")() for mode in said.modes]
        pooled = parts[0]
        if len(parts) > 1:
            pooled = self._add("Concat", parts, "pool.joined", axis=1)
        if said.steps:
            self._constant("pool.smallest", np.array([[1e-12]], np.float32))
            self._add("Mul", [pooled, pooled], "pool.squares")
            self._add("ReduceSum", ["pool.squares", "pool.axis"], "pool.square", keepdims=1)
            self._add("Sqrt", ["pool.square"], "pool.size")
            self._add("Max", ["pool.size", "pool.smallest"], "pool.safe")
            pooled = self._add("Div", [pooled, "pool.safe"], "pool.unit")
        if said.truncate_dim is not None:
            self._constant("pool.begin", np.array([0], np.int64))
            self._constant("pool.width", np.array([said.truncate_dim], np.int64))
            pooled = self._add("Slice", [pooled, "pool.begin", "pool.width", "pool.one"], "pool.cut")
        self._add("Identity", [pooled], "embedding")
        del self.model.graph.output[:]
        told = onnx.helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["batch", "width"])
        self.model.graph.output.append(told)
        self.notes.append(f"its {tokens} are pooled ({', '.join(said.modes)}) by nodes that edgekit put behind it")

    def _mask(self) -> str:
        """The mask that goes with the token vectors; a file without one gets the input."""
        import onnx

        names = [value.name for value in self.model.graph.input]
        if "attention_mask" not in names:
            shape = ["batch", "sequence"]
            told = onnx.helper.make_tensor_value_info("attention_mask", onnx.TensorProto.INT64, shape)
            self.model.graph.input.append(told)
        return self.renamed.get("attention_mask", "attention_mask")

    def _mean(self) -> str:
        return self._divided("mean", "pool.mask", root=False)

    def _mean_sqrt_len_tokens(self) -> str:
        return self._divided("root", "pool.mask", root=True)

    def _weightedmean(self) -> str:
        import numpy as np

        axis = self._constant("pool.places", np.array(1, np.int64))
        self._add("CumSum", ["pool.mask", axis], "pool.counted")
        self._add("Mul", ["pool.counted", "pool.mask"], "pool.weights")
        return self._divided("weighted", "pool.weights", root=False)

    def _divided(self, name: str, weights: str, *, root: bool) -> str:
        self._add("Mul", ["pool.tokens", weights], f"pool.{name}.weighed")
        self._add("ReduceSum", [f"pool.{name}.weighed", "pool.axis"], f"pool.{name}.sum", keepdims=0)
        self._add("ReduceSum", [weights, "pool.axis"], f"pool.{name}.weight", keepdims=0)
        below = self._add("Max", [f"pool.{name}.weight", "pool.tiny"], f"pool.{name}.below")
        below = self._add("Sqrt", [below], f"pool.{name}.root") if root else below
        return self._add("Div", [f"pool.{name}.sum", below], f"pool.{name}")

    def _cls(self) -> str:
        import numpy as np

        first = self._constant("pool.first", np.array(0, np.int64))
        return self._add("Gather", ["pool.tokens", first], "pool.cls", axis=1)

    def _lasttoken(self) -> str:
        """Of the one text of a call."""
        import numpy as np
        import onnx

        self._add("Cast", [self._mask()], "pool.ones", to=onnx.TensorProto.INT64)
        both = self._constant("pool.both", np.array([0, 1], np.int64))
        self._add("ReduceSum", ["pool.ones", both], "pool.count", keepdims=0)
        scalar = self._constant("pool.scalar", np.array(1, np.int64))
        self._add("Sub", ["pool.count", scalar], "pool.last.place")
        return self._add("Gather", ["pool.tokens", "pool.last.place"], "pool.last", axis=1)

    def _max(self) -> str:
        import numpy as np

        low = self._constant("pool.low", np.array(np.finfo(np.float32).min, np.float32))
        zero = self._constant("pool.zero", np.array(0, np.float32))
        self._add("Greater", ["pool.mask", zero], "pool.real")
        self._add("Where", ["pool.real", "pool.tokens", low], "pool.masked")
        self._add("Transpose", ["pool.masked"], "pool.turned", perm=[0, 2, 1])
        most = self._constant("pool.most", np.array([1], np.int64))
        self._add("TopK", ["pool.turned", most], "pool.top", second="pool.top.places", axis=2)
        return self._add("Squeeze", ["pool.top", "pool.channels"], "pool.max")

    def _add(self, kind: str, given: list[str], name: str, *, second: str | None = None, **more: object) -> str:
        import onnx

        self.behind.append(onnx.helper.make_node(kind, given, [name, *([second] if second else [])], **more))
        return name

    def _constant(self, name: str, value: object) -> str:
        import onnx

        if name not in _constants(self.model):
            self.model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        return name

    def finished(self) -> onnx.ModelProto:
        """The model with its new nodes."""
        from edgekit.formats.onnx.graph import copy_node, nodes, opset

        if (self.before or self.behind) and opset(self.model) < _OLDEST:
            raise EdgekitError(
                f"{self.named}: is of opset {opset(self.model)}; edgekit fits files of opset {_OLDEST} or newer: export it again"
            )
        for node in nodes(self.model.graph):
            for place, name in enumerate(node.input):
                node.input[place] = self.renamed.get(name, name)
        theirs = [copy_node(node) for node in self.model.graph.node]
        del self.model.graph.node[:]
        self.model.graph.node.extend([*self.before, *theirs, *self.behind])
        return self.model


def _extent(kind: onnx.TypeProto.Tensor, axis: int) -> int | None:
    """A fixed size of an input's axis."""
    shape = kind.shape.dim
    return int(shape[axis].dim_value) or None if len(shape) > axis else None
