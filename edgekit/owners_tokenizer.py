"""How a checkpoint's owner reads texts: transformers' AutoTokenizer, which obeys more files than tokenizer.json."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from edgekit.errors import EdgekitError, first_line

ENDLESS = 1 << 30
"""How long the longest text is where no file says it; transformers says 1e30."""
# What AutoTokenizer looks into.
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
# What transformers raises for settings that it cannot read.
_REFUSALS = (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, IndexError)


def read_tokenizer(folder: Path) -> str:
    """What AutoTokenizer makes of the folder, as the text of a tokenizer.json.

    Its truncation has the folder's truncation_side, and as max_length the folder's model_max_length (ENDLESS where it has none).
    Code of the checkpoint's own never runs. Raises EdgekitError for a tokenizer that transformers cannot read, or that no
    tokenizer.json can hold.
    """
    stamps = tuple(
        (name, seen.st_size, seen.st_mtime_ns)
        for name in _FILES
        if (folder / name).is_file() and (seen := (folder / name).stat())
    )
    return _read(folder.resolve(), stamps)


@lru_cache(maxsize=8)
def _read(folder: Path, _stamps: tuple[tuple[str, int, int], ...]) -> str:
    where = folder / "tokenizer_config.json"
    with quiet():
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except _REFUSALS as refused:
            raise EdgekitError(
                f"{where}: transformers cannot read this tokenizer: {first_line(refused)}; save it again with"
                " AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            ) from refused
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise EdgekitError(
            f"{where}: tokenizer_class: {type(tokenizer).__name__} is Python code; no tokenizer.json can hold it"
        )
    if tokenizer.split_special_tokens:
        raise EdgekitError(f"{where}: split_special_tokens: no tokenizer.json can hold it; remove the key")
    content = json.loads(backend.to_str())
    content["padding"] = None
    content["truncation"] = {
        "direction": str(tokenizer.truncation_side).capitalize(),
        "max_length": min(int(tokenizer.model_max_length), ENDLESS),
        "strategy": "LongestFirst",
        "stride": 0,
    }
    return json.dumps(content, ensure_ascii=False)


def lower_cased(tokenizer: str) -> str:
    """A tokenizer that lower-cases before all else, as sentence-transformers makes it (base/modules/transformer.py)."""
    content = json.loads(tokenizer)
    normalizer = content["normalizer"]
    steps = [] if normalizer is None else [normalizer]
    if normalizer is not None and normalizer["type"] == "Sequence":
        steps = list(normalizer["normalizers"])
    if not any(step["type"] == "Lowercase" for step in steps):
        steps.insert(0, {"type": "Lowercase"})
    content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return json.dumps(content, ensure_ascii=False)


def longest_text(tokenizer: str) -> int:
    """How many tokens of a text the owner's tokenizer itself reads (model_max_length)."""
    return int(json.loads(tokenizer)["truncation"]["max_length"])


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' load report and progress bar: edgekit says itself what a user must know."""
    from transformers.utils import logging as transformers_logging

    noisy = [logging.getLogger(name) for name in ("transformers", "optimum", "sentence_transformers")]
    levels = [logger.level for logger in noisy]
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
        if bar:
            transformers_logging.enable_progress_bar()
