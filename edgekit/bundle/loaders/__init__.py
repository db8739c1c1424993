"""LOADERS: what an app copies to use a bundle; each is one file, with CHECK beside it, that needs nothing of edgekit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.modalities import text
from edgekit.outputs.rows import EMBEDDING, LOGITS
from edgekit.outputs.tokens import TOKENS
from edgekit.runtimes.onnxruntime import library
from edgekit.tasks import TASKS

# What load.py asks a model on CUDA with: the very file that measures there.
BOUND = Path(library.__file__).with_name("bound.py")

# What every loader asks whether the bundle is what was verified.
CHECK = Path(__file__).with_name("check.py")

_CLASSIFY = 'bundle("turn on the light")  # [(label, score), ...], the answer first'
_EMBED = 'bundle("turn on the light")  # the embedding, float32'
_GENERATE = 'for piece in bundle.stream("Once upon a time"):\n    print(piece, end="", flush=True)'


@dataclass(frozen=True, kw_only=True)
class Loader:
    """A loader's file in this folder, what it imports by the names that pip knows, and how an opened `bundle` is used."""

    file: str
    needs: tuple[str, ...]
    use: str

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return Path(__file__).parent / self.file


# The loader that ships as load.py, by runtime, modality and output.
LOADERS: dict[tuple[str, str, str], Loader] = {
    ("onnxruntime", text.NAME, LOGITS.name): Loader(
        file="load.py", needs=("onnxruntime", "tokenizers", "numpy"), use=_CLASSIFY
    ),
    ("onnxruntime", text.NAME, EMBEDDING.name): Loader(
        file="load.py", needs=("onnxruntime", "tokenizers", "numpy"), use=_EMBED
    ),
    ("onnxruntime", text.NAME, TOKENS.name): Loader(
        file="generate.py", needs=("onnxruntime", "tokenizers", "jinja2", "numpy"), use=_GENERATE
    ),
    ("openvino", text.NAME, LOGITS.name): Loader(
        file="load_openvino.py", needs=("openvino", "tokenizers", "numpy"), use=_CLASSIFY
    ),
    ("openvino", text.NAME, EMBEDDING.name): Loader(
        file="load_openvino.py", needs=("openvino", "tokenizers", "numpy"), use=_EMBED
    ),
    ("llama-cpp", text.NAME, EMBEDDING.name): Loader(file="embed.py", needs=("llama-cpp-python", "numpy"), use=_EMBED),
    ("llama-cpp", text.NAME, TOKENS.name): Loader(file="chat.py", needs=("llama-cpp-python",), use=_GENERATE),
}


def find_loader(runtime: str, task: str, output: str) -> Loader | None:
    """The loader of a bundle by what its manifest says; None where this edgekit has none."""
    kind = TASKS.get(task)
    return None if kind is None else LOADERS.get((runtime, kind.MODALITY, output))
