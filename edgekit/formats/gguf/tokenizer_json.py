"""What a checkpoint's tokenizer.json, and the files beside it, say about its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgekit.chat_template import find_templates, special_tokens
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.model import Model

# gguf.md, tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """A checkpoint's tokenizer as tokenizer.json says it; `rows` is how many ids the embedding takes."""

    model: Model
    content: dict[str, Any]
    rows: int

    @property
    def where(self) -> str:
        """What an error names."""
        return str(self.model.folder / "tokenizer.json")

    @cached_property
    def added(self) -> dict[int, dict[str, Any]]:
        """The added tokens by id."""
        return {int(token["id"]): token for token in self.content.get("added_tokens") or []}

    @cached_property
    def pieces(self) -> dict[int, str]:
        """Every id's piece as the original names it, added tokens included."""
        vocabulary = self.content["model"]["vocab"]
        if isinstance(vocabulary, list):
            pieces = dict(enumerate(piece for piece, _ in vocabulary))
        else:
            pieces = {place: piece for piece, place in vocabulary.items()}
        return pieces | {place: token["content"] for place, token in self.added.items()}

    @cached_property
    def ids(self) -> dict[str, int]:
        """Every piece's id."""
        return {piece: place for place, piece in self.pieces.items()}

    @cached_property
    def unknown(self) -> int | None:
        """The id that stands for what the tokenizer does not know."""
        kind = self.content["model"]
        if kind.get("unk_id") is not None:
            return int(kind["unk_id"])
        return self.ids.get(kind.get("unk_token") or special_tokens(self.model.folder).get("unk_token", ""))

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """Both forms in which the merges are saved: pairs, and texts with a space between."""
        found = self.content["model"].get("merges") or []
        pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in found]
        if any(len(pair) != 2 for pair in pairs):
            raise EdgekitError(f"{self.where}: model.merges: a merge that is not a pair; save the tokenizer again")
        return [(left, right) for left, right in pairs]

    def type(self, place: int) -> int:
        """What llama.cpp is told that a token is."""
        if place not in self.pieces:
            return UNUSED
        if place in self.added:
            if place == self.unknown:
                return UNKNOWN
            return CONTROL if self.added[place]["special"] else USER_DEFINED
        return NORMAL


def pretokenizer_steps(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A tokenizer.json's pre-tokenizers, one after another."""
    found = content.get("pre_tokenizer") or {}
    return list(found.get("pretokenizers", [found] if found else []))


def normalizer_steps(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A tokenizer.json's normalizers, one after another."""
    found = content.get("normalizer") or {}
    return list(found.get("normalizers", [found] if found else []))


def normalization(content: Mapping[str, Any]) -> str | None:
    """The Unicode form that a byte-level tokenizer brings texts into, where that is all that its normalizer does."""
    forms = [step["type"] for step in normalizer_steps(content)]
    return "+".join(forms) if forms and set(forms) <= _FORMS else None


def strips_accents(content: Mapping[str, Any]) -> bool:
    """Whether a WordPiece tokenizer drops accents; BertNormalizer does where it lowercases, unless told otherwise."""
    for step in normalizer_steps(content):
        told = step.get("strip_accents")
        if step["type"] == "StripAccents" or (step.get("lowercase") if told is None else told):
            return True
    return False


def squeezes_spaces(content: Mapping[str, Any]) -> bool:
    """Whether several spaces count as one and those around a text as none (SentencePiece's remove_extra_whitespaces)."""
    return any(step["type"] == "WhitespaceSplit" for step in pretokenizer_steps(content)) or any(
        step["type"] == "Replace" and step["pattern"].get("Regex") == " {2,}" for step in normalizer_steps(content)
    )


def space_scheme(content: Mapping[str, Any]) -> str:
    """When the original writes a space before text: never; first (of the whole text); always (behind special tokens, too, but
    where there is one); prepend (even where there is one)."""
    if any(step["type"] == "Prepend" for step in normalizer_steps(content)):
        return "prepend"
    for step in pretokenizer_steps(content):
        if step["type"] == "Metaspace":
            legacy = "always" if step.get("add_prefix_space", True) else "never"
            return str(step.get("prepend_scheme", legacy))
    return "never"


def space_prefix(model: Model, content: Mapping[str, Any]) -> bool:
    """Whether llama.cpp shall write that space: it does so behind every special token.

    Where the original writes one before the first word only, a template's texts are right without.
    """
    scheme = space_scheme(content)
    return scheme != "never" and not (scheme == "first" and bool(find_templates(model.folder)))
