"""llama.cpp as the judge of a model's candidate files: what each says of some passages, against the float model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.apart import apart
from edgekit.errors import EdgekitError
from edgekit.formats.smallest import Heard, Passage, hear, scored_logits, with_answers
from edgekit.runtimes import Generator
from edgekit.runtimes.machine import available_cores


class Judge:
    """Compares files of one model with its float file.

    folder: where that file and its logits may lie for a while, float32 weights and float16 logits: beside what is made, where
    preflight asked for room, since temporary folders may lie in memory.
    """

    def __init__(self, folder: Path) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix=".judged-", dir=folder)
        self.tried = Path(self._scratch.name) / "tried.gguf"
        """Where a file that is to be judged may be written."""
        self.passages: list[Passage] = []
        self._logits = Path(self._scratch.name) / "logits.npy"

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def listen(self, file: Path, passages: Sequence[Passage], stops: Sequence[int] = ()) -> None:
        """Keep what the float file says to passages, and its own answers to those that have none.

        In a process of its own: llama.cpp ends the one that it runs in at models that it does not expect. The files that are
        compared later are of the same model and tokenizer, and differ in the types of weights alone. Raises EdgekitError.
        """
        answered = apart(
            "edgekit.formats.gguf.judge:listen_here",
            what=f"{file.name}: llama.cpp, running the float model",
            remedy="export it as ONNX (--format onnx)",
            seconds=6 * 3600,
            file=str(file),
            passages=[list(passage) for passage in passages],
            stops=list(stops),
            out=str(self._logits),
        )
        assert isinstance(answered, list)
        self.passages = [(list(ids), int(start)) for ids, start in answered]

    def hear(self, file: Path) -> Heard:
        """What a file says to the same passages."""
        with closing(_open(file)) as generator:
            return hear(generator, self.passages, self._reference())

    def _reference(self) -> Iterator[NDArray[np.float16]]:
        logits, begin = np.load(self._logits, mmap_mode="r", allow_pickle=False), 0
        for ids, start in self.passages:
            yield logits[begin : begin + len(ids) - start]
            begin += len(ids) - start


def listen_here(
    file: str, passages: Sequence[tuple[list[int], int]], stops: Sequence[int], out: str
) -> list[tuple[list[int], int]]:
    """The passages with their answers; what the file says to each scored token is written to `out`, float16 [tokens, vocabulary].

    Raises EdgekitError for a file that llama.cpp does not load or run.
    """
    from edgekit.runtimes.llamacpp import LlamaError

    try:
        with closing(_open(Path(file))) as generator:
            answered = list(with_answers(generator, passages, stops))
            rows = sum(len(ids) - start for ids, start in answered)
            shape = (rows, generator.vocabulary)
            logits = np.lib.format.open_memmap(out, "w+", np.float16, shape) if rows else np.empty(shape, np.float16)
            begin = 0
            for ids, start in answered:
                end = begin + len(ids) - start
                logits[begin:end] = scored_logits(generator, (ids, start))
                begin = end
            if isinstance(logits, np.memmap):
                logits.flush()
    except LlamaError as failed:
        raise EdgekitError(f"export: {failed}") from failed
    return answered


def _open(file: Path) -> Generator:
    from edgekit.runtimes import llamacpp

    return llamacpp.generator(file, {"threads": available_cores(), "kv_k": "f16", "kv_v": "f16"})
