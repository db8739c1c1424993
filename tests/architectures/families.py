"""One small checkpoint with random weights of every encoder family that edgekit knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conftest import make_checkpoint

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MORE: dict[str, dict[str, Any]] = {
    "bert": {},
    "deberta-v2": {
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    },
    "distilbert": {},
    "electra": {"embedding_size": 16},
    "modernbert": {
        "local_attention": 8,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 90.0},
        },
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "classifier_pooling": "mean",
    },
    "mpnet": {},
    "roberta": {"type_vocab_size": 1, "max_position_embeddings": 66},
    "xlm-roberta": {"type_vocab_size": 1, "max_position_embeddings": 66},
}
OLD_NAMES = {
    "distilbert": {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    }
}


def make_family(family: str, folder: Path, labels: list[str] | None = None, layers: int = 4) -> Path:
    """A checkpoint of four or so many layers and 32 channels: a classifier of these labels, or a bare encoder."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    sizes = {
        OLD_NAMES.get(family, {}).get(key, key): value
        for key, value in (SIZES | MORE[family] | {"num_hidden_layers": layers}).items()
    }
    config = AutoConfig.for_model(family, **sizes)
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: place for place, label in enumerate(labels)}
    torch.manual_seed(0)
    auto = AutoModel if labels is None else AutoModelForSequenceClassification
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Weights as large as trained ones: with transformers' 0.02 every input gives nearly the same logits.
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.15)
    model.save_pretrained(folder)
    tokenizer = make_checkpoint(folder.with_name(f"{folder.name}-tokenizer")) / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    # Not the family's own tokenizer: transformers reads the file as it is.
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    return folder


def save_as_v4(folder: Path) -> None:
    """Rewrite config.json with the keys that transformers 4 wrote where version 5 writes others."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["transformers_version"] = "4.57.6"
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "modernbert":
        ropes = config.pop("rope_parameters")
        config.pop("layer_types")
        config["global_attn_every_n_layers"] = 3
        config["global_rope_theta"] = ropes["full_attention"]["rope_theta"]
        config["local_rope_theta"] = ropes["sliding_attention"]["rope_theta"]
    path.write_text(json.dumps(config), encoding="utf-8")
