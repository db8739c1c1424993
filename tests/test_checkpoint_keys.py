"""The table of what checkpoints' files can say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.checkpoint_keys import CHECKPOINT_KEYS, look_up, unknown_keys

WORDS = {"applied", "harmless", "refused", "told"}


@pytest.mark.parametrize("file", CHECKPOINT_KEYS)
def test_each_use_begins_with_its_word(file: str) -> None:
    for key, use in CHECKPOINT_KEYS[file].items():
        assert use.partition(":")[0] in WORDS, (key, use)
        assert not use.endswith((".", ":")), (key, use)


def test_a_checkpoint_s_own_keys(tmp_path: Path) -> None:
    """Known keys with what becomes of them, others as unknown; of config.json transformers reads them all."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_act": "gelu"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"truncation_side": "left", "reads_backwards": True}))
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "x", "path": ""}, {"type": "y", "new": 1}]))
    found = look_up(tmp_path)
    assert found["config.json"]["hidden_act"].startswith("applied: by transformers")
    assert found["tokenizer_config.json"]["truncation_side"].startswith("applied")
    assert sorted(found["modules.json"]) == ["new", "path", "type"]
    assert unknown_keys(tmp_path) == ["tokenizer_config.json: reads_backwards", "modules.json: new"]


def test_what_sentence_transformers_writes_is_known() -> None:
    """The keys that its modules save (`config_keys`) are all in the table."""
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    modules = library.sentence_transformer.modules
    for kind, file in {
        "Pooling": "Pooling/config.json",
        "Dense": "Dense/config.json",
        "Normalize": "Normalize/config.json",
        "LayerNorm": "LayerNorm/config.json",
        "Dropout": "Dropout/config.json",
        "Transformer": "sentence_bert_config.json",
    }.items():
        assert set(getattr(modules, kind).config_keys) <= set(CHECKPOINT_KEYS[file]), kind
