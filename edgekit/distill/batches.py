"""SOURCES: what is learned from. A source reads the train split once and gives batches of it by row; each output has one."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from pathlib import Path

import torch
from torch import Tensor

from edgekit.distill.augment import Augment, vary
from edgekit.distill.corpus import Corpus, write_corpus
from edgekit.distill.signals import Batch, Packed
from edgekit.distill.splice import splice
from edgekit.errors import EdgekitError
from edgekit.modalities import text as text_modality
from edgekit.modalities.encoded import Encoded
from edgekit.modalities.text import IDS, MASK, of_tokens, token_ids
from edgekit.model import Model
from edgekit.outputs.rows import EMBEDDING, LOGITS
from edgekit.outputs.tokens import TOKENS
from edgekit.prompts import Prompt
from edgekit.schema import nearest
from edgekit.stored import Lazy, join
from edgekit.tasks import Task, tensors
from edgekit.tasks.text_generation import Passage, each_passage

# Texts that are encoded at a time where they are not held in memory.
_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows to learn from, by number: encoded texts, or passages of them."""

    lengths: Sequence[int]
    """How many tokens each row has."""
    train: Sequence[int]
    held: Sequence[int]
    """The rows to train on, and those held out for the early stop."""
    counts: Sequence[int]
    """How many outputs of each row are scored: 1, or of a decoder its tokens that the model is to say."""
    batch: Callable[[Sequence[int]], Batch]
    """The rows of these numbers as one batch, on the CPU."""
    identity: Mapping[str, object]
    """What the batches follow from: a run that differs in it is another run."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What a step writes about the source."""
    varied: Callable[[Sequence[int], int], Batch] | None = None
    """The rows of these numbers as they are read in an epoch (from 0), where their texts are changed."""
    passages: Sequence[Passage] = ()
    """Of a decoder, its rows as they are."""
    streams: bool = False
    """Whether its rows are read when they are asked for: they are more than memory should hold."""


@dataclass(frozen=True, kw_only=True)
class TrainSplit:
    """The texts of a train split, and what turns them into rows.

    model: whose tokenizer reads them. classes: what their labels may be, none where labels are not learned. augment: how texts
    are changed where they are trained on, spliced: how many new ones are made of each, of which those
    near to `apart` are left out; both are drawn by `seed`. packing: whether passages of a batch share rows of max_length.
    """

    texts: Sequence[Prompt]
    model: Model
    task: Task
    max_length: int
    holdout: float
    classes: Sequence[str] = ()
    out_of_scope: str | None = None
    augment: Augment | None = None
    seed: int = 0
    spliced: int = 0
    apart: Sequence[Prompt] = ()
    packing: bool = False
    folder: Path | None = None
    """Where the tokens of texts lie while it is learned from them that are not held in memory."""

    @property
    def streams(self) -> Path | None:
        """That folder, where the texts are not held in memory."""
        held = isinstance(self.texts, list) or self.task.MODALITY != text_modality.NAME
        return None if held else self.folder

    def targets(self, rows: Sequence[int]) -> Tensor:
        """`make_targets` of these rows."""
        texts = [self.texts[row] for row in rows]
        return make_targets(texts, self.classes, self.out_of_scope, str(self.model.folder))

    def parts(self) -> Iterator[range]:
        """All rows, some at a time."""
        return (range(first, min(first + _AT_ONCE, len(self.texts))) for first in range(0, len(self.texts), _AT_ONCE))


def read_texts(split: TrainSplit) -> Source:
    """One row per text, with the wanted probabilities of its classes.

    Raises EdgekitError for a label that is not a class.
    """
    texts, train, held = extend(split.texts, split.holdout, split.spliced, split.seed, split.apart)
    model, new, split = split.model, len(texts) - len(split.texts), replace(split, texts=texts)
    lengths, digest, subset = _read_whole(split) if split.streams is None else _read_apart(split, split.streams)
    targets = hashlib.sha256()
    for part in split.parts():
        targets.update(split.targets(part).numpy().tobytes())

    def batch_of(rows: Sequence[int], read: Encoded) -> Batch:
        inputs = tensors(read.batch())
        return Batch(rows=tuple(rows), tokens=inputs[IDS], mask=inputs[MASK], targets=split.targets(rows))

    def vary_rows(rows: Sequence[int], epoch: int) -> Batch:
        assert split.augment is not None
        changed = [vary(texts[row].text, split.augment, split.seed, epoch, row) for row in rows]
        prompts = [replace(texts[row], text=text) for row, text in zip(rows, changed, strict=True)]
        return batch_of(rows, split.task.encode(model, prompts, split.max_length))

    return Source(
        lengths=lengths,
        train=train,
        held=held,
        counts=Lazy(len(lengths), lambda _: 1),
        batch=lambda rows: batch_of(rows, subset(rows)),
        varied=None if split.augment is None else vary_rows,
        identity={"prompts": digest, "targets": targets.hexdigest()},
        facts={"spliced_texts": new} if split.spliced else {},
        streams=split.streams is not None,
    )


# Of texts how many tokens each has, sha256 over all of them, and those of some.
_Read = tuple[Sequence[int], str, Callable[[Sequence[int]], Encoded]]


def _read_whole(split: TrainSplit) -> _Read:
    encoded = split.task.encode(split.model, split.texts, split.max_length)
    return encoded.sizes, encoded.digest, encoded.subset


def _read_apart(split: TrainSplit, folder: Path) -> _Read:
    """The token ids of each text lie in a file of a folder."""

    def passages() -> Iterator[Passage]:
        for part in split.parts():
            encoded = split.task.encode(split.model, split.texts[part.start : part.stop], split.max_length)
            for row, ids in zip(part, token_ids(encoded), strict=True):
                yield Passage(ids=ids, start=0, prompt=row)

    corpus, pad = write_corpus(passages(), folder), split.task.pad_id(split.model)
    return corpus.lengths, corpus.digest, lambda rows: of_tokens([corpus[row].ids for row in rows], pad)


def read_passages(split: TrainSplit) -> Source:
    """One row per passage: the wanted answers, or all of running text. The passages of a text are held out together.

    Raises EdgekitError where no text has anything to say.
    """
    read = find_passages(split.model, split.texts, split.max_length, split.streams)
    chosen = set(hold_out((text.text for text in split.texts), split.holdout)[1])
    held = array("q", (index for index, passage in enumerate(read) if passage.prompt in chosen))
    train = array("q", (index for index, passage in enumerate(read) if passage.prompt not in chosen))
    return passage_source(
        read, *((train, held) if train else (held, [])), room=split.max_length if split.packing else 0
    )


def passage_source(read: Sequence[Passage], train: Sequence[int], held: Sequence[int], room: int = 0) -> Source:
    """Passages as rows: their tokens from each start on are scored. room: see `score`."""
    corpus = read if isinstance(read, Corpus) else None
    lengths = [len(passage.ids) for passage in read] if corpus is None else corpus.lengths
    starts = [passage.start for passage in read] if corpus is None else corpus.starts
    counts = Lazy(len(read), lambda row: lengths[row] - starts[row])
    return Source(
        lengths=lengths,
        train=train,
        held=held,
        counts=counts,
        batch=lambda rows: score([read[row] for row in rows], rows, room),
        identity={"passages": corpus.digest} if corpus else {"ids": [one.ids for one in read], "starts": starts},
        facts={"train_tokens": sum(counts[row] for row in train)},
        passages=read,
        streams=corpus is not None,
    )


SOURCES: dict[str, Callable[[TrainSplit], Source]] = {
    EMBEDDING.name: read_texts,
    LOGITS.name: read_texts,
    TOKENS.name: read_passages,
}


def find_passages(
    model: Model, texts: Sequence[Prompt], max_length: int, folder: Path | None = None
) -> Sequence[Passage]:
    """What there is to say in each text. The end of a running text is said too, else a model would forget how to stop.

    folder: where they lie, in a file; None for a list. Raises EdgekitError where no text has anything to say: conversations
    without an answer.
    """
    read = _say_all(model, texts, max_length)
    first = next(read, None)
    if first is None:
        raise EdgekitError(f"{model.folder}: no train row has an answer to learn; name their column in data.answer")
    return [first, *read] if folder is None else write_corpus(chain([first], read), folder)


def _say_all(model: Model, texts: Sequence[Prompt], max_length: int) -> Iterator[Passage]:
    end = model.stops[:1]
    for place, found in groupby(each_passage(model, texts, max_length), lambda one: one.prompt):
        said = [passage for passage in found if passage.start < len(passage.ids)]
        ids = said[-1].ids if said else []
        if said and texts[place].label is None and len(ids) < max_length and ids[-1:] != end:
            said[-1] = replace(said[-1], ids=ids + end)
        yield from said


def score(read: Sequence[Passage], rows: Sequence[int] = (), room: int = 0) -> Batch:
    """Passages as one batch, padded on the right (a decoder sees nothing to the right of a token), with what is scored.

    room: as many tokens of passages lie behind each other in a row of the batch as there is room for; 0: each has its own row.
    """
    lengths = [len(passage.ids) for passage in read]
    places = pack_rows(lengths, room) if room else [(row, 0) for row in range(len(read))]
    lines = [list[int]() for _ in range(max(row for row, _ in places) + 1)]
    for passage, (row, _) in sorted(zip(read, places, strict=True), key=lambda one: one[1]):
        lines[row] += passage.ids
    inputs = tensors(of_tokens(lines, 0).batch())
    counts = torch.tensor([len(passage.ids) - passage.start for passage in read])
    texts = torch.repeat_interleave(torch.arange(len(read)), counts)
    positions = torch.cat(
        [
            torch.arange(first + passage.start - 1, first + len(passage.ids) - 1)
            for passage, (_, first) in zip(read, places, strict=True)
        ]
    )
    own = torch.zeros_like(inputs["input_ids"])
    for length, (row, first) in zip(lengths, places, strict=True):
        own[row, first : first + length] = torch.arange(length)
    return Batch(
        rows=tuple(rows),
        tokens=inputs["input_ids"],
        mask=inputs["attention_mask"],
        targets=torch.tensor([token for passage in read for token in passage.ids[passage.start :]]),
        scored=(torch.tensor([row for row, _ in places])[texts], positions),
        packed=Packed(places=places, positions=own, texts=texts) if room else None,
    )


def pack_rows(lengths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Of each text its row and its first position there: first fit, the longest first; one that is longer has a row alone.

    First fit decreasing takes at most 11/9 of the fewest rows and two thirds of one (Dosa 2007, doi:10.1007/978-3-540-74450-4_1).
    """
    filled = list[int]()
    places = [(0, 0)] * len(lengths)
    for text in sorted(range(len(lengths)), key=lambda text: (-lengths[text], text)):
        row = next((row for row, taken in enumerate(filled) if taken + lengths[text] <= room), len(filled))
        if row == len(filled):
            filled.append(0)
        places[text] = (row, filled[row])
        filled[row] += lengths[text]
    return places


def make_targets(rows: Sequence[Prompt], classes: Sequence[str], out_of_scope: str | None, where: str) -> Tensor:
    """Wanted probabilities [rows, classes]: one class, all alike for an out-of-scope text that has none, zeros without a label.

    Raises EdgekitError (beginning with `where`) for a label that is not a class.
    """
    columns = {name: index for index, name in enumerate(classes)}
    targets = torch.zeros(len(rows), len(classes))
    if not classes:
        return targets
    for index, row in enumerate(rows):
        if row.label is None:
            continue
        if row.label in columns:
            targets[index, columns[row.label]] = 1.0
        elif row.label == out_of_scope:
            targets[index] = 1 / len(classes)
        else:
            raise EdgekitError(
                f"{where}: the label {row.label!r} is not one of its classes{nearest(row.label, classes)}"
            )
    return targets


def extend(
    texts: Sequence[Prompt], holdout: float, spliced: int, seed: int, apart: Sequence[Prompt]
) -> tuple[Sequence[Prompt], Sequence[int], Sequence[int]]:
    """Texts with as many new ones of each that is trained on behind them (`splice`), and which are trained on and held out."""
    train, held = hold_out((text.text for text in texts), holdout)
    if not spliced:
        return texts, train, held
    more = join(texts, splice(texts, train, spliced, seed, apart))
    return more, array("q", chain(train, range(len(texts), len(more)))), held


def hold_out(texts: Iterable[str], share: float) -> tuple[Sequence[int], Sequence[int]]:
    """Which texts to train on, and which are held out: by a text's hash, so that it stays when others are added."""
    kept, held = array("q"), array("q")
    for index, text in enumerate(texts):
        number = int.from_bytes(hashlib.sha256(f"holdout:{text}".encode()).digest()[:8], "big") / 2**64
        (held if number < share else kept).append(index)
    return (kept, held) if kept else (held, array("q"))
