"""The ONNX format: a student as one model.onnx for onnxruntime, float or quantized."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekit.artifact import ModelFile, OnnxParts, Parity
from edgekit.errors import EdgekitError
from edgekit.formats.onnx.options import (
    AUTO,
    BY_BITS,
    SCHEME_FOR,
    SCHEMES,
    Options,
)
from edgekit.outputs import OUTPUTS
from edgekit.typed_json import as_list

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from edgekit.calibration import Calibration
    from edgekit.cost import Cost
    from edgekit.formats.onnx.candidates import Trial
    from edgekit.formats.onnx.smooth import Range
    from edgekit.formats.onnx.traced import Traced
    from edgekit.formats.onnx.trained import Trained
    from edgekit.formats.onnx.trained_inputs import TrainedInputs
    from edgekit.formats.source import Reading, Source
    from edgekit.grid import Grid
    from edgekit.modalities.encoded import Encoded
    from edgekit.model import Model
    from edgekit.progress import Progress

log = logging.getLogger("edgekit")

# What the table of formats asks for.
__all__ = [
    "AUTO",
    "BY_BITS",
    "CARRIES_TOKENIZER",
    "FILE",
    "LIBRARIES",
    "NAME",
    "RUNTIMES",
    "SCHEMES",
    "SCHEME_FOR",
    "SUFFIX",
    "Options",
    "adopt",
    "check_reading",
    "costs",
    "describe_file",
    "domains",
    "file_digest",
    "grid",
    "mixes",
    "write",
]

NAME = "onnx"
RUNTIMES: tuple[str, ...] = ("onnxruntime", "openvino")
SUFFIX = ".onnx"
CARRIES_TOKENIZER = False
LIBRARIES: tuple[str, ...] = ("onnx", "onnxscript")
FILE = "model.onnx"
# How far a float file that was read back may be from the graph that was written, as a share of the largest answer: the order of
# sums may differ between two sessions, nothing else.
WRITTEN = 1e-4
# Prompts that candidates are compared on: enough to rank them, few enough for a minute on two cores.
TRIAL_PROMPTS = 128


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What a scheme is written from; trained, inputs: what weights were trained with; fitted: else what `fit_encoder` gives."""

    exported: onnx.ModelProto
    calibration: Calibration
    trained: Trained | None
    inputs: TrainedInputs | None
    fitted: tuple[Trained, Trial] | None


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A scheme's graph, the float graph of the same Linears, the keys of the quantized ones, and what was chosen."""

    model: onnx.ModelProto
    exact: onnx.ModelProto
    quantized: Sequence[str]
    choices: Mapping[str, object]
    scheme: str
    config_entries: Mapping[str, str] = field(default_factory=dict)


def domains(options: Options) -> tuple[str, ...]:
    """ONNX's own, and onnxruntime's where the options ask for its operators; only those have weights in blocks."""
    own = (
        options.scheme in {"w8", "w4"}
        or options.container == "ort"
        or (options.layout == "operators" and options.scheme != "fp16")
    )
    return ("", "com.microsoft") if own else ("",)


def mixes(options: Options) -> bool:  # noqa: ARG001 - the format's interface
    """No scheme of this format depends on gradients or on the target's processor."""
    return False


def write(source: Source, options: Options, out: Path) -> ModelFile:
    """Write a student into the folder `out`.

    Raises EdgekitError where it cannot be exported, nothing was quantized, or quantization does not make the file smaller.
    """
    _check_container(options, generates=source.score is None)
    if source.score is None:
        from edgekit.formats.onnx.decoder import write_decoder

        return write_decoder(source, options, out)
    return write_encoder(source, options, out)


def grid(model: Model, options: Options, output: str) -> Grid:
    """What a scheme makes of a model's weights, from its headers alone.

    Raises EdgekitError for a scheme that rounds nothing, or chooses or rounds by what is known after the training.
    """
    from edgekit.formats.onnx.decoder_grid import make_decoder_grid
    from edgekit.formats.onnx.rounding import make_grid

    return (make_decoder_grid if OUTPUTS[output].generates else make_grid)(NAME, model, options)


def costs(model: Model, output: str, options: Sequence[Options]) -> list[Cost]:
    """The bytes of the file in each of several options; a decoder's cache and what it reads are known when it is there."""
    from edgekit.cost import Cost, Figure
    from edgekit.formats.onnx.sizes import float_layer_bytes, predict_bytes, predict_decoder_bytes

    generates = OUTPUTS[output].generates
    for each in options:
        _check_container(each, generates=generates)

    def cost(each: Options) -> Cost:
        predicted = (
            predict_decoder_bytes(model, each.scheme, each.block)
            if generates
            else predict_bytes(model, each.scheme, each.block, each.table_bits)
        )
        size = Figure(value=predicted, source="shapes in the checkpoint's headers")
        most = None
        if not generates and each.float_layers and each.scheme in {"auto", "int8-static", "int8-dynamic"}:
            most = Figure(
                value=size.value + float_layer_bytes(model, each.float_layers),
                source="the largest Linears left float, which the calibrate prompts decide",
            )
        # The traced graph of an encoder.
        kept = 0 if generates else predict_bytes(model, "fp32", each.block)
        return Cost(scheme=each.scheme, file=size, memory=size, most=most, kept=kept, fitted=each.fitted)

    return [cost(each) for each in options]


def _check_container(options: Options, *, generates: bool) -> None:
    if generates and options.container == "ort":
        raise EdgekitError(
            'container = "ort": not of models that generate text; use format = "gguf" in the export table, or leave container out'
        )


def adopt(file: Path, out: Path, reading: Reading) -> ModelFile:
    """Copy an .onnx file that something else wrote, with the files of its weights, fit it (see `fit`), and describe it.

    Raises EdgekitError for what `fit` and `describe_file` refuse, and for a file that is not there.
    """
    from edgekit.embedding_files import read_embedding
    from edgekit.formats.onnx.files import copy_files
    from edgekit.formats.onnx.fit import Wanted, fit

    if OUTPUTS[reading.output].generates:
        raise EdgekitError(
            f"{file}: an .onnx decoder of another tool is not judged yet: their caches have no common interface; export the"
            " checkpoint with edgekit, or verify a .gguf file"
        )
    copy_files(file, out / FILE)
    wanted = Wanted(
        output=reading.output,
        embedding=read_embedding(reading.model.folder) if OUTPUTS[reading.output].pools else None,
        pad_id=reading.pad_id,
        max_length=reading.max_length,
    )
    changed = fit(out / FILE, wanted, file)
    described = describe_file(out / FILE, named=file)
    return replace(described, notes=tuple(f"{file.name}: {change}" for change in changed) or None)


def check_reading(
    _model: Model, _file: Path, _texts: Sequence[str], _conversations: Sequence[Mapping[str, object]] | None
) -> Parity | None:
    """Nothing: an .onnx file takes tokens, and the tokenizer beside it is the checkpoint's."""
    return None


def file_digest(file: Path) -> str:
    """sha256 over an .onnx file and the files of its weights; EdgekitError for a file that is damaged or lacks one."""
    from edgekit.formats.onnx.files import digest, external_files, read

    return digest(file.parent, [file.name, *external_files(read(file), file)])


def write_encoder(source: Source, options: Options, out: Path) -> ModelFile:
    """Write a module (inputs by name -> [batch, width]) into the folder `out`.

    The calibrate prompts prove parity and make every choice. Raises EdgekitError where the module cannot be exported, where
    nothing was quantized, or where a quantizing scheme does not make the file smaller.
    """
    from edgekit.formats.onnx import graph
    from edgekit.formats.onnx.candidates import trial
    from edgekit.formats.onnx.layer_errors import layer_errors
    from edgekit.formats.onnx.ort import write_ort
    from edgekit.formats.onnx.session import DISABLED_OPTIMIZERS
    from edgekit.formats.onnx.traced import float_size, trace
    from edgekit.runtimes.onnxruntime.library import EXACT_SUMS

    assert source.score is not None
    calibration, traced = source.calibration(), trace(source)
    linears, whole = [linear.key for linear in graph.Graph(traced.model).linears()], float_size(traced)
    exported = _simplified(source, traced, calibration, options)
    on = trial(exported, source.encoded, score=source.score, most=TRIAL_PROMPTS)
    given, note = _given(source, exported, calibration, options)
    written = _write_scheme(given, options, on, source.progress)
    source.progress(0, 0, "writing it and measuring each layer's error")
    path = out / FILE
    size = graph.save(written.model, path)
    entries = dict(written.config_entries)
    if options.container == "ort":
        # The .onnx file stays beside it. No session transforms an .ort file, so an entry that asks for that says nothing.
        path, entries = (
            write_ort(path, DISABLED_OPTIMIZERS),
            {key: entries[key] for key in entries if key not in EXACT_SUMS},
        )
        size = path.stat().st_size
    _refuse_silent_success(written, size, whole, linears)
    described = describe_file(path, encoded=source.encoded)
    assert described.onnx is not None
    return replace(
        described,
        scheme=written.scheme,
        bytes=size,
        bytes_float=whole,
        runtime_options={
            "disabled_optimizers": list(DISABLED_OPTIMIZERS),
            "config_entries": entries,
        },
        quantized={
            "matmul": len(written.quantized),
            "float": [key for key in linears if key not in set(written.quantized)],
        },
        choices=written.choices,
        notes=(note,) if note else None,
        onnx=replace(
            described.onnx,
            calibrate_score=_scores(path, on, entries, exact=written.scheme == "fp32"),
            layers=tuple(layer_errors(written.exact, written.model, on.encoded, written.config_entries)),
        ),
    )


def _given(
    source: Source, exported: onnx.ModelProto, calibration: Calibration, options: Options
) -> tuple[_Given, str | None]:
    """What a scheme is written from, and a note of what becomes of what the student was trained with."""
    from edgekit.formats.onnx.feedback import fit_encoder
    from edgekit.formats.onnx.rounding import read_trained
    from edgekit.formats.onnx.trained_inputs import read_trained_inputs

    trained, note = read_trained(source.model, NAME, options)
    given = _Given(
        exported=exported,
        calibration=calibration,
        trained=trained,
        inputs=None if trained is None else read_trained_inputs(source.model),
        fitted=None if trained is not None else fit_encoder(source, options, exported, TRIAL_PROMPTS),
    )
    return given, note


def _simplified(source: Source, traced: Traced, calibration: Calibration, options: Options) -> onnx.ModelProto:
    """The graph that a scheme begins with; raises EdgekitError where a calibration that it needs is of another model."""
    from edgekit.formats.onnx.simplify import simplified
    from edgekit.formats.onnx.traced import refuse_other_calibration

    if options.scheme in {"auto", "int8-static"}:
        refuse_other_calibration(traced, calibration)
    source.progress(0, 0, "simplifying the float graph")
    for_cpu = options.layout == "operators" and options.scheme != "fp16"
    return simplified(traced.model, source.encoded, for_cpu=for_cpu)


def describe_file(path: Path, *, named: Path | None = None, encoded: Encoded | None = None) -> ModelFile:
    """What any .onnx file needs to run, ours or not.

    named: what errors call the file, where this is a copy; encoded: prompts that it takes, token ids where there are none.
    Raises EdgekitError for a file that is not ONNX, that lacks a file of its weights, that onnxruntime does not load, or that is
    not (such prompts) -> [batch, width].
    """
    from edgekit.formats.onnx import graph, ort
    from edgekit.formats.onnx.files import digest, external_files, read
    from edgekit.formats.onnx.interface import check_interface
    from edgekit.formats.onnx.session import Session

    own = path.suffix == ort.SUFFIX
    model = ort.read_ort(path, named=named) if own else read(path, named=named)
    names = [path.name, *external_files(model, path)]
    check_interface(Session(path, named=named), named or path, encoded)
    kinds = [node.op_type for node in graph.nodes(model.graph)]
    matmuls = sum(kinds.count(kind) for kind in graph.QUANTIZED_MATMULS)
    return ModelFile(
        format=NAME,
        scheme="unknown",
        name=path.name,
        files=tuple(names),
        bytes=sum((path.parent / name).stat().st_size for name in names),
        sha256=digest(path.parent, names),
        minimum_runtime=graph.latest([graph.minimum_runtime(model), *([ort.minimum_version(path)] if own else [])]),
        runtime_options={"disabled_optimizers": [], "config_entries": {}},
        quantized={"matmul": matmuls, "float": []},
        choices={},
        onnx=OnnxParts(
            opset=graph.opset(model),
            ir_version=model.ir_version,
            operators=tuple(graph.operators(model)),
        ),
    )


def _write_scheme(given: _Given, options: Options, on: Trial, progress: Progress) -> _Written:
    from edgekit.formats.onnx.half import calibrated_inputs, to_half

    exported = given.exported
    if options.scheme == "fp32":
        return _Written(model=exported, exact=exported, quantized=(), choices={}, scheme="fp32")
    if options.scheme == "fp16":
        half, kept = to_half(exported, on.encoded, calibrated_inputs(exported, given.calibration))
        choices = {"float32_nodes": kept} if kept else {}
        return _Written(model=half, exact=exported, quantized=(), choices=choices, scheme="fp16")
    if options.scheme in {"w8", "w4"}:
        return _write_blocks(given, options)
    return _write_int8(given, options, on, progress)


def _write_blocks(given: _Given, options: Options) -> _Written:
    """w8 and w4: with feedback, where that is nearer to the float model on prompts that it has not seen."""
    from edgekit.formats.onnx.blocks import quantize_blocks, read_floats
    from edgekit.formats.onnx.feedback import decide
    from edgekit.formats.onnx.graph import Graph, copy_model

    bits = int(options.scheme[1:])
    choices: dict[str, object] = {"bits": bits, "block": options.block}
    choices |= {"inputs": options.inputs} if options.inputs == "float" else {}

    def write(trained: Trained | None) -> _Written:
        graph = Graph(copy_model(given.exported))
        keys = quantize_blocks(graph, bits=bits, block=options.block, table_bits=options.table_bits, trained=trained)
        if options.inputs == "float":
            read_floats(graph.model)
        return _Written(model=graph.model, exact=given.exported, quantized=keys, choices=choices, scheme=options.scheme)

    written = write(given.trained)
    if given.fitted is None:
        return written
    codes, unseen = given.fitted
    fed = write(codes)
    better, choices["feedback"] = decide(unseen.loss(written.model), unseen.loss(fed.model), "loss")
    return fed if better else written


def _write_int8(given: _Given, options: Options, on: Trial, progress: Progress) -> _Written:
    from edgekit.formats.onnx.candidates import Recipe8, Source, better, choose
    from edgekit.formats.onnx.quantize import Int8

    if given.trained is not None:
        # Weights that were trained for their codes are neither smoothed nor left float.
        options = replace(options, smoothing=False, float_layers=0)
    prepared = None if given.inputs is None else given.inputs.prepare(given.exported)
    source = Source(
        model=given.exported if prepared is None else prepared.model,
        ranges=_ranges(given.exported, given.calibration) if prepared is None else prepared.ranges,
        settings=Int8(
            ranges=None,
            activation=options.activation,
            reduce_range=options.reduce_range,
            unsigned_weights=options.container == "ort",
            layout=options.layout,
            table_bits=options.table_bits,
            trained=given.trained,
        ),
    )
    modes: tuple[Literal["static", "dynamic"], ...] = ("static",) if options.layout == "qdq" else ("static", "dynamic")
    wanted = [mode for mode in modes if options.scheme in {"auto", f"int8-{mode}"}]
    if prepared is None:
        tried = {
            mode: choose(
                source, on, mode, float_layers=options.float_layers, smoothing=options.smoothing, progress=progress
            )
            for mode in wanted
        }
    else:
        # What was trained is what is written.
        only = Recipe8(mode=wanted[0], alpha=None, keep_float=prepared.floats)
        tried = {only.mode: replace(only, loss=on.loss(source.quantized(only, emulated=True)[0]))}
    best = next(iter(tried.values()))
    scores: dict[str, float] = {}
    if len(tried) > 1:
        best, scores = better(source, on, tried["static"], tried["dynamic"])
    model, keys = source.quantized(best)
    losses = {mode: recipe.loss for mode, recipe in tried.items()}
    choices = best.describe() | {"candidates": {"loss": losses, "score": scores}}
    if prepared is not None:
        choices["inputs"] = "trained"
    return _Written(
        model=model,
        exact=source.exact(best),
        quantized=keys,
        choices=choices,
        scheme=f"int8-{best.mode}",
        config_entries=source.config_entries(best),
    )


def _ranges(exported: onnx.ModelProto, calibration: Calibration) -> dict[str, Range]:
    """The calibrated range of each Linear's input, by calibration key."""
    from edgekit.formats.onnx.graph import Graph
    from edgekit.formats.onnx.smooth import Range
    from edgekit.formats.onnx.traced import fits

    found = {}
    graph = Graph(exported)
    for linear in graph.linears():
        seen = calibration.stats.get(linear.key)
        if seen is not None and fits(seen, graph.initializers[linear.weight]):
            found[linear.key] = Range(minimum=seen.minimum, maximum=seen.maximum, mean_square=seen.mean_square)
    return found


def _refuse_silent_success(written: _Written, size: int, float_size: int, linears: Sequence[str]) -> None:
    if written.scheme in {"fp32", "fp16"}:
        if written.scheme == "fp16" and size >= float_size:
            raise EdgekitError(
                f"scheme fp16: the file has {size} bytes, the float one {float_size}: nothing was converted"
            )
        return
    # A model of tables and one Linear has that left float where the calibrate prompts say so: its tables are quantized.
    chosen = set(as_list(written.choices.get("float_layers")))
    if not written.quantized and not (chosen and chosen >= set(linears)):
        raise EdgekitError(
            f"scheme {written.scheme}: none of the model's {len(linears)} products with constant weights was quantized;"
            " use --scheme fp32"
        )
    if size >= float_size:
        raise EdgekitError(
            f"scheme {written.scheme}: the file has {size} bytes, the float one {float_size}; use --scheme fp32"
        )


def _scores(path: Path, on: Trial, entries: Mapping[str, str], *, exact: bool) -> dict[str, float]:
    """How near the written file's answers are to the float graph's on the trial's prompts, in onnxruntime's integers."""
    from edgekit.formats.onnx.session import Session

    answers = Session(path, entries=entries).outputs(on.encoded)
    _check_written(path, answers, on.reference, exact=exact)
    perfect = float(on.score(on.reference, on.reference))
    return {"score": float(on.score(on.reference, answers)), "float": perfect, "prompts": float(len(on.encoded))}


def _check_written(path: Path, answers: NDArray[np.float32], reference: NDArray[np.float32], *, exact: bool) -> None:
    """Raise EdgekitError where the file on disk answers with other shapes than the float graph, or not with numbers, or as a
    float file otherwise than by rounding."""
    import numpy as np

    if answers.shape != reference.shape:
        raise EdgekitError(f"{path.name}: answers {list(answers.shape)}, the float model {list(reference.shape)}")
    if not np.isfinite(answers).all():
        rows = int((~np.isfinite(answers)).any(axis=1).sum())
        raise EdgekitError(
            f"{path.name}: NaN or infinite answers on {rows} of {len(answers)} calibrate prompts, where the float model's are"
            " finite: the scheme overflows; use --scheme fp32 or w8"
        )
    apart = float(np.abs(answers - reference).max(initial=0.0))
    if exact and apart > WRITTEN * max(float(np.abs(reference).max(initial=0.0)), 1.0):
        raise EdgekitError(
            f"{path.name}: as it was read back it answers {apart:.3g} away from the float model; check the disk, and export again"
        )
