"""Whether llama.cpp opens a whole file that was written, and computes with it what the float model computes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.apart import apart
from edgekit.artifact import Running
from edgekit.errors import EdgekitError
from edgekit.formats.written import bound, distance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

# Sequences that both run, their first tokens, and the last places of each whose logits are compared.
SEQUENCES, TOKENS, PLACES = 4, 48, 16


def check_running(load: Callable[[], nn.Module], file: Path, ids: Sequence[Sequence[int]], bits: float) -> Running:
    """Load the whole file in llama.cpp, in a process of its own, and compare its logits with the float model's on some of `ids`.

    load: gives the float decoder, as `text_generation.load` does. bits: of a weight in the type that most weights have. Raises
    EdgekitError where llama.cpp ends the process or does not load the file, and where the logits are further apart than bits
    explain.
    """
    chosen = [list(row[:TOKENS]) for row in ids if len(row) > 1][:SEQUENCES]
    if not chosen:
        return Running(sequences=0, logits=None, bound=None)
    remedy = (
        "this is a mistake of the conversion for this checkpoint's configuration; export it as ONNX (--format onnx)"
    )
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        answers = Path(scratch) / "logits.npy"
        apart(
            "edgekit.formats.gguf.running:answer_here",
            what=f"{file}: llama.cpp, running what was written",
            remedy=remedy,
            file=str(file),
            ids=chosen,
            out=str(answers),
        )
        far = _distance(load(), chosen, answers)
    most = bound(bits)
    if not far <= most:
        raise EdgekitError(
            f"{file}: llama.cpp's logits are {far:.3g} of their own spread away from the float model's, more than {bits:.3g} bits"
            f" a weight explain ({most:g}): {remedy}"
        )
    # Further digits depend on how many threads torch adds up with.
    return Running(sequences=len(chosen), logits=round(far, 4), bound=most)


def answer_here(file: str, ids: Sequence[Sequence[int]], out: str) -> None:
    """Write a file's logits at the last places of sequences, float32 [places of all, vocabulary], to an .npy file.

    Raises EdgekitError where llama.cpp does not load or run the file.
    """
    import numpy as np

    from edgekit.runtimes import llamacpp

    rows = []
    try:
        generator = llamacpp.generator(Path(file), {"kv_k": "f32", "kv_v": "f32"})
        for row in ids:
            generator.clear()
            rows.append(generator.logits(row, slice(-PLACES, None)))
        generator.close()
    except llamacpp.LlamaError as failed:
        raise EdgekitError(f"{failed}") from failed
    np.save(out, np.concatenate(rows))


def _distance(decoder: nn.Module, ids: Sequence[Sequence[int]], answers: Path) -> float:
    """How far logits are from the float decoder's, relative to their spread."""
    import numpy as np

    ours, wanted = np.load(answers), _float_logits(decoder, ids)
    width = min(ours.shape[1], wanted.shape[1])
    return distance(wanted[:, :width], ours[:, :width])


def _float_logits(decoder: nn.Module, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    import numpy as np
    import torch

    rows = []
    with torch.inference_mode():
        for row in ids:
            tokens = torch.tensor([list(row)])
            rows.append(decoder(tokens, torch.ones_like(tokens))[0, -PLACES:].numpy())
    return np.concatenate(rows)
