"""Whether a conversation reaches the model in llama.cpp as it does in the original: the same template, text and ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.chat_template import converse, find_templates, pick_template, special_tokens
from edgekit.errors import EdgekitError
from edgekit.formats.gguf.file import read_gguf
from edgekit.formats.gguf.parity import Comparison, difference, escaped, open_vocabulary
from edgekit.formats.gguf.probe_texts import CONVERSATIONS, TOOLS

if TYPE_CHECKING:
    from edgekit.model import Model

Conversation = Sequence[Mapping[str, Any]]


def check_chat_parity(model: Model, gguf: Path, conversations: Sequence[Conversation] = ()) -> dict[str, Any]:
    """Compare the ids of our conversations and of the user's (`conversations`), rendered by each of the model's templates.

    With and without generation prompt, and tools where a template has them. Returns {"templates", "rendered", "refused",
    "limits"}.
    Raises EdgekitError that shows the first difference, where the beginning of a text would be there twice, and where a template
    does not render a single question or one of the user's conversations.
    """
    templates = find_templates(model.folder)
    facts: dict[str, Any] = {"templates": sorted(templates), "rendered": 0, "refused": [], "limits": []}
    if not templates:
        return facts
    _check_stored(gguf, templates)
    with open_vocabulary(gguf) as ours:
        chat = _Chat(Comparison(model, ours, gguf), special_tokens(model.folder))
        for name, template in templates.items():
            for title, messages in CONVERSATIONS.items():
                for tools in (None, TOOLS) if "tools" in template else (None,):
                    if not chat.compare(template, title, messages, tools, needed=title == "one turn" and tools is None):
                        facts["refused"].append(f"{name}: {title}{' with tools' if tools else ''}")
        default = pick_template(templates) or ""
        for place, conversation in enumerate(conversations):
            chat.compare(default, f"conversation {place + 1}", conversation, None, needed=True)
        facts |= {"rendered": chat.rendered, "limits": sorted(chat.comparison.limits.values())}
    return facts


def _check_stored(gguf: Path, templates: Mapping[str, str]) -> None:
    """The file's templates are the checkpoint's."""
    metadata = read_gguf(gguf).metadata
    for name, template in templates.items():
        key = "tokenizer.chat_template" if name == "default" else f"tokenizer.chat_template.{name}"
        if metadata.get(key) != template:
            raise EdgekitError(f"{gguf}: {key}: not the checkpoint's chat template; convert the model again")


class _Chat:
    """One model's way of writing conversations, in the original and in llama.cpp."""

    def __init__(self, comparison: Comparison, special: Mapping[str, str]) -> None:
        self.comparison, self.special = comparison, special
        self.rendered = 0

    def compare(
        self,
        template: str,
        title: str,
        messages: Conversation,
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        needed: bool,
    ) -> bool:
        """Whether the template takes the conversation; where it does, the ids are the same."""
        for prompt in (True, False):
            try:
                text = converse(template, messages, generation_prompt=prompt, tools=tools, special_tokens=self.special)
            except EdgekitError:
                if needed:
                    raise
                return False
            self._compare_ids(f"{title}{', generation prompt' if prompt else ''}{', tools' if tools else ''}", text)
            self.rendered += 1
        return True

    def _compare_ids(self, title: str, text: str) -> None:
        ours, where = self.comparison.ours, self.comparison.where
        (wanted,) = self.comparison.encode([text], special=True, add=False)
        found = ours.encode(text, special=True, add=False)
        if found != wanted:
            raise EdgekitError(
                f"{where}: llama.cpp reads a conversation otherwise than the original ({title}): {escaped(text)}:"
                f" {difference(wanted, found, ours)}"
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
