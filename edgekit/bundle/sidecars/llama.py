"""How a GGUF bundle is used without Python: Ollama's Modelfile and the exact command lines of llama.cpp's programs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from edgekit.bundle.sidecars.packing import Packing
from edgekit.outputs import OUTPUTS

_CHATS = [
    "# Ollama writes conversations with a template of its own, where it knows one that is like the model's, and else with none;",
    "# what was verified is the file's. See `ollama show --template`; llama-server (in the model card) runs the file's own.",
]


def sidecar(packing: Packing) -> str | None:
    """The Modelfile of a GGUF file; None for what Ollama does not run."""
    return modelfile(packing.manifest) if packing.manifest["runtime"]["name"] == "llama-cpp" else None


def modelfile(manifest: Mapping[str, Any]) -> str:
    """The Modelfile with which `ollama create` serves a bundle's model with the settings that were verified.

    Ollama does not run the file's chat template: it takes its own one for templates that it recognises, and none for others
    (its template/template.go, `Named`). A model that continues texts is told so.
    Format: https://docs.ollama.com/modelfile.
    """
    runtime = manifest["runtime"]
    lines = [
        f"# ollama create {manifest['name']} -f Modelfile && ollama run {manifest['name']}",
        f"FROM ./{manifest['model']}",
        f"PARAMETER num_ctx {_context(manifest)}",
    ]
    if runtime["threads"]:
        lines.append(f"PARAMETER num_thread {runtime['threads']}")
    if OUTPUTS[manifest["output"]].generates:
        lines.append("PARAMETER temperature 0")
        lines += [f"PARAMETER stop {_quote(text)}" for text in manifest["settings"].get("stop", ())]
        lines += _CHATS if manifest["settings"].get("chat") else ["TEMPLATE {{ .Prompt }}"]
    return "\n".join(lines) + "\n"


def command_line(manifest: Mapping[str, Any], *, serve: bool = False) -> str:
    """The llama.cpp command that uses a bundle's model from its folder, with the settings that were verified.

    A model with a chat template talks (llama-cli), one without continues a text (llama-completion). An embedder, or any model
    with `serve`, is served: llama-server answers OpenAI-compatible requests at http://127.0.0.1:8080.
    """
    runtime, context = manifest["runtime"], str(_context(manifest))
    options = ["-m", manifest["model"], "-c", context]
    if runtime["threads"]:
        options += ["-t", str(runtime["threads"])]
    if runtime["threads_batch"]:
        options += ["-tb", str(runtime["threads_batch"])]
    options += ["-ngl", "all" if runtime["gpu_layers"] < 0 else str(runtime["gpu_layers"])]
    if runtime["flash_attention"] != "auto":
        options += ["-fa", runtime["flash_attention"]]
    if not OUTPUTS[manifest["output"]].generates:
        # A text is read in one step, so a step must hold the longest one.
        options += ["--embeddings", "-b", context, "-ub", context, "-np", "1"]
        options += ["--pooling", runtime["pooling"]] if runtime["pooling"] else []
        return shlex.join(["llama-server", *options])
    options += ["-b", str(runtime["batch"]), "-ctk", runtime["kv_k"], "-ctv", runtime["kv_v"], "--temp", "0"]
    if serve:
        # One conversation at a time, which has the whole context.
        return shlex.join(["llama-server", *options, "-np", "1"])
    if manifest["settings"].get("chat"):
        return shlex.join(["llama-cli", *options])
    return shlex.join(["llama-completion", *options, "-no-cnv", "-p", "Once upon a time"])


def _context(manifest: Mapping[str, Any]) -> int:
    return int(manifest["runtime"]["context"] or manifest["max_length"])


def _quote(text: str) -> str:
    """Ollama's parser ends a text at the quotes that it began with, and knows no escapes."""
    quotes = '"""' if '"' in text or "\n" in text else '"'
    return f"{quotes}{text}{quotes}"
