"""linear: the cheapest honest classifier of a recipe's labels, the line that a trained student must be above to earn its place.

A linear support vector machine over hashed n-grams of tokens and of their characters, fitted on the labels of the train split in
seconds, without a teacher: a squared hinge, one class against all others, by dual coordinate descent (Hsieh et al., "A Dual
Coordinate Descent Method for Large-scale Linear SVM", ICML 2008, algorithm 1), all classes at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgekit.inputs import Content
from edgekit.modalities import text
from edgekit.progress import Progress, silent
from edgekit.prompts import Prompt, PromptSet
from edgekit.recipe import AS_CALIBRATED, Recipe, Rejection
from edgekit.tasks import TASKS, row_task, text_classification

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.formats.onnx.hashed import Hashed
    from edgekit.model import Model

    Floats = NDArray[np.float32]
    # Of a text: the rows of its n-grams, and how often it has each.
    Counted = tuple[NDArray[np.int64], NDArray[np.int64]]

FILE = "model.onnx"
CHARACTERS = 8
GRAMS = ((0,), (0, 1), (0, 2))
SPELLING = ((0, 1, 2), (0, 1, 2, 3))
# Rows of the table: of few classes a row is short, so that more of them cost little. Of BANKING77 (77 classes) 16,384 rows were
# no better than 8,192 on held-out train rows, of the assistant (24) they were by a point on its calibrate split.
BUCKETS, BUCKETS_OF_FEW, FEW = 8192, 16384, 32
# The penalty and the passes over the rows, chosen on the same rows: 1 or 3, and 3 to 8, differ by less than a point.
PENALTY, PASSES = 1.0, 5
# Logits are that many times the machine's values, whose steps of 1 would leave each probability near the others.
GAIN = 4.0


@dataclass(frozen=True, kw_only=True)
class LinearInputs:
    """What `fit` is given: a model of whose files the tokenizer alone is read, and the prompts with their labels.

    out_of_scope: the label of texts that belong to no class, which teach all classes what is none of theirs.
    """

    STEP: ClassVar[str] = "linear"
    model: Content
    prompts: Content
    task: str
    out_of_scope: str | None
    rejection: Rejection = AS_CALIBRATED
    max_length: int


def is_drawn(recipe: Recipe, prompts: Mapping[str, object]) -> bool:
    """Whether a build of such a recipe has this line: where texts are classified, and some have labels to learn from.

    prompts: what `prompts.gather` says of them.
    """
    rows, labels = prompts.get("rows"), prompts.get("labels")
    trained = isinstance(rows, Mapping) and bool(rows.get("train"))
    return recipe.task == text_classification.NAME and trained and isinstance(labels, Sequence) and len(labels) > 1


def fit(inputs: LinearInputs, out: Path, progress: Progress = silent) -> dict[str, object]:
    """Fit such a model on the train split and write model.onnx and the tokenizer into `out`; its facts.

    They are its classes, [] where no train row has a label: then nothing is written, and there is no line.
    """
    import numpy as np

    from edgekit.formats.onnx.hashed import Hashed, hashed_graph

    task, prompts = TASKS[inputs.task], PromptSet(folder=inputs.prompts.path)
    rows = [row for row in prompts.split("train") if row.label is not None]
    classes = sorted({str(row.label) for row in rows} - {inputs.out_of_scope})
    if len(classes) < 2:
        return {"classes": [], "settings": {}, "pad_id": 0}
    model = task.open_model(inputs.model.path)
    progress(0, 0, f"fitting a linear model of {len(classes)} classes on {len(rows)} labels")
    hashed = Hashed(
        spelled=model.spelled(CHARACTERS),
        grams=GRAMS,
        spelling=SPELLING,
        codes=np.zeros((BUCKETS_OF_FEW if len(classes) <= FEW else BUCKETS, len(classes)), np.int8),
        scales=np.ones(len(classes), np.float32),
    )
    truth = np.array([[1.0 if row.label == name else -1.0 for name in classes] for row in rows], np.float32)
    calibrate = prompts.split("calibrate")
    counted = _count([*rows, *calibrate], model, hashed, inputs.max_length)
    weights = GAIN * _separate(counted[: len(rows)], truth, len(hashed.codes))
    scales = np.maximum(np.abs(weights).max(axis=0), np.finfo(np.float32).tiny) / np.float32(127)
    codes = np.rint(weights / scales).astype(np.int8)
    made = Hashed(spelled=hashed.spelled, grams=GRAMS, spelling=SPELLING, codes=codes, scales=scales)
    (out / FILE).write_bytes(hashed_graph(made).SerializeToString(deterministic=True))
    task.ship(model, inputs.max_length, out)
    logits = _logits(counted[len(rows) :], codes * scales)
    settings = row_task(inputs.task).fit(
        logits, [row.label for row in calibrate], classes, inputs.out_of_scope, inputs.rejection
    )
    return {"classes": classes, "settings": settings, "pad_id": task.pad_id(model)}


def _count(prompts: Sequence[Prompt], model: Model, hashed: Hashed, max_length: int) -> list[Counted]:
    """The rows of each text's n-grams, as the graph finds them."""
    import numpy as np

    from edgekit.hashing import rows_of

    buckets = len(hashed.codes)
    read = [
        np.array(ids, np.int64)
        for ids in text.token_ids(TASKS[text_classification.NAME].encode(model, prompts, max_length))
    ]
    # Each token is spelled once: most of a vocabulary is in no text.
    used, places = np.unique(np.concatenate(read), return_inverse=True)
    letters = rows_of(hashed.spelled[used].astype(np.int64), hashed.spelling, buckets).reshape(len(used), -1)
    found, begin = [], 0
    for ids in read:
        words = rows_of(ids[None] + 1, hashed.grams, buckets)
        rows = np.concatenate([words.ravel(), letters[places[begin : begin + len(ids)]].ravel()])
        begin += len(ids)
        found.append(np.unique(rows[rows > 0], return_counts=True))
    return found


def _separate(texts: Sequence[Counted], truth: Floats, buckets: int) -> Floats:
    """The weights of each row for each class, [buckets, classes], by which a text's rows are added up and divided by the root of
    their number. truth: 1 or -1, [texts, classes].

    Rare n-grams weigh more: ln((1 + texts) / (1 + texts with it)) + 1 (the usual inverse document frequency, smoothed).
    """
    import numpy as np

    have = np.zeros(buckets)
    for rows, _ in texts:
        have[rows] += 1
    rarity = (np.log((1 + len(texts)) / (1 + have)) + 1).astype(np.float32)
    values = [(rows, counts * rarity[rows] / np.float32(np.sqrt(counts.sum() or 1))) for rows, counts in texts]
    length = np.float32(np.sqrt(np.mean([own @ own for _, own in values])) or 1.0)
    values = [(rows, (own / length).astype(np.float32)) for rows, own in values]
    room = np.float32(1 / (2 * PENALTY))
    curves = [np.float32(own @ own) + room for _, own in values]
    weights, duals = np.zeros((buckets, truth.shape[1]), np.float32), np.zeros_like(truth)
    order = np.random.default_rng(0)
    for _ in range(PASSES):
        for index in order.permutation(len(values)):
            (rows, own), sign, dual = values[index], truth[index], duals[index]
            slope = sign * (own @ weights[rows]) - 1 + dual * room
            better = np.maximum(dual - slope / curves[index], 0)
            weights[rows] += np.multiply.outer(own, (better - dual) * sign)
            duals[index] = better
    found: Floats = weights * (rarity / length)[:, None]
    return found


def _logits(texts: Sequence[Counted], weights: Floats) -> Floats:
    """What the graph answers, [texts, classes]."""
    import numpy as np

    rows = [(counts @ weights[rows]) / np.sqrt(max(counts.sum(), 1)) for rows, counts in texts]
    return np.array(rows, np.float32).reshape(len(rows), weights.shape[1])
