"""Which written answers teach: those that are whole, say something, are said once, and are nothing that is judged on."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.duplicates import near_copies, normalized
from edgekit.errors import EdgekitError
from edgekit.prompts import Prompt, PromptSet
from edgekit.written.journal import Place, Written, read_lines
from edgekit.written.questions import read_questions

# A text that goes round in circles: of its windows of so many characters, the share that was there before.
_WINDOW, _REPEATED, _LONG_ENOUGH = 16, 0.5, 64
# An answer of fewer words is no text that two people would not both write.
_SHORT_ANSWER = 5
_APART = "nearly what another split has"


@dataclass(frozen=True, kw_only=True)
class Sifting:
    """Which answers stay: see `recipe.Answers`."""

    samples: int
    begin: float
    own: bool
    cut_off: str
    shortest: int
    longest: int | None


@dataclass(frozen=True, kw_only=True)
class _Taught:
    """A row that may teach; new: what of it no other split may have, nothing of the data's own rows."""

    prompt: Prompt
    new: tuple[str, ...] = ()


def sift(prompts: Path, written: Path, sifting: Sifting, out: Path) -> dict[str, object]:
    """Write a folder of prompts into `out` whose train split has the written answers; its other splits are copied.

    prompts: the folder whose train prompts were asked; written: that of the answers. Returns how many rows train has, how many of
    them are written (`kept`), and why others were left out (`left_out`). Raises EdgekitError where none stays.
    """
    given, left_out = PromptSet(folder=prompts), Counter[str]()
    rows = _whole(given, read_lines(written, Written), sifting, left_out)
    close = _near_others(given, rows)
    left_out[_APART] += len(close)
    kept = [row for place, row in enumerate(rows) if place not in close]
    count = sum(bool(row.new) for row in kept)
    reasons = {reason: left_out[reason] for reason in sorted(left_out) if left_out[reason]}
    if not count:
        told = ", ".join(f"{number} {reason}" for reason, number in reasons.items()) or "nothing was asked"
        raise EdgekitError(
            f"{written}: none of the written answers can teach ({told}); look at written.jsonl there, and change max_tokens,"
            " temperature, shortest, longest or cut_off in [answers]"
        )
    for path in sorted(prompts.glob("*.jsonl")):
        if path.stem != "train":
            shutil.copyfile(path, out / path.name)
    lines = (json.dumps(row.prompt.facts(), ensure_ascii=False) for row in kept)
    (out / "train.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return {"rows": len(kept), "kept": count, "left_out": reasons}


def _whole(
    given: PromptSet, answers: Mapping[Place, Written], sifting: Sifting, left_out: Counter[str]
) -> list[_Taught]:
    """The rows with answers that can teach, in the order of the train split; others are counted."""
    questions, places = read_questions(given.folder, sifting.begin)
    rows, answered = list[_Taught](), set[int]()
    for row, place in zip(given.split("train"), places, strict=True):
        seen = set[str]()
        if sifting.own and row.label is not None:
            seen.add(normalized(row.label))
            rows.append(_Taught(prompt=row))
        if place is None or place in answered:
            continue
        answered.add(place)
        for sample in range(sifting.samples):
            entry = answers[place, sample]
            if fault := _fault(entry, sifting, seen):
                left_out[fault] += 1
                continue
            answer, text = str(entry.answer), questions[place].text
            seen.add(normalized(answer))
            runs = row.label is None and not row.messages
            parts = (text + answer, *([text] if text != row.text else [])) if runs else ()
            said = replace(row, text=text, label=answer, choices=None, unfinished=entry.end == "length")
            rows.append(_Taught(prompt=said, new=(answer, *parts)))
    return rows


def _fault(entry: Written, sifting: Sifting, seen: set[str]) -> str | None:
    """Why an answer does not teach; None where it may. seen: the other answers to its prompt, normalized."""
    answer = entry.answer
    if entry.end == "failed" or answer is None:
        return "without an answer"
    if not answer.strip():
        return "empty"
    if entry.end == "length" and sifting.cut_off == "drop":
        return "cut off at max_tokens"
    if "\N{REPLACEMENT CHARACTER}" in answer or not _is_unicode(answer):
        return "not Unicode"
    if len(answer) < sifting.shortest:
        return "too short"
    if sifting.longest is not None and len(answer) > sifting.longest:
        return "too long"
    if is_repeating(answer):
        return "repeating themselves"
    return "said before" if normalized(answer) in seen else None


def is_repeating(text: str) -> bool:
    """Whether a text goes round in circles: half of its windows of 16 characters were there before.

    As Rae et al., "Scaling Language Models" (arXiv:2112.11446), table A1, leave out texts by their share of repeated n-grams;
    characters, so that it holds for scripts without spaces. Texts of less than 64 characters never do.
    """
    if len(text) < _LONG_ENOUGH:
        return False
    count = len(text) - _WINDOW + 1
    return 1 - len({text[place : place + _WINDOW] for place in range(count)}) / count > _REPEATED


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _near_others(given: PromptSet, rows: Sequence[_Taught]) -> set[int]:
    """The rows whose answer, or running text, is nearly a text or an answer of another split: their places."""
    others = given.apart()
    theirs = [row.text for row in others] + [row.label for row in others if row.label and _is_told(row.label)]
    mine = [(place, text) for place, row in enumerate(rows) for text in row.new if _is_told(text)]
    found = near_copies([(text, None) for _, text in mine], [(text, None) for text in theirs], masks_unlabelled=False)
    return {mine[index][0] for index in found}


def _is_told(text: str) -> bool:
    return len(text.split()) > _SHORT_ANSWER


def describe(written: Mapping[str, object], by: str) -> str:
    """What a user is told of the answers: how many of them teach, by whom, and why others do not."""
    left_out = written["left_out"]
    assert isinstance(left_out, Mapping)
    told = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    return f"train: {written['kept']} answers written by {by}" + (f"; left out: {told}" if told else "")
