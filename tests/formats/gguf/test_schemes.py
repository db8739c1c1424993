"""The type and the bytes of every tensor are those of llama.cpp's own quantizer, for every scheme."""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.errors import EdgekitError
from edgekit.formats.gguf.schemes import (
    FILE_TYPES,
    SCHEMES,
    ModelFacts,
    Shape,
    choose_types,
    fit,
    main_file_type,
    quantizable,
)

gguf = pytest.importorskip("gguf", reason="the [gguf] extra is not installed")
llama_cpp = pytest.importorskip("llama_cpp", reason="the [gguf] extra is not installed")

from edgekit.formats.gguf.ggml import TYPES, quantize, row_bytes  # noqa: E402

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Net:
    """The tensors of a small model of a family; only what the quantizer looks at is there."""

    architecture: str
    width: int
    hidden: int
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    vocabulary: int = 12
    tied: bool = False

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(architecture=self.architecture, layers=self.layers, heads=self.heads, kv_heads=self.kv_heads)

    def shapes(self) -> list[Shape]:
        width, hidden = self.width, self.hidden
        shared = 4  # rows: few, because the quantizer does not look at how many
        block = {
            "attn_q.weight": (8, width),
            "attn_k.weight": (shared, width),
            "attn_v.weight": (shared, width),
            "attn_output.weight": (8, width),
            "attn_norm.weight": (1, width),
            "ffn_up.weight": (8, width),
            "ffn_down.weight": (8, hidden),
        }
        top = {"token_embd.weight": (self.vocabulary, width), "output_norm.weight": (1, width)}
        if self.architecture == "bert":
            block |= {"attn_output_norm.weight": (1, width), "ffn_down.bias": (1, 8), "attn_q.bias": (1, 8)}
            top |= {"position_embd.weight": (6, width), "token_types.weight": (2, width), "cls.weight": (4, width)}
        elif self.architecture == "phi3":
            block |= {"attn_qkv.weight": (8 + 2 * shared, width)}
            for name in ("attn_q.weight", "attn_k.weight", "attn_v.weight"):
                del block[name]
        else:
            block |= {"ffn_gate.weight": (8, width), "attn_q_norm.weight": (1, width), "attn_q.bias": (1, 8)}
        if not self.tied and self.architecture != "bert":
            top["output.weight"] = (self.vocabulary, width)
        named = top | {f"blk.{at}.{name}": shape for at in range(self.layers) for name, shape in block.items()}
        return [Shape(name=name, rows=rows, columns=columns) for name, (rows, columns) in sorted(named.items())]

    def weights(self) -> dict[str, Array]:
        """Float16 numbers, so that both widths of file hold the same."""
        return {
            one.name: np.random.default_rng(zlib.crc32(one.name.encode()))
            .normal(size=(one.rows, one.columns))
            .astype(np.float16)
            .astype(np.float32)
            for one in self.shapes()
        }

    def importance(self) -> dict[str, Array]:
        return {
            one.name: np.random.default_rng(zlib.crc32(one.name.encode()) + 1)
            .gamma(0.5, size=one.columns)
            .astype(np.float32)
            for one in self.shapes()
            if quantizable(one) and one.name.startswith(("blk", "output", "token_embd" if self.tied else "output"))
        }


NETS = {
    "llama untied": Net(architecture="llama", width=256, hidden=512, layers=3),
    "llama 17 layers": Net(architecture="llama", width=256, hidden=256, layers=17, heads=2, kv_heads=2, vocabulary=4),
    "llama grouped": Net(architecture="llama", width=256, hidden=512, layers=9, heads=8, kv_heads=2),
    "gemma tied": Net(architecture="gemma2", width=256, hidden=768, tied=True),
    "qwen odd rows": Net(architecture="qwen2", width=320, hidden=96, layers=9),
    "qwen tied odd rows": Net(architecture="qwen2", width=320, hidden=96, tied=True),
    "phi fused": Net(architecture="phi3", width=512, hidden=288, layers=9, kv_heads=4),
    "bert": Net(architecture="bert", width=384, hidden=512, layers=9, kv_heads=4),
    "rows of no block": Net(architecture="llama", width=40, hidden=72),
    "rows of no block, tied": Net(architecture="gemma2", width=40, hidden=72, tied=True),
}


def write(path: Path, net: Net, width: str) -> None:
    """The model as a converter writes it: matrices in `width`, what is never quantized in f32."""
    writer = gguf.GGUFWriter(str(path), net.architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(net.width)
    writer.add_block_count(net.layers)
    writer.add_feed_forward_length(net.hidden)
    writer.add_head_count(net.heads)
    writer.add_head_count_kv(net.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(net.architecture != "bert")
    writer.add_sliding_window(32)
    writer.add_vocab_size(net.vocabulary)
    wanted = choose_types(net.shapes(), width, facts=net.facts).types
    for name, array in net.weights().items():
        rows = array.astype(np.float16) if wanted[name] == "f16" else array
        writer.add_tensor(name, rows[0] if len(rows) == 1 else rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_quantize(source: Path, out: Path, file_type: int, importance: Mapping[str, Array]) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 1
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    if importance:
        params.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)) == 0


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("net", NETS.values(), ids=NETS.keys())
def test_types_and_bytes_are_llama_cpps(net: Net, weighted: bool, tmp_path: Path) -> None:
    importance = net.importance() if weighted else {}
    weights = net.weights()
    width = "f16" if weighted else "f32"
    write(tmp_path / "source.gguf", net, width)
    for scheme, row in SCHEMES.items():
        llama_quantize(tmp_path / "source.gguf", tmp_path / "out.gguf", row.file_type, importance)
        chosen = choose_types(net.shapes(), scheme, facts=net.facts, imatrix=importance)
        theirs = gguf.GGUFReader(tmp_path / "out.gguf")
        assert theirs.fields["general.file_type"].parts[-1][0] == chosen.file_type == row.file_type
        assert {one.name: one.tensor_type.name.lower() for one in theirs.tensors} == chosen.types, scheme
        for one in theirs.tensors:
            ours = quantize(weights[one.name], chosen.types[one.name], importance.get(one.name))
            assert np.array_equal(one.data.view(np.uint8).ravel(), ours.ravel()), f"{scheme}: {one.name}"


class Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h, as far as its name."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("rest", ctypes.c_char * 64),
    )


class Description(ctypes.Structure):
    """struct llama_quant_model_desc of llama-ext.h."""

    _fields_ = (
        ("architecture", ctypes.c_char_p),
        *((name, ctypes.c_uint32) for name in ("embd", "ff", "layers", "heads", "kv_heads", "experts", "k", "v")),
    )


def llama_types(net: Net, shapes: Sequence[Shape], file_types: Sequence[int]) -> list[dict[str, int]]:
    """What llama.cpp's own type rules choose without a file, through the functions that its tests use."""
    library = llama_cpp.llama_cpp._lib
    describe = getattr(library, "_Z31llama_quant_model_from_metadataPK22llama_quant_model_desc", None)
    if describe is None:
        pytest.skip("this libllama does not export its type rules")
    start = library._Z16llama_quant_initPK11llama_modelPK27llama_model_quantize_params
    allows = library._Z38llama_quant_tensor_allows_quantizationPK19quantize_state_implPK11ggml_tensor
    compute = library._Z25llama_quant_compute_typesP19quantize_state_impl11llama_ftypePP11ggml_tensorP9ggml_typem
    free = library._Z16llama_quant_freeP19quantize_state_impl
    describe.restype = start.restype = ctypes.c_void_p
    allows.restype = ctypes.c_bool
    facts = net.facts
    model = describe(
        ctypes.byref(
            Description(
                facts.architecture.encode(), net.width, net.hidden, facts.layers, facts.heads, facts.kv_heads, 0, 64, 64
            )
        )
    )
    params = llama_cpp.llama_model_quantize_default_params()
    state = ctypes.c_void_p(start(ctypes.c_void_p(model), ctypes.byref(params)))
    tensors = [Tensor(name=one.name.encode(), ne=(ctypes.c_int64 * 4)(one.columns, one.rows, 1, 1)) for one in shapes]
    for one, tensor in zip(shapes, tensors, strict=True):
        assert allows(state, ctypes.byref(tensor)) == quantizable(one), one.name
    tensors = [tensor for one, tensor in zip(shapes, tensors, strict=True) if quantizable(one)]
    pointers = (ctypes.POINTER(Tensor) * len(tensors))(*map(ctypes.pointer, tensors))
    answers = []
    for file_type in file_types:
        found = (ctypes.c_int * len(tensors))()
        compute(state, file_type, pointers, found, ctypes.c_size_t(len(tensors)))
        answers.append({tensor.name.decode(): int(kind) for tensor, kind in zip(tensors, found, strict=True)})
    free(state)
    llama_cpp.llama_model_free(ctypes.c_void_p(model))
    return answers


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "phi3", "bert"])
def test_types_are_llama_cpps_at_every_depth(architecture: str) -> None:
    """Depths from 1 to 80 (where a Llama of 70 billion has a rule of its own), shared heads and row lengths."""
    for layers in (1, 2, 7, 8, 15, 16, 22, 24, 26, 32, 33, 40, 80):
        for kv_heads in (8, 4, 2):
            width = (2048, 896, 1000)[layers % 3]
            net = Net(
                architecture=architecture,
                width=width,
                hidden=(5632, 4864, 1004)[(layers + kv_heads) % 3],
                layers=layers,
                heads=8,
                kv_heads=kv_heads,
                tied=layers % 2 == 0,
            )
            # llama.cpp walks a file's tensors by layer and then by name; this entry takes them as they come.
            shapes = sorted(
                net.shapes(), key=lambda one: (int(one.name.split(".")[1]) if one.name[:3] == "blk" else -1, one.name)
            )
            theirs = llama_types(net, shapes, [row.file_type for row in SCHEMES.values()])
            for scheme, types in zip(SCHEMES, theirs, strict=True):
                ours = choose_types(shapes, scheme, facts=net.facts).types
                assert {name: TYPES[ours[name]].id for name in types} == types, (scheme, layers, kv_heads)
                assert all(ours[one.name] == "f32" for one in shapes if one.name not in types)


def test_fallbacks_are_told() -> None:
    net = NETS["qwen odd rows"]
    chosen = choose_types(net.shapes(), "q4_k_m", facts=net.facts)
    (told,) = chosen.fallbacks
    assert (
        "q4_k_m: rows of 96, 320 do not fit the types of 64 of 65 matrices: q4_k -> q5_0 (54), q6_k -> q8_0 (10)"
        in told
    )
    weights = {one.name: one.rows * one.columns for one in net.shapes() if chosen.types[one.name] != "f32"}
    stored = sum(8 * row_bytes(chosen.types[name], 320) / 320 * count for name, count in weights.items())
    assert f"; {stored / sum(weights.values()):.2f} bits a weight in all; no tensor is q4_k" in told
    assert choose_types(NETS["llama untied"].shapes(), "q4_k_m", facts=net.facts).fallbacks == ()
    assert fit("iq4_xs", 320) == "iq4_nl"
    assert fit("q4_0", 40) == "f16"


def test_uncovered_tensors_are_those_whose_type_weighs_errors() -> None:
    net = NETS["llama untied"]
    covered = [name for name in net.importance() if name != "blk.1.ffn_up.weight"]
    assert choose_types(net.shapes(), "q4_0", facts=net.facts, imatrix=covered).uncovered == ("blk.1.ffn_up.weight",)
    assert choose_types(net.shapes(), "q8_0", facts=net.facts, imatrix=()).uncovered == ()


def test_a_mixture_has_the_file_type_of_most_weights() -> None:
    shapes = [Shape(name="a.weight", rows=8, columns=256), Shape(name="b.weight", rows=9, columns=256)]
    assert main_file_type(shapes, {"a.weight": "q8_0", "b.weight": "iq4_nl"}) == FILE_TYPES["iq4_nl"] == 25


def test_unknown_schemes_and_experts_are_refused() -> None:
    net = NETS["llama untied"]
    with pytest.raises(EdgekitError, match=r"unknown value 'q4_k_l'.*q4_k_"):
        choose_types(net.shapes(), "q4_k_l", facts=net.facts)
    expert = Shape(name="blk.0.ffn_up_exps.weight", rows=64, columns=256)
    with pytest.raises(EdgekitError, match="mixtures of experts"):
        choose_types([*net.shapes(), expert], "q4_0", facts=net.facts)
