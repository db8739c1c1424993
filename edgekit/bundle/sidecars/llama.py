"""How a GGUF bundle is used without Python: Ollama's Modelfile and the exact command lines of llama.cpp's programs."""

from __future__ import annotations

import shlex

from edgekit.bundle.manifest import Manifest
from edgekit.bundle.sidecars.packing import Packing
from edgekit.outputs import OUTPUTS
from edgekit.runtimes import llamacpp
from edgekit.typed_json import read_table

_CHATS = [
    "# Ollama writes conversations with a template of its own, where it knows one that is like the model's, and else with none;",
    "# what was verified is the file's. See `ollama show --template`; llama-server (in the model card) runs the file's own.",
]


def sidecar(packing: Packing) -> str | None:
    """The Modelfile of a GGUF file; None for what Ollama does not run."""
    return modelfile(packing.manifest) if packing.manifest.runtime_name == llamacpp.NAME else None


def modelfile(manifest: Manifest) -> str:
    """The Modelfile with which `ollama create` serves a bundle's model with the settings that were verified.

    Ollama does not run the file's chat template: it takes its own one for templates that it recognises, and none for others
    (its template/template.go, `Named`). A model that continues texts is told so.
    Format: https://docs.ollama.com/modelfile.
    """
    options = _options(manifest)
    lines = [
        f"# ollama create {manifest.name} -f Modelfile && ollama run {manifest.name}",
        f"FROM ./{manifest.model}",
        f"PARAMETER num_ctx {_context(manifest)}",
    ]
    if options.threads:
        lines.append(f"PARAMETER num_thread {options.threads}")
    if OUTPUTS[manifest.output].generates:
        lines.append("PARAMETER temperature 0")
        lines += [f"PARAMETER stop {_quote(text)}" for text in manifest.stops]
        lines += _CHATS if manifest.chats else ["TEMPLATE {{ .Prompt }}"]
    return "\n".join(lines) + "\n"


def command_line(manifest: Manifest, *, serve: bool = False) -> str:
    """The llama.cpp command that uses a bundle's model from its folder, with the settings that were verified.

    A model with a chat template talks (llama-cli), one without continues a text (llama-completion). An embedder, or any model
    with `serve`, is served: llama-server answers OpenAI-compatible requests at http://127.0.0.1:8080.
    """
    options, context = _options(manifest), str(_context(manifest))
    words = ["-m", manifest.model, "-c", context]
    if options.threads:
        words += ["-t", str(options.threads)]
    if options.threads_batch:
        words += ["-tb", str(options.threads_batch)]
    words += ["-ngl", "all" if options.gpu_layers < 0 else str(options.gpu_layers)]
    if options.flash_attention != "auto":
        words += ["-fa", options.flash_attention]
    if not OUTPUTS[manifest.output].generates:
        # A text is read in one step, so a step must hold the longest one.
        words += ["--embeddings", "-b", context, "-ub", context, "-np", "1"]
        words += ["--pooling", options.pooling] if options.pooling else []
        return shlex.join(["llama-server", *words])
    words += ["-b", str(options.batch), "-ctk", options.kv_k, "-ctv", options.kv_v, "--temp", "0"]
    if serve:
        # One conversation at a time, which has the whole context.
        return shlex.join(["llama-server", *words, "-np", "1"])
    if manifest.chats:
        return shlex.join(["llama-cli", *words])
    return shlex.join(["llama-completion", *words, "-no-cnv", "-p", "Once upon a time"])


def _options(manifest: Manifest) -> llamacpp.Options:
    """The options of a session."""
    known = {key: value for key, value in manifest.runtime.items() if key not in {"name", "minimum"}}
    return read_table(llamacpp.Options, known, f"{manifest.name}: runtime")


def _context(manifest: Manifest) -> int:
    return _options(manifest).context or manifest.max_length


def _quote(text: str) -> str:
    """Ollama's parser ends a text at the quotes that it began with, and knows no escapes."""
    quotes = '"""' if '"' in text or "\n" in text else '"'
    return f"{quotes}{text}{quotes}"
