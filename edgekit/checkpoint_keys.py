"""CHECKPOINT_KEYS: what the files of a checkpoint can say, and what edgekit does with each key.

A value begins with one word: "applied" (edgekit's answers follow it), "harmless" (it changes no answer), "refused" (edgekit
refuses the checkpoint where the key says something) or "told" (a warning says that it is not applied). `edgekit inspect` on a
checkpoint shows them. sentence-transformers' files may hold no other key; of the others an unknown key is told, and the check
as_original compares the answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.schema import nearest, read_json

MODULES = "modules.json"
TRANSFORMER = "sentence_bert_config.json"
SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
POOLING, DENSE, NORMALIZE, LAYER_NORM, DROPOUT = (
    f"{kind}/config.json" for kind in ("Pooling", "Dense", "Normalize", "LayerNorm", "Dropout")
)

# Keys of config.json that are not here shape the model that transformers builds.
_BY_TRANSFORMERS = "applied: by transformers, whose model is measured, traced and compared"

CHECKPOINT_KEYS: dict[str, dict[str, str]] = {
    "config.json": {
        "_name_or_path": "harmless: where it came from",
        "architectures": "applied: a classifier must be one here",
        "auto_map": "refused: of families that transformers has not; else its own class is used",
        "eos_token_id": "applied: to answers of decoders",
        "id2label": "applied: the labels' names, in the order of the logits",
        "label2id": "harmless: id2label says it",
        "max_position_embeddings": "applied: the longest data.max_length",
        "model_type": "applied: the family",
        "num_labels": "applied",
        "output_attentions": "harmless: the first output answers",
        "output_hidden_states": "harmless: the first output answers",
        "pad_token_id": "applied: the token of padding, which is masked",
        "problem_type": "applied: single labels; others are refused",
        "quantization_config": "refused: weights that are packed already",
        "return_dict": "harmless",
        "task_specific_params": "harmless",
        "tokenizer_class": "applied: where tokenizer_config.json names none",
        "transformers_version": "harmless: who wrote it",
        "use_cache": "harmless: to answers",
    },
    "generation_config.json": {
        "_from_model_config": "harmless",
        "bos_token_id": "harmless: the tokenizer says what begins a text",
        "do_sample": "harmless: answers are compared greedily; who runs the model chooses",
        "eos_token_id": "applied: the tokens that end an answer, with the tokenizer's own",
        "max_length": "harmless: who runs the model chooses",
        "max_new_tokens": "harmless: who runs the model chooses",
        "min_p": "harmless: who runs the model chooses",
        "no_repeat_ngram_size": "told: `generate` applies it, the bundles do not",
        "pad_token_id": "harmless: padding is masked",
        "repetition_penalty": "told: `generate` applies it, the bundles do not",
        "temperature": "harmless: who runs the model chooses",
        "top_k": "harmless: who runs the model chooses",
        "top_p": "harmless: who runs the model chooses",
        "transformers_version": "harmless: who wrote it",
    },
    "tokenizer_config.json": {
        "add_bos_token": "applied: a text begins with the token, or does not",
        "add_eos_token": "applied: a text ends with the token, or does not",
        "add_prefix_space": "applied: a space is put before the text",
        "added_tokens_decoder": "applied: the tokens join those of tokenizer.json",
        "additional_special_tokens": "applied: the tokens join those of tokenizer.json",
        "auto_map": "harmless: code of the checkpoint's own never runs; a tokenizer that is nothing else is refused",
        "backend": "harmless: the tokenizers library reads texts",
        "bos_token": "applied: where the tokenizer's class puts it around a text",
        "chat_template": "applied: to conversations; a text that is classified or embedded is in none",
        "clean_up_tokenization_spaces": "harmless: to encoders, which write no text",
        "cls_token": "applied: put before a text",
        "do_basic_tokenize": "harmless: the tokenizers library always does",
        "do_lower_case": "applied: over tokenizer.json",
        "eos_token": "applied: where the tokenizer's class puts it around a text",
        "extra_special_tokens": "applied: the tokens join those of tokenizer.json",
        "is_local": "harmless: where it was saved from",
        "local_files_only": "harmless: how it was saved",
        "legacy": "applied: how SentencePiece spaces are read behind special tokens",
        "mask_token": "applied: read as one token in a text",
        "max_length": "harmless: data.max_length of the recipe is used",
        "max_len": "harmless: data.max_length of the recipe is used",
        "model_input_names": "harmless: a text is one segment of tokens, none of them masked",
        "model_max_length": "applied: to embeddings, which end there at the latest; else data.max_length is used",
        "model_specific_special_tokens": "applied: the tokens join those of tokenizer.json",
        "name_or_path": "harmless: where it came from",
        "never_split": "harmless: of the tokenizers that were Python code",
        "pad_to_multiple_of": "harmless: a text is answered alone, without padding",
        "pad_token": "applied: the token of padding, which is masked",
        "pad_token_type_id": "harmless: padding is masked",
        "padding_side": "harmless: a text is answered alone, without padding",
        "processor_class": "harmless: of images and sounds",
        "sep_token": "applied: put behind a text",
        "sp_model_kwargs": "harmless: of the tokenizers that were Python code",
        "special_tokens_map_file": "harmless: where it came from",
        "split_special_tokens": "refused: no tokenizer.json can say it",
        "stride": "harmless: the rest of a text that is cut is not read",
        "strip_accents": "applied: over tokenizer.json",
        "tokenize_chinese_chars": "applied: over tokenizer.json",
        "tokenizer_class": "applied: the class rebuilds what tokenizer.json says, as transformers does",
        "tokenizer_file": "harmless: where it came from",
        "trim_offsets": "harmless: of places in a text",
        "truncation_side": "applied: where a long text is cut",
        "truncation_strategy": "harmless: of pairs of texts",
        "unk_token": "applied: what is not in the vocabulary",
        "use_default_system_prompt": "harmless: a text that is classified or embedded is in no conversation",
        "use_fast": "harmless: the tokenizers library reads texts",
        "vocab_file": "harmless: where it came from",
        "wordpieces_prefix": "harmless: tokenizer.json says it",
    },
    "special_tokens_map.json": {
        "additional_special_tokens": "applied: as tokenizer_config.json's",
        "bos_token": "applied: as tokenizer_config.json's",
        "cls_token": "applied: as tokenizer_config.json's",
        "eos_token": "applied: as tokenizer_config.json's",
        "mask_token": "applied: as tokenizer_config.json's",
        "pad_token": "applied: as tokenizer_config.json's",
        "sep_token": "applied: as tokenizer_config.json's",
        "unk_token": "applied: as tokenizer_config.json's",
    },
    MODULES: {
        "idx": "harmless: the modules stand in their order",
        "kwargs": "refused: answers that ask for options with every text",
        "name": "harmless",
        "path": "applied: the module's folder",
        "type": "applied: Transformer, Pooling, Dense, LayerNorm, Normalize and Dropout; others are refused",
    },
    TRANSFORMER: {
        "config_args": "refused",
        "config_kwargs": "refused",
        "do_lower_case": "applied: texts are lower-cased before all else",
        "document_length": "refused",
        "max_seq_length": "applied: texts are cut there, or at data.max_length where that is less",
        "modality_config": "applied: text to last_hidden_state; other outputs are refused",
        "model_args": "refused",
        "model_kwargs": "refused",
        "module_output_name": "applied: token_embeddings; others are refused",
        "processing_kwargs": "refused",
        "processor_kwargs": "refused",
        "query_expansion": "refused",
        "query_length": "refused",
        "tokenizer_args": "refused",
        "tokenizer_name_or_path": "refused",
        "transformer_task": "applied: feature-extraction; others are refused",
        "unpad_inputs": "harmless: a text is answered alone, without padding",
    },
    SENTENCE_TRANSFORMERS: {
        "__version__": "harmless",
        "default_prompt_name": "applied: this prompt is put before every text, also by the bundle",
        "model_type": "applied: SentenceTransformer; others are refused",
        "prompts": "applied: they ship in the bundle, whose loader takes one by its name",
        "requirements": "harmless: versions of libraries that edgekit does not run",
        "similarity_fn_name": "applied: it ships in the bundle's settings; embeddings do not depend on it",
        "truncate_dim": "applied: embeddings are cut to so many numbers",
    },
    POOLING: {
        "embedding_dimension": "harmless: the model says it",
        "include_prompt": "applied: false leaves the prompt's tokens out of the pooling",
        "pooling_mode": "applied: one or several, behind each other",
        "pooling_mode_cls_token": "applied",
        "pooling_mode_lasttoken": "applied",
        "pooling_mode_max_tokens": "applied",
        "pooling_mode_mean_sqrt_len_tokens": "applied",
        "pooling_mode_mean_tokens": "applied",
        "pooling_mode_weightedmean_tokens": "applied",
        "word_embedding_dimension": "harmless: the model says it",
    },
    DENSE: {
        "activation_function": "applied: torch's functions without parameters; others are refused",
        "bias": "applied",
        "in_features": "applied",
        "module_input_name": "applied: sentence_embedding; others are refused",
        "module_output_name": "applied: sentence_embedding; others are refused",
        "out_features": "applied",
        "use_residual": "applied",
    },
    NORMALIZE: {
        "module_input_name": "applied: sentence_embedding; others are refused",
        "module_output_name": "applied: sentence_embedding; others are refused",
    },
    LAYER_NORM: {"dimension": "applied"},
    DROPOUT: {"dropout": "harmless: of training"},
}


def read_known(path: Path, file: str) -> dict[str, Any]:
    """The JSON object of a file all of whose keys are in CHECKPOINT_KEYS[file]; {} where there is no such file.

    Raises EdgekitError for what is no object, for a key that is not in the table, and for one that is refused and not empty.
    """
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise EdgekitError(f"{path}: expected a JSON object; fetch the checkpoint again")
    check_known(content, file, path)
    return content


def check_known(content: Mapping[str, Any], file: str, path: Path) -> None:
    """Raise EdgekitError for a key of `content` that is not in CHECKPOINT_KEYS[file], or is refused and says something."""
    table = CHECKPOINT_KEYS[file]
    for key, value in content.items():
        if key not in table:
            raise EdgekitError(
                f"{path}: {key}: edgekit does not know this key, so its embeddings may be others{nearest(key, table)}; remove the"
                " key where it means nothing"
            )
        if table[key].startswith("refused") and value not in (None, False, {}, [], ""):
            raise EdgekitError(f"{path}: {key}: edgekit does not do what this asks for; save the model without it")


def look_up(folder: Path) -> dict[str, dict[str, str]]:
    """What edgekit does with each key that a checkpoint's own files hold, by file; "unknown" of a key that is in no table."""
    found = {}
    for file, table in CHECKPOINT_KEYS.items():
        content = read_json(folder / file) if (folder / file).is_file() else None
        entries = content if isinstance(content, list) else [content]
        keys = dict.fromkeys(key for entry in entries if isinstance(entry, dict) for key in entry)
        usual = _BY_TRANSFORMERS if file == "config.json" else "unknown"
        if keys:
            found[file] = {key: table.get(key, usual) for key in sorted(keys)}
    return found


def unknown_keys(folder: Path) -> list[str]:
    """The keys "FILE: KEY" of a checkpoint's own files that are in no table."""
    return [f"{file}: {key}" for file, keys in look_up(folder).items() for key, use in keys.items() if use == "unknown"]
