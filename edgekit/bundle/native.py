"""What programs in C are compiled with of a bundle: bundle.c, what was verified as data, and the tokenizer as a compact file."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgekit.bundle.compact import compact_tokenizer, token_pieces
from edgekit.bundle.golden import GOLDEN
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.open import Bundle
from edgekit.bundle.talks import bundle_template
from edgekit.chat_template import in_form, render
from edgekit.errors import EdgekitError
from edgekit.formats.onnx.files import read
from edgekit.outputs import OUTPUTS
from edgekit.runtimes.llamacpp import library
from edgekit.runtimes.onnxruntime.generation import CONTEXT, SWITCH
from edgekit.workspace import file_sha256

# An object of JSON, or what is like one.
_Json = Mapping[str, Any]

SOURCE, TOKENIZER, PIECES = "bundle.c", "tokenizer.bin", "pieces.bin"
# ggml.h's numbers of what keys and values are kept as.
_GGML_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
# What somebody may ask a model that chats; the second one's blanks show whether a template takes them away.
_QUESTIONS = ("Zebrafink7", "  Zebrafink8 <b> \n")


def native_files(bundle: Bundle, scratch: Path) -> dict[str, Path]:
    """Write bundle.c, and of a bundle whose texts an app reads itself the compact tokenizer; by their names in an app.

    Raises EdgekitError for a tokenizer or a chat template that programs in C cannot follow.
    """
    manifest, folder = bundle.manifest, bundle.folder
    made = {SOURCE: scratch / SOURCE}
    hashes = {name: file.sha256 for name, file in (manifest.files or {}).items() if name.startswith(manifest.model)}
    if manifest.tokenizer:
        source = folder / manifest.tokenizer
        written = {TOKENIZER: compact_tokenizer(source, _read_for(manifest, source))}
        written |= {PIECES: token_pieces(source)} if OUTPUTS[manifest.output].generates else {}
        for name, content in written.items():
            made[f"bundle/{name}"] = scratch / name
            (scratch / name).write_bytes(content)
            hashes[name] = file_sha256(scratch / name)
    golden: _Json = {"rows": [], "tolerance": 0.0}
    if (folder / GOLDEN).is_file():
        golden = json.loads((folder / GOLDEN).read_bytes())
    rows = [row for row in golden["rows"] if "\0" not in row["text"]]
    generates = OUTPUTS[manifest.output].generates
    write = _decoded if manifest.tokenizer else _written
    said = write(folder, manifest) if generates else _rows(manifest, rows)
    (scratch / SOURCE).write_text(_source(manifest, hashes, rows, float(golden["tolerance"]), said), encoding="ascii")
    return made


def _rows(manifest: Manifest, rows: Sequence[_Json]) -> dict[str, str]:
    """The fields of ek_bundle that only models of rows have."""
    if manifest.output == "embedding" and not rows:
        raise EdgekitError(f"{manifest.name}: has no {GOLDEN}, which says how wide its embeddings are; package it anew")
    width = len(rows[0]["embedding"]) if manifest.output == "embedding" else 0
    threshold = manifest.threshold
    return {
        **_session(manifest),
        **_pairs("prompts", "prompt_count", manifest.prompts),
        **(
            {".labels": f"(const char *const[]){{{', '.join(map(_text, manifest.labels))}}}"} if manifest.labels else {}
        ),
        ".label_count": str(len(manifest.labels)),
        ".width": str(width),
        ".prompt": _text(manifest.prompt),
        **({} if threshold is None else {".out_of_scope": _text(manifest.out_of_scope or "")}),
        ".threshold": repr(threshold or 0.0),
        ".pad_id": str(manifest.pad_id),
    }


def _session(manifest: Manifest) -> dict[str, str]:
    """The fields of ek_bundle that models in onnxruntime have."""
    runtime = manifest.runtime
    entries: dict[str, object] = dict(_table(runtime.get("config_entries")))
    if disabled := runtime.get("disabled_optimizers"):
        entries["optimization.disable_specified_optimizers"] = ";".join(map(str, _list(disabled)))
    return {
        ".tokenizer": _text(TOKENIZER),
        ".runtime": _text("onnxruntime"),
        ".minimum": _text(str(runtime["minimum"])),
        **_pairs("entries", "entry_count", entries),
        ".threads": str(runtime["threads"] or 0),
    }


def _read_for(manifest: Manifest, source: Path) -> _Json | None:
    """The tokenizer.json of a model that writes, as its loader in Python reads by it: whole.

    What a template writes is all there is; what a person types elsewhere is text, also where it looks like a special token. None:
    as the file is, of a model of rows.
    """
    if not OUTPUTS[manifest.output].generates:
        return None
    table: dict[str, Any] = json.loads(source.read_bytes())
    if manifest.chats:
        return {**table, "truncation": None, "post_processor": None}
    plain = [token for token in table["added_tokens"] if not token["special"]]
    return {**table, "truncation": None, "added_tokens": plain}


def _decoded(folder: Path, manifest: Manifest) -> dict[str, str]:
    """The fields of ek_bundle that only models have that write in onnxruntime."""
    facts = {entry.key: entry.value for entry in read(folder / manifest.model).metadata_props}
    tokenizer = Tokenizer.from_file(str(folder / str(manifest.tokenizer)))
    stops = [token for stop in manifest.stops if (token := tokenizer.token_to_id(stop)) is not None]
    template, special = bundle_template(folder, manifest) if manifest.chats else (None, {})
    return {
        **_session(manifest),
        ".prompt": _text(""),
        ".pieces": _text(PIECES),
        ".context": facts[CONTEXT],
        ".rope_switch": facts.get(SWITCH, facts[CONTEXT]),
        **({".stops": f"(const int32_t[]){{{', '.join(map(str, stops))}}}"} if stops else {}),
        ".stop_count": str(len(stops)),
        **_asked(template, special, manifest),
    }


def _written(folder: Path, manifest: Manifest) -> dict[str, str]:
    """The fields of ek_bundle that only models have that write."""
    runtime: _Json = dict(manifest.runtime)
    threads = runtime["threads"] or 0
    template, special = bundle_template(folder, manifest)
    return {
        ".runtime": _text("ggml (of llama.cpp)"),
        ".minimum": _text(_ggml(manifest)),
        ".prompt": _text(""),
        ".threads": str(threads),
        ".threads_batch": str(runtime["threads_batch"] or threads),
        ".context": str(runtime["context"] or manifest.max_length),
        ".batch": str(runtime["batch"]),
        ".gpu_layers": str(runtime["gpu_layers"]),
        ".flash_attention": str(int(runtime["flash_attention"] != "off")),
        ".kv_k": str(_GGML_TYPES[runtime["kv_k"]]),
        ".kv_v": str(_GGML_TYPES[runtime["kv_v"]]),
        **_asked(template, special, manifest),
    }


def _asked(template: str | None, special: Mapping[str, str], manifest: Manifest) -> dict[str, str]:
    """How a question is written; template: None of a model that continues texts."""
    before, behind, trims = ("", "", False) if template is None else _question(template, special, manifest)
    return {
        ".chats": str(int(template is not None)),
        ".trims": str(int(trims)),
        ".before": _text(before),
        ".behind": _text(behind),
    }


def _ggml(manifest: Manifest) -> str:
    """The version of ggml that ran the model, where that one is installed here; else any is taken, and golden answers decide."""
    if manifest.versions.get("llama-cpp-python") != metadata.version("llama-cpp-python"):
        return "0"
    part = library.open_part("ggml-base")
    if part is None:
        return "0"
    part.ggml_version.restype = ctypes.c_char_p
    return str(part.ggml_version().decode())


def _question(template: str, special: Mapping[str, str], manifest: Manifest) -> tuple[str, str, bool]:
    """What the chat template writes before and behind a question, and whether it takes the blanks around the question away."""
    form = "parts" if manifest.settings.get("parts") else "text"
    written = {}
    for question in _QUESTIONS:
        messages = in_form(form, [{"role": "user", "content": question}])
        written[question] = render(template, messages, generation_prompt=True, special_tokens=special)
    for trims in (False, True):
        asked = {question: question.strip() if trims else question for question in _QUESTIONS}
        found = {tuple(text.split(asked[question])) for question, text in written.items()}
        if len(found) == 1 and len(pair := found.pop()) == 2 and "strftime_now" not in template:
            return pair[0], pair[1], trims
    raise EdgekitError(
        f"{manifest.name}: its chat template changes what a person types or tells the date, which a program in C does not; use"
        " a loader that runs templates (--for python or node)"
    )


def _source(
    manifest: Manifest,
    hashes: Mapping[str, str],
    rows: Sequence[_Json],
    tolerance: float,
    said: Mapping[str, str],
) -> str:
    """bundle.c: one constant, and the function that gives it."""
    fields = {
        ".model": _text(manifest.model),
        **_pairs("files", "file_count", hashes),
        **said,
        ".tolerance": repr(tolerance),
        **({".golden": "GOLDEN"} if rows else {}),
        ".golden_count": str(len(rows)),
    }
    golden = (
        ["static const ek_golden GOLDEN[] = {", *(f"    {{{_golden(row)}}}," for row in rows), "};", ""] if rows else []
    )
    return "\n".join([
        f"/* What was verified of {manifest.name.replace('*/', '')}; made by `edgekit embed`: do not edit. */",
        '#include "checks.h"', "",
        *golden,
        "static const ek_bundle VERIFIED = {",
        *(f"    {key} = {value}," for key, value in fields.items()),
        "};", "", "const ek_bundle *ek_verified(void) { return &VERIFIED; }", "",
    ])  # fmt: skip


def _golden(row: _Json) -> str:
    fields = {".text": _text(row["text"])}
    if "label" in row:
        fields |= {".label": _text(row["label"]), ".score": repr(float(row["score"]))}
    elif "embedding" in row:
        numbers = ", ".join(f"{float(value)!r}f" for value in row["embedding"])
        fields[".embedding"] = f"(const float[]){{{numbers}}}"
    else:
        for name in ("asked", "tokens"):
            if row[name]:
                fields[f".{name}"] = f"(const int32_t[]){{{', '.join(map(str, row[name]))}}}"
        fields |= {".asked_count": str(len(row["asked"])), ".token_count": str(len(row["tokens"]))}
    return ", ".join(f"{key} = {value}" for key, value in fields.items())


def _pairs(name: str, count: str, table: Mapping[str, object]) -> dict[str, str]:
    pairs = ", ".join(f"{{{_text(key)}, {_text(str(value))}}}" for key, value in table.items())
    return {**({f".{name}": f"(const ek_pair[]){{{pairs}}}"} if table else {}), f".{count}": str(len(table))}


def _text(text: str) -> str:
    """A string as C writes it: printable ASCII as it is, all else in octal (also ?, of which trigraphs are made)."""
    if "\0" in text:
        raise EdgekitError(f"{text[:40]!r}: a text with a zero byte ends there in C; use another loader")
    plain = {*range(0x20, 0x7F)} - {*b'"\\?'}
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'


def _table(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Iterable[object]:
    return value if isinstance(value, list | tuple) else ()
