"""A vocabulary cut down to what texts need: every text still has tokens, and the texts at hand have the same ones.

Of a model of few layers the embedding is most of the bytes, and most of its rows are tokens that its texts never have.
What stays: the tokens of the texts, special tokens, all single characters and bytes, into which every other word falls, and what
could not be written with them.
A tokenizer that takes the longest piece (WordPiece), the likeliest pieces (Unigram) or the earliest merge (BPE) then takes what
it took before wherever that is still there, since nothing was added that could come before it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.distill.files import TOKENIZER_FILES, copy_tokenizer
from edgekit.errors import EdgekitError
from edgekit.model import load_model
from edgekit.schema import read_json
from edgekit.typed_json import as_list, as_table

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.model import Model

# What is left of a tokenizer whose tokens changed: the other files would tell the old ones.
_WRITTEN = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# Texts that are read at a time.
_AT_ONCE = 1024
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Rows that a vocabulary keeps free for others to use; no text has them.
_UNUSED = re.compile(r"[\[<]unused_?\d+[\]>]")


def choose_tokens(model: Model, seen: Iterable[int], most: int, where: str) -> list[int]:
    """The ids that stay, rising, `most` at most.

    seen: the ids of the texts. Where there is room for more, the tokens of the lowest ids come next: vocabularies are written in
    the order of how frequent a token was where they were learned. Raises EdgekitError (beginning with `where`) for a tokenizer
    that has no pieces of words, and where the texts and the characters alone need more.
    """
    content = model.tokenizer_content
    pieces = _read(as_table(content["model"]), where)
    needed = {token.id for token in model.added_tokens} | set(seen)
    for token, index in pieces.ids.items():
        if pieces.must_stay(token):
            needed.add(index)
    needed = pieces.closed(needed)
    if len(needed) > most:
        raise EdgekitError(
            f"{where}: {most}: the tokens of the train texts, special tokens and single characters are {len(needed)};"
            " give at least as many"
        )
    kept = set(needed)
    for token, index in sorted(pieces.ids.items(), key=lambda entry: entry[1]):
        if index in kept or _UNUSED.fullmatch(token):
            continue
        more = pieces.closed({index}) - kept
        if len(kept) + len(more) <= most:
            kept |= more
    return sorted(kept)


def write_tokenizer(source: Path, out: Path, kept: Sequence[int]) -> None:
    """Write the tokenizer of a checkpoint with the tokens `kept` alone, numbered anew in their order, into a model's folder."""
    for name in TOKENIZER_FILES:
        (out / name).unlink(missing_ok=True)
    copy_tokenizer(source, out)
    for name in set(TOKENIZER_FILES).difference(_WRITTEN):
        (out / name).unlink(missing_ok=True)
    numbers = {old: index for index, old in enumerate(kept)}
    file = out / "tokenizer.json"
    _dump(trim(as_table(read_json(file)), numbers), file)
    settings = out / "tokenizer_config.json"
    if settings.is_file():
        table = as_table(read_json(settings))
        if added := as_table(table.get("added_tokens_decoder")):
            named = {str(numbers[int(old)]): entry for old, entry in added.items() if int(old) in numbers}
            _dump({**table, "added_tokens_decoder": named}, settings)


def check_same(teacher: Path, student: Path, texts: Sequence[str], kept: Sequence[int], max_length: int) -> None:
    """Raise EdgekitError where a student's tokenizer reads one of the texts otherwise than its teacher's does."""
    numbers = {old: index for index, old in enumerate(kept)}
    models = [load_model(folder) for folder in (teacher, student)]
    for begin in range(0, len(texts), _AT_ONCE):
        part = texts[begin : begin + _AT_ONCE]
        before, after = (model.encode(part, max_length) for model in models)
        for text, wanted, found in zip(part, before, after, strict=True):
            if [numbers.get(token) for token in wanted] != found:
                raise EdgekitError(
                    f"{teacher / 'tokenizer.json'}: with fewer tokens it reads {text[:60]!r} otherwise than before; remove"
                    " student.vocabulary"
                )


def find_tokens(teacher: Path, student: Path) -> Tensor | None:
    """A teacher's ids of its student's tokens, int64, -1 for ids without a token; None where they are the same.

    Raises EdgekitError for a student with tokens that its teacher has not.
    """
    import torch

    theirs, own = (load_model(folder).tokenizer().get_vocab(with_added_tokens=True) for folder in (teacher, student))
    if theirs == own:
        return None
    if unknown := sorted(own.keys() - theirs.keys()):
        raise EdgekitError(
            f"{student / 'tokenizer.json'}: the teacher has no token {unknown[0]!r}, so that it cannot read what its student"
            f" reads ({len(unknown)} tokens in all); make the student from this teacher"
        )
    ids = torch.full((max(own.values()) + 1,), -1)
    for token, index in own.items():
        ids[index] = theirs[token]
    return ids


def trim(content: Mapping[str, object], numbers: Mapping[int, int]) -> dict[str, object]:
    """A tokenizer.json with the tokens of `numbers` alone, old ids -> new ones."""
    model = as_table(content["model"])
    pieces = _read(model, "tokenizer.json")
    table = dict(model)
    if isinstance(model["vocab"], list):
        table["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in numbers]
        if isinstance(unknown := model.get("unk_id"), int):
            table["unk_id"] = numbers[unknown]
    else:
        table["vocab"] = {token: numbers[index] for token, index in pieces.ids.items() if index in numbers}
    if "merges" in model:
        table["merges"] = [merge for merge in as_list(model["merges"]) if pieces.survives(merge, numbers)]
    added = [
        {**as_table(entry), "id": numbers[number]}
        for entry in as_list(content.get("added_tokens"))
        if isinstance(number := as_table(entry)["id"], int) and number in numbers
    ]
    trimmed = {**content, "model": table, "added_tokens": added}
    if content.get("post_processor"):
        trimmed["post_processor"] = _renumbered(content["post_processor"], numbers)
    if padding := as_table(content.get("padding")):
        number = padding.get("pad_id")
        trimmed["padding"] = {**padding, "pad_id": numbers.get(number, 0) if isinstance(number, int) else 0}
    return trimmed


@dataclass(frozen=True, kw_only=True)
class _Pieces:
    """A vocabulary: its tokens' ids, and which two each may be merged of.

    prefix: of a piece that begins no word, suffix: of one that ends a word. bytes: whether a character that has no token of its
    own is read as bytes.
    """

    ids: Mapping[str, int]
    unknown: str | None
    prefix: str
    suffix: str
    bytes: bool
    parts: Mapping[int, Collection[tuple[int, int]]]

    def must_stay(self, token: str) -> bool:
        """A character, a byte, the unknown token, and whatever could not be written with characters."""
        if token == self.unknown or _BYTE.fullmatch(token):
            return True
        spelled = self.spell(token)
        return len(spelled) == 1 or not (self.bytes or all(piece in self.ids for piece in spelled))

    def spell(self, token: str) -> list[str]:
        """The tokens of a token's characters."""
        begins, ends = not token.startswith(self.prefix) or not self.prefix, token.endswith(self.suffix)
        bare = token.removeprefix(self.prefix).removesuffix(self.suffix) or token
        last = len(bare) - 1
        return [
            f"{'' if begins and index == 0 else self.prefix}{character}{self.suffix if ends and index == last else ''}"
            for index, character in enumerate(bare)
        ]

    def closed(self, ids: Iterable[int]) -> set[int]:
        """The ids with all that they may be merged of."""
        found: set[int] = set()
        waiting = list(ids)
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                waiting += [part for pair in self.parts.get(index, ()) for part in pair]
        return found

    def survives(self, merge: object, numbers: Mapping[int, int]) -> bool:
        """Whether both parts of a merge, and what they make, are still there."""
        left, right = _halves(merge)
        return all(
            self.ids.get(token, -1) in numbers for token in (left, right, left + right.removeprefix(self.prefix))
        )


def _read(model: Mapping[str, object], where: str) -> _Pieces:
    """A tokenizer.json's model. Raises EdgekitError for a kind without pieces of words."""
    kind, vocabulary = model.get("type"), model.get("vocab")
    if isinstance(vocabulary, list):
        ids = {str(as_list(entry)[0]): index for index, entry in enumerate(vocabulary)}
    else:
        ids = {token: int(str(index)) for token, index in as_table(vocabulary).items()}
    prefix, suffix = str(model.get("continuing_subword_prefix") or ""), str(model.get("end_of_word_suffix") or "")
    if kind not in {"WordPiece", "BPE", "Unigram"}:
        raise EdgekitError(
            f"{where}: the teacher's tokenizer ({kind}) knows whole words alone, and would read every other text as unknown;"
            " remove this key"
        )

    parts: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for merge in as_list(model.get("merges")):
        left, right = _halves(merge)
        made = ids.get(left + right.removeprefix(prefix))
        if made is not None and left in ids and right in ids:
            parts[made].append((ids[left], ids[right]))
    unknown = model.get("unk_token")
    number = model.get("unk_id")
    if isinstance(number, int):
        unknown = next((token for token, index in ids.items() if index == number), None)
    return _Pieces(
        ids=ids,
        unknown=None if unknown is None else str(unknown),
        prefix=prefix,
        suffix=suffix,
        bytes=bool(model.get("byte_fallback")),
        parts=parts,
    )


def _halves(merge: object) -> tuple[str, str]:
    """The two tokens of a merge, which older files write with a space between them."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else as_list(merge)
    return str(left), str(right)


def _renumbered(processor: object, numbers: Mapping[int, int]) -> object:
    """A post-processor with new ids: lists of ids in templates, and pairs of a token and its id."""
    if isinstance(processor, list):
        if len(processor) == 2 and isinstance(processor[0], str) and isinstance(processor[1], int):
            return [processor[0], numbers[processor[1]]]
        return [_renumbered(part, numbers) for part in processor]
    if not isinstance(processor, dict):
        return processor
    return {
        key: [numbers[index] for index in part] if key == "ids" else _renumbered(part, numbers)
        for key, part in processor.items()
    }


def _dump(table: Mapping[str, object], path: Path) -> None:
    path.write_text(json.dumps(table, ensure_ascii=False, indent=2), encoding="utf-8", newline="\n")
