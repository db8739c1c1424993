"""Small checkpoints of the shapes that hubs have: each says something in a file besides tokenizer.json and the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

LABELS = ["card", "rate", "top up", "travel"]
TEXTS = [
    "How do I find my card?",
    "I STILL have not received my New Card, and I ordered it more than a week ago. Please tell me what I can do about it now.",
    "  Señor Müller zahlt das Café  in Zürich, naïve coöperation",
    "top up 中文字 failed",
    "query: exchange rate",
    "rate",
    "",
]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_LETTERS = sorted(
    {letter for text in TEXTS for word in (text, text.lower()) for letter in word if not letter.isspace()}
)
_PLAIN = [letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter not in _LETTERS]


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file, which is made where it is not there."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def make_bert(folder: Path, labels: list[str] | None) -> Path:
    """A BERT that reads single letters, in upper case too; its tokenizer.json lower-cases and strips accents."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

    pieces = [*_LETTERS, *_PLAIN, *(f"##{letter}" for letter in (*_LETTERS, *_PLAIN)), "card", "##d", "rate"]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys([*_SPECIAL, *pieces]))}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=160, initializer_range=0.3, **sizes)
    return _save(
        folder, config, BertForSequenceClassification if labels else BertModel, labels, BertTokenizer(vocabulary), torch
    )


def make_roberta(folder: Path, labels: list[str] | None) -> Path:
    """A RoBERTa that reads bytes."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaModel, RobertaTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        piece: place for place, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, "Ġc", "Ġr"])
    }
    tokenizer = RobertaTokenizer(vocabulary, [("Ġ", "c"), ("Ġ", "r")])
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = RobertaConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=200,
        type_vocab_size=1,
        initializer_range=0.3,
        pad_token_id=1,
        **sizes,
    )
    return _save(folder, config, RobertaForSequenceClassification if labels else RobertaModel, labels, tokenizer, torch)


def _save(folder: Path, config: Any, kind: Any, labels: list[str] | None, tokenizer: Any, torch: Any) -> Path:
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: place for place, label in enumerate(labels)}
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_embedder(folder: Path, pooling: dict[str, Any] | None = None, *more: str) -> Path:
    """A sentence-transformers folder: Transformer, Pooling and the modules that follow."""
    make_bert(folder, None)
    kinds = ["Transformer", "Pooling", *more]
    listed = [
        {
            "idx": place,
            "name": str(place),
            "path": f"{place}_{kind}" if place else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for place, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(listed), encoding="utf-8")
    for entry in listed[1:]:
        (folder / entry["path"]).mkdir()
    edit(
        folder / "1_Pooling" / "config.json",
        word_embedding_dimension=32,
        **(pooling or {"pooling_mode_mean_tokens": True}),
    )
    edit(folder / "sentence_bert_config.json", max_seq_length=128, do_lower_case=False)
    return folder


def add_weights(folder: Path, **shapes: tuple[int, ...]) -> None:
    """model.safetensors of random tensors; `linear_weight` is called linear.weight."""
    import numpy as np
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    arrays = {
        name.replace("_", "."): random.standard_normal(shape, dtype=np.float32) * 0.3 for name, shape in shapes.items()
    }
    save_file(arrays, folder / "model.safetensors")


def with_dense(folder: Path, *, inner: int = 32, outer: int, activation: str, residual: bool = False) -> Path:
    """An embedder with a Dense and a Normalize behind its pooling."""
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True} if inner == 64 else None
    make_embedder(folder, modes, "Dense", "Normalize")
    told = {
        "in_features": inner,
        "out_features": outer,
        "bias": True,
        "activation_function": f"torch.nn.modules.{activation}",
    }
    edit(folder / "2_Dense" / "config.json", **told, **({"use_residual": True} if residual else {}))
    more = {"residual_weight": (outer, inner)} if residual and inner != outer else {}
    add_weights(folder / "2_Dense", linear_weight=(outer, inner), linear_bias=(outer,), **more)
    return folder


def with_layer_norm(folder: Path) -> Path:
    """An embedder with a LayerNorm behind its pooling."""
    make_embedder(folder, None, "LayerNorm")
    edit(folder / "2_LayerNorm" / "config.json", dimension=32)
    add_weights(folder / "2_LayerNorm", norm_weight=(32,), norm_bias=(32,))
    return folder


def _classifier(make: Callable[..., Path], **changes: Any) -> Callable[[Path], None]:
    return lambda at: edit(make(at, LABELS) / "tokenizer_config.json", **changes)


def _embedder(file: str, pooling: dict[str, Any] | None = None, **changes: Any) -> Callable[[Path], None]:
    return lambda at: edit(make_embedder(at, pooling) / file, **changes)


def _without_post_processor(folder: Path) -> None:
    edit(make_bert(folder, LABELS) / "tokenizer.json", post_processor=None)


def _lower_by_sentence_transformers(folder: Path) -> None:
    edit(make_embedder(folder) / "tokenizer_config.json", do_lower_case=False)
    edit(folder / "sentence_bert_config.json", do_lower_case=True)


def _prompt_left_out(mode: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        make_embedder(folder, {"pooling_mode": mode, "include_prompt": False})
        edit(folder / _SENTENCE, prompts={"query": "query: "}, default_prompt_name="query")

    return make


_SENTENCE = "config_sentence_transformers.json"
CLASSIFIERS: dict[str, Callable[[Path], Any]] = {
    "as saved": lambda at: make_bert(at, LABELS),
    "truncation_side": _classifier(make_bert, truncation_side="left"),
    "do_lower_case": _classifier(make_bert, do_lower_case=False),
    "strip_accents": _classifier(make_bert, strip_accents=False),
    "tokenize_chinese_chars": _classifier(make_bert, tokenize_chinese_chars=False),
    "padding_side": _classifier(make_bert, padding_side="left"),
    "model_max_length": _classifier(make_bert, model_max_length=9),
    "cls_token": _classifier(make_bert, cls_token="[MASK]"),
    "no post_processor": _without_post_processor,
    "roberta": lambda at: make_roberta(at, LABELS),
    "add_prefix_space": _classifier(make_roberta, add_prefix_space=True),
}
EMBEDDERS: dict[str, Callable[[Path], Any]] = {
    "plain": lambda at: make_bert(at, None),
    "model_max_length": lambda at: edit(make_bert(at, None) / "tokenizer_config.json", model_max_length=9),
    "mean": make_embedder,
    "cls": lambda at: make_embedder(at, {"pooling_mode_cls_token": True}),
    "max": lambda at: make_embedder(at, {"pooling_mode": "max"}),
    "lasttoken": lambda at: make_embedder(at, {"pooling_mode": "lasttoken"}),
    "weightedmean": lambda at: make_embedder(at, {"pooling_mode_weightedmean_tokens": True}, "Normalize"),
    "three poolings": lambda at: make_embedder(
        at, {"pooling_mode": ["mean", "cls", "mean_sqrt_len_tokens"]}, "Normalize"
    ),
    "prompt": _embedder(_SENTENCE, prompts={"query": "query: ", "document": "passage: "}, default_prompt_name="query"),
    "prompt left out of the mean": _prompt_left_out("mean"),
    "prompt left out of the weighted mean": _prompt_left_out("weightedmean"),
    "prompt left out, cls": _prompt_left_out("cls"),
    "max_seq_length": _embedder("sentence_bert_config.json", max_seq_length=8),
    "do_lower_case": _lower_by_sentence_transformers,
    "truncate_dim": _embedder(_SENTENCE, truncate_dim=16),
    "dense": lambda at: with_dense(at, outer=20, activation="activation.Tanh"),
    "dense, residual": lambda at: with_dense(at, outer=24, activation="activation.GELU", residual=True),
    "dense of two poolings": lambda at: with_dense(at, inner=64, outer=32, activation="linear.Identity"),
    "layer norm": with_layer_norm,
    "dropout": lambda at: edit(make_embedder(at, None, "Dropout") / "2_Dropout" / "config.json", dropout=0.5),
}
_USER = "<|user|>{{ message['content'] }}<|end|>"
_ANSWER = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
_PARTS = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
    "<|end|>{% endfor %}" + _ANSWER
)
_CALLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] %}{{ message['content'] }}{% endif %}{% for call in message.get('tool_calls') or [] %}"
    "{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}<|end|>{% endfor %}" + _ANSWER
)
_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|user|>You answer orders.<|end|>{% endif %}{% for message in messages %}"
    f"{_USER}{{% endfor %}}{_ANSWER}"
)
_DATED = "<|user|>{{ strftime_now('%d %B %Y') }} " + "{{ messages[0]['content'] }}<|end|>" + _ANSWER


def _talks(**changes: Any) -> Callable[[Path], None]:
    return lambda at: edit(at / "tokenizer_config.json", **changes)


def _generates(**changes: Any) -> Callable[[Path], None]:
    return lambda at: edit(at / "generation_config.json", **changes)


def _template(text: str, name: str = "chat_template.jinja") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")

    return write


def _several_ends(folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner = tokenizer.encode("light_on", add_special_tokens=False).ids[-1]
    end = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    edit(folder / "generation_config.json", eos_token_id=[end, inner])


def _added_tokens(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["kitchen light", "<think>"])
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)


def _template_in_the_configuration(folder: Path) -> None:
    text = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": text}, {"name": "tool_use", "template": _CALLS}]
    edit(folder / "tokenizer_config.json", chat_template=named)


# Changes to a checkpoint of a chat model (tests.architectures.decoders).
DECODERS: dict[str, Callable[[Path], Any]] = {
    "as saved": lambda at: at,
    "several ends": _several_ends,
    "ends in config.json alone": lambda at: (at / "generation_config.json").unlink(),
    "parts": _template(_PARTS),
    "tool calls": _template(_CALLS),
    "a template for tools": _template(_CALLS, "additional_chat_templates/tool_use.jinja"),
    "templates in tokenizer_config.json": _template_in_the_configuration,
    "a default system prompt": _template(_SYSTEM),
    "the day": _template(_DATED),
    "no template": lambda at: (at / "chat_template.jinja").unlink(),
    "sampling": _generates(do_sample=True, temperature=0.7, top_p=0.9, top_k=20),
    "repetition_penalty": _generates(do_sample=False, repetition_penalty=1.3),
    "added tokens": _added_tokens,
    "sides": _talks(padding_side="left", truncation_side="left", model_max_length=7),
    "clean_up_tokenization_spaces": _talks(clean_up_tokenization_spaces=True),
}
