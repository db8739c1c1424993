"""EMBEDDINGS: what an app on a platform is given to use a bundle, by runtime, modality, output and platform."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit.bundle.loaders import BOUND, LOADERS
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.native import native_files
from edgekit.bundle.open import Bundle
from edgekit.modalities import text
from edgekit.outputs.rows import EMBEDDING, LOGITS
from edgekit.outputs.tokens import TOKENS
from edgekit.runtimes import RUNTIMES
from edgekit.tasks import TASKS

PLATFORMS: Mapping[str, str] = {
    "python": "Python",
    "node": "Node.js",
    "electron": "Electron",
    "web": "a web page",
    "c": "C",
    "android": "Android",
    "ios": "iOS",
}
"""The names that `edgekit embed --for` takes, and what they are called."""


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """What an app on one platform is given to use a bundle that lies as `bundle/` beside it.

    files: by their names in the app, the files here that they are copies of. install: command lines. use: an app's lines, in
    `language`. notes: what else the app's author must know, a sentence each. ran: where this ran, for README's table; "not run"
    where it did not. make: writes what is made of the bundle itself into a folder; these files, by their names in the app.
    """

    files: Mapping[str, Path]
    install: tuple[str, ...]
    use: str
    language: str
    ran: str
    notes: tuple[str, ...] = field(default=())
    make: Callable[[Bundle, Path], Mapping[str, Path]] | None = None


def _python(key: tuple[str, str, str]) -> Embedding:
    loader = LOADERS[key]
    return Embedding(
        files={"load.py": loader.path},
        install=(f"pip install {' '.join(loader.needs)}",),
        use=f'from load import Bundle\n\nbundle = Bundle("bundle")\n{loader.use}',
        language="python",
        ran="Python 3.11 on x86-64 and on the emulated boards",
    )


# The loaders in C by their source; what an app on a phone adds to them, and how each is asked.
_C = Path(__file__).parent / "loaders" / "c"
_ROWS, _WRITER = ("load", "checks", "tokenizer"), ("generate", "checks")
_C_OPEN = """\
#include <stdio.h>

#include "{header}.h"

int main(void) {{
  ek_error error;
"""
_C_USES = {
    LOGITS.name: """\
  ek_answer answer;
  ek_model *model = ek_open(ek_verified(), "bundle", &error);
  if (!model || !ek_classify(model, "turn on the light", &answer, &error)) return fprintf(stderr, "%s\\n", error.text), 1;
  printf("%s %.2f\\n", answer.label, answer.score);
}""",
    EMBEDDING.name: """\
  float embedding[4096]; /* at least as many as ek_verified()->width */
  ek_model *model = ek_open(ek_verified(), "bundle", &error);
  if (!model || !ek_embed(model, "turn on the light", NULL, embedding, &error)) return fprintf(stderr, "%s\\n", error.text), 1;
}""",
    TOKENS.name: """\
  ek_writer *writer = ek_open_writer(ek_verified(), "bundle", &error);
  if (!writer || !ek_write(writer, "Once upon a time", 64, show, NULL, &error)) return fprintf(stderr, "%s\\n", error.text), 1;
}""",
}
_C_SHOW = """\
static int show(void *to, const char *piece, size_t length) {
  (void)to;
  return fwrite(piece, 1, length, stdout) == length;
}

"""


def _c(output: str) -> Embedding:
    writes = output == TOKENS.name
    sources = _WRITER if writes else _ROWS
    start = _C_OPEN.format(header=sources[0])
    if writes:
        start = start.replace("int main", _C_SHOW + "int main")
        install = "cc -O2 main.c bundle.c generate.c checks.c -I LLAMA/include -L LLAMA/lib -lllama -lggml -lggml-base -lm -o app"
    else:
        install = (
            "cc -O2 main.c bundle.c load.c checks.c tokenizer.c -I ORT/include -L ORT/lib -lonnxruntime -lm -o app"
        )
    shipped = "the model" if writes else "the model and tokenizer.bin"
    return Embedding(
        files={f"{name}{suffix}": _C / f"{name}{suffix}" for name in sources for suffix in (".c", ".h")},
        install=(install,),
        use=start + _C_USES[output],
        language="c",
        ran="x86-64 (gcc), and the emulated aarch64 board" if not writes else "x86-64 (gcc)",
        notes=(f"The program reads {shipped} of bundle/ only, by the hashes that bundle.c holds: ship these.",),
        make=native_files,
    )


_NATIVE = {
    ("onnxruntime", text.NAME, LOGITS.name, "c"): _c(LOGITS.name),
    ("onnxruntime", text.NAME, EMBEDDING.name, "c"): _c(EMBEDDING.name),
    ("llama-cpp", text.NAME, TOKENS.name, "c"): _c(TOKENS.name),
}

EMBEDDINGS: dict[tuple[str, str, str, str], Embedding] = {
    **{(*key, "python"): _python(key) for key in LOADERS},
    **_NATIVE,
}


def find_embedding(manifest: Manifest, platform: str) -> Embedding | None:
    """What an app on a platform is given to use a bundle; None where this edgekit has nothing for it."""
    kind = TASKS.get(manifest.task)
    found = kind and EMBEDDINGS.get((manifest.runtime_name, kind.MODALITY, manifest.output, platform))
    if not found or platform != "python":
        return found or None
    runtime = RUNTIMES[manifest.runtime_name]
    name = runtime.distribution(manifest.runtime)
    install = tuple(line.replace(f" {runtime.PACKAGE.name} ", f" {name} ") for line in found.install)
    more = {BOUND.name: BOUND} if manifest.runtime.get("cuda_graphs") and manifest.tokenizer else {}
    return replace(found, install=install, files={**found.files, **more})


def platforms_of(manifest: Manifest) -> list[str]:
    """The platforms that there is something for."""
    return [name for name in PLATFORMS if find_embedding(manifest, name) is not None]
