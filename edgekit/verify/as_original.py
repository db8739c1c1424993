"""The check "as the original": edgekit's reading of a checkpoint against that of its owner's library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgekit.evidence import Check
from edgekit.modalities.encoded import same_reading
from edgekit.runtimes.request import unpack

if TYPE_CHECKING:
    from edgekit.modalities.encoded import Encoded
    from edgekit.reference import OwnersRows, Reference
    from edgekit.workspace import Product

NAME = "as_original"
_SHOWN = 60


def check_rows(recorded: Product, reference: Reference, texts: Sequence[str], encoded: Encoded) -> Check:
    """The check of what gives one row per prompt; encoded: the verify prompts as the files beside the artifact read them."""
    import numpy as np

    with np.load(recorded.folder / "reference.npz", allow_pickle=False) as arrays:
        owners = unpack(dict(arrays), "owner.")
    rows = zip(texts, encoded.prompts, owners, strict=True) if len(owners) == len(texts) else ()
    others = [text for text, ours, theirs in rows if not same_reading(ours, theirs)]
    return check_original(reference.original, others, len(texts))


def check_original(original: Mapping[str, OwnersRows] | None, other_ids: Sequence[str], rows: int) -> Check:
    """Fails where a float model's ids or answers, or the shipped tokenizer's ids, differ from the owner's on a verify prompt.

    original: what the record found, by role; other_ids: the texts that the shipped tokenizer reads otherwise than the student's
    owner. Not proven where the library could not be asked.
    """
    if not original:
        remedy = "the reference was recorded by an older edgekit: run `edgekit record` again"
        return Check(name=NAME, measured="unknown", limit=None, verdict="not proven", remedy=remedy)
    for role, found in original.items():
        if found.first:
            remedy = (
                f"{role}: {found.first}: edgekit does not read this checkpoint as {found.by} does; save it again with that"
                " library, `edgekit inspect` on it lists the keys of its files that edgekit does not know, and what was built"
                " answers otherwise than the original"
            )
            return Check(name=NAME, measured="differs", limit=None, verdict="fail", remedy=remedy)
    for role, found in original.items():
        if found.failed:
            reason = f"{role}: its owner's library does not answer: {found.failed}"
            remedy = f"{reason}; save the checkpoint again with that library"
            return Check(name=NAME, measured="unknown", limit=None, verdict="not proven", remedy=remedy)
    if other_ids:
        text = other_ids[0] if len(other_ids[0]) <= _SHOWN else f"{other_ids[0][:_SHOWN]}..."
        remedy = (
            f"the tokenizer beside the artifact reads {len(other_ids)} of {rows} prompts otherwise than the checkpoint's"
            f" owner, the first {text!r}: export it again (`edgekit build`)"
        )
        return Check(name=NAME, measured="differs", limit=None, verdict="fail", remedy=remedy)
    by = ", ".join(dict.fromkeys(str(found.by) for found in original.values()))
    limits = "".join(f"; {limit}" for limit in dict.fromkeys(found.limits for found in original.values()) if limit)
    what = "ids" if any(found.answers_equal is None for found in original.values()) else "ids and answers"
    detail = f"{what} on {rows} prompts are those of {by}{limits}"
    compared = min(found.compared for found in original.values())
    if compared < rows:
        detail += f", which are the reference; edgekit's own float model gives the same answers on {compared} of them"
    return Check(name=NAME, measured="as the original", limit=None, verdict="pass", detail=detail)
