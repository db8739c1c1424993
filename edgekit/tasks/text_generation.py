"""text-generation: a decoder continues a text, or answers a conversation through its chat template.

Its output is not one row per text but the likelihood of each next token: record, verify and the probe have a path of their
own for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import tokenizing
from edgekit.chat_template import converse, find_templates, pick_template, special_tokens, template_form
from edgekit.errors import EdgekitError
from edgekit.modalities import text
from edgekit.outputs.tokens import TOKENS
from edgekit.tasks import rows
from edgekit.tasks.padding import find_pad_id

if TYPE_CHECKING:
    from torch import nn

    from edgekit.modalities.encoded import Encoded
    from edgekit.model import Model
    from edgekit.prompts import Prompt

NAME = "text-generation"
MODALITY = text.NAME
OUTPUT = TOKENS.name
TEMPLATE = "chat_template.jinja"
"""What a chat template's file is called, by transformers too."""
# What follows an answer in a template shows behind this one, which no template rewrites.
_ANY_ANSWER = "An answer."


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Token ids of a prompt with its answer, as a deployed model sees them; `prompt` is the prompt's place in its split.

    The tokens from `start` on (at least 1) are what the model says: the answer, or of running text all but the first.
    """

    ids: list[int]
    start: int
    prompt: int

    @property
    def asked(self) -> list[int]:
        """What the model is given to answer."""
        return self.ids[: self.start]


def load(folder: Path) -> nn.Module:
    """A decoder: (input_ids, attention_mask) -> logits [batch, sequence, vocabulary], float32, in eval mode.

    Raises EdgekitError for a checkpoint that is no decoder, or whose weights do not fit config.json.
    """
    from edgekit.tasks.decoders import load_decoder

    return load_decoder(folder)


def open_model(folder: Path) -> Model:
    """The checkpoint with its tokenizer.json."""
    from edgekit.model import load_model

    return load_model(folder)


def length(model: Model, max_length: int) -> int:  # noqa: ARG001 - one signature for all
    """How many tokens a passage has at most: max_length."""
    return max_length


def settings(model: Model) -> dict[str, object]:
    """chat: whether it takes conversations; parts: whether its template wants a text as a list of parts; stop: the tokens that
    end an answer; special: what a chat template may write.

    Tokens are texts, those of `special` by name ("bos_token", ...).
    """
    tokenizer, voice, special = model.tokenizer(), Voice(model), special_tokens(model.folder)
    ends = [tokenizer.id_to_token(token) for token in model.stops]
    return {
        "chat": voice.template is not None,
        "parts": voice.template is not None and template_form(voice.template, special) == "parts",
        "stop": [end for end in ends if end],
        "special": special,
    }


def chat_template(model: Model) -> str | None:
    """The template that conversations are written with; None of a model that only continues texts."""
    return Voice(model).template


def encode(model: Model, prompts: Sequence[Prompt], max_length: int) -> Encoded:
    """The token ids of every passage: a running text that is longer than max_length gives several."""
    read = passages(model, prompts, max_length)
    return text.of_tokens([one.ids for one in read], find_pad_id(model), owners=[one.prompt for one in read])


def pad_id(model: Model) -> int:
    """The token that fills up a shorter text of a batch."""
    return find_pad_id(model)


def ship(model: Model, max_length: int, out: Path) -> None:
    """The tokenizer, and the template that conversations are written with where it has one."""
    rows.ship(model, max_length, out)
    template = chat_template(model)
    if template is not None:
        (out / TEMPLATE).write_text(template, encoding="utf-8", newline="\n")


def passages(model: Model, prompts: Sequence[Prompt], max_length: int) -> list[Passage]:
    """The prompts as the deployed model sees them, each with its wanted answer where it has one.

    A model with a chat template gets conversations, and answers end as its template ends a turn. One without gets the text and
    the answer behind each other, or running text, which is cut into blocks of max_length tokens. Raises EdgekitError for a
    conversation without a template, and where a prompt leaves no room for an answer.
    """
    return [*each_passage(model, prompts, max_length)]


def each_passage(model: Model, prompts: Iterable[Prompt], max_length: int) -> Iterator[Passage]:
    """`passages`, one after the other."""
    voice = Voice(model)
    for place, prompt in enumerate(prompts):
        yield from voice.passages(prompt, prompt.label, place, max_length)


def conversation(prompt: Prompt) -> list[Mapping[str, object]]:
    """A prompt as messages: its own, or its text as what the user says."""
    return list(prompt.messages or [{"role": "user", "content": prompt.text}])


def choice_passages(model: Model, prompts: Sequence[Prompt], max_length: int) -> list[list[Passage]]:
    """Of every prompt one passage per choice: which one the model finds the likeliest is its answer."""
    voice = Voice(model)
    return [
        [voice.passages(prompt, choice, place, max_length)[0] for choice in prompt.choices or ()]
        for place, prompt in enumerate(prompts)
    ]


def endless_turns(model: Model) -> str | None:
    """A warning where what the chat template writes behind an answer holds no token that ends one; None where all is well."""
    voice = Voice(model)
    if voice.template is None:
        return None
    try:
        asked = voice.render([{"role": "user", "content": "Hello."}, {"role": "assistant", "content": _ANY_ANSWER}])
    except EdgekitError:
        return None  # a template that takes no such conversation is told of where its own are rendered
    end = asked.rpartition(_ANY_ANSWER)[2]
    tokenizer = model.tokenizer()
    if _ANY_ANSWER not in asked or set(tokenizer.encode(end, add_special_tokens=False).ids) & set(model.stops):
        return None
    known = ", ".join(repr(tokenizer.id_to_token(stop)) for stop in model.stops) or "none"
    return (
        f"{model.folder}: the chat template ends an answer with {end!r}, in which no token stops a generation (those that do:"
        f" {known}): answers go on to the limit; add the token's id to eos_token_id in generation_config.json"
    )


class Voice:
    """How a model is spoken to: its chat template and tokens, or plain text."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._tokenizer = model.tokenizer()
        self._templates = find_templates(model.folder)
        self.template = pick_template(self._templates)
        self.special = special_tokens(model.folder)
        self._stops = model.stops

    def asked(self, prompt: Prompt, *, begun: str = "", today: datetime | None = None) -> list[int]:
        """The ids of what the model is given before its answer, however long, or before what is left of one that is `begun`; see
        `render`."""
        if self.template is None:
            return self._encode(prompt.text + begun, added=True)
        asked = self.render(conversation(prompt), prompt.tools, generation_prompt=True, today=today)
        return self._encode(asked + begun)

    def passages(self, prompt: Prompt, answer: str | None, place: int, max_length: int) -> list[Passage]:
        """The prompt's passages; without an answer to a conversation, the passage ends where the answer would begin, and with one
        that is unfinished behind its last word: no token there ends it."""
        if self.template is None:
            if prompt.messages:
                raise EdgekitError(
                    f"{self.model.folder}: no chat template in it, so it cannot take conversations (data.messages); name"
                    " the fine-tuned (instruct) model, or give texts"
                )
            return self._plain(prompt, answer, place, max_length)
        asked, whole = self._conversation(prompt, answer)
        return [self._passage(prompt, self._encode(asked), self._encode(whole), place, max_length)]

    def _plain(self, prompt: Prompt, answer: str | None, place: int, max_length: int) -> list[Passage]:
        asked = self._encode(prompt.text, added=True)
        if answer is None:
            blocks = [asked[begin : begin + max_length] for begin in range(0, len(asked), max_length)]
            return [Passage(ids=block, start=1, prompt=place) for block in blocks if len(block) > 1]
        whole = self._encode(prompt.text + answer, added=True)
        # Some tokenizers end a text themselves.
        ended = bool(whole) and whole[-1] in self._stops
        if prompt.unfinished:
            whole = whole[:-1] if ended else whole
        else:
            whole += [] if ended else self._stops[:1]
        return [self._passage(prompt, asked, whole, place, max_length)]

    def _conversation(self, prompt: Prompt, answer: str | None) -> tuple[str, str]:
        messages = conversation(prompt)
        asked = self.render(messages, prompt.tools, generation_prompt=True)
        if answer is None:
            return asked, asked
        if prompt.unfinished:
            return asked, asked + answer
        said = [*messages, {"role": "assistant", "content": answer}]
        whole = self.render(said, prompt.tools)
        if whole.startswith(asked):
            return asked, whole
        # Some templates write a finished turn otherwise than what they prompt with (an empty thought, for one): it still ends.
        ended = [*messages, {"role": "assistant", "content": _ANY_ANSWER}]
        end = self.render(ended, prompt.tools)
        return asked, asked + answer + (end.rpartition(_ANY_ANSWER)[2] if _ANY_ANSWER in end else "")

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        generation_prompt: bool = False,
        today: datetime | None = None,
    ) -> str:
        """A conversation as the model's template writes it; see `chat_template.converse`. today: what it is told of the date."""
        template = pick_template(self._templates, tools=tools is not None)
        assert template is not None
        write = partial(converse, template, messages, tools=tools, generation_prompt=generation_prompt)
        if today is None:
            return write(special_tokens=self.special)
        return write(special_tokens=self.special, strftime_now=today.strftime)

    def _encode(self, text: str, *, added: bool = False) -> list[int]:
        """A text's tokens. added: whether special tokens are, which a template writes itself."""
        where = self.model.folder / "tokenizer.json"
        return list(tokenizing.encode(self._tokenizer, [text], where, add_special_tokens=added)[0].ids)

    def _passage(self, prompt: Prompt, asked: list[int], whole: list[int], place: int, max_length: int) -> Passage:
        start = _alike(asked, whole)
        if start >= max_length:
            raise EdgekitError(
                f"row {prompt.row or place + 1}: the prompt alone has {start} tokens, data.max_length is {max_length}:"
                f" there is no room for an answer; raise data.max_length, or shorten it ({prompt.text[:60]!r})"
            )
        return Passage(ids=whole[:max_length], start=max(start, 1), prompt=place)


def _alike(left: Iterable[int], right: Iterable[int]) -> int:
    """How many tokens two texts begin with alike: a tokenizer may join a prompt's last letter with the answer's first."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
