"""A table's rows become prompts: texts with labels or answers, or whole conversations. What cannot is told, all at once."""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit.errors import EdgekitError, first_line
from edgekit.prompts.prompt import Prompt, parse
from edgekit.recipe import Data
from edgekit.stored import Spool
from edgekit.tables import Rows, Table, column_names, has_column, headerless, value_of

# So many bad rows are told one by one.
SHOWN = 10
# Characters of a row: a decoder's tokenizer takes seconds for so many each time that it reads them, minutes for some more, and
# of one text no more than 32,768 tokens are scored.
LONGEST = 1_000_000
# ShareGPT's names of who speaks.
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The prompts of a table; how many of its rows were left out, by reason, and how many values were converted, by kind."""

    prompts: Sequence[Prompt]
    dropped: Counter[str] = field(default_factory=Counter)
    converted: Counter[str] = field(default_factory=Counter)


class _Bad(Exception):
    """A row that is no prompt; its message names the column and the remedy."""


def read_prompts(table: Table, data: Data, where: str, folder: Path | None = None) -> Reading:
    """The rows of a table as prompts, its columns being those that `data` names.

    folder: where prompts lie, in a file without a name, that are of a table which is not held in memory.

    Empty texts are left out and counted, but for those of the out-of-scope label: silence is one. Raises EdgekitError for a
    column that is not there and, where `data.bad_rows` does not say to drop them, for rows that are no prompts: all in one
    message.
    """
    _check_columns(table, data, where)
    prompts, reading, problems = _Prompts(folder, table), Reading(prompts=()), []
    for row in table.rows:
        if row.problem:
            problems.append(row.problem)
            continue
        try:
            prompt = (
                _conversation(row.values, data, reading) if data.messages else _text(row.values, data, table, reading)
            )
            _check_length(prompt, data)
        except _Bad as bad:
            problems.append(f"row {row.number}: {bad}")
            continue
        if _is_blank(prompt.text) and (prompt.label is None or prompt.label != data.out_of_scope):
            reading.dropped["empty texts"] += 1
            continue
        more = {"group": _group(row.values, data.group), "row": row.number}
        prompts.add(Prompt(**vars(prompt) | more))
    if problems and data.bad_rows == "refuse":
        raise EdgekitError(f"{where}: {_told(problems)}")
    if problems:
        reading.dropped["bad rows"] += len(problems)
    return replace(reading, prompts=prompts.all())


class _Prompts:
    """Prompts as they are read: in a list or, of a table that is read in passes, in a file of a folder."""

    def __init__(self, folder: Path | None, table: Table) -> None:
        self._held = list[Prompt]()
        self._spool = None if folder is None or not isinstance(table.rows, Rows) else Spool(folder)

    def add(self, prompt: Prompt) -> None:
        if self._spool is None:
            self._held.append(prompt)
        else:
            self._spool.add(json.dumps({**prompt.facts(), "row": prompt.row}).encode())

    def all(self) -> Sequence[Prompt]:
        return self._held if self._spool is None else self._spool.rows(parse)


def _told(problems: Sequence[str]) -> str:
    drop = 'set data.bad_rows = "drop" (--drop-bad-rows) to go on without'
    if len(problems) == 1:
        return f"{problems[0]}; or {drop} it"
    rest = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    # The first with its remedy, the others as short as they can be.
    shown = "; ".join([problems[0], *(problem.split("; ")[0][:90] for problem in problems[1:SHOWN])])
    return f"{len(problems)} rows are no prompts: {shown}{rest}. Mend them, or {drop} them"


def _check_columns(table: Table, data: Data, where: str) -> None:
    if next(iter(table.rows), None) is None:
        raise EdgekitError(f"{where}: no rows in it; add some")
    told = ("messages", data.messages) if data.messages else ("text", data.text)
    more = {key: getattr(data, key) for key in ("label", "answer", "choices", "tools", "group")}
    for key, column in (told, *more.items()):
        if column and not has_column(table, column) and any(row.problem is None for row in table.rows):
            text = headerless(table.columns)
            hint = (
                f"; its first line looks like a row ({text[:40]!r}): put one with the columns' names above it"
                if text
                else ""
            )
            raise EdgekitError(
                f"{where}: data.{key}: no column {column!r} (its columns: {', '.join(column_names(table))}){hint}"
            )


def _check_length(prompt: Prompt, data: Data) -> None:
    said = json.dumps(prompt.messages, ensure_ascii=False) if prompt.messages else prompt.text
    length = len(said) + len(prompt.label or "")
    if length > LONGEST:
        raise _Bad(
            f"{data.messages or data.text}: {length:,} characters, and {LONGEST:,} are the most; split it into several rows"
        )


def _is_blank(text: str) -> bool:
    """Whether there is nothing to see: white space, controls and format characters alone."""
    return all(letter.isspace() or unicodedata.category(letter) in {"Cf", "Cc"} for letter in text)


def _text(row: Mapping[str, object], data: Data, table: Table, reading: Reading) -> Prompt:
    text = _string(value_of(row, data.text), data.text)
    label = None
    if data.label:
        label = _label(value_of(row, data.label), data.label, table.classes.get(data.label), reading)
        label = (data.labels or {}).get(label, label)
    if data.answer:
        answer = value_of(row, data.answer)
        label = _string(answer, data.answer) or None if answer is not None else None
    choices = _choices(row, label, data.choices)
    return Prompt(text=text, label=label, choices=choices, tools=_tools(row, data.tools))


def _string(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise _Bad(f"{column}: {value!r:.60} is not a string")
    try:
        value.encode()
    except UnicodeEncodeError as bad:
        raise _Bad(f"{column}: holds half of a character ({value[bad.start]!r}, a lone surrogate)") from bad
    return value


def _label(value: object, column: str, names: Sequence[str] | None, reading: Reading) -> str:
    """A label as text: a class number's name, whole numbers without a fraction, true and false as JSON writes them."""
    if isinstance(value, list | tuple | dict):
        raise _Bad(
            f"{column}: {json.dumps(value, default=str):.60} is not one label: several labels a text are not supported; give"
            " one, or a column for each label and a recipe for each column"
        )
    if names is not None and isinstance(value, int):
        value = names[value] if 0 <= value < len(names) else None
    if isinstance(value, float) and math.isnan(value):
        value = None
    if value is None or (isinstance(value, str) and not value.strip()):
        raise _Bad(f"{column}: no label; add one, or remove the row")
    if isinstance(value, str):
        return _string(value, column)
    reading.converted[type(value).__name__] += 1
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    raise _Bad(f"{column}: {value!r:.60} is no class: a label is a text or a whole number")


def _conversation(row: Mapping[str, object], data: Data, reading: Reading) -> Prompt:
    """A row of whole conversations: a last turn of the assistant is the wanted answer."""
    column = str(data.messages)
    turns = value_of(row, column)
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        turns = _json(turns, column)
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise _Bad(f'{column}: not a conversation; expected [{{"role": "user", "content": "..."}}, ...]')
    messages = [_turn(turn, column) for turn in turns]
    label = None
    if messages and messages[-1]["role"] == "assistant":
        last = messages.pop()
        label = _content(last) or None
        if "tool_calls" in last:
            # What is called is no text that an answer could be compared with.
            label = None
            reading.converted["a last turn that calls a tool to no answer"] += 1
    text = "\n".join(_content(turn) for turn in messages if turn["role"] == "user")
    if not text:
        raise _Bad(f"{column}: the user says nothing; remove the row")
    choices = _choices(row, label, data.choices)
    return Prompt(text=text, label=label, messages=messages, choices=choices, tools=_tools(row, data.tools))


def _content(turn: Mapping[str, object]) -> str:
    """A turn's text; nothing where it has none beside its tool calls."""
    return str(turn.get("content") or "")


def _turn(turn: Mapping[str, object], column: str) -> dict[str, object]:
    """A turn with every key that it has (tool_calls, name, reasoning_content, ...), for the template; text parts as one text.

    ShareGPT's `from` and `value` are `role` and `content` too. A content of null stands for none beside tool calls.
    """
    if "from" in turn and "role" not in turn:
        turn = {"role": _SPEAKERS.get(str(turn["from"]), turn["from"]), "content": turn.get("value")}
    if not isinstance(turn.get("role"), str):
        raise _Bad(
            f'{column}: not a conversation: a turn has no "role"; expected [{{"role": "user", "content": "..."}}, ...]'
        )
    content = turn.get("content")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, Mapping) or part.get("type", "text") != "text":
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise _Bad(
                    f"{column}: not a conversation of texts: a part of a turn is {kind!r}; only text is supported"
                )
        content = "\n".join(_string(part.get("text"), column) for part in content)
    if content is None and "content" not in turn and "tool_calls" not in turn:
        raise _Bad(f"{column}: not a conversation: a turn of {turn['role']!r} has no content")
    rest = {key: value for key, value in turn.items() if key not in {"role", "content"} and value is not None}
    return {"role": turn["role"], "content": None if content is None else _string(content, column), **rest}


def _json(text: str, column: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as bad:
        raise _Bad(f"{column}: not valid JSON: {first_line(bad)}") from bad


def _tools(row: Mapping[str, object], column: str | None) -> list[dict[str, object]] | None:
    """The functions that may be called, as JSON schemas, or as the JSON text of their list."""
    value = value_of(row, column) if column else None
    if isinstance(value, str) and value.strip():
        value = _json(value, str(column))
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise _Bad(f"{column}: expected a list of functions' JSON schemas")
    return value


def _group(row: Mapping[str, object], column: str | None) -> str | None:
    """What a row's text shares with others; a row without one stands for itself."""
    value = value_of(row, column) if column else None
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _choices(row: Mapping[str, object], label: str | None, column: str | None) -> list[str] | None:
    """The answers to choose from, the wanted one among them."""
    choices = value_of(row, column) if column else None
    if choices is None:
        return None
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) and one for one in choices):
        raise _Bad(f"{column}: expected a list of two or more strings, none of them empty")
    if label not in choices:
        raise _Bad(f"{column}: the wanted answer {label!r} is not among them")
    return choices
