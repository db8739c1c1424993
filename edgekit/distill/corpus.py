"""The tokens of a train split that is larger than memory: an Arrow file, whose rows `datasets` reads when they are asked for."""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from edgekit.tasks.text_generation import Passage

if TYPE_CHECKING:
    from datasets import Dataset

# Passages of a record batch: they are held while it is written, and some 1.6 KB of each batch for as long as the file is read.
_AT_ONCE = 512


class Corpus(Sequence[Passage]):
    """Passages that lie in a file. Held in memory are 8 bytes of each: `lengths`, its tokens, and `starts`.

    digest: sha256 over all of them.
    """

    def __init__(self, rows: Dataset, lengths: Sequence[int], starts: Sequence[int], digest: str) -> None:
        self._rows, self.lengths, self.starts, self.digest = rows, lengths, starts, digest

    def __len__(self) -> int:
        """How many passages there are."""
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Passage: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Passage]: ...

    def __getitem__(self, index: int | slice) -> Passage | Sequence[Passage]:
        """A passage, or those of a slice as a list."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row: dict[str, Any] = self._rows[index]
        return Passage(ids=row["ids"], start=row["start"], prompt=row["prompt"])


def write_corpus(passages: Iterable[Passage], folder: Path) -> Corpus:
    """Write passages, at least one, into a file of a folder; it has no name there once it is read, and leaves nothing behind."""
    import numpy as np
    from datasets import Dataset, Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    lengths, starts, digest = array("i"), array("i"), hashlib.sha256()
    features = Features({"ids": List(Value("int32")), "start": Value("int32"), "prompt": Value("int64")})
    with tempfile.TemporaryDirectory(dir=folder, prefix=".corpus-", ignore_cleanup_errors=True) as place:
        path = Path(place) / "rows.arrow"
        with ArrowWriter(path=str(path), features=features, writer_batch_size=_AT_ONCE) as writer:
            for one in passages:
                writer.write({"ids": np.array(one.ids, np.int32), "start": one.start, "prompt": one.prompt})
                digest.update(array("q", [one.start, one.prompt, len(one.ids), *one.ids]).tobytes())
                lengths.append(len(one.ids))
                starts.append(one.start)
            writer.finalize()
        rows = Dataset.from_file(str(path))
        with suppress(OSError):  # Windows keeps the name of a file that is open
            path.unlink()
    return Corpus(rows, lengths, starts, digest.hexdigest())
