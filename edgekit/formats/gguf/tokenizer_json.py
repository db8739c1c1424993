"""What a checkpoint's tokenizer.json, and the files beside it, say about its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from edgekit.chat_template import find_templates, special_tokens
from edgekit.errors import EdgekitError
from edgekit.tokenizing import AddedToken, read_added_tokens
from edgekit.typed_json import as_list, as_table

if TYPE_CHECKING:
    from edgekit.model import Model

# gguf.md, tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}


Content = Mapping[str, object]
"""What a tokenizer.json says, or a part of it: the step of a normalizer or a pre-tokenizer."""


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """A checkpoint's tokenizer as tokenizer.json says it; `rows` is how many ids the embedding takes."""

    model: Model
    content: Content
    rows: int

    @property
    def where(self) -> str:
        """What an error names."""
        return str(self.model.folder / "tokenizer.json")

    @property
    def algorithm(self) -> Content:
        """tokenizer.json's `model`: how words become pieces."""
        return as_table(self.content["model"])

    @cached_property
    def added(self) -> dict[int, AddedToken]:
        """The added tokens by id."""
        return {token.id: token for token in read_added_tokens(self.content, self.where)}

    @cached_property
    def pieces(self) -> dict[int, str]:
        """Every id's piece as the original names it, added tokens included."""
        vocabulary = as_table(self.algorithm["vocab"])
        pieces = {index: piece for piece, index in vocabulary.items() if isinstance(index, int)}
        pieces |= dict(enumerate(piece for piece, _ in self.scored))
        return pieces | {index: token.content for index, token in self.added.items()}

    @cached_property
    def scored(self) -> list[tuple[str, float]]:
        """The pieces of a Unigram tokenizer with their scores, by id; [] of any other."""
        vocabulary = self.algorithm["vocab"]
        return [(piece, score) for piece, score in vocabulary] if isinstance(vocabulary, list) else []

    @cached_property
    def ids(self) -> dict[str, int]:
        """Every piece's id."""
        return {piece: index for index, piece in self.pieces.items()}

    @cached_property
    def unknown(self) -> int | None:
        """The id that stands for what the tokenizer does not know."""
        index, piece = self.algorithm.get("unk_id"), self.algorithm.get("unk_token")
        if isinstance(index, int):
            return index
        return self.ids.get(str(piece) if piece else special_tokens(self.model.folder).get("unk_token", ""))

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """Both forms in which the merges are saved: pairs, and texts with a space between."""
        pairs = [
            pair.split(" ") if isinstance(pair, str) else list(map(str, as_list(pair)))
            for pair in as_list(self.algorithm.get("merges"))
        ]
        if any(len(pair) != 2 for pair in pairs):
            raise EdgekitError(f"{self.where}: model.merges: a merge that is not a pair; save the tokenizer again")
        return [(left, right) for left, right in pairs]

    def type(self, index: int) -> int:
        """What llama.cpp takes a token for."""
        if index not in self.pieces:
            return UNUSED
        if index in self.added:
            if index == self.unknown:
                return UNKNOWN
            return CONTROL if self.added[index].special else USER_DEFINED
        return NORMAL


def algorithm_name(content: Content) -> str:
    """BPE, Unigram, WordPiece, ..."""
    return str(as_table(content["model"]).get("type"))


def pretokenizer_steps(content: Content) -> list[Content]:
    """A tokenizer.json's pre-tokenizers, one after another."""
    return _steps(content.get("pre_tokenizer"), "pretokenizers")


def normalizer_steps(content: Content) -> list[Content]:
    """A tokenizer.json's normalizers, one after another."""
    return _steps(content.get("normalizer"), "normalizers")


def _steps(value: object, several: str) -> list[Content]:
    step = as_table(value)
    if several in step:
        return [as_table(inner) for inner in as_list(step[several])]
    return [step] if step else []


def normalization(content: Content) -> str | None:
    """The Unicode form that a byte-level tokenizer brings texts into, where that is all that its normalizer does."""
    forms = [str(step["type"]) for step in normalizer_steps(content)]
    return "+".join(forms) if forms and set(forms) <= _FORMS else None


def strips_accents(content: Content) -> bool:
    """Whether a WordPiece tokenizer drops accents; BertNormalizer does where it lowercases, unless its own key says otherwise."""
    for step in normalizer_steps(content):
        own = step.get("strip_accents")
        if step["type"] == "StripAccents" or (step.get("lowercase") if own is None else own):
            return True
    return False


def squeezes_spaces(content: Content) -> bool:
    """Whether several spaces count as one and those around a text as none (SentencePiece's remove_extra_whitespaces)."""
    return any(step["type"] == "WhitespaceSplit" for step in pretokenizer_steps(content)) or any(
        step["type"] == "Replace" and as_table(step["pattern"]).get("Regex") == " {2,}"
        for step in normalizer_steps(content)
    )


def space_scheme(content: Content) -> str:
    """When the original writes a space before text: never; first (of the whole text); always (behind special tokens, too, but
    where there is one); prepend (even where there is one)."""
    if any(step["type"] == "Prepend" for step in normalizer_steps(content)):
        return "prepend"
    for step in pretokenizer_steps(content):
        if step["type"] == "Metaspace":
            legacy = "always" if step.get("add_prefix_space", True) else "never"
            return str(step.get("prepend_scheme", legacy))
    return "never"


def space_prefix(model: Model, content: Content) -> bool:
    """Whether llama.cpp shall write that space: it does so behind every special token.

    Where the original writes one before the first word only, a template's texts are right without.
    """
    scheme = space_scheme(content)
    return scheme != "never" and not (scheme == "first" and bool(find_templates(model.folder)))
