"""The table of what checkpoints' files can say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from edgekit.checkpoint_keys import CHECKPOINT_FILES, CHECKPOINT_KEYS, look_up, look_up_files, unknown_keys
from edgekit.record.original import _CHANGES
from edgekit.weights import ADAPTER_CONFIG

WORDS = {"applied", "harmless", "refused", "told"}


@pytest.mark.parametrize("file", CHECKPOINT_KEYS)
def test_each_use_begins_with_its_word(file: str) -> None:
    for key, use in CHECKPOINT_KEYS[file].items():
        assert use.partition(":")[0] in WORDS, (key, use)
        assert not use.endswith((".", ":")), (key, use)


def test_each_file_s_use_begins_with_its_word() -> None:
    for name, use in CHECKPOINT_FILES.items():
        assert use.partition(":")[0] in WORDS, (name, use)


def test_what_transformers_writes_of_generation_is_known() -> None:
    """Every key of its GenerationConfig; those that change greedy answers are told where they are read, too."""
    from transformers import GenerationConfig

    table = CHECKPOINT_KEYS["generation_config.json"]
    assert set(GenerationConfig().to_dict()) <= set(table)
    told = {key for key, use in table.items() if use.startswith("told")}
    assert told == set(_CHANGES)


def test_what_peft_writes_is_known() -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert known == set(CHECKPOINT_KEYS[ADAPTER_CONFIG])


def test_a_folder_s_files(tmp_path: Path) -> None:
    for name in (
        "config.json",
        "chat_template.jinja",
        "modeling_x.py",
        "model-00001-of-00002.safetensors",
        "notes.doc",
    ):
        (tmp_path / name).write_text("{}")
    (tmp_path / "additional_chat_templates").mkdir()
    found = look_up_files(tmp_path)
    assert found["config.json"] == "applied: by its keys"
    assert found["modeling_x.py"].startswith("harmless: code")
    assert found["model-00001-of-00002.safetensors"].startswith("applied: the weights")
    assert found["additional_chat_templates/"].startswith("applied: its tool_use")
    assert found["notes.doc"] == "unknown"


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
