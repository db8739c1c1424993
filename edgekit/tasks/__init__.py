"""TASKS: what a model is asked to do. A task loads a checkpoint as a module of named inputs and reads its outputs.

Every module that a task loads takes the inputs of its modality by name (of text input_ids and attention_mask, int64
[batch, sequence]) and gives one float32 tensor: a row per prompt ([batch, width]: raw logits, or an embedding), or of
text-generation logits per token ([batch, sequence, vocabulary]).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from edgekit.errors import EdgekitError
from edgekit.outputs import OUTPUTS
from edgekit.progress import Progress
from edgekit.recipe import AS_CALIBRATED, Rejection
from edgekit.schema import pick
from edgekit.tasks import feature_extraction, text_classification, text_generation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from edgekit.modalities.encoded import Arrays, Encoded
    from edgekit.model import Model
    from edgekit.prompts import Prompt


class Task(Protocol):
    """What every task's module offers."""

    NAME: str
    MODALITY: str
    """What its prompts are made of, by its name in MODALITIES."""
    OUTPUT: str
    """What comes out, by its name in OUTPUTS."""

    def load(self, folder: Path) -> nn.Module:
        """The checkpoint in eval mode and float32, as a module of its modality's inputs by name -> [batch, ...]."""

    def open_model(self, folder: Path) -> Model:
        """The checkpoint, with the tokenizer that reads texts as its owner does."""

    def length(self, model: Model, max_length: int) -> int:
        """How many tokens of a text are read at most, where the recipe allows max_length."""

    def settings(self, model: Model) -> dict[str, object]:
        """What a loader must know of the checkpoint besides its answers' meaning."""

    def encode(self, model: Model, prompts: Sequence[Prompt], max_length: int) -> Encoded:
        """What the model reads for these prompts, their indices as its owners; of a text its special tokens too."""

    def pad_id(self, model: Model) -> int:
        """The token that fills up a shorter text; 0 of prompts that have no tokens."""

    def ship(self, model: Model, max_length: int, out: Path) -> None:
        """Write the files into an artifact's folder by which an app reads prompts as the checkpoint's owner does."""


class RowTask(Task, Protocol):
    """A task whose output is one row per prompt: OUTPUT is "logits" or "embedding"."""

    CONTENTLESS: Sequence[str]
    """Prompts that say nothing, which a classifier that rejects must reject; none of other tasks."""

    def fit(
        self,
        outputs: NDArray[np.float32],
        labels: Sequence[str | None],
        classes: Sequence[str],
        out_of_scope: str | None,
        rejection: Rejection = AS_CALIBRATED,
    ) -> dict[str, object]:
        """Settings learned from outputs [n, width] on the calibrate split; {} where there is nothing to learn."""

    def answer(
        self,
        outputs: NDArray[np.float32],
        settings: Mapping[str, object],
        classes: Sequence[str],
        texts: Sequence[str] | None = None,
    ) -> Sequence[str] | NDArray[np.float32]:
        """What a user gets for outputs [n, width], and with the n texts for those without content; NumPy only."""

    def score(self, reference: NDArray[np.float32], outputs: NDArray[np.float32]) -> float:
        """How near outputs are to reference outputs (both [n, width]), 1.0 where they agree wholly."""


TASKS: dict[str, Task] = {
    text_classification.NAME: text_classification,
    feature_extraction.NAME: feature_extraction,
    text_generation.NAME: text_generation,
}


def row_task(name: str, where: str = "task") -> RowTask:
    """A task by its name that gives one row per text; EdgekitError where there is none of that name, or it gives tokens."""
    found = pick(TASKS, name, where)
    if OUTPUTS[found.OUTPUT].generates:
        raise EdgekitError(f"{where}: {name}: gives tokens, not one row per text")
    return cast("RowTask", found)


def outputs(
    module: nn.Module,
    encoded: Encoded,
    batch: int = 32,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """A module's output [n, width] for n prompts, in their order; prompts of like size share a batch."""
    import numpy as np
    import torch

    rows: list[NDArray[np.float32] | None] = [None] * len(encoded)
    done = 0
    with torch.inference_mode():
        for indices, inputs in encoded.batches(batch):
            for index, row in zip(indices, module(**tensors(inputs)).float().numpy(), strict=True):
                rows[index] = row
            done += len(indices)
            if progress:
                progress(done, len(encoded), "")
    return np.stack([row for row in rows if row is not None]) if len(encoded) else np.zeros((0, 0), np.float32)


def tensors(inputs: Arrays) -> dict[str, Tensor]:
    """A module's inputs by name, as torch takes them."""
    import torch

    return {name: torch.from_numpy(array) for name, array in inputs.items()}
