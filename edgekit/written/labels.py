"""Labels that a decoder gives to texts: how likely it finds each label of the set, all of them in one pass for each text.

A label's score is the sum, or the mean, of its tokens' log-probabilities behind the question (Brown et al., arXiv:2005.14165,
section 2.4, compare means, which long names lose nothing by). `audit` makes probabilities of scores, and labels of those.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgekit.duplicates import normalized
from edgekit.errors import EdgekitError
from edgekit.inputs import Content
from edgekit.progress import Progress, silent
from edgekit.prompts import Prompt, PromptSet
from edgekit.prompts.rows import read_prompts
from edgekit.recipe import Data
from edgekit.tables import read_table
from edgekit.written.decoders import Decoder, check_file, open_decoder
from edgekit.written.journal import Journal

LABELLING = "labels"
QUESTION = "Which of these categories does the text belong to?\n{labels}\n\nText: {text}\nCategory:"
# Texts that say nothing: those of Zhao et al., "Calibrate Before Use" (arXiv:2102.09690), section 5.
CONTENT_FREE = ("N/A", "[MASK]", "")
TEXTS, GOLD, FREE = range(3)
"""What a line is of (the second part of its place): a text without a label, a labelled row, a text that says nothing."""


@dataclass(frozen=True, kw_only=True)
class LabelsInputs:
    """What `score_labels` is given: a writer (a checkpoint's folder, or a .gguf file), a file of texts, and labelled prompts.

    texts: None for the train rows that have no label. labels: the set; names: what the writer is told each is called. audit: how
    many labelled train rows it is asked of. data: how the file is read.
    """

    STEP: ClassVar[str] = "labels"
    writer: Content
    texts: Content | None
    prompts: Content
    labels: Sequence[str]
    names: Mapping[str, str]
    question: str
    score: str
    audit: int
    data: Data
    llama: str | None = None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """How likely each label was found for a text, in nats, in the labels' order; None where the text is too long."""

    scores: list[float] | None


def score_labels(inputs: LabelsInputs, out: Path, progress: Progress = silent) -> dict[str, object]:
    """Score every label for each text, for the gold rows and for texts that say nothing, into `out`; a killed run continues.

    Raises EdgekitError where the writer cannot be run, and for a file of texts that cannot be read.
    """
    texts, gold = (
        read_texts(inputs),
        choose_gold(inputs.prompts.path, inputs.labels, inputs.audit),
    )
    asked = {(index, TEXTS): text for index, text in enumerate(texts)}
    asked |= {(index, GOLD): row.text for index, row in enumerate(gold)}
    asked |= {(index, FREE): text for index, text in enumerate(CONTENT_FREE)}
    place, journal = inputs.writer.path, Journal(out, Scored)
    left = [one for one in asked if one not in journal.found]
    progress(len(journal.found), len(asked), LABELLING)
    if left and place.is_file():
        check_file(place)
    if left:
        with closing(open_decoder(place)) as decoder:
            for one in left:
                journal.add(one, Scored(scores=_scores(decoder, asked[one], inputs)))
                progress(len(journal.found), len(asked), LABELLING)
    journal.finish()
    return {"texts": len(texts), "gold": len(gold)}


def read_texts(inputs: LabelsInputs) -> list[str]:
    """The texts that are to get labels, each once. Raises EdgekitError as `read_table` and `read_prompts` do."""
    if inputs.texts is None:
        rows: Sequence[Prompt] = find_bare(PromptSet(folder=inputs.prompts.path))
    else:
        path, data = inputs.texts.path, inputs.data
        rows = read_prompts(read_table(path, delimiter=data.delimiter, encoding=data.encoding), data, str(path)).prompts
    return list({normalized(row.text): row.text for row in reversed(rows)}.values())[::-1]


def find_bare(prompts: PromptSet) -> list[Prompt]:
    """The train rows that have no label."""
    return [row for row in prompts.split("train") if row.label is None]


def choose_gold(prompts: Path, labels: Sequence[str], most: int) -> list[Prompt]:
    """So many labelled train rows of the set, drawn by their texts' hashes; in the order of the split."""
    rows = [row for row in PromptSet(folder=prompts).split("train") if row.label in set(labels)]
    order = sorted(range(len(rows)), key=lambda place: hashlib.sha256(f"gold:{rows[place].text}".encode()).digest())
    return [rows[place] for place in sorted(order[:most])]


def _scores(decoder: Decoder, text: str, inputs: LabelsInputs) -> list[float] | None:
    names = [inputs.names.get(label, label) for label in inputs.labels]
    return score_names(decoder, ask(inputs.question, names, text), names, inputs.score)


def ask(question: str, names: Sequence[str], text: str) -> str:
    """The question of a text; the text is put in last, and nothing in it is replaced."""
    before, _, after = question.partition("{text}")
    told = ", ".join(names)
    return before.replace("{labels}", told) + text + after.replace("{labels}", told)


def score_names(decoder: Decoder, question: str, names: Sequence[str], score: str) -> list[float] | None:
    """How likely a decoder finds each name as the answer to a question, by one pass; None where they do not fit into its context.

    What is scored of a name is what differs from the question's own tokens: a tokenizer may join it with the question's end.
    Raises EdgekitError for numbers that are none.
    """
    prompt = Prompt(text=question)
    asked = decoder.asked(prompt)
    whole = [decoder.asked(prompt, begun=name if decoder.chats else f" {name}") for name in names]
    starts = [_alike(asked, ids) for ids in whole]
    shared = min(starts)
    if shared < 1 or any(len(ids) <= start for ids, start in zip(whole, starts, strict=True)):
        raise EdgekitError(
            f"the question {question[:60]!r} and one of the labels have no token of their own; change the names"
        )
    if decoder.context is not None and max(map(len, whole)) > decoder.context:
        return None
    found = []
    logs = decoder.branches(whole[0][:shared], [ids[shared:] for ids in whole])
    for start, each in zip(starts, logs, strict=True):
        own = each[start - shared :]
        found.append(float(own.mean() if score == "mean" else own.sum()))
    if not all(map(math.isfinite, found)):
        raise EdgekitError(
            f"the model gives NaN or infinite likelihoods behind {question[-60:]!r}; its weights are damaged"
        )
    return found


def _alike(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next(
        (place for place, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )
