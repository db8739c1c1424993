"""Whether a graph takes and gives what edgekit does: one prompt in, a text's ids where nothing else is said, one row out."""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.formats.onnx.session import Session
from edgekit.modalities.encoded import Encoded
from edgekit.modalities.text import of_tokens

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
# Two, so that an output as wide as the text is long is told from one of a fixed width.
LENGTHS = (3, 5)


def check_interface(session: Session, path: Path, encoded: Encoded | None = None) -> None:
    """Run a graph on texts of two lengths, or on the smallest and the largest of these prompts.

    Raises EdgekitError for inputs or a first output of another kind.
    """
    if encoded is None:
        _check_inputs(session, path)
        asked = of_tokens([[0] * length for length in LENGTHS], 0)
    else:
        by_size = encoded.by_size()
        asked = encoded.subset([by_size[0], by_size[-1]])
    output = session.gives[0]
    if output.type not in FLOATS:
        raise EdgekitError(
            f"{path}: its first output, {output.name}, is a {output.type}; edgekit reads floats: export the logits or the"
            " embedding as the first output"
        )
    shapes = [session.run(asked.subset([index]).batch()).shape for index in range(len(asked))]
    for length, shape in zip(asked.sizes, shapes, strict=True):
        if len(shape) != 2 or shape[0] != 1 or shape != shapes[0]:
            raise EdgekitError(
                f"{path}: its first output, {output.name}, has the shape {list(shape)} for one text of {length} tokens;"
                " edgekit needs [batch, width], one row per text: export the logits or the pooled embedding as the first"
                " output"
            )


def _check_inputs(session: Session, path: Path) -> None:
    names = [value.name for value in session.takes]
    if unknown := [name for name in names if name not in INPUTS]:
        raise EdgekitError(
            f"{path}: takes the input {unknown[0]}; edgekit gives {', '.join(INPUTS)}: export it with these alone"
        )
    if "input_ids" not in names:
        raise EdgekitError(f"{path}: takes no input_ids; export a model of token ids")
    for value in session.takes:
        if value.type != "tensor(int64)":
            raise EdgekitError(
                f"{path}: takes {value.name} as {value.type}; edgekit gives int64: export it with int64 inputs"
            )
        shape = list(value.shape or [])
        if shape and (len(shape) != 2 or isinstance(shape[1], int) or (isinstance(shape[0], int) and shape[0] != 1)):
            raise EdgekitError(
                f"{path}: takes {value.name} of shape {shape}; texts come one by one, each at its own length: export it"
                " with a free batch and sequence (dynamic axes)"
            )
