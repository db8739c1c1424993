"""Llamas of random weights in any shape, with a tokenizer of made-up words, as transformers saves them."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Of every weight: f16 or bf16.
WIDTH = 2


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama's shape, and what its weights are.

    spread: rows of very different sizes, of which f16 rounds the smaller ones; otherwise f16 represents every weight. sparse: all
    are zero, which takes no disk.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    dtype: str = "F16"
    spread: bool = False
    sparse: bool = False

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes as transformers saves them, in the order of the layers."""
        wide, cached = self.hidden, self.hidden // self.heads * self.kv_heads
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, wide)}
        for index in range(self.layers):
            layer = f"model.layers.{index}"
            for name, rows in (("q", wide), ("k", cached), ("v", cached), ("o", wide)):
                found[f"{layer}.self_attn.{name}_proj.weight"] = (rows, wide)
            found[f"{layer}.mlp.gate_proj.weight"] = found[f"{layer}.mlp.up_proj.weight"] = (self.intermediate, wide)
            found[f"{layer}.mlp.down_proj.weight"] = (wide, self.intermediate)
            found[f"{layer}.input_layernorm.weight"] = found[f"{layer}.post_attention_layernorm.weight"] = (wide,)
        return found | {"model.norm.weight": (wide,), "lm_head.weight": (self.vocabulary, wide)}

    @property
    def config(self) -> dict[str, Any]:
        """config.json as transformers 4 wrote it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": {"F16": "float16", "BF16": "bfloat16"}[self.dtype],
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """Two shards with an index, config.json, and both forms of a tokenizer."""
    (folder / "config.json").write_text(json.dumps(shape.config, indent=2))
    write_tokenizer(folder, shape.vocabulary)
    names = list(shape.tensors)
    shards = {"1": names[: len(names) // 2], "2": names[len(names) // 2 :]}
    index: dict[str, str] = {}
    for number, own in shards.items():
        file = f"model-0000{number}-of-00002.safetensors"
        write_shard(folder / file, shape, own, seed=int(number))
        index |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def write_shard(path: Path, shape: Shape, names: list[str], seed: int) -> None:
    """A safetensors file of these tensors: random, or all zero where nothing shall lie on the disk."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in names:
        count = WIDTH * math.prod(shape.tensors[name])
        header[name] = {
            "dtype": shape.dtype,
            "shape": shape.tensors[name],
            "data_offsets": [place, place + count],
        }
        place += count
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(head)) + head)
        if shape.sparse:
            stream.truncate(8 + len(head) + place)
            return
        for index, name in enumerate(names):
            for rows in weights(shape.tensors[name], shape, [seed, index]):
                stream.write(rows)


def weights(extents: tuple[int, ...], shape: Shape, seed: list[int]) -> Iterator[bytes]:
    """A tensor's bytes, some rows at a time."""
    import numpy as np

    rng = np.random.default_rng(seed)
    if len(extents) == 1:
        yield stored(1 + 0.1 * rng.standard_normal(extents, dtype=np.float32), shape.dtype)
        return
    for first in range(0, extents[0], 512):
        values = rng.standard_normal((min(512, extents[0] - first), extents[1]), dtype=np.float32)
        if shape.spread:
            values *= 10 ** rng.uniform(-5.5, -1.5, (len(values), 1)).astype(np.float32)
        else:
            values = (0.02 * values).astype(np.float16).astype(np.float32)
        yield stored(values, shape.dtype)


def stored(values: NDArray[np.float32], dtype: str) -> bytes:
    """Their bytes, rounded to f16, or cut to bf16: what f16 holds remains what it holds."""
    import numpy as np

    return values.astype(np.float16).tobytes() if dtype == "F16" else (values.view("<u4") >> 16).astype("<u2").tobytes()


def write_tokenizer(folder: Path, count: int) -> None:
    """A SentencePiece BPE of made-up words, as its library saves it and as transformers does."""
    special, given = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    words = make_words(letters, count - len(special) - len(given) - len(letters))
    normal, control, unknown, byte = 1, 3, 2, 6
    pieces = [(special[0], 0.0, unknown), *((text, 0.0, control) for text in special[1:])]
    pieces += [(text, 0.0, byte) for text in given]
    pieces += [(text, -float(rank), normal) for rank, text in enumerate(words + letters)]
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(pieces))
    known = {*words, *letters}
    splits = [(word[:cut], word[cut:]) for word in words for cut in range(1, len(word))]
    merges = [list(pair) for pair in splits if known.issuperset(pair)]
    steps = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    begin, first, second = ({"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, "B")
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": place, "content": text, **flags} for place, text in enumerate(special)],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, first],
            "pair": [begin, first, begin, {"Sequence": {"id": second, "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "ByteFallback"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {text: place for place, (text, _, _) in enumerate(pieces)},
            "merges": merges,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **names}))


def make_words(letters: list[str], count: int) -> list[str]:
    """Words that are each made of two shorter ones; only a first letter is a space."""
    rng = random.Random(0)
    known, words = set(letters), list(letters)
    while len(words) < len(letters) + count:
        left, right = rng.choice(words), rng.choice(words)
        if letters[0] not in right and len(left + right) <= 9 and left + right not in known:
            known.add(left + right)
            words.append(left + right)
    return words[len(letters) :]


def sentencepiece_model(pieces: list[tuple[str, float, int]]) -> bytes:
    """A protocol buffer as https://github.com/google/sentencepiece, src/sentencepiece_model.proto, describes it."""

    def varint(number: int) -> bytes:
        low, rest = number & 0x7F, number >> 7
        return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])

    def field(number: int, value: bytes | int | float) -> bytes:
        if isinstance(value, bytes):
            return varint(number << 3 | 2) + varint(len(value)) + value
        if isinstance(value, float):
            return varint(number << 3 | 5) + struct.pack("<f", value)
        return varint(number << 3) + varint(value)

    listed = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + field(3, kind)) for text, score, kind in pieces
    )
    # model_type (BPE), vocab_size, byte_fallback; name, add_dummy_prefix, remove_extra_whitespaces
    trainer = field(3, 2) + field(4, len(pieces)) + field(35, 1)
    return listed + field(2, trainer) + field(3, field(1, b"identity") + field(3, 1) + field(4, 0))
