"""Fill-in-the-middle: the tokens that ask a code model for what is missing between two texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.runtimes.llamacpp.library import LlamaError, open_library

if TYPE_CHECKING:
    from llama_cpp import Llama


def infill_tokens(llama: Llama, before: str, behind: str) -> list[int]:
    """Prefix, suffix, middle (Bavarian et al., arXiv:2207.14255), with the tokens that llama.cpp knows a vocabulary's by.

    llama: a llama_cpp.Llama. What looks like a special token in the texts is text. Raises LlamaError for a model that has no
    such tokens.
    """
    library = open_library().functions
    vocabulary = library.llama_model_get_vocab(llama.model)
    marks = [getattr(library, f"llama_vocab_fim_{part}")(vocabulary) for part in ("pre", "suf", "mid")]
    if min(marks) < 0:
        raise LlamaError(
            f"{llama.model_path}: this model has no tokens for what is missing in a text: it only continues texts"
        )
    first, second = (llama.tokenize(text.encode(), add_bos=False) for text in (before, behind))
    return [*llama.tokenize(b""), marks[0], *first, marks[1], *second, marks[2]]
