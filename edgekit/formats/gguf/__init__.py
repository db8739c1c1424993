"""The GGUF format: a student as one model.gguf for llama.cpp, float or quantized, with its tokenizer and chat template."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.apart import apart
from edgekit.artifact import GgufParts, ModelFile, Parity, Running
from edgekit.errors import EdgekitError
from edgekit.formats.gguf.options import (
    AUTO,
    BY_BITS,
    FLOATS,
    SCHEME_FOR,
    SCHEMES,
    Options,
)
from edgekit.formats.gguf.running import check_running
from edgekit.model import Model
from edgekit.model_card import read_card
from edgekit.outputs import OUTPUTS
from edgekit.typed_json import read_table, to_table

if TYPE_CHECKING:
    from edgekit.cost import Cost
    from edgekit.formats.gguf.convert import Converted
    from edgekit.formats.gguf.file import StoredTensor, Value
    from edgekit.formats.gguf.imatrix import Imatrix
    from edgekit.formats.gguf.schemes import Chosen as Types
    from edgekit.formats.gguf.tensors import Tensor
    from edgekit.formats.smallest import Chosen
    from edgekit.formats.source import Reading, Source
    from edgekit.grid import Grid, Packed

# What the table of formats asks for.
__all__ = [
    "AUTO",
    "BY_BITS",
    "CARRIES_TOKENIZER",
    "FILE",
    "FLOATS",
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
    "domains",
    "file_digest",
    "grid",
    "mixes",
    "write",
]

NAME = "gguf"
RUNTIMES: tuple[str, ...] = ("llama-cpp",)
SUFFIX = ".gguf"
CARRIES_TOKENIZER = True
LIBRARIES: tuple[str, ...] = ()
EMBEDDING = "token_embd.weight"
FILE, IMATRIX = "model.gguf", "imatrix.gguf"
# What a token takes in the metadata of a tokenizer that is not trained yet: its text, its type and a merge, with their lengths.
TOKEN_BYTES = 36
# llama.cpp's releases have no numbers that a loader could compare; this is the binding that the tests ran with.
MINIMUM_RUNTIME = "0.3.36"


def domains(options: Options) -> tuple[str, ...]:  # noqa: ARG001 - the format's interface
    """None: its files hold no graph."""
    return ()


def mixes(options: Options) -> bool:
    """Whether bits are chosen by tensor: by gradients, and by what is fast on the target's processor."""
    return options.scheme == "mixed"


def grid(model: Model, options: Options, output: str) -> Grid:  # noqa: ARG001 - one signature for all
    """What a scheme makes of a checkpoint's weights, from its headers alone.

    The types are those that llama.cpp gives without an importance matrix: that would be of the model before it is trained.
    Raises EdgekitError for a scheme that rounds nothing or chooses by itself, and for what `plan` refuses of the checkpoint.
    """
    from edgekit.formats.gguf.metadata import describe_model
    from edgekit.formats.gguf.rounding import check_scheme, make_grid
    from edgekit.formats.gguf.tensors import plan

    check_scheme(options.scheme)
    tensors = plan(model)
    types = scheme_types(describe_model(model, tensors=tensors, name="model"), tensors, options.scheme).types
    return make_grid(NAME, options.scheme, tensors, types)


def write(source: Source, options: Options, out: Path) -> ModelFile:
    """Write a student into the folder `out` as model.gguf, tokenizer and chat template included.

    Beside it lies the importance matrix, which no loader needs. Raises EdgekitError for
    a family that GGUF has no name for, a tokenizer that llama.cpp does not read as the original does, weights that are missing,
    misshapen or not finite, a calibration of another model, and a file that llama.cpp does not run.
    """
    from edgekit.runtimes.llamacpp import LlamaError

    try:
        return _write(source, options, out)
    except LlamaError as failed:
        raise EdgekitError(f"export: {failed}") from failed


def _write(source: Source, options: Options, out: Path) -> ModelFile:
    from edgekit.formats.gguf.imatrix import write_imatrix
    from edgekit.formats.gguf.metadata import describe_model, note_context
    from edgekit.formats.gguf.tensors import plan
    from edgekit.formats.gguf.tokenizer import general_name, vocabulary
    from edgekit.grid import read_packed

    model, matrix = source.model, _matrix(source, options)
    tensors = plan(model)
    described = describe_model(model, tensors=tensors, name=general_name(model, source.name))
    making = _Making(
        source=source,
        tensors=tensors,
        described=described,
        keys=vocabulary(model),
        matrix=matrix,
        trained=read_packed(model.folder),
    )
    notes: list[str] = []
    decided: dict[str, object] = {}
    if options.scheme == "auto":
        chosen = _choose(making, options, out)
        options, decided = replace(options, scheme=chosen.scheme), {"auto": dict(chosen.facts)}  # type: ignore[arg-type]
        notes.append(chosen.note)
    if making.trained is not None and making.codes(options) is None:
        notes.append(making.trained.note_other(NAME, options.scheme))
    if matrix is not None and making.codes(options) is None:
        write_imatrix(out / IMATRIX, matrix)
    made = _make(making, options, out / FILE)
    conversations = source.conversations if OUTPUTS[source.output].generates else None
    parity = check_reading(model, out / FILE, source.texts, conversations)
    file = describe_file(out / FILE, made.converted.sha256)
    return replace(
        file,
        scheme=options.scheme,
        quantized=made.converted.types,
        parity=parity,
        notes=(
            *notes,
            *made.fallbacks,
            *parity.limits,
            *filter(None, [note_context(model), read_card(model.folder).note]),
        ),
        bytes_float=sum(info.end - info.begin for info in model.tensors.values()),
        choices={**decided, **made.choices},
        running=_ran(source, file, out) if OUTPUTS[source.output].generates else None,
    )


def _ran(source: Source, file: ModelFile, out: Path) -> Running:
    """How far llama.cpp's logits are from the float model's."""
    assert file.bits is not None
    return check_running(source.load, out / FILE, source.ids, file.bits)


@dataclass(frozen=True, kw_only=True)
class _Making:
    """What all files of a model are made of: its tensors, its own keys and the tokenizer's, and what weighs errors."""

    source: Source
    tensors: Sequence[Tensor]
    described: Mapping[str, Value]
    keys: Mapping[str, Value]
    matrix: Imatrix | None
    trained: Packed | None = None
    """The codes and scales that the student was trained with, for whatever format and scheme."""

    def codes(self, options: Options) -> Packed | None:
        """What the student was trained with, where that was for such a file: then it is written, and nothing is left to weigh."""
        return self.trained if self.trained is not None and self.trained.serves(NAME, options.scheme) else None


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A file that was written: how a mixture came about, and sentences on tensors that do not fit the scheme's types."""

    converted: Converted
    choices: Mapping[str, object] = field(default_factory=dict)
    fallbacks: Sequence[str] = ()


def _make(making: _Making, options: Options, file: Path) -> _Made:
    """Write a model in a scheme."""
    from edgekit.formats.gguf.convert import Quantization, convert
    from edgekit.formats.gguf.imatrix import check_imatrix
    from edgekit.formats.gguf.metadata import ImatrixOrigin, describe_origin, describe_quantization
    from edgekit.formats.gguf.mixed.choose import mix
    from edgekit.formats.gguf.tensors import shapes
    from edgekit.runtimes.machine import available_cores

    source, tensors = making.source, making.tensors
    trained = making.codes(options)
    matrix = making.matrix if trained is None else None
    origin = None
    if matrix is not None:
        origin = ImatrixOrigin(
            file=IMATRIX, dataset=matrix.datasets[0], entries=len(matrix.entries), chunks=matrix.chunks
        )
    scheme = options.like if options.scheme == "mixed" else options.scheme
    metadata: dict[str, Value] = {
        **making.described,
        **describe_quantization(scheme, imatrix=origin),
        **describe_origin(source.fingerprints, scheme=options.scheme),
        **({"general.license": source.license} if source.license else {}),
        **making.keys,
    }
    importance = matrix.importance() if matrix is not None else {}
    chosen = scheme_types(making.described, tensors, scheme, importance)
    if matrix is not None:
        check_imatrix(matrix, shapes(tensors), chosen, "calibration")
    if options.scheme == "mixed":
        converted, choices = mix(source, tensors, chosen.types, options, matrix, metadata, file)
        return _Made(converted=converted, choices=to_table(choices))
    through = None if options.through == "none" or trained is not None else options.through
    quantization = Quantization(types=chosen.types, through=through, importance=importance, trained=trained)
    converted = convert(source.model, file, quantization, metadata, threads=available_cores())
    return _Made(converted=converted, fallbacks=chosen.fallbacks)


def _choose(making: _Making, options: Options, out: Path) -> Chosen:
    """The smallest scheme that keeps the limits, judged by llama.cpp on files that are made beside the one to come.

    Raises EdgekitError where there is nothing to judge by.
    """
    from edgekit.formats import smallest
    from edgekit.formats.gguf.file import read_gguf
    from edgekit.formats.gguf.judge import Judge

    source = making.source
    candidates = [replace(options, scheme=name) for name in AUTO[source.output]]  # type: ignore[arg-type]
    sizes = {cost.scheme: cost.memory.value for cost in costs(source.model, source.output, candidates)}
    passages = smallest.passages(source.ids, source.starts)
    with Judge(out) as judge:
        source.progress(0, len(sizes) + 2, "asks the float model")
        _make(replace(making, matrix=None), replace(options, scheme="f32", through="none"), judge.tried)
        judge.listen(judge.tried, passages, source.model.stops)
        smallest.check_asked(judge.passages)

        def make(name: str) -> smallest.Candidate:
            made = _make(making, replace(options, scheme=name), judge.tried)  # type: ignore[arg-type]
            bits = _bits(read_gguf(judge.tried).tensors.values())
            return smallest.Candidate(bytes=made.converted.bytes, bits=bits, heard=judge.hear(judge.tried))

        return smallest.choose(
            # Of equal sizes the one of fewer bits comes first.
            sorted(sizes, key=lambda name: (sizes[name], BY_BITS.index(name))),
            make,
            source.limits,
            source.progress,
            "raise the limits of [accuracy], or take --scheme f16",
        )


def check_reading(
    model: Model, file: Path, texts: Sequence[str], conversations: Sequence[Mapping[str, object]] | None
) -> Parity:
    """Prove that the file's tokenizer, and with conversations its chat template, read as the checkpoint's.

    In a process of its own: llama.cpp ends the one that it runs in at files that it does not expect. Raises EdgekitError that
    shows the first difference, or says how llama.cpp ended.
    """
    answer = apart(
        "edgekit.formats.gguf:reading_here",
        what=f"{file}: llama.cpp, reading its vocabulary",
        remedy=f"it is no file that llama.cpp can open; convert {model.folder} again, or fetch it again",
        folder=str(model.folder),
        tokenizer_text=model.tokenizer_text,
        as_file=model.as_file,
        file=str(file),
        texts=list(texts),
        conversations=None if conversations is None else [dict(conversation) for conversation in conversations],
    )
    return read_table(Parity, answer, f"{file}: parity")


def reading_here(
    folder: str,
    tokenizer_text: str | None,
    as_file: bool,
    file: str,
    texts: Sequence[str],
    conversations: Sequence[Mapping[str, object]] | None,
) -> dict[str, object]:
    """The table of `parity.check_parity`, with what `chat_parity.check_chat_parity` found, in this process.

    folder, tokenizer_text, as_file: of the checkpoint's `Model`.
    """
    from edgekit.formats.gguf.chat_parity import check_chat_parity
    from edgekit.formats.gguf.parity import check_parity

    model = Model(folder=Path(folder), tokenizer_text=tokenizer_text, as_file=as_file)
    parity = check_parity(model, Path(file), texts)
    if conversations is not None:
        chat = check_chat_parity(model, Path(file), conversations)
        parity = replace(parity, chat=chat, limits=(*parity.limits, *chat.limits))
    return to_table(parity)


def describe_file(path: Path, sha256: str | None = None) -> ModelFile:
    """What any .gguf file needs to run, ours or not, with its sha256 where that is known; EdgekitError where it is damaged."""
    from edgekit.formats.gguf.file import read_gguf
    from edgekit.formats.gguf.memory import decode_traffic
    from edgekit.workspace import file_sha256

    file = read_gguf(path)
    parts = file.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise EdgekitError(
            f"{path}: one of {parts} parts of a model; merge them with llama.cpp's"
            f" `llama-gguf-split --merge {path.name} whole.gguf` and name that file"
        )
    parameters = sum(math.prod(tensor.shape) for tensor in file.tensors.values())
    weights = sum(tensor.bytes for tensor in file.tensors.values())
    kinds: dict[str, int] = {}
    for tensor in file.tensors.values():
        kinds[tensor.type] = kinds.get(tensor.type, 0) + 1
    traffic = decode_traffic(file)
    architecture = str(file.metadata.get("general.architecture", ""))
    longest = file.metadata.get(f"{architecture}.context_length")
    return ModelFile(
        format=NAME,
        scheme=str(file.metadata.get("edgekit.scheme", "unknown")),
        name=path.name,
        files=(path.name,),
        bytes=path.stat().st_size,
        sha256=sha256 or file_sha256(path),
        minimum_runtime=MINIMUM_RUNTIME,
        runtime_options={"longest": longest} if isinstance(longest, int) else {},
        quantized=dict(sorted(kinds.items())),
        choices={},
        bits=_bits(file.tensors.values()),
        bytes_per_token=traffic.bytes_per_token or 0,
        gguf=GgufParts(
            architecture=architecture,
            vocabulary=file.tensors[EMBEDDING].shape[0] if EMBEDDING in file.tensors else None,
            parameters=parameters,
            bits_per_weight=round(8 * weights / max(parameters, 1), 4),
            cache_bytes_per_token=traffic.cache_bytes_per_token_f16,
        ),
    )


def _bits(tensors: Iterable[StoredTensor]) -> float:
    """Bits of a weight in the type that most of a file's weights have."""
    from edgekit.formats.gguf.ggml import TYPES

    values: dict[str, int] = {}
    for tensor in tensors:
        values[tensor.type] = values.get(tensor.type, 0) + math.prod(tensor.shape)
    most = max(values, key=lambda kind: (values[kind], kind), default="f32")
    return 8 * TYPES[most].bytes / TYPES[most].block


def adopt(file: Path, out: Path, reading: Reading) -> ModelFile:
    """Link (or copy) a .gguf file that something else made and describe it; EdgekitError where it is damaged."""
    import shutil

    if OUTPUTS[reading.output].has_classes:
        raise EdgekitError(f"{file}: a .gguf file answers with tokens or embeddings, not with labels")
    described = describe_file(file)
    try:
        # A link to the file itself: caches hold links to it, which lead nowhere from another folder.
        os.link(file.resolve(), out / FILE)
    except OSError:
        shutil.copyfile(file, out / FILE)
    return replace(described, name=FILE, files=(FILE,))


def file_digest(file: Path) -> str:
    """sha256 of a .gguf file; EdgekitError where it is damaged."""
    from edgekit.formats.gguf.file import read_gguf
    from edgekit.workspace import file_sha256

    read_gguf(file)
    return file_sha256(file)


def costs(model: Model, output: str, options: Sequence[Options]) -> list[Cost]:  # noqa: ARG001 - one signature for all
    """What a file takes in each of several options, before anything is converted; the model is planned once for all.

    A mixture takes its budget, and auto is to be asked for each of AUTO. Raises EdgekitError for what `write` refuses of the
    checkpoint's headers.
    """
    from edgekit.formats.gguf.metadata import describe_model
    from edgekit.formats.gguf.tensors import plan
    from edgekit.formats.gguf.tokenizer import vocabulary

    tensors = plan(model)
    keys = describe_model(model, tensors=tensors)
    words = vocabulary(model) if (model.folder / "tokenizer.json").is_file() else None
    return [_cost(model, tensors, keys, words, each) for each in options]


def _cost(
    model: Model,
    tensors: Sequence[Tensor],
    keys: Mapping[str, Value],
    words: Mapping[str, Value] | None,
    options: Options,
) -> Cost:
    from edgekit.cost import Cost, Figure
    from edgekit.formats.gguf.ggml import row_bytes
    from edgekit.formats.gguf.memory import GATHERED, HEAD, cache_bytes

    scheme = options.like if options.scheme == "mixed" else options.scheme
    # Some types follow from whether there is an importance matrix at all, not from what it covers.
    weighed = options.imatrix and options.scheme not in FLOATS
    types = scheme_types(keys, tensors, scheme, [tensor.name for tensor in tensors] if weighed else ()).types
    sizes = {tensor.name: tensor.shape[0] * row_bytes(types[tensor.name], tensor.columns) for tensor in tensors}
    total = sum(sizes.values())
    gathered = {name for name in GATHERED if name in sizes and (name != EMBEDDING or HEAD in sizes)}
    share = (options.bytes or total) / total if options.scheme == "mixed" else 1.0
    held, cached = int(total * share), cache_bytes(keys)
    around = _metadata_bytes(model, tensors, types, scheme, keys, words)
    return Cost(
        scheme=options.scheme,
        file=Figure(value=held + around, source="the tensors, the file's keys and its tokenizer"),
        memory=Figure(value=held, source="the types that llama.cpp gives each tensor in the scheme"),
        read_per_token=Figure(
            value=int(share * (total - sum(sizes[name] for name in gathered))),
            source="all weights once, but rows that are looked up by a token",
        ),
        cache_per_token=None
        if cached is None
        else Figure(value=cached, source="the config's layers, heads and widths"),
    )


def _metadata_bytes(
    model: Model,
    tensors: Sequence[Tensor],
    types: Mapping[str, str],
    scheme: str,
    keys: Mapping[str, Value],
    words: Mapping[str, Value] | None,
) -> int:
    """What a file has besides weights: its keys, the tokenizer (words: None where it is not trained yet), the tensors' names."""
    from edgekit.formats.gguf.file import GgufWriter, TensorHeader
    from edgekit.formats.gguf.metadata import describe_origin, describe_quantization

    origin = dict.fromkeys(("student", "calibration"), "0" * 64)
    known = {**keys, "general.name": "model"} | describe_quantization(scheme) | describe_origin(origin, scheme=scheme)
    headers = [TensorHeader(name=tensor.name, type=types[tensor.name], shape=tensor.shape) for tensor in tensors]
    file = GgufWriter(model.folder / FILE, known | dict(words or {}), headers)
    yet = (
        0
        if words is not None
        else TOKEN_BYTES * next(tensor.shape[0] for tensor in tensors if tensor.name == EMBEDDING)
    )
    return file.size - sum(header.bytes for header in headers) + yet


def _matrix(source: Source, options: Options) -> Imatrix | None:
    """The importance matrix of the calibration; None where nothing is quantized, or none is asked for."""
    from edgekit.formats.gguf.imatrix import from_calibration
    from edgekit.formats.gguf.tensors import layer_names

    if not options.imatrix or options.scheme in FLOATS:
        return None
    calibration = source.calibration()
    names = layer_names(source.model, {key.rpartition("#")[0] for key in calibration.stats})
    return from_calibration(calibration, names, dataset=source.dataset)


def scheme_types(
    keys: Mapping[str, Value], tensors: Sequence[Tensor], scheme: str, covered: Collection[str] = ()
) -> Types:
    """The types that llama.cpp gives a model's tensors in a scheme.

    keys: what `describe_model` says of it; covered: the tensors that an importance matrix knows.
    """
    from edgekit.formats.gguf.schemes import ModelFacts, choose_types
    from edgekit.formats.gguf.tensors import shapes

    architecture = str(keys["general.architecture"])
    heads = int(str(keys[f"{architecture}.attention.head_count"]))
    facts = ModelFacts(
        architecture=architecture,
        layers=int(str(keys[f"{architecture}.block_count"])),
        heads=heads,
        kv_heads=int(str(keys.get(f"{architecture}.attention.head_count_kv", heads))),
    )
    return choose_types(shapes(tensors), scheme, facts=facts, imatrix=covered)
