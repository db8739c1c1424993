"""The nouns: a prompt, and a set of them in three disjoint splits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.stored import read_lines

SPLITS = ("train", "calibrate", "verify")
# What verdicts are made on: each text counts once. The final split is for the last one, and in no other's way.
JUDGING = ("verify", "final")
# What `build --recover` chooses on: what it has in common with any other split leaves it, never the other.
RECOVER = "recover"
# Of prompts that another split judges: the verify split whose place that has.
ASIDE = "aside"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One text and, where known, its label; `row` counts from 1 in the file that it was read from.

    For text-generation `label` is the wanted answer, `choices` those that the model picks the likeliest of, `messages` a
    whole conversation ({"role": ..., "content": ...} each, without the wanted answer), of which `text` is what the user says,
    and `tools` the JSON schemas of the functions that the model may call in it. `group` names what texts have in common that
    are not independent of each other: their speaker, document, template or ticket. `unfinished`: whether the answer would go on
    behind its last word, so that its end is none.
    """

    text: str
    label: str | None = None
    row: int = field(default=0, compare=False)
    choices: Sequence[str] | None = None
    messages: Sequence[Mapping[str, object]] | None = None
    tools: Sequence[Mapping[str, object]] | None = None
    group: str | None = None
    unfinished: bool = False

    def facts(self) -> dict[str, object]:
        """As a split's file has it: what is not there is left out, but for the label."""
        names = ("choices", "messages", "tools", "group", "unfinished")
        more = {name: value for name in names if (value := getattr(self, name))}
        return {"text": self.text, "label": self.label, **more}


def parse(line: bytes) -> Prompt:
    """A prompt of its facts as JSON."""
    return Prompt(**json.loads(line))


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """A folder with train.jsonl, calibrate.jsonl and verify.jsonl, as `gather` writes it."""

    folder: Path

    def split(self, name: str) -> Sequence[Prompt]:
        """The prompts of a split, in file order, a large one's read when they are asked for; an absent split is empty."""
        path = self.folder / f"{name}.jsonl"
        return read_lines(path, parse) if path.exists() else []

    def apart(self) -> list[Prompt]:
        """The prompts of all splits but train, those that another judges for included: nothing that teaches may be near them."""
        names = [name for name in (*SPLITS, "final", RECOVER, ASIDE) if name != "train"]
        return [row for name in names for row in self.split(name)]
