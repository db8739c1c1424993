"""Which tensors a checkpoint's GGUF file has, from where each comes, and what is wrong with a checkpoint that cannot be one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.architectures import find_gguf
from edgekit.architectures.gguf import Config, Gguf, Place
from edgekit.errors import EdgekitError
from edgekit.formats.gguf.schemes import Shape
from edgekit.model import Model
from edgekit.weights import INDEX, TensorInfo, read_header, read_index, weight_files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Names of very old BERT checkpoints.
_OLD_SUFFIXES = {"gamma": "weight", "beta": "bias"}
_READABLE = frozenset({"F32", "F16", "BF16"})
_INDEX = re.compile(r"^\d+$")


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of the file to come.

    name: GGUF's; origin: the checkpoint's own ("" for a constant). shape: rows before columns. layer: path of the layer in the
    bare model that it is of ("" for a constant). source: where it is read from; or values: what it is. head: of how many rows
    each head is made, where they are interleaved. add: what is added to each value. skip: how many rows of the source are left
    out at its beginning. where: begins errors.
    """

    name: str
    shape: tuple[int, ...]
    origin: str = ""
    layer: str = ""
    source: TensorInfo | None = None
    values: NDArray[np.float32] | None = None
    head: int = 0
    add: float = 0.0
    skip: int = 0
    where: str = ""

    @property
    def rows(self) -> int:
        """Rows that are converted one by one; each value of a vector is one."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Values of a row; 1 for a vector."""
        return self.shape[1] if len(self.shape) > 1 else 1


def read_config(model: Model) -> tuple[Gguf, Config]:
    """How the checkpoint's family is written as GGUF, and its configuration.

    Raises EdgekitError for a family that is not.
    """
    where = model.folder / "config.json"
    family = find_gguf(model.architecture, str(where))
    config = family.config(model.config, where)
    return family, config


def plan(model: Model) -> list[Tensor]:
    """The tensors of a checkpoint's GGUF file, in the file's order; only headers are read.

    Raises EdgekitError for what `read_config` and the family refuse, shards and index that contradict each other, a tensor that
    is missing, has another shape than config.json says, or has no place in GGUF.
    """
    family, config = read_config(model)
    family.keys(config)
    _check_index(model)
    left = _by_path(model, family)
    sizes = family.sizes(config)
    places = dict(family.places)
    if family.head:
        _settle_head(model, family, config, left, places)
    tensors = []
    for layer, place in places.items():
        if not place.name.startswith("output"):
            tensors += _take(model, left, layer, place, place.name, sizes)
    for name, values in family.constants(config).items():
        tensors.append(Tensor(name=name, shape=values.shape, values=values, where=f"{model.folder}: {name}"))
    for index in range(config.number("num_hidden_layers")):
        for layer, place in family.blocks.items():
            path = f"{family.block}.{index}.{layer}"
            tensors += _take(model, left, path, place, place.name.format(index), sizes)
    for layer, place in places.items():
        if place.name.startswith("output"):
            tensors += _take(model, left, layer, place, place.name, sizes)
    if left:
        name, _ = left[min(left)]
        raise EdgekitError(
            f"{model.folder}: tensor {name}: GGUF's {family.architecture} has no place for it, so llama.cpp would compute"
            " something else; export as ONNX"
        )
    return tensors


def shapes(tensors: Iterable[Tensor]) -> list[Shape]:
    """Names, rows and columns of tensors: a vector is one row."""
    return [
        Shape(name=tensor.name, rows=tensor.shape[0], columns=tensor.shape[1])
        if len(tensor.shape) > 1
        else Shape(name=tensor.name, rows=1, columns=tensor.shape[0])
        for tensor in tensors
    ]


def layer_names(model: Model, paths: Iterable[str]) -> dict[str, str]:
    """The GGUF name of the weight of each of these layers, by path as given; others are left out.

    A path is one in the transformers model, or in a task's module, which holds it as `model`. A head that is the embedding has
    the embedding's name.
    """
    family, _ = read_config(model)
    tensors = plan(model)
    names = {tensor.layer: tensor.name for tensor in tensors if tensor.name.endswith(".weight")}
    if family.head and family.head not in names:
        names[family.head] = "token_embd.weight"
    named = {
        path: names.get(_bare(path, family)) or names.get(_bare(path.removeprefix("model."), family)) for path in paths
    }
    return {path: name for path, name in named.items() if name is not None}


def _bare(path: str, family: Gguf) -> str:
    """A path without what is around the bare model."""
    for prefix in family.prefixes:
        if path.startswith(prefix):
            return path.removeprefix(prefix)
    return path


def _by_path(model: Model, family: Gguf) -> dict[str, tuple[str, TensorInfo]]:
    """The checkpoint's tensors that matter, as {path in the bare model: (its own name, place)}."""
    paths: dict[str, tuple[str, TensorInfo]] = {}
    for name, info in model.tensors.items():
        path = _bare(name, family)
        layer, _, suffix = path.rpartition(".")
        path = f"{layer}.{_OLD_SUFFIXES.get(suffix, suffix)}"
        pattern = ".".join("{}" if _INDEX.match(part) else part for part in path.split("."))
        if pattern.startswith(family.ignored):
            continue
        if path in paths:
            raise EdgekitError(f"{model.folder}: {name} and {paths[path][0]} are the same tensor; remove one of them")
        paths[path] = (name, info)
    return paths


def _take(
    model: Model,
    left: dict[str, tuple[str, TensorInfo]],
    layer: str,
    place: Place,
    name: str,
    sizes: Mapping[str, int],
) -> list[Tensor]:
    """Take a layer's weight, and its bias where it has one, out of what is left of the checkpoint."""
    taken = []
    shape = tuple(sizes[extent] for extent in place.shape)
    for suffix, wanted, needed in (
        ("weight", shape, not place.optional),
        ("bias", shape[:1], place.bias is True),
    ):
        if suffix == "bias" and place.bias is False:
            continue
        own, info = left.pop(f"{layer}.{suffix}", (None, None))
        if own is None or info is None:
            if needed:
                raise EdgekitError(f"{model.folder}: no tensor {layer}.{suffix} in it; fetch the checkpoint again")
            continue
        if info.shape != wanted:
            raise EdgekitError(
                f"{info.file}: tensor {own} has the shape {list(info.shape)}; config.json says {list(wanted)}"
            )
        if info.dtype not in _READABLE:
            raise EdgekitError(
                f"{info.file}: tensor {own} is of type {info.dtype}; save the model in F32, F16 or BF16 (dtype=...)"
            )
        skip = sizes[place.skip] if place.skip else 0
        taken.append(
            Tensor(
                name=f"{name}.{suffix}",
                shape=(wanted[0] - skip, *wanted[1:]),
                origin=own,
                layer=layer,
                source=info,
                head=wanted[0] // sizes[place.heads] if place.heads else 0,
                add=place.add if suffix == "weight" else 0.0,
                skip=skip,
                where=f"{info.file}: tensor {own}",
            )
        )
    return taken


def _settle_head(
    model: Model, family: Gguf, config: Config, left: dict[str, tuple[str, TensorInfo]], places: dict[str, Place]
) -> None:
    """Whether the file has a head of its own: not where it is the embedding, nor where the checkpoint is a bare model."""
    assert family.head
    weight = f"{family.head}.weight"
    tied = bool(config.get("tie_word_embeddings", family.tied))
    if weight not in left:
        bare = not any(name.startswith(family.prefixes) for name in model.tensors)
        if not (tied or bare):
            raise EdgekitError(
                f"{model.folder}: no tensor {weight} in it, and config.json does not tie it to the embedding"
            )
        places.pop(family.head, None)
    elif tied and _same_bytes(left[weight][1], left.get("embed_tokens.weight", (None, None))[1]):
        # transformers ties the two only where they are alike, and so does this.
        left.pop(weight)
        places.pop(family.head, None)


def _same_bytes(left: TensorInfo, right: TensorInfo | None) -> bool:
    if right is None or (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    with left.file.open("rb") as first, right.file.open("rb") as second:
        first.seek(left.begin)
        second.seek(right.begin)
        to_go = left.end - left.begin
        while to_go:
            piece = min(to_go, 1 << 20)
            if first.read(piece) != second.read(piece):
                return False
            to_go -= piece
    return True


def _check_index(model: Model) -> None:
    """Raises EdgekitError where the index of a sharded checkpoint does not say what its shards hold."""
    index = read_index(model.folder)
    if not index:
        return
    listed = set(index.items())
    held = {(name, file.name) for file in weight_files(model.folder) for name in read_header(file)}
    if wrong := sorted(listed ^ held):
        name, shard = wrong[0]
        problem = f"is not in {shard}" if (name, shard) in listed else f"is in {shard}, which the index does not say"
        raise EdgekitError(f"{model.folder / INDEX}: tensor {name} {problem}; fetch the checkpoint again")
