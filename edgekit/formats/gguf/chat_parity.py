"""Whether a conversation reaches the model in llama.cpp as it does in the original: the same template, text and ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from edgekit.artifact import ChatParity
from edgekit.chat_template import Table, converse, find_templates, pick_template, sandbox, special_tokens
from edgekit.errors import EdgekitError
from edgekit.formats.gguf.file import read_gguf
from edgekit.formats.gguf.parity import Comparison, difference, escaped, open_vocabulary
from edgekit.formats.gguf.probe_texts import CONVERSATIONS, TOOLS
from edgekit.formats.gguf.template_audit import Audit, unreadable
from edgekit.formats.gguf.template_server import Request, Served
from edgekit.typed_json import as_list, as_table

if TYPE_CHECKING:
    from edgekit.model import Model

# What ran a file's template, as a report says it.
PYTHON = "Python's Jinja, watched for what llama.cpp's engine has not"


def check_chat_parity(model: Model, gguf: Path, conversations: Sequence[Table] = ()) -> ChatParity:
    """Compare the ids of our conversations and of the user's ({messages, tools}), rendered by each of the model's templates.

    With and without generation prompt, and tools where a template has them. The default template also runs in llama-server, where
    there is one; else what its engine has not is looked for.
    Raises EdgekitError that shows the first difference, where the beginning of a text would be there twice, where a template does
    not render a single question or one of the user's conversations, and where llama.cpp's engine has not what they need of it.
    """
    templates = find_templates(model.folder)
    if not templates:
        return ChatParity(templates=(), rendered=0, refused=(), limits=(), engine=None)
    _check_stored(gguf, templates)
    served = Served(gguf)
    with open_vocabulary(gguf) as ours:
        chat = _Chat(Comparison(model, ours, gguf), special_tokens(model.folder), served)
        for name, template in templates.items():
            chat.check_readable(template, needed=template == pick_template(templates))
            chat.compare_ours(name, template)
        default = pick_template(templates) or ""
        for number, conversation in enumerate(conversations, 1):
            tools = conversation.get("tools")
            chat.compare(
                default,
                f"conversation {number}",
                _tables(conversation["messages"]),
                None if tools is None else _tables(tools),
                needed=True,
            )
        if served.program:
            served.check(chat.texts, chat.special.get("bos_token", ""))
        return ChatParity(
            templates=tuple(sorted(templates)),
            rendered=chat.rendered,
            refused=tuple(chat.refused),
            limits=tuple(sorted(chat.comparison.limits.values())),
            engine=served.name or PYTHON,
        )


def _tables(value: object) -> list[Table]:
    return [as_table(entry) for entry in as_list(value)]


def _check_stored(gguf: Path, templates: Mapping[str, str]) -> None:
    """The file's templates are the checkpoint's."""
    metadata = read_gguf(gguf).metadata
    for name, template in templates.items():
        key = "tokenizer.chat_template" if name == "default" else f"tokenizer.chat_template.{name}"
        if metadata.get(key) != template:
            raise EdgekitError(f"{gguf}: {key}: not the checkpoint's chat template; convert the model again")


class _Chat:
    """One model's way of writing conversations, in the original and in llama.cpp."""

    def __init__(self, comparison: Comparison, special: Mapping[str, str], served: Served) -> None:
        self.comparison, self.special, self.served = comparison, special, served
        self.rendered = 0
        self.refused: list[str] = []
        self.texts: list[tuple[str, Request, str]] = []
        self._audits: dict[str, tuple[Audit, jinja2.Template]] = {}

    def check_readable(self, template: str, *, needed: bool) -> None:
        """Whether the engine can read the template at all; EdgekitError where it cannot, and it is the one that is used."""
        try:
            refused = [] if self.served.program else unreadable(template)
        except jinja2.TemplateSyntaxError:
            return  # no template in Python either: rendering says so
        if refused and needed:
            raise self._lacks(refused, "llama-server ends at start")
        if refused:
            self.comparison.note(
                "unreadable", f"its template engine cannot read one of the further templates: {refused[0]}"
            )

    def compare_ours(self, name: str, template: str) -> None:
        """Compare our conversations, with tools too where a template has them; `refused` notes those that it does not take."""
        for title, messages in CONVERSATIONS.items():
            for tools in (None, TOOLS) if "tools" in template else (None,):
                if not self.compare(template, title, messages, tools, needed=title == "one turn" and tools is None):
                    self.refused.append(f"{name}: {title}{' with tools' if tools else ''}")

    def compare(
        self,
        template: str,
        title: str,
        messages: Sequence[Table],
        tools: Sequence[Table] | None,
        *,
        needed: bool,
    ) -> bool:
        """Whether the template takes the conversation; where it does, the ids are the same."""
        for prompt in (True, False):
            asked = Request(messages=messages, tools=tools, generation_prompt=prompt)
            try:
                text = self._render(template, asked, title, needed=needed)
            except EdgekitError:
                if needed:
                    raise
                return False
            full = f"{title}{', generation prompt' if prompt else ''}{', tools' if tools else ''}"
            self._compare_ids(full, text)
            if needed:
                self.texts.append((full, asked, text))
            self.rendered += 1
        return True

    def _render(self, template: str, asked: Request, title: str, *, needed: bool) -> str:
        """The text, after what the engine would do otherwise on the way is refused, or of what is ours alone noted."""
        if template not in self._audits:
            audit = sandbox(Audit)
            audit.watch()
            self._audits[template] = audit, audit.from_string(template)
        audit, compiled = self._audits[template]
        text = converse(
            template,
            asked.messages,
            generation_prompt=asked.generation_prompt,
            tools=asked.tools,
            special_tokens=self.special,
            compiled=compiled,
        )
        if audit.noted and not self.served.program:
            if needed:
                raise self._lacks(list(audit.noted), "llama-server stops there, or writes another text")
            self.comparison.note(
                f"engine {title}", f"its template engine has not for {title!r}: {', '.join(audit.noted)}"
            )
            audit.noted.clear()
        return text

    def _lacks(self, what: Sequence[str], then: str) -> EdgekitError:
        return EdgekitError(
            f"{self.comparison.where}: the chat template needs what llama.cpp's template engine has not: {'; '.join(what[:5])}:"
            f" {then}; write these parts of the template otherwise, or --format onnx, whose bundle runs it in Python"
        )

    def _compare_ids(self, title: str, text: str) -> None:
        ours, where = self.comparison.ours, self.comparison.where
        (wanted,) = self.comparison.encode([text], special=True, add=False)
        own = ours.encode(text, special=True, add=False)
        if own != wanted:
            raise EdgekitError(
                f"{where}: llama.cpp reads a conversation otherwise than the original ({title}): {escaped(text)}:"
                f" {difference(wanted, own, ours)}"
            )
        begin = self.special.get("bos_token", "")
        if ours.bos is None or not wanted:
            return
        if wanted[:2] == [ours.bos, ours.bos]:
            raise EdgekitError(f"{where}: the chat template writes {begin} twice at the beginning; mend the template")
        if wanted[0] != ours.bos:
            self.comparison.note(
                "begin", f"its server puts {ours.text(ours.bos)} before conversations, the template does not"
            )
            return
        # llama.cpp's server takes the template's beginning off and has its tokenizer add it (common/chat.cpp).
        served = ours.encode(text.removeprefix(begin), special=True, add=True)
        if served != wanted:
            raise EdgekitError(
                f"{where}: llama.cpp's server begins a conversation otherwise than the original ({title}): {escaped(text)}:"
                f" {difference(wanted, served, ours)}"
            )
