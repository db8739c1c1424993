"""CHECKPOINT_KEYS: what the files of a checkpoint can say, and what edgekit does with each key.

A value begins with one word: "applied" (edgekit's answers follow it), "harmless" (it changes no answer), "refused" (edgekit
refuses the checkpoint where the key says something) or "told" (a warning says that it is not applied). `edgekit inspect` on a
checkpoint shows them. sentence-transformers' files and an adapter's may hold no other key; of the others an unknown key is told,
and the check as_original compares the answers. Of a decoder tokenizer.json is read as it is, as llama.cpp and the bundles read
it: where tokenizer_config.json has AutoTokenizer read a prompt otherwise, as_original fails. CHECKPOINT_FILES says the same of
files that are no tables of keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.schema import nearest, read_json

MODULES = "modules.json"
TRANSFORMER = "sentence_bert_config.json"
SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
POOLING, DENSE, NORMALIZE, LAYER_NORM, DROPOUT = (
    f"{kind}/config.json" for kind in ("Pooling", "Dense", "Normalize", "LayerNorm", "Dropout")
)

_LORA_STARTS = (
    *(
        "corda_config",
        "eva_config",
        "init_lora_weights",
        "kasa_config",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
    ),
    *("monteclora_config", "velora_config"),
)
_LORA = (
    *("alpha_pattern", "bias", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out", "layer_replication"),
    *("layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "modules_to_save", "qalora_group_size", "r"),
    *("rank_pattern", "target_modules", "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora"),
    *("use_qalora", "use_rslora"),
)

# What becomes of a checkpoint's other files; a folder's own name ends in "/".
CHECKPOINT_FILES: dict[str, str] = {
    "*.bin": "refused: where there are no safetensors; pickles are never read",
    "*.gguf": "refused: where there is no config.json",
    "*.py": "harmless: code of the checkpoint's own never runs",
    "*.safetensors": "applied: the weights; of several files those that transformers takes",
    "1_Pooling/": "applied: as modules.json says, and so are its other folders",
    "additional_chat_templates/": "applied: its tool_use to conversations with tools",
    "chat_template.jinja": "applied: before the templates of tokenizer_config.json and chat_template.json",
    "added_tokens.json": "applied: to encoders, as AutoTokenizer does; of decoders tokenizer.json says it",
    "merges.txt": "harmless: tokenizer.json says it",
    "model.safetensors.index.json": "applied: where there is no model.safetensors",
    "preprocessor_config.json": "harmless: of images and sounds",
    "processor_config.json": "harmless: of images and sounds",
    "quant_config.json": "harmless: packed weights are refused by their names",
    "quantize_config.json": "harmless: packed weights are refused by their names",
    "README.md": "applied: its head names the licence",
    "tokenizer.json": "applied: how texts are read",
    "tokenizer.model": "harmless: tokenizer.json says it",
    "vocab.json": "harmless: tokenizer.json says it",
    "vocab.txt": "harmless: tokenizer.json says it",
}

# Keys of config.json that are not here shape the model that transformers builds.
_BY_TRANSFORMERS = "applied: by transformers, whose model is measured, traced and compared"

CHECKPOINT_KEYS: dict[str, dict[str, str]] = {
    "config.json": {
        "_name_or_path": "harmless: where it came from",
        "architectures": "applied: a classifier must be one here",
        "auto_map": "refused: of families that transformers has not; else its own class is used",
        "compression_config": "refused: weights that are packed already",
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
        "quantization": "refused: weights that are packed already",
        "quantization_config": "refused: weights that are packed already (GPTQ, AWQ, bitsandbytes, compressed-tensors, FP8, ...)",
        "return_dict": "harmless",
        "task_specific_params": "harmless",
        "tokenizer_class": "applied: where tokenizer_config.json names none",
        "transformers_version": "harmless: who wrote it",
        "use_cache": "harmless: to answers",
    },
    "generation_config.json": {
        "_from_model_config": "harmless: where it came from",
        "bos_token_id": "harmless: the tokenizer says what begins a text",
        "decoder_start_token_id": "harmless: of encoders with decoders",
        "do_sample": "harmless: answers are compared greedily; who runs the model chooses",
        "eos_token_id": "applied: the tokens that end an answer, with the tokenizer's own",
        "pad_token_id": "harmless: padding is masked",
        "transformers_version": "harmless: who wrote it",
        **dict.fromkeys(
            (
                "assistant_confidence_threshold",
                "assistant_early_exit",
                "assistant_ensemble_weight",
                "assistant_lookbehind",
                "is_assistant",
                "max_matching_ngram_size",
                "num_assistant_tokens",
                "num_assistant_tokens_schedule",
                "prompt_lookup_num_tokens",
                "speculation_type",
                "target_lookbehind",
                "use_mtp",
            ),
            "harmless: of speculation, which changes no greedy answer",
        ),
        **dict.fromkeys(
            (
                "bad_words_ids",
                "begin_suppress_tokens",
                "constraints",
                "dola_layers",
                "encoder_no_repeat_ngram_size",
                "encoder_repetition_penalty",
                "exponential_decay_length_penalty",
                "force_words_ids",
                "forced_bos_token_id",
                "forced_eos_token_id",
                "guidance_scale",
                "min_length",
                "min_new_tokens",
                "no_repeat_ngram_size",
                "num_beams",
                "penalty_alpha",
                "remove_invalid_values",
                "repetition_penalty",
                "sequence_bias",
                "stop_strings",
                "suppress_tokens",
                "token_healing",
                "watermarking_config",
            ),
            "told: `generate` applies it, the bundles do not",
        ),
        **dict.fromkeys(
            (
                "cache_config",
                "cache_implementation",
                "compile_config",
                "continuous_batching_config",
                "disable_compile",
                "low_memory",
                "max_cache_len",
                "prefill_chunk_size",
                "use_cache",
            ),
            "harmless: how `generate` computes",
        ),
        **dict.fromkeys(
            ("diversity_penalty", "early_stopping", "length_penalty", "num_beam_groups"),
            "harmless: of several beams, of which num_beams tells",
        ),
        **dict.fromkeys(
            (
                "epsilon_cutoff",
                "eta_cutoff",
                "max_length",
                "max_new_tokens",
                "max_time",
                "min_p",
                "num_return_sequences",
                "temperature",
                "top_h",
                "top_k",
                "top_p",
                "typical_p",
            ),
            "harmless: who runs the model chooses",
        ),
        **dict.fromkeys(
            (
                "output_attentions",
                "output_hidden_states",
                "output_logits",
                "output_scores",
                "renormalize_logits",
                "return_dict_in_generate",
            ),
            "harmless: what `generate` returns beside an answer",
        ),
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
    "chat_template.json": {"chat_template": "applied: where there is no other template"},
    "adapter_config.json": {
        "alora_invocation_tokens": "refused: the adapter works behind these tokens alone, so it cannot be merged",
        "arrow_config": "refused: chooses among adapters for each token",
        "auto_mapping": "harmless: edgekit knows the base's class",
        "base_model_name_or_path": "applied: the base, a folder or a hub id",
        "megatron_config": "refused: asks for another library's code, which edgekit never runs",
        "peft_type": "applied: LORA; others are refused",
        "peft_version": "harmless: who wrote it",
        "revision": "applied: of the base on a hub",
        "task_type": "harmless: the recipe says the task",
        **dict.fromkeys(("inference_mode", "megatron_core", "runtime_config"), "harmless: to what is merged"),
        **dict.fromkeys(_LORA_STARTS, "harmless: how training began or went"),
        **dict.fromkeys(_LORA, "applied: by PEFT, which merges"),
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


def read_known(path: Path, file: str) -> dict[str, object]:
    """The JSON object of a file all of whose keys are in CHECKPOINT_KEYS[file]; {} where there is no such file.

    Raises EdgekitError for what is no object, for a key that is not in the table, and for one that is refused and not empty.
    """
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise EdgekitError(f"{path}: expected a JSON object; fetch the checkpoint again")
    check_known(content, file, path)
    return content


def check_known(content: Mapping[str, object], file: str, path: Path) -> None:
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
    uses = {}
    for file, table in CHECKPOINT_KEYS.items():
        content = read_json(folder / file) if (folder / file).is_file() else None
        entries = content if isinstance(content, list) else [content]
        keys = dict.fromkeys(key for entry in entries if isinstance(entry, dict) for key in entry)
        usual = _BY_TRANSFORMERS if file == "config.json" else "unknown"
        if keys:
            uses[file] = {key: table.get(key, usual) for key in sorted(keys)}
    return uses


def look_up_files(folder: Path) -> dict[str, str]:
    """What edgekit does with each file of a checkpoint's folder; "unknown" of one that it never looks at."""
    from fnmatch import fnmatchcase

    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    uses = {}
    for name in names:
        use = next((use for pattern, use in CHECKPOINT_FILES.items() if fnmatchcase(name, pattern)), "unknown")
        uses[name] = "applied: by its keys" if name in CHECKPOINT_KEYS else use
    return uses


def unknown_keys(folder: Path) -> list[str]:
    """The keys "FILE: KEY" of a checkpoint's own files that are in no table."""
    return [f"{file}: {key}" for file, keys in look_up(folder).items() for key, use in keys.items() if use == "unknown"]


def strange_keys(folder: Path) -> list[str]:
    """A warning for each of a checkpoint's `unknown_keys`."""
    message = "edgekit does not know this key; whether it changes answers, the check as_original tells"
    return [f"{folder}: {key}: {message}" for key in unknown_keys(folder)]
