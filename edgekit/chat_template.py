"""Chat templates: which ones a checkpoint has, and a conversation written out as transformers writes it.

A template is code that came with a model. It runs in Jinja's immutable sandbox, sees plain JSON values only, and whatever it
does wrong is an EdgekitError. The environment's settings are those of transformers 5.23's `apply_chat_template`
(https://huggingface.co/docs/transformers/chat_templating), so that the text is the same to the byte, but for the date (`TODAY`).
"""

from __future__ import annotations

import html
import json
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgekit.errors import EdgekitError, first_line
from edgekit.schema import read_json

# transformers' PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES: the names that a template finds its tokens under.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What a template may raise beside Jinja's own errors: Python's, from the operations that it writes.
_FAILS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError)
# What a template that asks for the date is told: the same recipe gives the same bytes on any day. (Llama 3.2's template has
# this day where nobody tells it one.) Bundles tell theirs the day on which they run.
TODAY = datetime(2024, 7, 26)
Sandbox = TypeVar("Sandbox", bound=ImmutableSandboxedEnvironment)
Table = Mapping[str, object]
"""A JSON object as a user or a data set gives it: a message, a tool's schema."""
# A word that no template writes by itself.
_PROBE = "Zebrafink7"
# A message's reasoning goes by these names; templates read the first, gpt-oss's the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def find_templates(folder: Path) -> dict[str, str]:
    """A checkpoint's chat templates by name; the one that is meant where none is named is `default`.

    As transformers looks for them: chat_template.jinja and additional_chat_templates/*.jinja, before chat_template in
    tokenizer_config.json (one template, or a list of named ones), before a processor's chat_template.json.
    Raises EdgekitError where one of these is not what it should be.
    """
    templates = {path.stem: _read(path) for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = _read(folder / "chat_template.jinja")
    for name in ("tokenizer_config.json", "chat_template.json"):
        if not templates and (folder / name).is_file():
            content = read_json(folder / name)
            templates = _named(folder / name, content.get("chat_template") if isinstance(content, dict) else None)
    return templates


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that a template may write: {"bos_token": "<s>", ...}, from tokenizer_config.json.

    Where that names none, from special_tokens_map.json, which transformers wrote until version 4.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = read_json(folder / name) if (folder / name).is_file() else None
        if not isinstance(content, dict):
            continue
        tokens = {key: _text(content.get(key)) for key in SPECIAL_TOKENS}
        if any(tokens.values()):
            return {key: token for key, token in tokens.items() if token}
    return {}


def pick_template(templates: Mapping[str, str], *, tools: bool = False) -> str | None:
    """The template that transformers takes: `default`, with tools `tool_use` where there is one; None where there is none."""
    if tools and "tool_use" in templates:
        return templates["tool_use"]
    return templates.get("default") or next(iter(templates.values()), None)


def converse(
    template: str,
    messages: Sequence[Table],
    *,
    generation_prompt: bool = False,
    tools: Sequence[Table] | None = None,
    special_tokens: Mapping[str, str],
    compiled: jinja2.Template | None = None,
    **more: object,
) -> str:
    """A conversation as `render` writes it, each text in the form that the template reads.

    Where a template walks over a message's parts, a text is one part; where it takes texts only, text parts are one text, a
    line each, as llama.cpp and vLLM join them. Raises EdgekitError as `render` does, and where the text does not hold what the
    user says.
    """
    spoken = in_form(template_form(template, special_tokens), messages)
    text = render(
        template,
        spoken,
        generation_prompt=generation_prompt,
        tools=tools,
        special_tokens=special_tokens,
        compiled=compiled,
        **more,
    )
    _check_written(messages, text)
    return text


def in_form(form: str, messages: Sequence[Table]) -> list[Table]:
    """Messages with their contents as a template of this form (see `template_form`) reads them."""
    return [
        {**message, "content": _content(form, message["content"])} if "content" in message else message
        for message in messages
    ]


def _content(form: str, content: object) -> object:
    if form == "parts" and isinstance(content, str):
        return [{"type": "text", "text": content}]
    if form == "text" and isinstance(content, list) and content and all(map(_is_text_part, content)):
        return "\n".join(part["text"] for part in content)
    return content


def _is_text_part(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


@lru_cache(maxsize=32)
def _form(template: str, tokens: tuple[tuple[str, str], ...]) -> str:
    takes = {}
    probes: dict[str, object] = {"text": _PROBE, "parts": [{"type": "text", "text": _PROBE}]}
    for form, content in probes.items():
        try:
            text = render(template, [{"role": "user", "content": content}], special_tokens=dict(tokens))
        except EdgekitError:
            text = ""
        # Parts that are written as they are, quotes and all, were taken for a text.
        takes[form] = _PROBE in text and not re.search(rf"""['"]text['"]: ?['"]{_PROBE}""", text)
    return {(True, False): "text", (False, True): "parts"}.get((takes["text"], takes["parts"]), "any")


def template_form(template: str, special_tokens: Mapping[str, str]) -> str:
    """How a template reads what a message says: "text", "parts" (it walks over them), or "any" where it takes both or neither."""
    return _form(template, tuple(sorted(special_tokens.items())))


def _check_written(messages: Sequence[Table], text: str) -> None:
    """Raises EdgekitError where a text does not hold what the user says, spaces, letter case and JSON's escapes aside."""
    plain, escaped = _letters(text), _letters(text.replace("\\", ""))
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, Iterable) else ()
        words = [content] if isinstance(content, str) else [part["text"] for part in parts if _is_text_part(part)]
        for word in words if message.get("role") == "user" else ():
            forms = word, json.dumps(word), json.dumps(word, ensure_ascii=False), html.escape(word)
            if not any(_letters(form.strip('"')) in plain for form in forms) and _letters(word) not in escaped:
                raise EdgekitError(
                    f"chat template: the user says {word[:60]!r}, and the template does not write it: the model would never read"
                    " it; give the conversation in the form that the template takes, or mend the template in the model's folder"
                )


def _letters(text: str) -> str:
    return "".join(text.split()).casefold()


def render(
    template: str,
    messages: Sequence[Table],
    *,
    generation_prompt: bool = False,
    tools: Sequence[Table] | None = None,
    special_tokens: Mapping[str, str],
    compiled: jinja2.Template | None = None,
    **more: object,
) -> str:
    """A conversation as the text that the model was trained on.

    messages: at least one {"role", "content", ...} of JSON values. generation_prompt: end with what opens the assistant's
    turn. tools: JSON schemas of functions. special_tokens: see `special_tokens`. compiled: the template in another environment
    than `sandbox`'s. more: what else the template finds under a name.
    Raises EdgekitError with the template's line where it is not a template, fails, or reaches for what the sandbox refuses.
    """
    if not messages:
        raise EdgekitError("chat template: a conversation without messages; give at least one")
    try:
        return (compiled or _compile(template)).render(
            messages=[_message(message) for message in messages],
            tools=None if tools is None else [_plain_table(tool) for tool in tools],
            documents=None,
            add_generation_prompt=generation_prompt,
            **{**special_tokens, **more},
        )
    except jinja2.TemplateSyntaxError as bad:
        raise EdgekitError(
            f"chat template: line {bad.lineno}: {first_line(bad).rstrip('.')}; mend the template in the model's folder"
        ) from bad
    except jinja2.exceptions.SecurityError as bad:
        raise EdgekitError(
            f"chat template{_line(bad)}: {first_line(bad).rstrip('.')}: it reaches out of the sandbox, which"
            " edgekit never allows; use a model that you trust"
        ) from bad
    except (jinja2.TemplateError, *_FAILS) as bad:
        raise EdgekitError(
            f"chat template{_line(bad)}: {first_line(bad).rstrip('.')}; the template does not take this conversation"
        ) from bad


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as bad:
        raise EdgekitError(f"{path}: {first_line(bad).rstrip('.')}; a chat template is UTF-8 text") from bad


def _named(path: Path, content: object) -> dict[str, str]:
    if content is None:
        return {}
    if isinstance(content, str):
        return {"default": content}
    if isinstance(content, list) and all(isinstance(entry, dict) for entry in content):
        named = {entry.get("name"): entry.get("template") for entry in content}
        if all(isinstance(text, str) for pair in named.items() for text in pair):
            return {str(name): str(template) for name, template in named.items()}
    raise EdgekitError(f"{path}: chat_template: expected a template, or a list of {{name, template}}")


def _text(token: object) -> str | None:
    """A special token as it is saved: the text itself, or an AddedToken with its `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _message(message: Table) -> dict[str, object]:
    """A message as transformers hands it to a template: without keys that are None, its reasoning under each name."""
    plain = {key: value for key, value in _plain_table(message).items() if value is not None}
    reasoning = next((plain[key] for key in _REASONING if key in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain_table(table: Table) -> dict[str, object]:
    """A copy of JSON values, of exactly their types: another object's methods are nothing for a template to call."""
    return {str(key): _plain(item) for key, item in table.items()}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return _plain_table(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or type(value) in {str, int, float, bool}:
        return value
    raise EdgekitError(f"chat template: a message holds a {type(value).__name__}; give JSON values only")


def _line(failed: BaseException) -> str:
    """Where in the template it failed; Jinja rewrites the traceback to the template's own lines."""
    lines = [frame.lineno for frame in traceback.extract_tb(failed.__traceback__) if frame.filename == "<template>"]
    return f": line {lines[-1]}" if lines else ""


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks what the assistant says; the text is the same without it."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own way to declare it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block, as in transformers: what the body sets stays inside it.
        return nodes.CallBlock(self.call_method("_answer"), [], [], body).set_lineno(line)

    def _answer(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` in a template: a call makes one, and there is nothing else to reach."""

    def __call__(self, /, *tables: Table, **named: object) -> dict[str, object]:
        return dict(*tables, **named)

    def fromkeys(self, keys: Iterable[object], value: object = None) -> dict[object, object]:
        return dict.fromkeys(keys, value)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` in a template, without names that begin with an underscore: those are Python's own."""

    def __init__(self, /, *tables: Table, **named: object) -> None:
        attributes = dict(*tables, **named)
        for name in attributes:
            _refuse_underscore(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: object) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"namespace({name}=...)")


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own tojson escapes HTML; a prompt has none."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return TODAY.strftime(form)


@lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    return sandbox(ImmutableSandboxedEnvironment).from_string(template)


def sandbox(kind: type[Sandbox]) -> Sandbox:
    """An environment as transformers makes it for chat templates, of the sandbox's own class or one made from it."""
    environment = kind(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment
