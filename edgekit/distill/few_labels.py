"""Training a checkpoint on the data alone and, where labels are few, on which texts belong together before that.

The first stage moves texts of one class near to each other and away from others, in the vector that the encoder was trained to
give and in the one that the classifier reads (`encoder_losses.supervised_contrastive`): a few texts a class make many pairs.
SetFit, Tunstall et al. (arXiv:2209.11055), does so with pairs and the cosine. The classifier is then trained as ever. Whether it
helps is asked of train rows that are held out in turn, never of others.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import cast

import torch
from torch import nn

from edgekit.distill.batches import Source
from edgekit.distill.courses import Course, Job, identify, read_source, teach
from edgekit.distill.determinism import reproducible
from edgekit.distill.encoder_losses import TOGETHER
from edgekit.distill.files import save_model
from edgekit.distill.finetuning import FOLDS, Contrastive, FinetuneOptions
from edgekit.distill.losses import BRIER
from edgekit.distill.options import TrainingOptions
from edgekit.distill.signals import Batch
from edgekit.distill.students import Whole, load_module
from edgekit.distill.tap import Tap, find_head
from edgekit.model import load_model
from edgekit.prompts import Prompt
from edgekit.workspace import write_atomically

# Folders of what a killed run has finished; they go when the training ends.
_FIRST, _TRIED = "contrastive", "tried"
_DONE = "done.json"
# Texts that are asked at a time for their classes' means.
_AT_A_TIME = 32
# Of a model of 384 channels: half of what its classifier is trained with.
_RATE = 1e-4
PLAIN, CONTRASTIVE = "plain", "contrastive"


@dataclass(frozen=True, kw_only=True)
class Given:
    """What every training of a fine-tuning has in common."""

    base: Path
    texts: Sequence[Prompt]
    classes: Sequence[str]
    options: TrainingOptions


def fine_tune(
    base: Path, texts: Sequence[Prompt], classes: Sequence[str], options: TrainingOptions, job: Job
) -> dict[str, object]:
    """Train a checkpoint on the data alone: a new classifier of these classes on it, or without classes a decoder's next tokens.

    With `options.contrastive` the encoder has a first stage; where that says "auto", if classifiers of it are the better ones.
    Early stop: the Brier score of held-out texts; of a decoder the same loss. A killed run continues.
    """
    source = read_source(base, texts, classes, options, job)
    given = Given(base=base, texts=texts, classes=classes, options=options)
    first, told = choose_stage(given, source, job)
    _, facts = train_on(given, source, job, first)
    drop_tried(job)
    return facts | told


def choose_stage(given: Given, source: Source, job: Job) -> tuple[Contrastive | None, dict[str, object]]:
    """The first stage of a training, None where it has none or held-out rows are against it; and what the step tells of it."""
    options = given.options
    first = options.contrastive if isinstance(options, FinetuneOptions) and given.classes else None
    if first is None:
        return None, {}
    told: dict[str, object] = {}
    if first.when == "auto":
        scores = _try_both(given, source, job, first)
        told["tried"] = scores
        first = first if scores[CONTRASTIVE] < scores[PLAIN] else None
    return first, told | {"contrastive": first is not None}


def drop_tried(job: Job) -> None:
    """Leave nothing of what was tried."""
    shutil.rmtree(job.out / _TRIED, ignore_errors=True)


def train_on(
    given: Given, source: Source, job: Job, first: Contrastive | None
) -> tuple[Sequence[float], dict[str, object]]:
    """Train into the job's folder, behind a first stage where one is given: the score of each epoch, and the step's facts."""
    job.progress(0, 0, f"loading {given.base.name}")
    begins = given.base if first is None else _bring_together(given, source, job, first)
    outcome, facts = teach(
        Course(
            job=job,
            student=Whole(folder=begins, classes=given.classes),
            source=source,
            losses={"labels": 1.0},
            options=given.options,
            begins=given.base,
            judge=BRIER if given.classes else None,
        )
    )
    shutil.rmtree(job.out / _FIRST, ignore_errors=True)
    return outcome.scores, facts


def _bring_together(given: Given, source: Source, job: Job, first: Contrastive) -> Path:
    """The folder of the classifier after the first stage, beside what the job makes; a finished one is not made again."""
    out = job.out / _FIRST
    out.mkdir(exist_ok=True)
    rate = first.learning_rate or _RATE * 384 / load_model(given.base).hidden
    course = Course(
        job=replace(job, out=out),
        student=Whole(folder=given.base, classes=given.classes),
        source=pair(source, given.texts, job.out_of_scope, job.seed),
        losses={"supervised_contrastive": 1.0},
        options=replace(given.options, epochs=first.epochs, batch=first.batch, learning_rate=rate, micro_batch=None),
        begins=given.base,
    )
    done = _Kept(out / _DONE, identify(course))
    if done.read() is None:
        teach(course)
        _set_prototypes(out, source, job)
        done.write(0.0)
    return out


def _set_prototypes(folder: Path, source: Source, job: Job) -> None:
    """Give the classifier of a first stage what it would otherwise have to learn: each class's weights point to the mean of its
    texts, and the softmax of the cosines has the stage's temperature.

    Prototypical networks, Snell et al. (arXiv:1703.05175), section 2.3, of directions. Biases are 0, and so are the weights of a
    class without texts. What the cosine divides by is the mean length of the vectors: after a first stage they are alike.
    """
    module = load_module(job.task, folder)
    tap = Tap(module, needs=frozenset({"views"}))
    head = find_head(cast(nn.Module, module.model))
    totals, lengths = torch.zeros_like(head.weight), []
    with torch.no_grad(), reproducible(job.seed):
        for start in range(0, len(source.train), _AT_A_TIME):
            batch = source.batch(source.train[start : start + _AT_A_TIME])
            read = tap(batch).views[1]
            lengths.append(read.norm(dim=-1))
            totals += (batch.targets == 1.0).to(read.dtype).T @ torch.nn.functional.normalize(read, dim=-1)
        towards = torch.nn.functional.normalize(totals, dim=-1)
        head.weight.copy_(towards / (TOGETHER * torch.cat(lengths).mean()))
        if head.bias is not None:
            head.bias.zero_()
    save_model(module, folder)


def pair(source: Source, texts: Sequence[Prompt], out_of_scope: str | None, seed: int) -> Source:
    """The source's rows, each batch with as many more: for each row another train row of its class, in each epoch drawn anew.

    A row without another one, and one of no class, is there twice: what differs is dropout (SimCSE, arXiv:2104.08821).
    """
    classes: dict[str, list[int]] = defaultdict(list)
    for row in source.train:
        label = texts[row].label
        if label is not None and label != out_of_scope:
            classes[label].append(row)

    def partner(row: int, epoch: int) -> int:
        others = [other for other in classes.get(texts[row].label or "", ()) if other != row]
        return others[int(Random(f"partner:{seed}:{epoch}:{row}").random() * len(others))] if others else row

    def varied(rows: Sequence[int], epoch: int) -> Batch:
        both = [*rows, *(partner(row, epoch) for row in rows)]
        return source.batch(both) if source.varied is None else source.varied(both, epoch)

    return replace(source, held=[], varied=varied, identity={**source.identity, "pairs": seed})


def _try_both(given: Given, source: Source, job: Job, first: Contrastive) -> dict[str, float]:
    """The mean Brier score of classifiers without and with the first stage on train rows that neither of them has read."""
    parts = fold([row.text for row in given.texts], [row.label for row in given.texts])
    scores = dict.fromkeys((PLAIN, CONTRASTIVE), 0.0)
    for number, held in enumerate(parts):
        kept = sorted(set(range(len(given.texts))) - set(held))
        for name, stage in ((PLAIN, None), (CONTRASTIVE, first)):
            job.progress(0, 0, f"part {number + 1} of {FOLDS} held out, {name}")
            out = job.out / _TRIED / f"{name}-{number}"
            part = replace(source, train=kept, held=held)
            known = _Kept(out.with_suffix(".json"), json.dumps([source.identity, kept, name], sort_keys=True))
            score = known.read()
            if score is None:
                out.mkdir(parents=True, exist_ok=True)
                score = min(train_on(given, part, replace(job, out=out), stage)[0])
                known.write(score)
                shutil.rmtree(out)
            scores[name] += score * len(held) / len(given.texts)
    return {name: round(score, 6) for name, score in scores.items()}


def fold(texts: Sequence[str], labels: Sequence[str | None]) -> list[list[int]]:
    """At most FOLDS parts of the rows, with each label's texts dealt out by their hashes; a text that is there twice is in one.

    Each label begins with another part, so that labels of one text are in several.
    """
    places: dict[str, int] = {}
    label_of = dict(zip(reversed(texts), reversed(labels), strict=True))
    counts = {label: begin for begin, label in enumerate(sorted(set(labels), key=str))}
    for text in sorted(label_of, key=lambda text: hashlib.sha256(f"fold:{text}".encode()).digest()):
        places[text] = counts[label_of[text]] % FOLDS
        counts[label_of[text]] += 1
    parts = [[row for row, text in enumerate(texts) if places[text] == part] for part in range(FOLDS)]
    return [part for part in parts if part]


class _Kept:
    """A number that a finished training left in a file, known by what it was made of."""

    def __init__(self, path: Path, made_of: str) -> None:
        self._path, self._made_of = path, hashlib.sha256(made_of.encode()).hexdigest()

    def read(self) -> float | None:
        """The number; None where there is none, or another training's."""
        if not self._path.is_file():
            return None
        known = json.loads(self._path.read_text(encoding="utf-8"))
        return float(known["number"]) if known["of"] == self._made_of else None

    def write(self, number: float) -> None:
        """Keep the number."""
        write_atomically(self._path, json.dumps({"number": number, "of": self._made_of}))
