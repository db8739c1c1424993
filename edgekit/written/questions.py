"""What a writer is asked: each prompt of the train split once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt to be answered: what the user says, or a whole conversation and the functions that may be called in it."""

    text: str
    messages: Sequence[Mapping[str, object]] | None = None
    tools: Sequence[Mapping[str, object]] | None = None

    @property
    def conversation(self) -> list[Mapping[str, object]]:
        """As messages, as endpoints take them."""
        return list(self.messages or [{"role": "user", "content": self.text}])


def read_questions(prompts: Path, begin: float) -> tuple[list[Question], list[int | None]]:
    """The questions of a prompts folder's train split, and of each of its rows the index of its question.

    begin: the share of a running text's characters that is asked, up to the end of a line or else of a word. None: a row of
    which nothing is left to be asked. Rows with the same prompt have one question.
    """
    lines = (prompts / "train.jsonl").read_text(encoding="utf-8").split("\n")
    found: dict[str, int] = {}
    questions, places = list[Question](), list[int | None]()
    for row in (json.loads(line) for line in lines if line):
        runs = row["label"] is None and not row.get("messages")
        text = beginning(row["text"], begin) if runs else row["text"]
        if not text.strip():
            places.append(None)
            continue
        question = Question(text=text, messages=row.get("messages"), tools=row.get("tools"))
        key = json.dumps([question.text, question.messages, question.tools], sort_keys=True)
        if key not in found:
            found[key] = len(questions)
            questions.append(question)
        places.append(found[key])
    return questions, places


def beginning(text: str, share: float) -> str:
    """The beginning of a text: this share of its characters at most, up to the end of a line, else to that of a word."""
    if share >= 1:
        return text
    part = text[: int(len(text) * share)]
    for end in ("\n", " "):
        if place := part.rfind(end) + 1:
            return part[:place] if end == "\n" else part[: place - 1]
    return part
