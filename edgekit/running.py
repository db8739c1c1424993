"""Whether llama.cpp opens a whole file that was written, and computes with it what the float model computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.apart import apart
from edgekit.errors import EdgekitError
from edgekit.formats.written import bound, distance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Sequences that both run, their first tokens, and the last places of each whose logits are compared.
SEQUENCES, TOKENS, PLACES = 4, 48, 16


def check_running(folder: Path, file: Path, ids: Sequence[Sequence[int]], bits: float) -> dict[str, Any]:
    """Load the whole file in llama.cpp and compare its logits with the float model's on some of `ids`, in a process of its own.

    bits: of a weight in the type that most weights have. Returns {"sequences", "logits", "bound"}: how far the logits are apart,
    relative to their own spread, and how far they may be. Raises EdgekitError where llama.cpp ends the process or does not
    load the file, and where they are further apart.
    """
    chosen = [list(row[:TOKENS]) for row in ids if len(row) > 1][:SEQUENCES]
    if not chosen:
        return {"sequences": 0, "logits": None, "bound": None}
    remedy = (
        "this is a mistake of the conversion for this checkpoint's configuration; export it as ONNX (--format onnx)"
    )
    far: float = apart(
        "edgekit.running:distance_here",
        what=f"{file}: llama.cpp, running what was written",
        remedy=remedy,
        folder=str(folder),
        file=str(file),
        ids=chosen,
    )
    most = bound(bits)
    if not far <= most:
        raise EdgekitError(
            f"{file}: llama.cpp's logits are {far:.3g} of their own spread away from the float model's, more than {bits:.3g} bits"
            f" a weight explain ({most:g}): {remedy}"
        )
    return {"sequences": len(chosen), "logits": round(far, 6), "bound": most}


def distance_here(folder: str, file: str, ids: Sequence[Sequence[int]]) -> float:
    """How far a file's logits are from the checkpoint's, relative to their spread; not a number where they are none.

    Raises EdgekitError where llama.cpp does not load or run the file.
    """
    from edgekit.runtimes.llama import LlamaError

    try:
        ours = _of_file(Path(file), ids)
    except LlamaError as failed:
        raise EdgekitError(f"{failed}") from failed
    wanted = _of_checkpoint(Path(folder), ids)
    width = min(ours.shape[1], wanted.shape[1])
    return distance(wanted[:, :width], ours[:, :width])


def _of_file(file: Path, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    import numpy as np

    from edgekit.runtimes import llama

    generator = llama.generator(file, {"kv_k": "f32", "kv_v": "f32"})
    rows = []
    for row in ids:
        generator.clear()
        rows.append(generator.logits(row, slice(-PLACES, None)))
    generator.close()
    return np.concatenate(rows)


def _of_checkpoint(folder: Path, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    import numpy as np
    import torch

    from edgekit.tasks.text_generation import load

    decoder = load(folder)
    rows = []
    with torch.inference_mode():
        for row in ids:
            tokens = torch.tensor([list(row)])
            rows.append(decoder(tokens, torch.ones_like(tokens))[0, -PLACES:].numpy())
    return np.concatenate(rows)
