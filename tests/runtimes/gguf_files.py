"""Small GGUF files, written with gguf-py from transformers' models: of ids alone, without a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

# llama.cpp's names within a block (gguf-py, constants.py).
LLAMA = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BERT = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def write_llama(model: Any, path: Path) -> Path:
    """A LlamaForCausalLM as float32."""
    config = model.config
    writer = _writer(path, "llama", config)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    width = config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(width)
    weights = {name: value.float().numpy() for name, value in model.state_dict().items()}
    tensors = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
        "output.weight": weights["lm_head.weight"],
    }
    for layer in range(config.num_hidden_layers):
        for theirs, ours in LLAMA.items():
            value = weights[f"model.layers.{layer}.{theirs}.weight"]
            if ours in {"attn_q", "attn_k"}:
                # Rotated pairs lie side by side in llama.cpp, half a head apart in transformers.
                value = value.reshape(-1, 2, width // 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
            tensors[f"blk.{layer}.{ours}.weight"] = value
    return _finish(writer, tensors, path)


def write_bert(model: Any, path: Path, pooling: gguf.PoolingType = gguf.PoolingType.MEAN) -> Path:
    """A BertModel as float32."""
    config = model.config
    writer = _writer(path, "bert", config)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_token_type_count(config.type_vocab_size)
    weights = {name: value.float().numpy() for name, value in model.state_dict().items()}
    tensors = {
        "token_embd.weight": weights["embeddings.word_embeddings.weight"],
        "position_embd.weight": weights["embeddings.position_embeddings.weight"],
        "token_types.weight": weights["embeddings.token_type_embeddings.weight"],
    }
    for kind in ("weight", "bias"):
        tensors[f"token_embd_norm.{kind}"] = weights[f"embeddings.LayerNorm.{kind}"]
        for layer in range(config.num_hidden_layers):
            for theirs, ours in BERT.items():
                tensors[f"blk.{layer}.{ours}.{kind}"] = weights[f"encoder.layer.{layer}.{theirs}.{kind}"]
    return _finish(writer, tensors, path)


def _writer(path: Path, name: str, config: Any) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(str(path), name)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    return writer


def _finish(writer: gguf.GGUFWriter, tensors: dict[str, Any], path: Path) -> Path:
    for name, value in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
