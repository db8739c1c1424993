"""A decoder as one ONNX graph with a key/value cache: proven against torch, then quantized, for onnxruntime on a CPU.

The graph takes and gives what onnxruntime-genai and optimum call it: input_ids, attention_mask, past_key_values.<layer>.key and
.value; logits, present.<layer>.key and .value. One graph serves prefill (no past), decode (one new token) and anything between.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import ModelFile, OnnxCache, OnnxParts
from edgekit.errors import EdgekitError
from edgekit.formats.onnx import graph
from edgekit.formats.onnx.files import digest, read
from edgekit.formats.onnx.float_graph import TOLERANCE
from edgekit.formats.onnx.half import calibrated_inputs, decoder_to_half, halve_caches
from edgekit.formats.onnx.options import AUTO, DECODER_BITS, Options
from edgekit.outputs.tokens import TOKENS
from edgekit.runtimes.onnxruntime.generation import CONTEXT, SWITCH, Generator
from edgekit.runtimes.onnxruntime.library import load_errors

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

    from edgekit.calibration import Calibration
    from edgekit.formats.onnx.decoder_trace import Geometry
    from edgekit.formats.onnx.feedback import Fitted
    from edgekit.formats.onnx.trained import Trained
    from edgekit.formats.smallest import Passage
    from edgekit.formats.source import Source
    from edgekit.model import Model

log = logging.getLogger("edgekit")

NAME, FILE = "onnx", "model.onnx"
# Prompts, and tokens of each, that parity and the loss of quantization are measured on.
PARITY_PROMPTS, TRIAL_PROMPTS, LONGEST = 3, 16, 128


def write_decoder(source: Source, options: Options, out: Path) -> ModelFile:
    """Write a causal language model into the folder `out`.

    source.load gives the task's module, whose attribute `model` is transformers' causal language model; the calibrate prompts
    prove that the float graph computes what torch does, and measure what quantization costs. Raises EdgekitError for a scheme
    that decoders do not have, a family that cannot be exported, a graph that computes something else, and weights over 2 GB.
    """
    from edgekit.formats.onnx.decoder_grid import read_trained_decoder
    from edgekit.formats.onnx.decoder_trace import export_decoder, head_path
    from edgekit.formats.onnx.feedback import fit_decoder

    student, calibration = source.model, source.calibration()
    trained, note = read_trained_decoder(student, NAME, options)
    prompts = _prompts(source)
    module = source.load()
    model: PreTrainedModel = module.model
    graph.check_size(4 * sum(weight.numel() for weight in model.parameters()), str(student.folder))
    text = model.config.get_text_config()
    switch = _rope_switch(text, student)
    exported, geometry = export_decoder(model)
    context = int(text.max_position_embeddings)
    _note(exported, {CONTEXT: context} | ({} if switch is None else {SWITCH: switch}))
    # Beside what is made, where preflight asked for room.
    with tempfile.TemporaryDirectory(prefix=".float-", dir=out) as scratch:
        plain = Path(scratch) / FILE
        float_size = graph.save(exported, plain)
        _check_parity(model, plain, prompts)
        head = head_path(model)
        fitted = None if trained is not None else fit_decoder(module, source, options, head)
        making = _Making(
            exported=exported,
            head=head,
            options=options,
            calibration=calibration,
            prompts=prompts,
            scratch=Path(scratch),
            trained=trained,
            fitted=fitted,
            unseen=[source.ids[index][:LONGEST] for index in fitted.judged] if fitted else [],
            plain=plain,
        )
        del module, model
        made, decided, notes = _decided(making, source)
        _refuse_larger(made, float_size)
        for file in made.folder.iterdir():
            file.replace(out / file.name)
        score = _compare(plain, out / FILE, prompts, made.runtime_options, made.scheme)
    linears = [linear.key for linear in graph.Graph(exported).linears()]
    described = _describe(out / FILE, made, linears)
    assert described.onnx is not None
    cache = _cache(geometry, context, switch, wide=2 if options.half_cache else 4)
    return replace(
        described,
        choices={**made.choices, **decided},
        bytes_float=float_size,
        notes=(*([note] if note else []), *notes),
        onnx=replace(described.onnx, calibrate_score=score, generation=cache),
    )


@dataclass(frozen=True, kw_only=True)
class _Making:
    """What all files of a model are made of, and where; unseen: prompts that `fitted` has not seen; plain: the float file."""

    exported: onnx.ModelProto
    head: str
    options: Options
    calibration: Calibration
    prompts: Sequence[Sequence[int]]
    scratch: Path
    trained: Trained | None
    fitted: Fitted | None
    unseen: Sequence[Sequence[int]]
    plain: Path


@dataclass(frozen=True, kw_only=True)
class _Made:
    """The files of a scheme, alone in their folder; the keys of the Linears that are no longer float; whether they were rounded
    with feedback on calibrate prompts."""

    scheme: str
    folder: Path
    bytes: int
    keys: Sequence[str]
    runtime_options: Mapping[str, object]
    choices: Mapping[str, object]
    fitted: bool = False


def _make(making: _Making, scheme: str) -> _Made:
    """A scheme's files: those of w4 with feedback, where they are nearer to the float model on prompts that it has not seen."""
    from edgekit.formats.onnx.feedback import decide

    made = _make_one(making, scheme, making.trained)
    if scheme != "w4" or making.fitted is None:
        return made
    fed = _make_one(making, scheme, making.fitted.codes)
    # Of what ships it is asked later whether it is a mistake.
    both = [(each.folder / FILE, each.runtime_options) for each in (made, fed)]
    by_itself, with_feedback = _measure(making.plain, both, making.unseen)
    better, told = decide(by_itself.kl, with_feedback.kl, "kl")
    return replace(fed if better else made, fitted=better, choices={**made.choices, "feedback": told})


def _make_one(making: _Making, scheme: str, trained: Trained | None) -> _Made:
    keys: Sequence[str] = ()
    entries: dict[str, str] = {}
    choices: dict[str, object] = {}
    if scheme == "fp16":
        calibrated = calibrated_inputs(making.exported, making.calibration)
        model, float32 = decoder_to_half(making.exported, making.prompts, calibrated)
        choices = {"float32_nodes": float32} if float32 else {}
    else:
        model, keys, entries = _quantized(
            making.exported, making.head, scheme, making.options, making.calibration, trained
        )
        if scheme in {"w8", "w4"}:
            choices = {"bits": int(scheme[1:]), "block": making.options.block}
            if making.options.inputs == "float":
                choices["inputs"] = making.options.inputs
        if making.options.cache == "f16":
            model = halve_caches(model)
    folder = Path(tempfile.mkdtemp(prefix=f"{scheme}-", dir=making.scratch))
    size = graph.save(model, folder / FILE)
    options = {"disabled_optimizers": [], "config_entries": entries}
    return _Made(scheme=scheme, folder=folder, bytes=size, keys=keys, runtime_options=options, choices=choices)


def _decided(making: _Making, source: Source) -> tuple[_Made, dict[str, object], list[str]]:
    """The files that the options ask for; where that is "auto", of all the smallest that keep the limits, and why."""
    from edgekit.formats import smallest

    if making.options.scheme != "auto":
        return _make(making, making.options.scheme), {}, []
    limits = smallest.needed(source.limits)
    source.progress(0, len(AUTO[TOKENS.name]) + 2, "asks the float model")
    with closing(_open(making.plain, {})) as generator:
        asked = {False: _ask(generator, source, range(len(source.ids)))}
        smallest.check_asked(asked[False][0])
        # What was rounded on prompts is judged on others, where the model says anything to those.
        unseen = _ask(generator, source, making.fitted.judged if making.fitted else ())
        asked[True] = unseen if unseen[0] else asked[False]
    every = {scheme: _make(making, scheme) for scheme in AUTO[TOKENS.name]}

    def made(scheme: str) -> smallest.Candidate:
        found = every[scheme]
        with closing(_open(found.folder / FILE, found.runtime_options)) as generator:
            heard = smallest.hear(generator, *asked[found.fitted])
        return smallest.Candidate(bytes=found.bytes, bits=DECODER_BITS[scheme], heard=heard)

    chosen = smallest.choose(
        sorted(every, key=lambda scheme: every[scheme].bytes),
        made,
        limits,
        source.progress,
        "raise the limits of [accuracy], or take --scheme fp32",
    )
    return every[chosen.scheme], {"auto": dict(chosen.facts)}, [chosen.note]


def _ask(generator: Generator, source: Source, among: Sequence[int]) -> tuple[list[Passage], list[NDArray[np.float16]]]:
    """Some of these prompts as passages, and what the float model says of each."""
    import numpy as np

    from edgekit.formats import smallest

    some = smallest.passages([source.ids[index] for index in among], [source.starts[index] for index in among])
    rows = list(smallest.with_answers(generator, some, source.model.stops))
    return rows, [smallest.scored_logits(generator, row).astype(np.float16) for row in rows]


def _prompts(source: Source) -> list[list[int]]:
    prompts = [list(row[:LONGEST]) for row in source.ids if len(row) > 1]
    if not prompts:
        raise EdgekitError("export: no calibrate prompts; the float graph's parity with torch is proven on them")
    return prompts


def _refuse_larger(made: _Made, float_size: int) -> None:
    if made.scheme != "fp32" and made.bytes >= float_size:
        raise EdgekitError(
            f"scheme {made.scheme}: the file has {made.bytes} bytes, the float one {float_size}; use --scheme fp32"
        )


def _rope_switch(text: PretrainedConfig, student: Model) -> int | None:
    """The length in tokens up to which longrope uses its short factors; None for every other rotary embedding."""
    rope = getattr(text, "rope_parameters", None) or {}
    tables = [rope, *(table for table in rope.values() if isinstance(table, Mapping))]
    kinds = {str(table.get("rope_type")): table for table in tables}
    if "dynamic" in kinds:
        raise EdgekitError(
            f"{student.folder / 'config.json'}: rope_type dynamic: its frequencies change with the length, which no fixed"
            " graph does; use format = 'gguf'"
        )
    if "longrope" not in kinds:
        return None
    found = kinds["longrope"].get("original_max_position_embeddings")
    return int(text.original_max_position_embeddings if found is None else found)


def _note(model: onnx.ModelProto, facts: Mapping[str, int]) -> None:
    """Write what a runtime must know into the file's metadata."""
    for key, value in sorted(facts.items()):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, str(value)


def _check_parity(model: PreTrainedModel, file: Path, prompts: Sequence[Sequence[int]]) -> None:
    """Compare a graph with torch over a prefill in one piece, in pieces, and token by token.

    Raises EdgekitError where the logits differ by more than TOLERANCE of the largest.
    """
    import numpy as np
    import torch

    generator = _open(file, {})
    by_length = sorted(prompts, key=len)
    for row in [by_length[-1], by_length[len(by_length) // 2], by_length[0]][:PARITY_PROMPTS]:
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float().numpy()
        half = len(row) // 2
        for cuts in ([len(row)], [half, len(row) - half], [max(1, len(row) - 4), *[1] * min(4, len(row) - 1)]):
            given = _in_pieces(generator, row, cuts)
            difference = float(np.abs(given - expected).max() / max(1e-6, float(np.abs(expected).max())))
            if not difference <= TOLERANCE:
                raise EdgekitError(
                    f"{type(model).__name__}: the float graph differs from torch by {difference:.2g} of its largest logit"
                    f" (limit {TOLERANCE:.0e}) for {len(row)} tokens fed as {cuts}; use format = 'gguf'"
                )
    generator.close()


def _in_pieces(generator: Generator, ids: Sequence[int], cuts: Sequence[int]) -> NDArray[np.float32]:
    import numpy as np

    generator.clear()
    begins = np.cumsum([0, *cuts])
    return np.concatenate(
        [generator.logits(ids[begin : begin + cut]) for begin, cut in zip(begins, cuts, strict=False)]
    )


def _open(file: Path, options: Mapping[str, object]) -> Generator:
    try:
        return Generator(file, {"threads": 1} | dict(options))
    except load_errors() as failed:
        raise EdgekitError(f"the exported decoder: onnxruntime does not load it: {str(failed)[:300]}") from failed


def _quantized(
    exported: onnx.ModelProto,
    head: str,
    scheme: str,
    options: Options,
    calibration: Calibration,
    trained: Trained | None = None,
) -> tuple[onnx.ModelProto, list[str], dict[str, str]]:
    """A graph in a scheme, the keys of the Linears that are no longer float, and the session entries that it needs."""
    from edgekit.formats.onnx.blocks import read_floats
    from edgekit.formats.onnx.decoder_weights import quantize_decoder_blocks, quantize_decoder_int8

    if scheme == "fp32":
        return exported, [], {}
    rewritten = graph.Graph(graph.copy_model(exported))
    if scheme == "int8-dynamic":
        keys, entries = quantize_decoder_int8(rewritten, reduce_range=options.reduce_range, trained=trained)
        return rewritten.model, keys, entries
    importance = {key: seen.mean_square for key, seen in calibration.stats.items()}
    keys = quantize_decoder_blocks(
        rewritten, head, importance, bits=int(scheme[1:]), block=options.block, trained=trained
    )
    if options.inputs == "float":
        read_floats(rewritten.model)
    return rewritten.model, keys, {}


def _compare(
    plain: Path, file: Path, prompts: Sequence[Sequence[int]], options: Mapping[str, object], scheme: str
) -> dict[str, float]:
    """How near a written file's distributions of the next token are to the float graph's: mean KL in nat, share of equal top
    tokens. Raises EdgekitError where its logits are further away than the scheme's bits explain."""
    from edgekit.formats.written import bound

    (found,) = _measure(plain, [(file, options)], prompts)
    if not math.isfinite(found.kl):
        raise EdgekitError("export: the quantized decoder gives logits that are not numbers; use --scheme fp32")
    most = bound(DECODER_BITS[scheme])
    if not found.apart_by <= most:
        raise EdgekitError(
            f"{file}: onnxruntime's logits are {found.apart_by:.3g} of their own spread away from the float graph's, more than"
            f" {DECODER_BITS[scheme]:.3g} bits a weight explain ({most:g}): this is a mistake of the conversion for this model;"
            " use --scheme fp32, or --format gguf"
        )
    logits = round(found.apart_by, 6)
    return {"score": found.top1, "float": 1.0, "kl": found.kl, "prompts": float(found.prompts), "logits": logits}


@dataclass(frozen=True, kw_only=True)
class _Distance:
    """How far a file is from the float one: mean KL in nats, share of equal likeliest tokens, and see `written.distance`."""

    kl: float
    top1: float
    apart_by: float
    prompts: int


def _measure(
    plain: Path, files: Sequence[tuple[Path, Mapping[str, object]]], prompts: Sequence[Sequence[int]]
) -> list[_Distance]:
    """How far files, each with its runtime options, are from the float one, which is asked once for all."""
    import numpy as np

    from edgekit.formats.written import distance
    from edgekit.runtimes.scores import kl, top1

    some = prompts[:: max(1, -(-len(prompts) // TRIAL_PROMPTS))]
    told: list[list[tuple[NDArray[np.float64], NDArray[np.bool_], float]]] = [[] for _ in files]
    with ExitStack() as stack:
        exact, *others = (stack.enter_context(closing(_open(*one))) for one in ((plain, {}), *files))
        for row in some:
            exact.clear()
            wanted = exact.logits(row)
            for found, other in zip(told, others, strict=True):
                other.clear()
                given = other.logits(row)
                found.append((kl(wanted, given), top1(wanted) == top1(given), distance(wanted, given)))
    return [
        _Distance(
            kl=float(np.concatenate(losses).mean()),
            top1=float(np.concatenate(same).mean()),
            apart_by=float(np.sqrt(np.mean(np.square(far)))),
            prompts=len(some),
        )
        for losses, same, far in (zip(*found, strict=True) for found in told)
    ]


def _cache(geometry: Geometry, context: int, switch: int | None, *, wide: int) -> OnnxCache:
    """What the cache is; wide: bytes of a number in it."""
    return OnnxCache(
        context=context,
        layers=geometry.layers,
        kv_heads=geometry.kv_heads,
        head_dim=geometry.head_dim,
        windows=tuple(geometry.windows),
        kv_bytes_per_token=2 * wide * geometry.layers * geometry.kv_heads * geometry.head_dim,
        rope_switch=switch,
    )


def _describe(path: Path, made: _Made, linears: Sequence[str]) -> ModelFile:
    """What the file needs to run; as `describe_file` gives it for graphs of one row per text."""
    model = read(path)
    names = [name for name in (path.name, f"{path.name}.data") if (path.parent / name).is_file()]
    size = sum((path.parent / name).stat().st_size for name in names)
    return ModelFile(
        format=NAME,
        scheme=made.scheme,
        name=path.name,
        files=tuple(names),
        bytes=size,
        sha256=digest(path.parent, names),
        minimum_runtime=graph.minimum_runtime(model),
        runtime_options=made.runtime_options,
        quantized={"matmul": len(made.keys), "float": [key for key in linears if key not in set(made.keys)]},
        choices={},
        bits=DECODER_BITS[made.scheme],
        # A token reads every weight but the embedding's: of a table that is the head too, all.
        bytes_per_token=size,
        onnx=OnnxParts(opset=graph.opset(model), ir_version=model.ir_version, operators=tuple(graph.operators(model))),
    )
