"""Whether llama.cpp reads texts as the original tokenizer does: ids against ids, the first difference is the answer.

The original is the checkpoint's tokenizer.json in the `tokenizers` library. What llama.cpp cannot do for any file is told as a
limit, and texts of ours that run into one are left out or rewritten; the user's own texts never are (but see `spaced`).
"""

from __future__ import annotations

import ctypes
import itertools
import json
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import tokenizing
from edgekit.artifact import Parity
from edgekit.errors import EdgekitError, require
from edgekit.formats.gguf.file import read_gguf
from edgekit.formats.gguf.probe_texts import PROBE_TEXTS
from edgekit.formats.gguf.tokenizer_json import (
    Content,
    algorithm_name,
    normalization,
    normalizer_steps,
    pretokenizer_steps,
    space_scheme,
    squeezes_spaces,
    strips_accents,
)
from edgekit.runtimes.llamacpp.library import ERROR, PACKAGE, open_library
from edgekit.tokenizing import AddedToken, read_added_tokens
from edgekit.typed_json import as_table

if TYPE_CHECKING:
    from edgekit.model import Model

# llama.h, enum llama_token_attr.
_UNKNOWN, _CONTROL, _LSTRIP, _RSTRIP = 1, 8, 128, 256
_SHOWN = 8
# Texts that everybody has: no reading of them may differ. Of the others so large a share of WordPiece's may.
_EVERYBODYS = frozenset({"plain", "digits", "code", "punctuation", "mixed"})
_MOST_DIFFER = 0.25
# What llama.cpp's WordPiece does otherwise for any file: why, whether only where accents are stripped, which characters.
# Found by comparing every character below U+30000, each between two letters, on all-MiniLM-L6-v2.
WORD_PIECE_LIMITS: dict[str, tuple[str, bool, Callable[[str], bool]]] = {
    "controls": (
        "vertical tab, form feed and next line are taken for spaces or the reverse",
        False,
        "\v\f\x85▁".__contains__,
    ),
    "Hangul": ("Korean syllables keep only their first letter", True, lambda letter: "가" <= letter <= "힣"),
    "marks": (
        "vowel signs and enclosing marks (Indic scripts, keycaps) are dropped as if they were accents",
        True,
        lambda letter: unicodedata.category(letter) in {"Mc", "Me"},
    ),
}


class Vocabulary:
    """llama.cpp's tokenizer of a GGUF file; the weights are not read.

    pre: a pre-tokenizer to use instead of the file's tokenizer.ggml.pre. Raises EdgekitError where llama.cpp does not load it.
    """

    def __init__(self, path: Path, pre: str | None = None) -> None:
        require(PACKAGE.module, extra=PACKAGE.extra)
        opened = open_library()
        self._library = opened.functions
        self._model = opened.load_model(path, only_vocabulary=True, pre=pre)
        if not self._model:
            errors = [line.text.strip() for line in opened.log if line.level == ERROR]
            raise EdgekitError(
                f"{path}: llama.cpp does not load its vocabulary: {'; '.join(errors[:2]) or 'no reason given'}"
            )
        self._vocabulary = self._library.llama_model_get_vocab(self._model)
        self._room = (self._library.llama_token * 4096)()

    def encode(self, text: str, *, special: bool, add: bool) -> list[int]:
        """Token ids. special: special tokens in the text become tokens. add: as configured, BOS and EOS are put around it."""
        data = text.encode("utf-8")
        while True:
            room = len(self._room)
            count = self._library.llama_tokenize(self._vocabulary, data, len(data), self._room, room, add, special)
            if count >= 0:
                return list(self._room[:count])
            self._room = (self._library.llama_token * -count)()

    def attributes(self, token: int) -> int:
        """The bits of llama.cpp's enum llama_token_attr."""
        return int(self._library.llama_vocab_get_attr(self._vocabulary, token))

    def text(self, token: int) -> str:
        """A token as the file names it."""
        return str(self._library.llama_vocab_get_text(self._vocabulary, token).decode("utf-8", "replace"))

    def decode(self, ids: Sequence[int]) -> str:
        """What ids say, without special tokens; bytes that are no character as U+FFFD."""
        tokens = (self._library.llama_token * len(ids))(*ids)
        room = 8 * len(ids) + 8
        while True:
            text = (ctypes.c_char * room)()
            count = self._library.llama_detokenize(self._vocabulary, tokens, len(ids), text, room, False, False)
            if count >= 0:
                return text.raw[:count].decode("utf-8", "replace")
            room = -count

    @cached_property
    def stops(self) -> list[int]:
        """The tokens that end a generation."""
        count = self._library.llama_vocab_n_tokens(self._vocabulary)
        return [token for token in range(count) if self._library.llama_vocab_is_eog(self._vocabulary, token)]

    @property
    def bos(self) -> int | None:
        """The token that `encode(add=True)` puts before a text, where it puts one."""
        if not self._library.llama_vocab_get_add_bos(self._vocabulary):
            return None
        return int(self._library.llama_vocab_bos(self._vocabulary))

    def close(self) -> None:
        """Free what llama.cpp holds."""
        if self._model:
            self._library.llama_model_free(self._model)
        self._model = None


@contextmanager
def open_vocabulary(path: Path, pre: str | None = None) -> Iterator[Vocabulary]:
    """A Vocabulary that is closed at the end of the block."""
    vocabulary = Vocabulary(path, pre)
    try:
        yield vocabulary
    finally:
        vocabulary.close()


def check_parity(model: Model, gguf: Path, texts: Sequence[str]) -> Parity:
    """Compare the ids of our texts and of the user's (`texts`), special tokens parsed or not, added or not.

    Raises EdgekitError that shows the first difference, and where a token that ends a generation in the original does not in
    llama.cpp.
    """
    with open_vocabulary(gguf) as ours:
        comparison = Comparison(model, ours, gguf)
        for kind, probes in comparison.probes().items():
            comparison.compare_ours(kind, probes)
        comparison.compare_prompts(texts)
        for special in (False, True):
            comparison.compare_special_tokens(special)
        comparison.check_stops()
        return comparison.parity(len(texts))


class Comparison:
    """One tokenizer and llama.cpp's reading of it, with what llama.cpp cannot do for it."""

    def __init__(self, model: Model, ours: Vocabulary, where: Path) -> None:
        self.model, self.ours, self.where = model, ours, where
        self.original = model.tokenizer()
        self.content: Content = json.loads(self.original.to_str())
        self.added = read_added_tokens(self.content, model.folder / "tokenizer.json")
        self.algorithm = algorithm_name(self.content)
        self.limits: dict[str, str] = {}
        self.compared = 0
        self.kinds: set[str] = set()
        self.differing: list[tuple[str, EdgekitError]] = []

    def probes(self) -> dict[str, list[str]]:
        """Our texts, without those that llama.cpp cannot read as the original; why is noted in `limits`."""
        kinds = {**PROBE_TEXTS, "vocabulary": self._pieces()}
        return {kind: [text for probe in texts for text in self._within_limits(probe)] for kind, texts in kinds.items()}

    def compare(self, kind: str, texts: Sequence[str], modes: Iterable[tuple[bool, bool]] | None = None) -> None:
        """Compare all texts in each mode (special tokens parsed, special tokens added)."""
        self.kinds.add(kind)
        self.compared += len(texts)
        for special, add in modes or ((False, False), (False, True), (True, False), (True, True)):
            wanted = self.encode(texts, special=special, add=add)
            for text, ids in zip(texts, wanted, strict=True):
                own = self.ours.encode(self.spaced(text, special=special), special=special, add=add)
                if own != ids:
                    raise self.differs(kind, text, ids, own, special=special, add=add)

    def compare_ours(self, kind: str, texts: Sequence[str]) -> None:
        """Texts of our own. Of WordPiece a few may differ, which is a limit: llama.cpp has one way for all, and its tables of
        letters are not those of each version of the original; the user's texts have the word on what matters."""
        if self.algorithm != "WordPiece" or kind in _EVERYBODYS:
            self.compare(kind, texts)
            return
        for text in texts:
            try:
                self.compare(kind, [text])
            except EdgekitError as differs:
                self.differing.append((text, differs))
        if len(self.differing) > _MOST_DIFFER * self.compared:
            raise self.differing[0][1]
        if self.differing:
            shown = ", ".join(escaped(text) for text, _ in self.differing[:2])
            self.limits["letters"] = (
                f"llama.cpp: {len(self.differing)} of our {self.compared} texts are read otherwise, as {shown}"
            )

    def compare_prompts(self, texts: Sequence[str]) -> None:
        """The user's texts: in all four modes where a special token's text is in one, else one says it all.

        Some of llama.cpp's pre-tokenizers (gpt-4o, tekken) take milliseconds for a text.
        """
        names = "|".join(re.escape(token.content) for token in self.added)
        different = list(dict.fromkeys(texts))
        marked = {text for text in different if names and re.search(names, text)}
        self.compare("prompts", [text for text in different if text not in marked], [(True, True)])
        self.compare("prompts", [text for text in different if text in marked])

    def encode(self, texts: Sequence[str], *, special: bool, add: bool) -> list[list[int]]:
        """The original's ids."""
        self.original.encode_special_tokens = not special
        encodings = tokenizing.encode(self.original, texts, f"{self.where}: tokenizer parity", add_special_tokens=add)
        return [encoding.ids for encoding in encodings]

    def compare_special_tokens(self, special: bool) -> None:
        """Each added token within text and beside spaces, as a token (special) or as mere text."""
        kind = "special tokens as tokens" if special else "special tokens as text"
        texts: list[str] = []
        for token in self.added:
            content, bits = token.content, self.ours.attributes(token.id)
            if not special and token.special != bool(bits & (_CONTROL | _UNKNOWN)):
                self.note("as text", f"{content} is read as {'text' if bits & _CONTROL else 'a token'} unless asked")
                continue
            if token.single_word:
                self.note("single word", f"{content} is a token inside of words, too")
                continue
            tries = self._around(token, bits, special)
            if not special and token.special and self._takes_text_for(token.id, tries):
                continue
            texts += tries
        self.compare(kind, texts, [(special, False), (special, True)])

    def _takes_text_for(self, token: int, texts: Sequence[str]) -> bool:
        """Whether one of both takes a special token's mere text for the token: a model that knows it as a piece does."""
        content = self.ours.text(token)
        for text, ids in zip(texts, self.encode(texts, special=False, add=False), strict=True):
            taken = token in self.ours.encode(text, special=False, add=False)
            if taken and token not in ids:
                self.note(
                    "text to token", f"the mere text {content} becomes the token: keep it out of what users write"
                )
                return True
            if token in ids and not taken:
                self.note("token to text", f"the mere text {content} stays text; in the original it becomes the token")
                return True
        return False

    def check_stops(self) -> None:
        """Whether llama.cpp stops where the original does."""
        missing = [token for token in self.model.stops if token not in self.ours.stops]
        if missing:
            names = ", ".join(f"{token} ({self.ours.text(token)})" for token in missing)
            raise EdgekitError(
                f"{self.where}: the tokens {names} end a generation in the original, but not in llama.cpp, which has room for"
                " three; take from generation_config.json's eos_token_id those that the model never says"
            )

    def parity(self, user_texts: int) -> Parity:
        """What was compared, and what llama.cpp does not do as the original."""
        return Parity(
            texts=self.compared,
            user_texts=user_texts,
            kinds=tuple(sorted(self.kinds)),
            limits=tuple(sorted(self.limits.values())),
            stops={"original": tuple(sorted(self.model.stops)), "llama.cpp": tuple(self.ours.stops)},
        )

    def spaced(self, text: str, *, special: bool) -> str:
        """A text with the space before its first word that the original adds and this file leaves to the caller.

        See `tokenizer.space_prefix`: such a file is for conversations, whose templates write every space.
        """
        if not self._caller_writes_space or not text or text.startswith((" ", "▁")):
            return text
        if any(text.startswith(token.content) for token in self.added if special or not token.special):
            return text
        self.note("caller", "before the first word of a text that is no conversation the caller writes a space")
        return f" {text}"

    def _pieces(self, count: int = 200) -> list[str]:
        """Texts of random tokens, which run into every part of the vocabulary; the same ones for equal vocabularies."""
        draw = random.Random(0)
        size = self.original.get_vocab_size(with_added_tokens=False)
        ids = [[draw.randrange(size) for _ in range(12)] for _ in range(count)]
        return [text.replace("\ufffd", "") for text in self.original.decode_batch(ids)]  # halves of characters

    def _within_limits(self, text: str) -> list[str]:
        """The text, or what of it llama.cpp can read as the original."""
        form = normalization(self.content)
        if form and self.original.normalizer.normalize_str(text) != text:
            self.note(form, f"texts are not brought into {form}, as the original does: pass them in {form}")
            text = self.original.normalizer.normalize_str(text)
        if self.algorithm == "WordPiece":
            text = self._within_word_piece(text)
        if self.algorithm == "Unigram":
            text = self._within_unigram(text)
        if self._splits_case and (any(unicodedata.category(letter)[0] == "M" for letter in text) or _other_case(text)):
            self.note("case", "words of other scripts are not split at capitals and marks as the original does")
            return []
        if (
            self._spaces in {"first", "always"}
            and not self._caller_writes_space
            and not squeezes_spaces(self.content)
            and text.startswith((" ", "▁"))
        ):
            self.note("space", "a space at the start of a text gets another before it")
            return []
        return [text]

    def _within_word_piece(self, text: str) -> str:
        limit = as_table(self.content["model"]).get("max_input_chars_per_word")
        longest = limit if isinstance(limit, int) else 100
        if max((len(word) for word in text.split()), default=0) > longest:
            self.note("long", f"words of more than {longest} characters are not one unknown token")
            text = text[:longest]
        for name, (why, where_accents_go, matches) in WORD_PIECE_LIMITS.items():
            if (strips_accents(self.content) or not where_accents_go) and any(map(matches, text)):
                self.note(name, why)
                text = "".join(character for character in text if not matches(character))
        return text

    def _within_unigram(self, text: str) -> str:
        if any(step["type"] == "Precompiled" for step in normalizer_steps(self.content)):
            # tokenizers drops the rest of a cluster where its map knows the beginning; SentencePiece and llama.cpp do not.
            pairs = zip(text, " " + text, strict=False)
            kept = "".join(
                mark for mark, last in pairs if not (unicodedata.combining(mark) and unicodedata.combining(last))
            )
            if kept != text:
                self.note("clusters", "of several marks on one letter none is dropped")
            if "\x85" in kept:
                self.note("controls", "next line (U+0085) is no space")
            text = kept.replace("\x85", "")
        if self._keeps_end and text != text.rstrip():
            self.note("end", "spaces at the end of a text are dropped")
            text = text.rstrip()
        return text

    @cached_property
    def _keeps_end(self) -> bool:
        """Whether the original keeps one of the spaces at the end of a text, where llama.cpp squeezes them to none."""
        split = any(step["type"] == "WhitespaceSplit" for step in pretokenizer_steps(self.content))
        stripped = any(step["type"] == "Strip" and step.get("strip_right") for step in normalizer_steps(self.content))
        return squeezes_spaces(self.content) and not split and not stripped

    def _around(self, token: AddedToken, bits: int, special: bool) -> list[str]:
        """Texts with the token in them, of the shapes that llama.cpp can read as the original."""
        content = token.content
        tight, spaced = f"ab{content}cd", f"ab {content} cd"
        if not special and token.special:
            return [content, tight, spaced]
        if self._spaces == "first" and not self._caller_writes_space:
            self.note("behind", "text behind a special token gets a space before it")
            tight, spaced = f"ab{content}", f"ab {content}"
        elif self._keeps_end:
            spaced = tight
        elif self._spaces == "always":
            spaced = f"ab {content}cd"
        if (token.lstrip, token.rstrip) != (bool(bits & _LSTRIP), bool(bits & _RSTRIP)):
            self.note("strip", f"spaces around {content} are kept")
            return [content, tight]
        return [content, tight, spaced]

    @cached_property
    def _splits_case(self) -> bool:
        """Whether it splits words between small letters and capitals: llama.cpp knows those of ASCII only (tekken, gpt-4o)."""
        return any("\\p{Lu}" in json.dumps(step).replace("\\\\", "\\") for step in pretokenizer_steps(self.content))

    @cached_property
    def _spaces(self) -> str:
        return space_scheme(self.content)

    @cached_property
    def _caller_writes_space(self) -> bool:
        # A file that does not say so has llama.cpp write it, as SentencePiece does.
        return self._spaces == "first" and not read_gguf(self.where).metadata.get(
            "tokenizer.ggml.add_space_prefix", True
        )

    def note(self, name: str, why: str) -> None:
        """Keep what llama.cpp cannot do, once for each name."""
        self.limits.setdefault(name, f"llama.cpp: {why}")

    def differs(
        self, kind: str, text: str, wanted: list[int], own: list[int], *, special: bool, add: bool
    ) -> EdgekitError:
        """The error that shows where the original's ids (`wanted`) and llama.cpp's (`own`) part."""
        mode = f"special tokens {'parsed' if special else 'as text'}, {'with' if add else 'without'} those it adds"
        why = "".join(f"; {limit}" for limit in self._reasons(text))
        return EdgekitError(
            f"{self.where}: llama.cpp reads a text otherwise than the original tokenizer ({kind}; {mode}):"
            f" {escaped(text)}: {difference(wanted, own, self.ours)}{why}"
        )

    def _reasons(self, text: str) -> list[str]:
        """The limits that this text of the user's runs into."""
        before = dict(self.limits)
        self.limits = {}
        self._within_limits(text)
        reasons, self.limits = list(self.limits.values()), before
        return reasons


def difference(wanted: Sequence[int], own: Sequence[int], ours: Vocabulary) -> str:
    """The ids around the first index at which two lists differ, with the pieces that they stand for."""
    index = next(
        (index for index, (left, right) in enumerate(zip(wanted, own, strict=False)) if left != right),
        min(len(wanted), len(own)),
    )
    start = max(index - 2, 0)

    def show(ids: Sequence[int]) -> str:
        shown = " ".join(f"{token}({escaped(ours.text(token))[1:-1]})" for token in ids[start : start + _SHOWN])
        return f"[{'... ' * (start > 0)}{shown}{' ...' * (len(ids) > start + _SHOWN)}]"

    return f"from token {index} on the original has {show(wanted)}, llama.cpp has {show(own)}"


def _other_case(text: str) -> bool:
    """Whether a capital follows a small letter and one of them is not ASCII."""
    pairs = itertools.pairwise(text)
    return any(
        left.islower() and not right.islower() and right.isalpha() and not (left + right).isascii()
        for left, right in pairs
    )


def escaped(text: str) -> str:
    """A text as an error shows it: in one line, its middle left out where it is long."""
    shown = text if len(text) <= 160 else f"{text[:80]}...{text[-80:]}"
    return (
        "'" + "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in shown) + "'"
    )
