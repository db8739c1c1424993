"""Small GGUF files of Llama and BERT checkpoints, written with llama.cpp's own Python package: edgekit's converter has no part in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def write_llama(checkpoint: Path, out: Path, *, template: str | None = None) -> Path:
    """A checkpoint of the llama family (float32, rope unscaled) as a float32 GGUF file, with a chat template if one is given."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_name(checkpoint.name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, checkpoint, config)
    if template is not None:
        writer.add_chat_template(template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        if config["tie_word_embeddings"] and name == "lm_head.weight":
            continue
        count = {"q_proj": heads, "k_proj": groups}.get(name.split(".")[-2])
        values = tensor if count is None else _interleave(tensor, count)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def write_bert(checkpoint: Path, out: Path) -> Path:
    """A BERT encoder (float32, WordPiece) as a float32 GGUF file of an embedder that takes the mean."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((checkpoint / "config.json").read_text())
    vocabulary = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    writer = gguf.GGUFWriter(str(out), "bert")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(config["type_vocab_size"])
    special = [piece.startswith("[") for piece in pieces]
    # Of a word's pieces the first is marked in GGUF, where WordPiece marks the others.
    marked = [
        piece if control else piece.removeprefix("##") if piece.startswith("##") else f"\u2581{piece}"
        for piece, control in zip(pieces, special, strict=True)
    ]
    writer.add_token_list(marked)
    writer.add_token_types([int(gguf.TokenType.CONTROL if control else gguf.TokenType.NORMAL) for control in special])
    # llama.cpp closes texts with bos and separator (the format's own spelling), which are BERT's 101 and 102 unless told.
    ids = {"bos": "[CLS]", "eos": "[SEP]", "padding": "[PAD]", "unknown": "[UNK]", "cls": "[CLS]", "seperator": "[SEP]"}
    for name, piece in ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", vocabulary[piece])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        if not name.startswith("pooler."):
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _interleave(tensor: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of halves, as transformers rotates them, to rows of pairs, as llama.cpp does."""
    return tensor.reshape(heads, 2, len(tensor) // heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)


def _add_tokenizer(writer: Any, checkpoint: Path, config: dict[str, Any]) -> None:
    import gguf

    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    added = {entry["id"]: entry["content"] for entry in tokenizer["added_tokens"]}
    pieces = {place: piece for piece, place in tokenizer["model"]["vocab"].items()} | added
    ordered = [pieces[place] for place in range(config["vocab_size"])]
    if tokenizer["model"].get("byte_fallback"):
        kinds = [
            gguf.TokenType.CONTROL if place in added else gguf.TokenType.BYTE if piece.startswith("<0x") else 1
            for place, piece in enumerate(ordered)
        ]
        kinds[0] = gguf.TokenType.UNKNOWN
        writer.add_tokenizer_model("llama")
        # Pieces are numbered in the order of their merges, so the lower number is the likelier piece.
        writer.add_token_scores([-float(place) for place in range(len(ordered))])
    else:
        kinds = [gguf.TokenType.CONTROL if place in added else 1 for place in range(len(ordered))]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        merges = tokenizer["model"]["merges"]
        writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_token_list(ordered)
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(True)
