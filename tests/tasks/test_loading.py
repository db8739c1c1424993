"""A model is the whole checkpoint or none: what transformers would leave out, make up or refuse is told by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from edgekit.errors import EdgekitError
from edgekit.model import Model, load_model
from edgekit.tasks.loading import check_checkpoint, load_checkpoint
from tests.architectures.decoders import make_decoder
from tests.conftest import LABELS, make_checkpoint

CLASSIFY, EMBED, GENERATE = "text-classification", "feature-extraction", "text-generation"
HEAD = {"num_labels": 5}


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add(folder: Path, **shapes: tuple[int, ...]) -> None:
    """Further tensors, of ones; `__` stands for a dot."""
    path = folder / "model.safetensors"
    more = {name.replace("__", "."): np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(load_file(path) | more, path, metadata={"format": "pt"})


def remove(folder: Path, part: str) -> None:
    path = folder / "model.safetensors"
    save_file(
        {name: array for name, array in load_file(path).items() if part not in name}, path, metadata={"format": "pt"}
    )


def told(folder: Path, task: str, head: dict[str, Any] | None = None) -> str:
    """What both ways of reading say; without a weight it is the same."""
    said = []
    for read in (check_checkpoint, load_checkpoint):
        with pytest.raises(EdgekitError) as refused:
            read(folder, task, head)
        assert "\n" not in refused.value.message
        said.append(refused.value.message)
    assert said[0] == said[1]
    return said[0]


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    return make_decoder("llama", tmp_path / "decoder", num_hidden_layers=1)


@pytest.mark.parametrize(
    "tensors",
    [
        {"model__layers__0__self_attn__q_norm__weight": (16,)},
        {"model__layers__0__self_attn__q_proj__bias": (64,), "model__layers__0__self_attn__k_proj__bias": (32,)},
        {"model__layers__0__mlp__up_proj__bias": (96,)},
        {"v_head__summary__weight": (1, 64), "v_head__summary__bias": (1,)},
        {"model__layers__1__input_layernorm__weight": (64,)},
    ],
    ids=["q_norm", "attention_bias", "mlp_bias", "value head", "layer"],
)  # fmt: skip
def test_tensors_that_a_decoder_would_lose(decoder: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    add(decoder, **tensors)
    name = min(tensors).replace("__", ".")
    assert f"tensor {name}: transformers' llama has no place for it" in told(decoder, GENERATE)


@pytest.mark.parametrize("task", [CLASSIFY, EMBED])
@pytest.mark.parametrize(
    "tensors",
    [
        {"encoder__layer__0__attention__self__distance_embedding__weight": (127, 16)},
        {"encoder__layer__0__attention__self__slopes": (2,)},
        {"embeddings__extra__weight": (3, 32)},
    ],
    ids=["relative_key", "alibi", "embedding"],
)
def test_tensors_that_an_encoder_would_lose(tmp_path: Path, task: str, tensors: dict[str, tuple[int, ...]]) -> None:
    body = "bert__" if task == CLASSIFY else ""
    folder = make_checkpoint(tmp_path / "model", labels=LABELS if body else None)
    add(folder, **{body + name: shape for name, shape in tensors.items()})
    assert "no place for it as config.json stands" in told(folder, task)
    if task == CLASSIFY:
        assert "no place for it as config.json stands" in told(folder, task, HEAD), "a new head keeps the body"


def test_another_head_than_the_class_has(classifier: Path) -> None:
    add(classifier, classifier__dense__weight=(32, 32))
    assert "tensor classifier.dense.weight: " in told(classifier, CLASSIFY)
    check_checkpoint(classifier, CLASSIFY, HEAD)
    check_checkpoint(classifier, EMBED)


def test_what_a_model_does_without(classifier: Path, decoder: Path) -> None:
    """Numbers that are computed now, heads of pretraining, an old head where a new one is made, a pooler that is not used."""
    whole = load_checkpoint(classifier, CLASSIFY)
    add(
        classifier,
        bert__embeddings__position_ids=(1, 64),
        cls__predictions__bias=(26,),
        cls__seq_relationship__bias=(2,),
    )
    for head in (None, HEAD):
        check_checkpoint(classifier, CLASSIFY, head)
    check_checkpoint(classifier, EMBED)
    kept = load_checkpoint(classifier, CLASSIFY)
    assert all(torch.equal(one, kept.state_dict()[name]) for name, one in whole.state_dict().items())
    remove(classifier, "pooler")
    assert "no trained classifier (it lacks bert.pooler" in told(classifier, CLASSIFY)
    check_checkpoint(classifier, EMBED)
    check_checkpoint(classifier, CLASSIFY, HEAD)
    add(decoder, model__layers__0__self_attn__rotary_emb__inv_freq=(8,))
    check_checkpoint(decoder, GENERATE)


def test_missing_and_misshapen(classifier: Path, decoder: Path) -> None:
    remove(decoder, "lm_head")
    assert "lm_head.weight is missing or of another shape" in told(decoder, GENERATE)
    edit(decoder, tie_word_embeddings=True)
    check_checkpoint(decoder, GENERATE)
    edit(decoder, intermediate_size=48)
    assert "the weights do not fit config.json: model.layers.0.mlp" in told(decoder, GENERATE)
    remove(classifier, "layer.1.output")
    assert "it lacks bert.encoder.layer.1.output" in told(classifier, CLASSIFY)
    assert "lacks the weights bert.encoder.layer.1.output" in told(classifier, CLASSIFY, HEAD)
    remove(classifier, "layer.1.")
    edit(classifier, num_hidden_layers=1, hidden_size=16)
    assert "do not fit config.json" in told(classifier, CLASSIFY)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_attention_heads": 5}, "config.json: transformers cannot make this model: "),
        ({"hidden_act": "swish9"}, "config.json: hidden_act: transformers cannot make this model: 'swish9'"),
        ({"model_type": "llama"}, "config.json"),
        ({"architectures": None, "model_type": "distilbert", "activation": "swish9"}, "config.json"),
    ],
)
def test_what_transformers_refuses(classifier: Path, changes: dict[str, Any], said: str) -> None:
    edit(classifier, **changes)
    assert said in told(classifier, CLASSIFY)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": "30522"}, "vocab_size: '30522' is not a whole number above zero"),
        ({"type_vocab_size": "x"}, "type_vocab_size: 'x' is not a whole number from 0"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers: 2.0 is not a whole number above zero"),
        ({"hidden_size": True}, "hidden_size: True is not a whole number above zero"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps: nan is not a number above zero"),
        ({"id2label": ["a", "b", "c"]}, "id2label: ['a', 'b', 'c'] is not a JSON object"),
        ({"id2label": {"a": "x"}}, "id2label: 'a' is not one of the classes' numbers \"0\" to \"0\""),
        ({"id2label": {"1": "x", "2": "y"}}, "id2label: '2' is not one of the classes' numbers"),
        ({"eos_token_id": "</s>"}, "eos_token_id: '</s>' is not a token id or a list of them"),
        ({"eos_token_id": [1, None]}, "eos_token_id: [1, None] is not a token id or a list of them"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: 'yes' is not true or false"),
        ({"architectures": "BertModel"}, "architectures: 'BertModel' is not a list of texts"),
        ({"rope_parameters": {"rope_type": "yarn", "attention_factor": "x"}}, "rope_parameters: attention_factor: 'x' is not a number above zero"),
        ({"rope_scaling": {"type": "longrope", "long_factor": ["1", "2"]}}, "rope_scaling: long_factor: ['1', '2'] is not a list of numbers"),
        ({"rope_parameters": {"rope_type": "llama3", "low_freq_factor": 4.0, "high_freq_factor": 4.0}}, "rope_parameters: low_freq_factor: 4.0 is not below high_freq_factor (4.0)"),
        ({"rope_parameters": {"full_attention": {"factor": "x"}}}, "rope_parameters: full_attention: factor: 'x' is not a number"),
        ({"text_config": {"hidden_size": "x"}}, "text_config: hidden_size: 'x' is not"),
        ({"text_config": []}, "text_config: [] is not a JSON object"),
    ],
)  # fmt: skip
def test_a_key_of_another_kind(classifier: Path, changes: dict[str, Any], said: str) -> None:
    edit(classifier, **changes)
    for read in (load_model, lambda folder: Model(folder=folder).labels):
        with pytest.raises(EdgekitError) as refused:
            read(classifier)
        assert refused.value.message.startswith(f"{classifier / 'config.json'}: {said}")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"])
def test_a_byte_order_mark(classifier: Path, name: str) -> None:
    path = classifier / name
    path.write_bytes(b"\xef\xbb\xbf" + (path.read_bytes() if path.is_file() else b"{}"))
    with pytest.raises(EdgekitError) as refused:
        load_model(classifier)
    assert refused.value.message.startswith(
        f"{path}: begins with a byte order mark, with which transformers cannot read it"
    )


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"])
def test_a_list_for_an_object(classifier: Path, name: str) -> None:
    (classifier / name).write_text("[]")
    with pytest.raises(EdgekitError, match=rf"{name}: expected a JSON object"):
        load_model(classifier)


def test_what_is_refused_ends_a_dry_run(command: Callable[..., Any], project: Path) -> None:
    """Before anything is built, and in one line."""
    add(project.parent / "teacher", bert__extra__weight=(2, 2))
    answer = command("build", "-t", "laptop-cpu", "--dry-run", "--out", "dist")
    assert answer.code == 1
    assert "tensor bert.extra.weight: transformers' bert has no place for it" in answer.err
    assert not (project.parent / "dist").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"id2label": {"0": "score"}, "problem_type": "regression"},
        {"problem_type": "multi_label_classification"},
        {"problem_type": "regression"},
    ],
)
def test_other_heads_than_of_single_labels_end_a_dry_run(
    command: Callable[..., Any], project: Path, changes: dict[str, Any]
) -> None:
    edit(project.parent / "teacher", **changes)
    answer = command("build", "-t", "laptop-cpu", "--dry-run", "--out", "dist")
    assert answer.code == 1
    assert "edgekit builds single-label classifiers" in answer.err
    assert changes["problem_type"] in answer.err
