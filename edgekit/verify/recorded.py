"""What a record of a decoder holds, as verify reads it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.modalities.text import TOKENIZER
from edgekit.probes import Texts
from edgekit.prompts import Prompt
from edgekit.reference import Reference, Sequences
from edgekit.schema import read_json
from edgekit.workspace import Product

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A record's arrays, what was recorded, and the answers in words ({role: [text]}); max_length: of a passage, in tokens."""

    arrays: Arrays
    sequences: Sequences
    max_length: int
    texts: Mapping[str, Sequence[str]]

    def rows(self, name: str, offsets: str = "") -> list[list[int]]:
        """Rows of token ids that lie behind each other in the array `name`."""
        flat_ids, ends = self.arrays[name].tolist(), self.arrays[offsets or f"{name}_offsets"].tolist()
        return [flat_ids[begin:end] for begin, end in itertools.pairwise(ends)]


def read_recorded(recorded: Product, reference: Reference, *, with_teacher: bool = True) -> Recorded:
    """What a record of a decoder holds, or of it the student's part; EdgekitError where the record is of another task."""
    import numpy as np

    if reference.sequences is None:
        raise EdgekitError(f"{recorded.folder}: not the record of a decoder; run `edgekit record` with this recipe")
    with np.load(recorded.folder / "reference.npz", allow_pickle=False) as arrays:
        held = {name: arrays[name] for name in arrays.files}
    texts = dict(read_json(recorded.folder / "answers.json"))
    if not with_teacher:
        held = {name: array for name, array in held.items() if not name.startswith("teacher_")}
        texts.pop("teacher", None)
    return Recorded(arrays=held, sequences=reference.sequences, max_length=reference.max_length, texts=texts)


def read_texts(artifact: Path, prompts: Sequence[Prompt]) -> Texts:
    """What prompts say, and the ids of that by the tokenizer beside an artifact, for a device whose apps have another one."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(artifact / TOKENIZER))
    tokenizer.no_truncation()
    texts = [prompt.text for prompt in prompts]
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return Texts(texts=texts, before="", pad_id=0, ids=[encoding.ids for encoding in encoded])
