"""The line of the linear model (`edgekit.linear`): what it answers to the verify prompts here, beside the artifact's answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit import gate
from edgekit.evidence import Baseline
from edgekit.modalities import text
from edgekit.runtimes import onnxruntime
from edgekit.runtimes.timing import Laps
from edgekit.tasks import row_task
from edgekit.typed_json import as_list, as_table
from edgekit.verify import clusters
from edgekit.workspace import open_product

if TYPE_CHECKING:
    from edgekit.modalities.encoded import Arrays
    from edgekit.prompts import Prompt
    from edgekit.verify.run import Run

# Calls before any is timed, and timed ones: of a model of some ten microseconds they take a moment.
_WARM, _TIMED = 20, 200


def draw_line(run: Run, rows: Sequence[Prompt], labels: Sequence[str], sequence: int) -> Baseline | None:
    """The line of this run's recipe; None where it has none, or no prompt has a label.

    labels: the artifact's answers to the prompts `rows`; sequence: as many tokens as its timed calls have.
    """
    given, known = run.inputs.linear, [index for index, row in enumerate(rows) if row.label is not None]
    if given is None or not known:
        return None
    product = open_product(given.path, "linear")
    classes = [str(name) for name in as_list(product.facts["classes"])]
    if not classes:
        return None
    import numpy as np

    file = next(product.folder.glob("*.onnx"))
    texts = [row.text for row in rows]
    encoded = text.read_shipped(product.folder, texts, {}, int(product.facts["pad_id"]))
    session = onnxruntime.load(file, {"threads": 1})
    outputs = np.stack([session.run(prompt) for prompt in encoded.prompts])
    own = row_task(run.inputs.task).answer(outputs, as_table(product.facts["settings"]), classes, texts)
    mine, theirs = ([answers[index] == rows[index].label for index in known] for answers in (own, labels))
    groups = [rows[index].group for index in known]
    difference, interval = clusters.paired_difference(theirs, mine, groups, run.inputs.look.alpha)
    return Baseline(
        accuracy=sum(mine) / len(mine),
        bytes=file.stat().st_size,
        p50_ms=None if run.device.REMOTE else _p50(session, encoded.resized(sequence).prompts[0]),
        difference=difference,
        interval=interval,
        prompts=len(mine),
        note=None if interval[0] > 0 or run.inputs.hashed else _advice(run.inputs.target, file.stat().st_size),
    )


def _p50(session: onnxruntime.Session, prompt: Arrays) -> float:
    laps = Laps()
    for _ in range(_WARM):
        session.run(prompt)
    for _ in range(_TIMED):
        laps.time(lambda: session.run(prompt))
    return gate.quantile(laps.ms, 0.5)


def _advice(target: str, size: int) -> str:
    return (
        f"not proven better than a linear model of {size / 1e6:.2g} MB: ship the linear one, or give more labelled verify"
        f" prompts; next: edgekit build -r RECIPE -t {target} --student ngrams"
    )
