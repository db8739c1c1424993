"""Small tokenizers of every kind, trained on the repository's own texts, in folders that `Model` opens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgekit.formats.gguf.file import GgufWriter
from edgekit.formats.gguf.probe_texts import PROBE_TEXTS
from edgekit.formats.gguf.tokenizer import general_name, vocabulary
from edgekit.model import Model
from tests.conftest import ROOT

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@lru_cache
def texts() -> list[str]:
    """English, code and our probes, so that merges run across all that a pre-tokenizer may separate."""
    read = [(ROOT / name).read_text(encoding="utf-8") for name in ("LICENSE", "tests/fixtures/tokenizer_corpus.txt")]
    return read + [text for probes in PROBE_TEXTS.values() for text in probes] * 3


def step(name: str) -> Any:
    """A step of PRETOKENIZERS as the tokenizers library has it."""
    if name in {"gpt2", "bytes"}:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name == "gpt2")
    if name == "digits one by one":
        return pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Split(Regex(name), "isolated")


def byte_level(steps: Sequence[str], *, normalizer: Any = None, vocabulary_size: int = 900) -> Tokenizer:
    """Byte-level BPE with these steps before it: <s> 0, </s> 1, <|im_end|> 2, and <tool>, which is not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([step(name) for name in steps])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<s>", "</s>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def sentencepiece(spaces: str, *, closed: bool = True) -> Tokenizer:
    """BPE over characters with byte_fallback: <unk> 0, <s> 1, </s> 2, then the bytes.

    spaces: Metaspace's prepend_scheme, or "prepend" (Llama 2's normalizer) or "gemma". closed: with every pair of pieces that
    makes a third among the merges, as SentencePiece's converter writes them; otherwise those that were learned.
    """
    from transformers.convert_slow_tokenizer import generate_merges

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never" if spaces == "gemma" else "always")
    special = ["<unk>", "<s>", "</s>", *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=special, limit_alphabet=80, show_progress=False)
    tokenizer.train_from_iterator((line for text in texts() for line in text.split("\n")), trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    content["pre_tokenizer"] = None
    if closed:
        ranks: dict[str, int] = {}
        for rank, pair in enumerate(content["model"]["merges"]):
            ranks.setdefault("".join(pair), rank)
        pieces = content["model"]["vocab"]
        scores = {piece: -float(ranks.get(piece, 1 << 20)) for piece in pieces if piece not in special}
        content["model"]["merges"] = [list(pair) for pair in generate_merges(pieces, scores, skip_tokens=set(special))]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    replace = normalizers.Replace(" ", "▁")
    if spaces == "gemma":
        tokenizer.normalizer, tokenizer.pre_tokenizer = replace, pre_tokenizers.Split(" ", "merged_with_previous")
    elif spaces == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=spaces, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def unigram(spaces: str) -> Tokenizer:
    """XLM-RoBERTa's layout: <s> 0, <pad> 1, </s> 2, <unk> 3, and <mask>, which swallows the space before it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=spaces)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=1500, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    content = json.loads(tokenizer.to_str())
    # SentencePiece's scores are 32 bits wide.
    content["model"]["vocab"] = [[piece, float(np.float32(score))] for piece, score in content["model"]["vocab"]]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.decoder = decoders.Metaspace()
    around = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=around)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, *, rows: int | None = None, **config: Any) -> Model:
    """A folder with this tokenizer, an embedding of as many rows, and `config` beside the least that config.json holds."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    rows = rows or tokenizer.get_vocab_size()
    save_file({"model.embed_tokens.weight": np.zeros((rows, 2), np.float32)}, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "eos_token_id": tokenizer.token_to_id("</s>")} | config)
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENS))
    return Model(folder=folder)


def write(model: Model, out: Path, *, name: str = "test", **changes: Any) -> Path:
    """The model's vocabulary as a GGUF file; `changes` are written instead of tokenizer.ggml's keys (None: left out)."""
    keys: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": general_name(model, name),
        **vocabulary(model),
    }
    keys |= {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with GgufWriter(out, {key: value for key, value in keys.items() if value is not None}, []) as writer:
        writer.finish()
    return out
