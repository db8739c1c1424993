"""onnxruntime's own format: the optimized graph as a flatbuffer, for apps whose onnxruntime reads no ONNX and has few kernels.

A session optimizes no .ort file, so what was written is what runs, on every CPU. It is made by the session that onnxruntime's own
tool uses (onnxruntime.tools.convert_onnx_models_to_ort, style "Fixed"), with the optimizers that the artifact asks for. That
tool's modules also say which operators a reduced onnxruntime needs.
"""

from __future__ import annotations

import importlib
import importlib.util
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.runtimes.onnxruntime.library import PACKAGE, load_errors, save_as_ort, version
from edgekit.schema import refuse_pointer

if TYPE_CHECKING:
    import flatbuffers
    import onnx

SUFFIX, FILE = ".ort", "model.ort"
OPERATORS_FILE, TYPES_FILE = "required_operators.config", "required_operators_and_types.config"
# The first onnxruntime that reads a version of the format. Measured: files that 1.31.1 wrote give the same rows in 1.18.1, 1.20.1
# and 1.24.1 (older ones lack the opset).
SINCE = {"6": "1.18"}
_IDENTIFIER = b"ORTM"
# Room for what is written before the model: it grows where that is more.
_ROOM, _ALIGNMENT = 1 << 16, 16
_DAMAGED = (struct.error, IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError)


def write_ort(source: Path, disabled_optimizers: Sequence[str]) -> Path:
    """Write an .onnx file's graph as FILE beside it, with the two lists of its operators; the new file.

    Equal graphs give equal bytes. Raises EdgekitError for weights that one file cannot hold, and where the disk does not take it.
    """
    out = source.with_name(FILE)
    if source.with_name(f"{source.name}.data").exists():
        raise EdgekitError(
            f'{source}: over the 2 GB that one .ort file can hold; use container = "onnx", or a smaller model'
        )
    try:
        save_as_ort(source, out, disabled_optimizers)
        out.write_bytes(_ordered(out.read_bytes()))
        for name, with_types in ((OPERATORS_FILE, False), (TYPES_FILE, True)):
            (out.parent / name).write_text(
                required_operators(out, with_types=with_types), encoding="utf-8", newline="\n"
            )
    except load_errors() as failed:
        raise EdgekitError(f"{source}: onnxruntime {version()} writes no .ort of it: {str(failed)[:300]}") from failed
    except OSError as failed:
        raise EdgekitError(
            f"{out}: cannot be written: {failed.strerror or failed}; free space or choose another folder"
        ) from failed
    return out


def required_operators(file: Path, *, with_types: bool) -> str:
    """What onnxruntime's build takes with --include_ops_by_config: a line "domain;opset;operators" for each domain and opset.

    with_types: and the types that each operator is used with (its --enable_reduced_operator_type_support).
    """
    needed: dict[str, dict[int, set[str]]] = {}
    usage = _tool("operator_type_usage_processors").OperatorTypeUsageManager() if with_types else None
    _tool("ort_model_processor").OrtFormatModelProcessor(str(file), needed, usage).process()
    lines = [f"# Of {file.name}, by onnxruntime {version()}"]
    for domain, by_opset in sorted(needed.items()):
        for opset, names in sorted(by_opset.items()):
            told = [f"{name}{(usage.get_config_entry(domain, name) or '') if usage else ''}" for name in sorted(names)]
            lines.append(f"{domain};{opset};{','.join(told)}")
    return "\n".join(lines) + "\n"


def minimum_version(path: Path) -> str:
    """The oldest onnxruntime that reads the file's version of the format; of one that is not known the installed one."""
    told = _schema().InferenceSession.InferenceSession.GetRootAs(path.read_bytes(), 0).OrtVersion() or b""
    return SINCE.get(told.decode(), ".".join(version().split(".")[:2]))


def read_ort(path: Path, *, named: Path | None = None) -> onnx.ModelProto:
    """An .ort file's graph as one of ONNX; of its subgraphs nothing.

    named: what errors call the file. Raises EdgekitError where it cannot be read or is none.
    """
    try:
        refuse_pointer(path)
        data = path.read_bytes()
    except OSError as failed:
        raise EdgekitError(f"{named or path}: cannot be read: {failed.strerror or failed}") from failed
    try:
        if data[4:8] != _IDENTIFIER:
            raise ValueError("no ORTM at its fifth byte")
        return _model(_schema().InferenceSession.InferenceSession.GetRootAs(data, 0).Model())
    except _DAMAGED as bad:
        raise EdgekitError(f"{named or path}: not a whole .ort file ({bad}); export or fetch it again") from bad


def _tool(name: str) -> ModuleType:
    """A module of onnxruntime's tools for this format, without the package around them, which imports torch."""
    found = importlib.util.find_spec(PACKAGE.module)
    folder = Path(((found.submodule_search_locations if found else None) or ["."])[0]) / "tools" / "ort_format_model"
    for package, where in (("ort_format_model", folder), ("ort_flatbuffers_py", folder / "ort_flatbuffers_py")):
        if package not in sys.modules:
            made = ModuleType(package)
            made.__path__ = [str(where)]
            sys.modules[package] = made
    try:
        return importlib.import_module(name if "." in name else f"ort_format_model.{name}")
    except ImportError as missing:
        raise EdgekitError(
            f"onnxruntime's tools for .ort files are not there ({missing}); run: pip install --force-reinstall onnxruntime"
        ) from missing


def _schema() -> ModuleType:
    """A reader and a writer for each table of the format (onnxruntime/core/flatbuffers/schema/ort.fbs)."""
    return _tool("ort_flatbuffers_py.fbs")


# --- writing


def _ordered(data: bytes) -> bytes:
    """The same file with the table of its kernels' types in order: onnxruntime writes that in the order of a hash that changes.

    A flatbuffer is written back to front: the model, which comes first, is the file's end, and is kept as it is.
    """
    import flatbuffers

    fbs = _schema()
    session = fbs.InferenceSession.InferenceSession.GetRootAs(data, 0)
    root = _at(data, 0, "<I")
    vtable = root - _at(data, root, "<i")
    slot = root + _at(data, vtable + 6, "<H")  # of the field `model`, the second one
    model = slot + _at(data, slot, "<I")
    tail = data[min(model, model - _at(data, model, "<i")) :]
    builder = flatbuffers.Builder(len(tail) + _ROOM)
    builder.head = len(builder.Bytes) - len(tail)
    builder.Bytes[builder.head :] = tail
    builder.minalign = _ALIGNMENT
    kernels = sorted(
        _each(session.KernelTypeStrResolver(), "OpKernelTypeStrArgs"), key=lambda kernel: str(kernel.OpId())
    )
    written = [_kernel(builder, kernel) for kernel in kernels]
    listed = _vector(builder, written)
    fbs.KernelTypeStrResolver.Start(builder)
    fbs.KernelTypeStrResolver.AddOpKernelTypeStrArgs(builder, listed)
    ordered = fbs.KernelTypeStrResolver.End(builder)
    format_version = builder.CreateString(session.OrtVersion().decode())
    fbs.InferenceSession.Start(builder)
    fbs.InferenceSession.AddOrtVersion(builder, format_version)
    fbs.InferenceSession.AddModel(builder, len(data) - model)
    fbs.InferenceSession.AddKernelTypeStrResolver(builder, ordered)
    builder.Finish(fbs.InferenceSession.End(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _kernel(builder: flatbuffers.Builder, kernel: flatbuffers.Table) -> int:
    """A copy of what types an operator's kernel depends on, in order; its offset from the end."""
    fbs, entries = _schema(), []
    for entry in sorted(_each(kernel, "KernelTypeStrArgs"), key=lambda entry: str(entry.KernelTypeStr())):
        made = []
        for argument in _each(entry, "Args"):
            fbs.ArgTypeAndIndex.Start(builder)
            fbs.ArgTypeAndIndex.AddArgType(builder, argument.ArgType())
            fbs.ArgTypeAndIndex.AddIndex(builder, argument.Index())
            made.append(fbs.ArgTypeAndIndex.End(builder))
        arguments, name = _vector(builder, made), builder.CreateString(entry.KernelTypeStr().decode())
        fbs.KernelTypeStrArgsEntry.Start(builder)
        fbs.KernelTypeStrArgsEntry.AddKernelTypeStr(builder, name)
        fbs.KernelTypeStrArgsEntry.AddArgs(builder, arguments)
        entries.append(fbs.KernelTypeStrArgsEntry.End(builder))
    listed, name = _vector(builder, entries), builder.CreateString(kernel.OpId().decode())
    fbs.OpIdKernelTypeStrArgsEntry.Start(builder)
    fbs.OpIdKernelTypeStrArgsEntry.AddOpId(builder, name)
    fbs.OpIdKernelTypeStrArgsEntry.AddKernelTypeStrArgs(builder, listed)
    return int(fbs.OpIdKernelTypeStrArgsEntry.End(builder))


def _vector(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _at(data: bytes, index: int, kind: str) -> int:
    return int(struct.unpack_from(kind, data, index)[0])


# --- reading


def _model(model: flatbuffers.Table) -> onnx.ModelProto:
    import onnx

    graph, fresh = model.Graph(), onnx.ModelProto()
    fresh.ir_version = model.IrVersion()
    fresh.producer_name, fresh.producer_version = _text(model.ProducerName()), _text(model.ProducerVersion())
    fresh.opset_import.extend(
        onnx.helper.make_opsetid(_text(one.Domain()), one.Version()) for one in _each(model, "OpsetImport")
    )
    for entry in _each(model, "MetadataProps"):
        fresh.metadata_props.add(key=_text(entry.Key()), value=_text(entry.Value()))
    values = {_text(value.Name()): value for value in _each(graph, "NodeArgs")}
    for names, wanted in (("Inputs", fresh.graph.input), ("Outputs", fresh.graph.output)):
        wanted.extend(_value(values[_text(name)]) for name in _each(graph, names))
    fresh.graph.initializer.extend(_tensor(tensor) for tensor in _each(graph, "Initializers"))
    fresh.graph.node.extend(_node(node) for node in _each(graph, "Nodes"))
    return fresh


def _value(value: flatbuffers.Table) -> onnx.ValueInfoProto:
    import onnx

    fbs, kind = _schema(), value.Type()
    fresh = onnx.ValueInfoProto(name=_text(value.Name()))
    if kind.ValueType() == fbs.TypeInfoValue.TypeInfoValue.tensor_type:
        held, tensor = kind.Value(), fbs.TensorTypeAndShape.TensorTypeAndShape()
        tensor.Init(held.Bytes, held.Pos)
        fresh.type.tensor_type.elem_type = tensor.ElemType()
        for extent in _each(tensor.Shape(), "Dim") if tensor.Shape() else ():
            size = extent.Value()
            named = _text(size.DimParam()) if size else ""
            fresh.type.tensor_type.shape.dim.add(**({"dim_param": named} if named else {"dim_value": size.DimValue()}))
    return fresh


def _node(node: flatbuffers.Table) -> onnx.NodeProto:
    import onnx

    inputs, outputs = ([_text(name) for name in _each(node, names)] for names in ("Inputs", "Outputs"))
    named = {"name": _text(node.Name()), "domain": _text(node.Domain())}
    fresh = onnx.helper.make_node(_text(node.OpType()), inputs, outputs, **named)
    for attribute in _each(node, "Attributes"):
        # The kinds have ONNX's numbers.
        entry = fresh.attribute.add(name=_text(attribute.Name()), type=attribute.Type())
        entry.f, entry.i, entry.s = attribute.F(), attribute.I(), attribute.S() or b""
        entry.floats.extend(_each(attribute, "Floats"))
        entry.ints.extend(_each(attribute, "Ints"))
        entry.strings.extend(_each(attribute, "Strings"))
        if tensor := attribute.T():
            entry.t.CopyFrom(_tensor(tensor))
    return fresh


def _tensor(tensor: flatbuffers.Table) -> onnx.TensorProto:
    import onnx

    fresh = onnx.TensorProto(name=_text(tensor.Name()), data_type=tensor.DataType(), dims=_each(tensor, "Dims"))
    if tensor.RawDataLength():
        fresh.raw_data = tensor.RawDataAsNumpy().tobytes()
    return fresh


def _each(table: object, name: str) -> Iterator[flatbuffers.Table]:
    """The entries of a table's vector."""
    entry = getattr(table, name)
    return (entry(index) for index in range(getattr(table, f"{name}Length")()))


def _text(value: bytes | None) -> str:
    return (value or b"").decode()
