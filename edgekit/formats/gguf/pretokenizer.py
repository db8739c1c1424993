"""Which of llama.cpp's pre-tokenizers splits texts as a tokenizer.json's does: by its steps, else by its behaviour.

llama.cpp names a pre-tokenizer (tokenizer.ggml.pre) and has its regular expressions built in
(https://github.com/ggml-org/llama.cpp, src/llama-vocab.cpp, llm_tokenizer_bpe). The names here are the plainest of those that
mean the same.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.apart import apart
from edgekit.errors import EdgekitError
from edgekit.formats.gguf.file import GgufWriter
from edgekit.formats.gguf.parity import Comparison, open_vocabulary
from edgekit.formats.gguf.tokenizer_json import Content, pretokenizer_steps
from edgekit.model import Model
from edgekit.tokenizing import read_added_tokens
from edgekit.typed_json import as_table

if TYPE_CHECKING:
    from edgekit.formats.gguf.file import Value

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASH_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+", r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*"
_MARKED = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

# A tokenizer.json's steps -> llama.cpp's names for them. "gpt2" is ByteLevel with its own regular expression, "bytes" without.
PRETOKENIZERS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("gpt2",): ("gpt-2",),
    ("digits one by one", "gpt2"): ("smollm",),
    (f"{_CONTRACTIONS}|{_WORD}|\\p{{N}}{{1,3}}|{_TAIL}", "bytes"): ("llama-bpe", "dbrx"),
    (f"{_CONTRACTIONS}|{_WORD}|\\p{{N}}|{_TAIL}", "bytes"): ("qwen2",),
    (f"{_CONTRACTIONS}|{_MARKED}", "bytes"): ("qwen35",),
    (f"{_WORD}|\\p{{N}}|{_TAIL}", "bytes"): ("ufakzeka",),
    (f"{_CASED[0]}|{_CASED[1]}|\\p{{N}}|{_SLASH_TAIL}", "bytes"): ("tekken",),
    (
        f"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\\p{{N}}{{1,3}}|{_SLASH_TAIL}",
        "bytes",
    ): ("gpt-4o",),
    (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK, "bytes"): ("deepseek-v3",),  # noqa: RUF001
    (
        f"{_CONTRACTIONS}|{_WORD}|\\p{{N}}{{1}}| ?[^\\s\\p{{L}}\\p{{N}}\\r\\n]+|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        "bytes",
    ): ("seed-coder",),
    (_BAILING, "bytes"): ("bailingmoe",),
}
# Those that take a word that is a token whole, whatever the merges say (ignore_merges in tokenizer.json).
_WHOLE_WORDS = {"minicpm5", "llama-bpe", "youtu", "glm4", "tekken", "granite-embed-multi-97m"}
# One name for each way in which llama.cpp splits texts for byte-level BPE; the well-known ones come first.
BEHAVIOURS: tuple[str, ...] = (
    "gpt-2", "llama-bpe", "qwen2", "smollm", "gpt-4o", "tekken", "dbrx", "glm4", "qwen35", "deepseek-v3", "deepseek-llm",
    "deepseek-coder", "falcon", "bloom", "viking", "seed-coder", "bailingmoe", "exaone-moe", "minicpm5", "jais-2", "ufakzeka",
    "laguna", "afmoe", "spark2_5", "youtu", "granite-embed-multi-97m", "tiny_aya", "superbpe", "chameleon", "default",
)  # fmt: skip


def choose_pretokenizer(model: Model, content: Content, keys: Mapping[str, Value]) -> str:
    """llama.cpp's name for a byte-level tokenizer's pre-tokenizer.

    keys: the other tokenizer.* keys. Raises EdgekitError where none of llama.cpp's reads our texts as this one does.
    """
    names = PRETOKENIZERS.get(tuple(_step(step) for step in pretokenizer_steps(content)), ())
    whole = bool(as_table(content["model"]).get("ignore_merges"))
    for name in names:
        if (name in _WHOLE_WORDS) == whole:
            return name
    if names and _all_mergeable(content):
        return names[0]
    return _by_behaviour(model, keys)


def _step(step: Content) -> str:
    """A step as PRETOKENIZERS names it; one that the table does not know as its own JSON, which is no key there."""
    kind = step["type"]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "gpt2" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits one by one"
    pattern = as_table(step.get("pattern"))
    if kind == "Split" and "Regex" in pattern:
        # Both keep the matches; tiktoken's converter writes the second for expressions that match everything.
        ways = {("Isolated", False), ("Removed", True)}
        if (step["behavior"], bool(step.get("invert"))) in ways:
            return str(pattern["Regex"])
    return json.dumps(step, sort_keys=True)


def _all_mergeable(content: Content) -> bool:
    """Whether the merges make every token of itself, so that taking words whole changes nothing."""
    from tokenizers import Tokenizer

    algorithm = as_table(content["model"])
    merging = {**content, "model": {**algorithm, "ignore_merges": False}}
    model = Tokenizer.from_str(json.dumps(merging)).model
    added = {token.content for token in read_added_tokens(content, "tokenizer.json")}
    return all(len(model.tokenize(piece)) == 1 for piece in as_table(algorithm["vocab"]) if piece not in added)


def _by_behaviour(model: Model, keys: Mapping[str, Value]) -> str:
    """The first of llama.cpp's pre-tokenizers that gives the original's ids for all our texts."""
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        path = Path(folder) / "vocabulary.gguf"
        with GgufWriter(path, {**keys, "general.architecture": "llama", "tokenizer.ggml.pre": "default"}, []) as writer:
            writer.finish()
        name = apart(
            "edgekit.formats.gguf.pretokenizer:alike_here",
            what=f"{model.folder / 'tokenizer.json'}: llama.cpp, reading it as its pre-tokenizers do",
            remedy="take a model with one of the usual tokenizers, or --format onnx",
            folder=str(model.folder),
            path=str(path),
        )
    return str(name)


def alike_here(folder: str, path: str) -> str:
    """The name of the first pre-tokenizer that reads our texts as the checkpoint's in `folder`, with the vocabulary at `path`.

    Raises EdgekitError where there is none.
    """
    model = Model(folder=Path(folder))
    best: tuple[int, str, EdgekitError] | None = None
    for name in BEHAVIOURS:
        with open_vocabulary(Path(path), name) as ours:
            agreed, differs = _agreement(Comparison(model, ours, model.folder / "tokenizer.json"))
        if differs is None:
            return name
        if best is None or agreed > best[0]:
            best = agreed, name, differs
    assert best is not None
    raise EdgekitError(
        f"{best[2].message}; none of llama.cpp's pre-tokenizers splits texts as this one does ({best[1]} is the nearest): take a"
        " model with one of the usual tokenizers, or --format onnx"
    )


def _agreement(comparison: Comparison) -> tuple[int, EdgekitError | None]:
    """How many of our texts give the same ids, and the first difference."""
    agreed, first = 0, None
    for kind, texts in comparison.probes().items():
        for text, ids in zip(texts, comparison.encode(texts, special=False, add=False), strict=True):
            own = comparison.ours.encode(text, special=False, add=False)
            agreed += own == ids
            if own != ids and first is None:
                first = comparison.differs(kind, text, ids, own, special=False, add=False)
    return agreed, first
