"""What apps in JavaScript are given of a model that talks: its chat template, and what it writes of conversations, to compare."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from edgekit.bundle.manifest import Manifest
from edgekit.bundle.open import Bundle
from edgekit.chat_template import Table, in_form, render
from edgekit.errors import EdgekitError
from edgekit.formats.gguf.file import read_gguf
from edgekit.tasks import text_generation

TEMPLATE = "template.mjs"
"""The module that is made of a bundle; `talk.mjs` reads it."""
# What a template may do with a conversation: take blanks away, add a system's words, turn some down, tell turns apart.
_ASKED = {"role": "user", "content": "turn on the light"}
_SYSTEM = {"role": "system", "content": "Be brief. "}
_ODD = {"role": "user", "content": "  Grüße, 世界 \N{GRINNING FACE} <b>&amp;</b> {{ 7 * 7 }}\n"}
_SAID = {"role": "assistant", "content": " Done.\n"}
_TALKS: tuple[tuple[Table, ...], ...] = (
    (_ASKED,),
    (_ODD,),
    ({"role": "user", "content": ""},),
    (_SYSTEM, _ASKED),
    (_ASKED, _SAID, _ODD),
    (_SYSTEM, _ODD, _SAID, _ASKED, _SAID, _ODD),
)


def gguf_template(path: Path) -> tuple[str | None, dict[str, str]]:
    """The chat template of a GGUF file, None where it has none; and what it may write: bos_token, eos_token."""
    known: Mapping[str, Any] = read_gguf(path).metadata
    ids = {name: known.get(f"tokenizer.ggml.{name}_id") for name in ("bos_token", "eos_token")}
    tokens = known["tokenizer.ggml.tokens"]
    template = known.get("tokenizer.chat_template")
    return template, {name: "" if place is None else str(tokens[place]) for name, place in ids.items()}


def bundle_template(folder: Path, manifest: Manifest) -> tuple[str | None, dict[str, str]]:
    """The chat template of a bundle and what it may write: in the model's file, or beside it and in the manifest."""
    path = folder / text_generation.TEMPLATE
    if manifest.tokenizer is None:
        return gguf_template(folder / manifest.model)
    special = cast("Mapping[str, str]", manifest.settings["special"])
    return (path.read_text(encoding="utf-8") if path.is_file() else None), dict(special)


def talk_files(engine: str) -> Callable[[Bundle, Path], Mapping[str, Path]]:
    """Writes template.mjs of a bundle into a folder. engine: from where a module imports @huggingface/jinja.

    What is made raises EdgekitError where the model's file has no chat template.
    """

    def make(bundle: Bundle, scratch: Path) -> dict[str, Path]:
        manifest = bundle.manifest
        template, special = bundle_template(bundle.folder, manifest)
        if template is None:
            source = manifest.model if manifest.tokenizer is None else "it"
            raise EdgekitError(f"{manifest.name}: {source} has no chat template, and its manifest says it talks")
        parts = bool(manifest.settings.get("parts"))
        talks = [
            {"messages": messages, "text": _written(template, in_form("parts" if parts else "text", messages), special)}
            for messages in _TALKS
        ]
        model = (manifest.files or {})[manifest.model].sha256
        verified = {"model": model, "source": template, "special": special, "parts": parts, "talks": talks}
        lines = (
            "// A bundle's chat template, and what it writes; made by `edgekit embed`: do not edit.",
            f"export {{ Template }} from {json.dumps(engine)};",
            f"export const verified = {json.dumps(verified, indent=1)};",
        )
        (scratch / TEMPLATE).write_text("\n".join(lines) + "\n", encoding="ascii")
        return {TEMPLATE: scratch / TEMPLATE}

    return make


def _written(template: str, messages: list[Table], special: Mapping[str, str]) -> str | None:
    """What a template writes, the form of a date in the date's place; None where it turns the conversation down."""
    try:
        return render(
            template, messages, generation_prompt=True, special_tokens=special, strftime_now=lambda form: form
        )
    except EdgekitError:
        return None
