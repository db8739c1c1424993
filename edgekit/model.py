"""Model: a checkpoint folder (config.json, safetensors, tokenizer.json). Weights are opened only when asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.configuration import check_files, read_configuration
from edgekit.errors import EdgekitError
from edgekit.hashing import spell
from edgekit.modalities import find_modality
from edgekit.modalities.text import TOKENIZER
from edgekit.schema import read_json
from edgekit.tokenizing import AddedToken, encode, read_added_tokens, read_tokenizer
from edgekit.typed_json import as_list, as_table
from edgekit.weights import ADAPTER_CONFIG, SINGLE, TensorInfo, check_finite, check_names, read_header, weight_files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

# Rows of these tensors are token ids (the names that transformers' families use).
EMBEDDINGS = ("word_embeddings.weight", "tok_embeddings.weight", "embed_tokens.weight", "wte.weight")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A checkpoint folder that passed `load_model`'s checks.

    tokenizer_text: what is read instead of the folder's tokenizer; as_file: tokenizer.json is read as it is.
    """

    folder: Path
    tokenizer_text: str | None = None
    as_file: bool = False

    @cached_property
    def config(self) -> dict[str, object]:
        """config.json, as it is in the folder. Raises EdgekitError for a key of another kind than it should be."""
        return read_configuration(self.folder / "config.json")

    @property
    def architecture(self) -> str:
        """The family's name in transformers (`model_type`): bert, roberta, ..."""
        return str(self.config["model_type"])

    @property
    def labels(self) -> list[str]:
        """The class names in the order of the logits; empty for a model without classes."""
        named = as_table(self.config.get("id2label"))
        return [str(named[key]) for key in sorted(named, key=int)]

    @property
    def text_config(self) -> dict[str, object]:
        """config.json, or of a model that also takes images the part that its text model has."""
        part = self.config.get("text_config")
        return part if isinstance(part, dict) else self.config

    @property
    def layers(self) -> int:
        """How many transformer blocks the (text) model has; 0 of a family that has none."""
        from edgekit.architectures import ARCHITECTURES

        if count := self.size("num_hidden_layers", "n_layers", "num_layers", "n_layer"):
            return count
        family = ARCHITECTURES.get(self.architecture)
        if family is not None and not family.LAYERS:
            return 0
        raise EdgekitError(f"{self.folder / 'config.json'}: no number of layers in it (num_hidden_layers)")

    @property
    def hidden(self) -> int:
        """The width of the (text) model; 0 where its configuration does not say it under a name that edgekit knows."""
        return self.size("hidden_size", "dim")

    def size(self, *keys: str) -> int:
        """The first of these numbers that the (text) model's configuration has; 0 where it has none of them."""
        values = (self.text_config.get(key) for key in keys)
        return next((value for value in values if isinstance(value, int)), 0)

    @cached_property
    def stops(self) -> list[int]:
        """The tokens that end an answer: eos_token_id of generation_config.json (one or several), else of config.json, and the
        tokenizer's own eos_token, which a fine-tuned model often says in place of them.

        Raises EdgekitError for an id that is no whole number, or has no embedding. (A negative one is no token: it ends nothing.)
        """
        from edgekit.chat_template import special_tokens

        configured = [stop for stop in self._configured_stops() if stop >= 0]
        named = special_tokens(self.folder).get("eos_token")
        own = None if named is None else self._token_id(named)
        return list(dict.fromkeys([*configured, *([] if own is None or own >= self.rows else [own])]))

    def _configured_stops(self) -> list[int]:
        generation, config = self.folder / "generation_config.json", self.folder / "config.json"
        content = read_json(generation) if generation.is_file() else {}
        if not isinstance(content, dict):
            raise EdgekitError(f"{generation}: expected a JSON object; save the model again")
        for path, table in ((generation, content), (config, self.config), (config, self.text_config)):
            value = table.get("eos_token_id")
            if value is None:
                continue
            stops: list[int] = []
            for stop in value if isinstance(value, list) else [value]:
                if type(stop) is not int:
                    raise EdgekitError(
                        f"{path}: eos_token_id: {stop!r} is no token id; give a whole number, or a list of them"
                    )
                if stop >= self.rows:
                    raise EdgekitError(
                        f"{path}: eos_token_id: {stop}: the embedding has {self.rows} rows, so no answer can end with it; take it"
                        " out, or fetch the model again"
                    )
                stops.append(stop)
            return stops
        return []

    def _token_id(self, text: str) -> int | None:
        """A token's id by its text in tokenizer.json; None where it has no such token."""
        for token in self.added_tokens:
            if token.content == text:
                return token.id
        vocabulary = as_table(self._tokenizer_file["model"]).get("vocab")
        if isinstance(vocabulary, list):
            return next((index for index, pair in enumerate(vocabulary) if pair[0] == text), None)
        index = as_table(vocabulary).get(text)
        return index if isinstance(index, int) else None

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor's type, shape and byte range, read from the safetensors headers."""
        tensors: dict[str, TensorInfo] = {}
        for path in weight_files(self.folder):
            tensors |= read_header(path)
        return tensors

    @property
    def parameters(self) -> int:
        """How many weights the checkpoint holds."""
        return sum(math.prod(info.shape) for info in self.tensors.values())

    @property
    def max_positions(self) -> int | None:
        """The longest sequence in tokens that the position embeddings allow, where the config says so."""
        limit = self.text_config.get("max_position_embeddings")
        if not isinstance(limit, int):
            return None
        # RoBERTa and MPNet number positions from the padding id + 1 (transformers' create_position_ids_from_input_ids).
        offset = 2 if self.architecture in {"roberta", "xlm-roberta", "camembert", "mpnet"} else 0
        return limit - offset

    @cached_property
    def tokenizer_content(self) -> dict[str, object]:
        """tokenizer.json, without added tokens that the model has no embedding of (as Gemma 3's `<image_soft_token>` in the
        sizes that take text only): written in a text they are text, to llama.cpp as well.

        Raises EdgekitError where it is no tokenizer of the tokenizers library.
        """
        entries = as_list(self._tokenizer_file["added_tokens"])
        known = [entry for entry, token in zip(entries, self.added_tokens, strict=True) if token.id < self.rows]
        return self._tokenizer_file | {"added_tokens": known}

    @cached_property
    def _tokenizer_file(self) -> dict[str, object]:
        path = self.folder / "tokenizer.json"
        content = read_json(path) if self.read_text is None else json.loads(self.read_text)
        # tokenizers' own error for a damaged file names neither the file nor a remedy.
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            raise EdgekitError(f"{path}: not a tokenizer that the tokenizers library wrote; save it again")
        return content | {"added_tokens": as_list(content.get("added_tokens"))}

    @cached_property
    def read_text(self) -> str | None:
        """The tokenizer as a tokenizer.json: of an encoder as AutoTokenizer reads the folder, of a decoder None: its own file.

        Raises EdgekitError for a tokenizer that transformers cannot read.
        """
        if self.tokenizer_text is not None or self.as_file:
            return self.tokenizer_text
        from edgekit.architectures import ARCHITECTURES, is_decoder

        family = ARCHITECTURES.get(self.architecture)
        if family is None or is_decoder(family):
            return None
        from edgekit.owners_tokenizer import read_tokenizer

        return read_tokenizer(self.folder)

    @cached_property
    def added_tokens(self) -> list[AddedToken]:
        """tokenizer.json's added tokens, those without an embedding too. Raises EdgekitError for one without id or text."""
        return read_added_tokens(self._tokenizer_file, self.folder / "tokenizer.json")

    @cached_property
    def rows(self) -> float:
        """How many tokens the embedding has; infinity where the folder has no weights, or no embedding that edgekit knows."""
        if not any(self.folder.glob("*.safetensors")):
            return math.inf
        sizes = [info.shape[0] for name, info in self.tensors.items() if name.endswith(EMBEDDINGS)]
        return min(sizes, default=math.inf)

    @property
    def truncation_side(self) -> str:
        """Where a long text is cut: "right" or "left"."""
        return str(as_table(self._tokenizer_file.get("truncation")).get("direction", "right")).lower()

    def tokenizer(self, max_length: int | None = None) -> Tokenizer:
        """The folder's tokenizer, without padding, truncating at max_length tokens (special tokens included)."""
        from tokenizers import Tokenizer

        path = self.folder / "tokenizer.json"
        text = None
        if self.tokenizer_content["added_tokens"] != self._tokenizer_file["added_tokens"]:
            text = json.dumps(self.tokenizer_content)
        elif self.read_text is not None:
            text = self.read_text
        tokenizer = read_tokenizer(
            lambda: Tokenizer.from_file(str(path)) if text is None else Tokenizer.from_str(text), path
        )
        tokenizer.no_padding()
        if max_length is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(max_length, direction=self.truncation_side)
        return tokenizer

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Token ids of each text, special tokens included, truncated at max_length, not padded."""
        encodings = encode(self.tokenizer(max_length), texts, self.folder / "tokenizer.json")
        return [encoding.ids for encoding in encodings]

    def spelled(self, characters: int) -> NDArray[np.uint8]:
        """The first characters of each token, added ones apart, by `hashing.spell`: uint8 [ids, characters].

        Of all that AutoTokenizer reads: it may add tokens that the model has no embedding of.
        """
        from tokenizers import Tokenizer

        read = self.read_text
        vocabulary = (self.tokenizer() if read is None else Tokenizer.from_str(read)).get_vocab(with_added_tokens=True)
        added = {token.content for token in self.added_tokens}
        written = {token: index for token, index in vocabulary.items() if token not in added}
        pieces = as_table(self.tokenizer_content["model"])
        prefix = str(pieces["continuing_subword_prefix"]) if pieces.get("type") == "WordPiece" else None
        return spell(written, 1 + max(vocabulary.values()), prefix, characters)


def load_model(folder: Path) -> Model:
    """Open a checkpoint folder and refuse what would fail later.

    Raises EdgekitError for a missing file, a family that is code of its own (`auto_map`), weights that are only pickles,
    quantized already or saved inside a wrapper, a truncated file, NaN or infinite weights, and a tokenizer with more ids than the
    embedding has rows.
    """
    if not folder.is_dir():
        raise EdgekitError(f"{folder}: no such model folder")
    _refuse_other_kinds(folder)
    model = Model(folder=folder)
    check_files(folder)
    if not isinstance(model.config.get("model_type"), str):
        raise EdgekitError(f"{folder / 'config.json'}: model_type: missing key; not a transformers checkpoint")
    if "auto_map" in model.config and not _is_native(model.architecture):
        raise EdgekitError(
            f"{folder / 'config.json'}: auto_map: this model wants to run code of its own, which edgekit never does;"
            " save it as one of transformers' own architectures"
        )
    _check_quantization(model)
    check_names(model.tensors)
    check_finite(info.file for info in model.tensors.values())
    if lacks := find_modality(folder).lacks(folder):
        raise EdgekitError(f"{folder}: {lacks}")
    if (folder / TOKENIZER).is_file():
        _check_vocabulary(model)
    return model


def _refuse_other_kinds(folder: Path) -> None:
    """What people take for a checkpoint: an adapter, or a file that was made from one."""
    if (folder / ADAPTER_CONFIG).is_file():
        raise EdgekitError(
            f"{folder / ADAPTER_CONFIG}: an adapter, not a model; name it as a recipe's teacher.source to have it merged"
        )
    made = sorted(path.name for pattern in ("*.gguf", "*.onnx") for path in folder.glob(pattern))
    if made and not (folder / "config.json").is_file():
        raise EdgekitError(
            f"{folder}: {made[0]} is made already; edgekit starts from the checkpoint that it was made of (config.json,"
            f" {SINGLE}), and judges such a file with: edgekit verify {made[0]} CHECKPOINT"
        )


def _is_native(model_type: str) -> bool:
    """Whether transformers has this family itself: then code that a checkpoint brings along is never looked at."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES


def _check_quantization(model: Model) -> None:
    """transformers needs a package for each of these formats, and would give weights that have lost once already."""
    for table in (model.config, model.text_config):
        for key in ("quantization_config", "compression_config", "quantization"):
            if table.get(key):
                raise EdgekitError(
                    f"{model.folder / 'config.json'}: {key}: its weights are quantized already; start from the unquantized"
                    " checkpoint"
                )


def _check_vocabulary(model: Model) -> None:
    """Refuse a tokenizer whose own tokens, or those that the model is spoken to with, have no embedding."""
    # As the file says: transformers adds special tokens alone, which are left out where they have no embedding.
    model = replace(model, as_file=True)
    from edgekit.chat_template import find_templates, special_tokens

    known = model.tokenizer().get_vocab(with_added_tokens=True)
    templates = "".join(find_templates(model.folder).values())
    # Padding is masked: it needs no embedding, and is read as what it is written with.
    special = {text for name, text in special_tokens(model.folder).items() if name != "pad_token"}
    spoken = [
        token.id
        for token in model.added_tokens
        if token.content in special or token.content in templates or token.id in model.stops
    ]
    largest = max([*known.values(), *spoken], default=-1)
    for name, info in model.tensors.items():
        if name.endswith(EMBEDDINGS) and info.shape[0] <= largest:
            raise EdgekitError(
                f"{model.folder}: the tokenizer has ids up to {largest}, but {name} has {info.shape[0]} rows;"
                " the tokenizer belongs to another model"
            )
