"""How a model's file holds every tensor: type, block, bytes, and how far it is from the float one.

"Q4_K_M" or "int8" is a recipe of many types; this record is what a file really is. Errors are of the weights as they multiply:
|w' - w| of the dequantized ones (by gguf-py, or by onnxruntime itself) against the float student's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError, require
from edgekit.runtimes.onnxruntime.operators import OPERATORS
from edgekit.typed_json import as_table
from edgekit.workspace import Workspace, file_sha256

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from edgekit.bundle.open import Bundle

    Floats = NDArray[np.float32]

# What edgekit calls the codes of a student's weight in an ONNX file, and what the traced module puts before the name.
_CODES = re.compile(r"\.(int\d+)$")
_WRAPPED = "model."
# The key of a GGUF file that an importance matrix has weighed (ggml, docs/gguf.md).
_IMATRIX = "quantize.imatrix.entries_count"
# Numbers of a record are rounded to so many significant digits: BLAS on another CPU sums in another order.
_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Held:
    """A tensor of a file. block: how many values share a scale, 1 where none do, None of a whole row or tensor. largest_error,
    mean_error: in the weights' own unit; None where it is not quantized or nobody has the float weights. relative_error: the
    root of the squared errors' sum by that of the squared weights."""

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int
    block: int | None
    largest_error: float | None = None
    mean_error: float | None = None
    relative_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a build left in its cache: the float student's folder, and the calibration's file that made the importance matrix."""

    student: Path | None = None
    calibration: Path | None = None


def find_sources(bundle: Bundle, cache: Path) -> Sources:
    """What of a bundle's build is still in a cache of finished steps, found by the digests that the bundle names."""
    manifest = bundle.manifest
    student, export = manifest.lineage.get("student_digest"), manifest.fingerprints.get("export")
    products = {product.digest: product for product in Workspace(cache).products()}
    made = products.get(str(export))
    used = as_table(made.manifest.get("inputs")).get("calibration") if made else None
    calibration, trained = products.get(str(used)), products.get(str(student))
    return Sources(
        student=trained.folder if trained else None,
        calibration=calibration.folder / "calibration.npz" if calibration else None,
    )


def record(bundle: Bundle, sources: Sources) -> dict[str, object]:
    """quantization.json of a bundle: its model's tensors, in the file's order, and the hash of what weighed their errors.

    Raises EdgekitError where the file is not whole, the student is not the one that it was made from, or gguf-py is not there.
    """
    from edgekit.formats.gguf.file import read_gguf

    manifest = bundle.manifest
    model = bundle.folder / manifest.model
    held = list(_gguf(model, sources.student) if model.suffix == ".gguf" else _onnx(model, sources.student))
    calibration = sources.calibration
    weighed = file_sha256(calibration) if calibration and calibration.is_file() else None
    has_imatrix = model.suffix == ".gguf" and _IMATRIX in read_gguf(model).metadata
    return {
        "artifact": manifest.artifact.sha256,
        "format": manifest.artifact.format,
        "scheme": manifest.artifact.scheme,
        "errors": "against the float student" if sources.student else "not known: the float student was not there",
        "calibration_sha256": weighed,
        "imatrix_sha256": weighed if has_imatrix else None,
        "tensors": [asdict(tensor) for tensor in held],
    }


def _gguf(file: Path, student: Path | None) -> Iterator[Held]:
    from edgekit.formats.gguf.file import read_gguf
    from edgekit.formats.gguf.ggml import TYPES

    stored = read_gguf(file).tensors
    errors = dict(_gguf_errors(file, student)) if student else {}
    for name, tensor in stored.items():
        yield Held(
            name=name,
            type=tensor.type,
            shape=tensor.shape,
            bytes=tensor.bytes,
            block=TYPES[tensor.type].block,
            **errors.get(name, {}),
        )


def _gguf_errors(file: Path, student: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """The errors of each quantized tensor that is a weight of the student's."""
    require("gguf", extra="gguf")
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize

    from edgekit.formats.gguf.convert import float_rows
    from edgekit.formats.gguf.ggml import TYPES
    from edgekit.formats.gguf.tensors import plan
    from edgekit.model import load_model

    held = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    for tensor in plan(load_model(student)):
        mine = held.get(tensor.name)
        if mine is None or tuple(int(extent) for extent in reversed(mine.shape)) != tensor.shape:
            raise EdgekitError(
                f"{file}: {tensor.name} is not that of {student}; name the student that it was made from"
            )
        if TYPES[mine.tensor_type.name.lower()].block == 1:
            continue
        wanted = np.concatenate([part.copy() for part in float_rows(tensor)])
        yield tensor.name, _errors(dequantize(mine.data, mine.tensor_type).reshape(wanted.shape), wanted)


def _onnx(file: Path, student: Path | None) -> Iterator[Held]:
    from edgekit.formats.onnx import ort
    from edgekit.formats.onnx.files import read
    from edgekit.inspect.onnx_file import tensor_bytes, tensor_type

    model = ort.read_ort(file) if file.suffix == ort.SUFFIX else read(file)
    errors = dict(_onnx_errors(model, student)) if student else {}
    blocks = _blocks(model)
    for tensor in model.graph.initializer:
        codes = _CODES.search(tensor.name)
        yield Held(
            name=tensor.name,
            type=codes[1] if codes else tensor_type(tensor),
            shape=tuple(tensor.dims),
            bytes=tensor_bytes(tensor),
            block=blocks.get(tensor.name) if codes else 1,
            **errors.get(tensor.name, {}),
        )


def _blocks(model: onnx.ModelProto) -> dict[str, int]:
    """How many values of a weight share a scale, by the weight of each product or table of blocks."""
    return {
        node.input[0 if operator.kind == "gather" else 1]: entry.i
        for node in model.graph.node
        if (operator := OPERATORS.get(node.op_type)) is not None and operator.blocks
        for entry in node.attribute
        if entry.name == "block_size"
    }


def _onnx_errors(model: onnx.ModelProto, student: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """The errors of each quantized weight whose name is the student's with something added.

    Smoothing puts a factor of each input into the weights (SmoothQuant, arXiv:2211.10438), and of a value's outputs one that its
    next layer takes out again: they are the least-squares ones of the columns and rows here, and divided out.
    """
    import numpy as np
    from safetensors import safe_open

    from edgekit.inspect.onnx_grid import quantized_channels
    from edgekit.model import load_model

    tensors = load_model(student).tensors
    for name, _, channels in quantized_channels(model):
        plain = _CODES.sub("", name)
        known = next((key for key in (plain, plain.removeprefix(_WRAPPED)) if key in tensors), None)
        if known is None:
            continue
        with safe_open(tensors[known].file, framework="numpy") as opened:
            wanted = opened.get_tensor(known).astype(np.float32)
        if wanted.shape != channels.shape:
            continue
        values = channels
        for axis in (0, 1, 0):
            squares = (wanted * wanted).sum(axis=axis, keepdims=True)
            products = (wanted * values).sum(axis=axis, keepdims=True)
            values = values / np.divide(
                products, squares, out=np.ones_like(squares), where=(squares > 0) & (products > 0)
            )
        yield name, _errors(values, wanted)


def _errors(values: Floats, wanted: Floats) -> dict[str, float]:
    import numpy as np

    apart = np.abs(values.astype(np.float64) - wanted)
    power = float((wanted.astype(np.float64) ** 2).sum())
    return {
        "largest_error": _rounded(float(apart.max(initial=0.0))),
        "mean_error": _rounded(float(apart.mean())),
        "relative_error": _rounded(math.sqrt(float((apart**2).sum()) / power)) if power else 0.0,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
