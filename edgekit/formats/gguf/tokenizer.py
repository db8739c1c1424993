"""The tokenizer of a checkpoint as the keys that llama.cpp reads: tokens, scores, types, merges, special tokens, templates.

What the keys mean is what llama.cpp's loader does with them (https://github.com/ggml-org/llama.cpp, src/llama-vocab.cpp), and
tokenizer.json is what the original does; `parity` proves that both read texts alike.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.chat_template import find_templates, special_tokens
from edgekit.errors import EdgekitError
from edgekit.formats.gguf.pretokenizer import choose_pretokenizer
from edgekit.formats.gguf.sentencepiece import read_pieces
from edgekit.formats.gguf.tokenizer_json import (
    BYTE,
    CONTROL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    TokenizerFiles,
    algorithm_name,
    normalization,
    normalizer_steps,
    pretokenizer_steps,
    space_prefix,
    space_scheme,
    squeezes_spaces,
    strips_accents,
)
from edgekit.model import EMBEDDINGS
from edgekit.tokenizing import read_added_tokens
from edgekit.typed_json import as_table

if TYPE_CHECKING:
    from edgekit.formats.gguf.file import Value
    from edgekit.model import Model

# What llama.cpp's own converter gives an id without a piece; nothing merges into it.
_NO_SCORE = -10000.0
_SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# tokenizer.ggml.<name>_token_id for each name in a tokenizer's configuration (the misspelling is llama.cpp's).
_IDS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}
# llama-vocab.cpp: tokens of these names end a generation whatever the keys say.
_STOPS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>", "<|endoftext|>",
    "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>",
    "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",  # noqa: RUF001
}  # fmt: skip


def vocabulary(model: Model) -> dict[str, Value]:
    """All `tokenizer.*` keys of a GGUF file: one token for each row of the embedding, ids beyond the vocabulary unused.

    Raises EdgekitError for a kind of tokenizer that llama.cpp has not, one with ids beyond the embedding, tokens that llama.cpp
    would take for one, and a pre-tokenizer that is none of llama.cpp's.
    """
    content = model.tokenizer_content
    source = TokenizerFiles(model=model, content=content, rows=_rows(model))
    largest = max(source.pieces, default=-1)
    if largest >= source.rows:
        raise EdgekitError(
            f"{source.where}: it has ids up to {largest} ({source.pieces[largest]!r}), but the embedding has {source.rows} rows;"
            " the tokenizer belongs to another model, or was saved with a token more"
        )
    kind = algorithm_name(content)
    if kind == "BPE" and "ByteLevel" in {step["type"] for step in pretokenizer_steps(content)}:
        keys = _byte_level(source)
    elif kind == "BPE" and source.algorithm.get("byte_fallback"):
        keys = _sentencepiece(source)
    elif kind == "Unigram":
        keys = _unigram(source)
    elif kind == "WordPiece":
        keys = _word_piece(source)
    else:
        raise EdgekitError(
            f"{source.where}: a {kind} tokenizer{'' if kind != 'BPE' else ' without bytes'}: llama.cpp has none; it has BPE over"
            " bytes or with byte_fallback, Unigram and WordPiece"
        )
    _check_tokens(source, keys)
    keys |= _special(source, bert=kind == "WordPiece") | _templates(model)
    if isinstance(count := model.config.get("type_vocab_size"), int):
        keys["tokenizer.ggml.token_type_count"] = count
    if keys["tokenizer.ggml.model"] == "gpt2" and "tokenizer.ggml.pre" not in keys:
        keys["tokenizer.ggml.pre"] = choose_pretokenizer(model, content, keys)
    return keys


def general_name(model: Model, wanted: str) -> str:
    """The general.name under which llama.cpp treats spaces beside special tokens as the original does.

    It strips what follows them in files whose name holds "phi-3", and fails to load such a file without Phi-3's tokens; in files
    named "modern-bert", what is before [MASK] (llama-vocab.cpp, "set attributes by model/tokenizer/architecture name").
    """
    tokens = read_added_tokens(model.tokenizer_content, model.folder / "tokenizer.json")
    added = {token.content: token for token in tokens}
    strips = any(token.rstrip for token in tokens)
    if strips and {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= set(added):
        return wanted if re.search("phi-?3", wanted, re.IGNORECASE) else f"{wanted} (phi-3)"
    name = re.sub("(phi)-?(3)", r"\1 \2", wanted, flags=re.IGNORECASE)
    if "[MASK]" in added and added["[MASK]"].lstrip:
        return name if "modern-bert" in name.lower() else f"{name} (modern-bert)"
    return re.sub("(modern)-(bert)", r"\1\2", name, flags=re.IGNORECASE)


def _rows(model: Model) -> int:
    """How many ids the embedding takes."""
    if model.rows == math.inf:
        raise EdgekitError(f"{model.folder}: no embedding among its tensors ({', '.join(EMBEDDINGS)})")
    return int(model.rows)


def _byte_level(source: TokenizerFiles) -> dict[str, Value]:
    normalizer = as_table(source.content.get("normalizer"))
    if normalizer and not normalization(source.content):
        raise EdgekitError(f"{source.where}: normalizer {normalizer['type']}: llama.cpp has none for byte-level BPE")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": _tokens(source),
        "tokenizer.ggml.token_type": _types(source),
        "tokenizer.ggml.merges": _merges(source),
    }


def _sentencepiece(source: TokenizerFiles) -> dict[str, Value]:
    """BPE over characters, bytes for those that it does not know.

    llama.cpp joins any two neighbours that make a piece, the best score first; the original joins the pairs in its list. Where
    the list holds every such pair (SentencePiece's own models), the index in the list is the score. Where it does not, and no
    space is put before texts, llama.cpp's way with a list of merges on characters is the right one (the name of its first user).
    """
    missing = [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in source.ids]
    if missing:
        raise EdgekitError(
            f"{source.where}: byte_fallback without the token {missing[0]}: llama.cpp cannot read such a file"
        )
    if not source.merges:
        raise EdgekitError(
            f"{source.where}: it has no merges, so nothing says which pieces come first; save it again with transformers from the"
            " original tokenizer.model"
        )
    types = [
        BYTE if _BYTE.fullmatch(source.pieces.get(index, "")) else kind for index, kind in enumerate(_types(source))
    ]
    shared: dict[str, Value] = {
        "tokenizer.ggml.tokens": _tokens(source),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
    }
    if space_scheme(source.content) == "never" and not _is_closed(source):
        return shared | {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "sarvam-moe",
            "tokenizer.ggml.merges": _merges(source),
        }
    return shared | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": _scores(source),
        "tokenizer.ggml.add_space_prefix": space_prefix(source.model, source.content),
    }


def _scores(source: TokenizerFiles) -> Value:
    """tokenizer.model's scores, where it is there and says what tokenizer.json says; else each piece's index in the merges."""
    scores = np.full(source.rows, _NO_SCORE, np.float32)
    path = source.model.folder / "tokenizer.model"
    saved = read_pieces(path) if path.is_file() else []
    plain = {index: piece for index, piece in source.pieces.items() if index not in source.added}
    if saved and all(index < len(saved) and saved[index][0] == piece for index, piece in plain.items()):
        for index, (_, score) in enumerate(saved[: source.rows]):
            scores[index] = score
    else:
        ranks: dict[str, int] = {}
        for rank, (left, right) in enumerate(source.merges):
            ranks.setdefault(left + right, rank)
        for index, piece in plain.items():
            scores[index] = -float(ranks.get(piece, len(source.merges)))
    for index in source.added:
        scores[index] = -1000.0 if source.type(index) == USER_DEFINED else 0.0
    return scores


def _is_closed(source: TokenizerFiles) -> bool:
    """Whether every two pieces that make a third are among the merges."""
    listed = set(source.merges)
    plain = {
        piece for index, piece in source.pieces.items() if index not in source.added and not _BYTE.fullmatch(piece)
    }
    return all(
        (piece[:cut], piece[cut:]) in listed
        for piece in plain
        for cut in range(1, len(piece))
        if piece[:cut] in plain and piece[cut:] in plain
    )


def _unigram(source: TokenizerFiles) -> dict[str, Value]:
    scores = np.full(source.rows, _NO_SCORE, np.float32)
    for index, (_, score) in enumerate(source.scored):
        scores[index] = score
    bytes_too = bool(source.algorithm.get("byte_fallback"))
    types = [
        BYTE if bytes_too and _BYTE.fullmatch(source.pieces.get(index, "")) else kind
        for index, kind in enumerate(_types(source))
    ]
    if source.unknown is None:
        raise EdgekitError(
            f"{source.where}: model.unk_id: a Unigram tokenizer without an unknown token: llama.cpp needs one"
        )
    keys: dict[str, Value] = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": _tokens(source),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": space_scheme(source.content) != "never",
        "tokenizer.ggml.remove_extra_whitespaces": squeezes_spaces(source.content),
    }
    for step in normalizer_steps(source.content):
        charsmap = step.get("precompiled_charsmap")
        if step["type"] == "Precompiled" and isinstance(charsmap, str) and charsmap:
            keys["tokenizer.ggml.precompiled_charsmap"] = np.frombuffer(base64.b64decode(charsmap), np.uint8)
    return keys


def _word_piece(source: TokenizerFiles) -> dict[str, Value]:
    """llama.cpp marks the pieces that begin a word instead of those that go on."""
    inside = str(source.algorithm.get("continuing_subword_prefix") or "##")
    types = _types(source)
    tokens = [
        token
        if kind in {CONTROL, UNKNOWN, UNUSED}
        else token.removeprefix(inside)
        if token.startswith(inside)
        else _SPACE + token
        for token, kind in zip(_tokens(source), types, strict=True)
    ]
    lowercase = any(step["type"] == "Lowercase" or step.get("lowercase") for step in normalizer_steps(source.content))
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.normalizer.lowercase": lowercase,
        "tokenizer.ggml.normalizer.strip_accents": strips_accents(source.content),
    }


def _tokens(source: TokenizerFiles) -> list[str]:
    """Each id's text. Special tokens are looked for in the text itself, where a space is a space."""
    tokens = [source.pieces.get(index, f"[PAD{index}]") for index in range(source.rows)]
    for index in source.added:
        if source.type(index) == USER_DEFINED:
            tokens[index] = tokens[index].replace(_SPACE, " ")
    return tokens


def _types(source: TokenizerFiles) -> NDArray[np.int32]:
    return np.array([source.type(index) for index in range(source.rows)], np.int32)


def _merges(source: TokenizerFiles) -> list[str]:
    if not source.merges:
        raise EdgekitError(f"{source.where}: model.merges: none; save the tokenizer again")
    if any(" " in part for pair in source.merges for part in pair):
        raise EdgekitError(f"{source.where}: model.merges: a merge with a space in it, which llama.cpp cannot read")
    return [f"{left} {right}" for left, right in source.merges]


def _check_tokens(source: TokenizerFiles, keys: Mapping[str, Value]) -> None:
    """llama.cpp ends the process where two tokens are one."""
    seen: dict[str, int] = {}
    tokens = keys["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    for index, token in enumerate(tokens):
        # A zero byte ends a text of C's.
        if not token or token in seen or "\0" in token:
            other = f"the token {seen[token]} again" if token in seen else "empty"
            raise EdgekitError(
                f"{source.where}: the token {index} ({source.pieces.get(index)!r}) is {other} to llama.cpp"
            )
        seen[token] = index


def _special(source: TokenizerFiles, *, bert: bool) -> dict[str, Value]:
    """The ids of special tokens, and which of them are put around a text."""
    named = special_tokens(source.model.folder)
    ids = {name: source.ids[token] for name, token in named.items() if token in source.ids}
    for name in _IDS:
        index = source.model.config.get(f"{name}_id", source.model.text_config.get(f"{name}_id"))
        if isinstance(index, int) and 0 <= index < source.rows:
            ids.setdefault(name, index)
    if source.unknown is not None:
        ids["unk_token"] = source.unknown
    before, after = _around(source)
    if bert:
        if not before or not after or source.unknown is None:
            raise EdgekitError(
                f"{source.where}: llama.cpp puts [CLS] before a WordPiece tokenizer's texts and [SEP] behind them, and needs an"
                " unknown token; this one does not"
            )
        ids |= {"cls_token": before[0], "sep_token": after[0]}
    if before:
        ids["bos_token"] = before[0]
    stops = source.model.stops
    if after and not bert:
        ids["eos_token"] = after[0]
    elif stops and ids.get("eos_token") not in stops:
        ids["eos_token"] = stops[0]
    keys: dict[str, Value] = {f"tokenizer.ggml.{_IDS[name]}_token_id": index for name, index in ids.items()}
    keys["tokenizer.ggml.add_bos_token"] = bool(before)
    keys["tokenizer.ggml.add_eos_token"] = bool(after) and not bert
    keys["tokenizer.ggml.add_sep_token"] = bert or bool(before and after)
    return keys | _ends(source, [stop for stop in stops if stop != ids.get("eos_token")])


def _around(source: TokenizerFiles) -> tuple[list[int], list[int]]:
    """The ids that the original puts before and behind a text."""
    encoding = source.model.tokenizer().encode("a")
    mask = list(encoding.special_tokens_mask)
    count = next((index for index, added in enumerate(mask) if not added), len(mask))
    behind = next((index for index, added in enumerate(reversed(mask)) if not added), 0)
    before, after = encoding.ids[:count], encoding.ids[len(mask) - behind :]
    if len(before) > 1 or len(after) > 1:
        raise EdgekitError(
            f"{source.where}: it puts {before} before a text and {after} behind: llama.cpp puts one token at most"
        )
    return before, after


def _ends(source: TokenizerFiles, stops: Sequence[int]) -> dict[str, Value]:
    """End of turn and end of message: two more tokens to stop at, besides those that llama.cpp knows by name."""
    unknown = [stop for stop in stops if source.pieces.get(stop) not in _STOPS]
    turn = [stop for stop in stops if stop not in unknown]
    if len(unknown) > 2:
        raise EdgekitError(
            f"{source.model.folder / 'generation_config.json'}: eos_token_id: {stops} end a generation besides the end of text;"
            " llama.cpp has room for two that it does not know by name; keep those that the model says"
        )
    kept = [*unknown, *turn[: 1 if not unknown else 0]]
    return {f"tokenizer.ggml.{name}_token_id": stop for name, stop in zip(("eot", "eom"), kept, strict=False)}


def _templates(model: Model) -> dict[str, Value]:
    """The chat template; further ones under their names."""
    templates = find_templates(model.folder)
    others = sorted(set(templates) - {"default"})
    keys: dict[str, Value] = {f"tokenizer.chat_template.{name}": templates[name] for name in others}
    if "default" in templates:
        keys["tokenizer.chat_template"] = templates["default"]
    if others:
        keys["tokenizer.chat_templates"] = others
    return keys
