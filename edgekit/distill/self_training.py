"""Self-training: texts without labels that a classifier of few labels is sure of are train rows of another one.

Scudder (IEEE Trans. Information Theory 11, 1965); Lee, "Pseudo-Label" (ICML 2013 workshop). How sure is sure enough, and whether
it helps, is asked of train rows that are held out in turn: neither the training nor its early stop has read them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.distill import few_labels
from edgekit.distill.batches import Source
from edgekit.distill.courses import Job, read_source
from edgekit.distill.determinism import reproducible
from edgekit.distill.few_labels import Given, fold
from edgekit.distill.finetuning import Contrastive, FinetuneOptions, PseudoLabels
from edgekit.distill.machine import choose_device
from edgekit.distill.options import TrainingOptions
from edgekit.distill.students import load_module
from edgekit.distill.tap import Tap
from edgekit.prompts import Prompt

# Folder of what a killed run has finished; it goes when the training ends.
_ASKED = "pseudo"
# Texts that are asked at a time.
_AT_A_TIME = 32
PLAIN, PSEUDO = "plain", "pseudo"


def fine_tune(
    base: Path,
    texts: Sequence[Prompt],
    classes: Sequence[str],
    options: TrainingOptions,
    job: Job,
    unlabelled: Sequence[Prompt] = (),
) -> dict[str, object]:
    """`few_labels.fine_tune`, where `options.pseudo_labels` asks for that with more train rows: texts without a label, each with
    the class that a classifier of the others is sure of. A killed run continues."""
    asked = options.pseudo_labels if isinstance(options, FinetuneOptions) and classes else None
    if asked is None or not unlabelled:
        return few_labels.fine_tune(base, texts, classes, options, job)
    source = read_source(base, texts, classes, options, job)
    given = Given(base=base, texts=texts, classes=classes, options=options)
    first, told = few_labels.choose_stage(given, source, job)
    learner = _Learner(given=given, source=source, unlabelled=unlabelled, first=first, job=job)
    labels, found = _find_labels(learner, asked)
    if labels:
        given, whole = learner.rows(labels)
        extra = [len(texts) + index for index in sorted(labels)]
        source = replace(whole, train=[*source.train, *extra], held=source.held)
    _, facts = few_labels.train_on(given, source, job, first)
    few_labels.drop_tried(job)
    shutil.rmtree(job.out / _ASKED, ignore_errors=True)
    return facts | told | {"pseudo_labels": found}


@dataclass(frozen=True, kw_only=True)
class _Learner:
    """What every classifier of a self-training has in common. source: of the labelled texts, which are the first rows."""

    given: Given
    source: Source
    unlabelled: Sequence[Prompt]
    first: Contrastive | None
    job: Job

    def rows(self, labels: Mapping[int, str]) -> tuple[Given, Source]:
        """All texts as rows, those without a label behind the others, with these labels by their places among themselves."""
        told = [replace(text, label=labels.get(index)) for index, text in enumerate(self.unlabelled)]
        given = replace(self.given, texts=[*self.given.texts, *told])
        return given, read_source(given.base, given.texts, given.classes, given.options, self.job)

    def answers(self, name: str, kept: Sequence[int], labels: Mapping[int, str]) -> NDArray[np.float32]:
        """The probabilities [rows, classes] that a classifier of some labelled rows, and of these labels, gives all texts."""
        given, source = self.rows(labels)
        count, held = len(self.given.texts), set(self.source.held)
        train = [*(row for row in kept if row not in held), *(count + index for index in sorted(labels))]
        part = replace(source, train=train, held=[row for row in kept if row in held])
        made_of = json.dumps([source.identity, part.train, part.held, self.first is not None], sort_keys=True)
        path = self.job.out / _ASKED / f"{name}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.npy"
        if not path.is_file():
            out = path.with_suffix("")
            out.mkdir(parents=True, exist_ok=True)
            few_labels.train_on(given, part, replace(self.job, out=out), self.first)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as stream:
                np.save(stream, self.read(out, part), allow_pickle=False)
            partial.replace(path)
            shutil.rmtree(out)
        return np.asarray(np.load(path, allow_pickle=False), np.float32)

    def read(self, folder: Path, source: Source) -> NDArray[np.float32]:
        """What a classifier says of a source's rows."""
        device, rows = choose_device(self.given.options.device), range(len(source.lengths))
        found = []
        with torch.no_grad(), reproducible(self.job.seed, device):
            tap = Tap(load_module(self.job.task, folder), device=device)
            for start in rows[::_AT_A_TIME]:
                batch = source.batch(rows[start : start + _AT_A_TIME]).to(device)
                found.append(tap(batch).output.float().softmax(dim=-1).cpu().numpy())
        return np.concatenate(found)


def _find_labels(learner: _Learner, asked: PseudoLabels) -> tuple[dict[int, str], dict[str, object]]:
    """The labels to learn from, by the places of their texts, none where held-out rows are against it; and what is told of it."""
    texts, job = learner.given.texts, learner.job
    every, count = range(len(texts)), len(texts)
    parts = fold([row.text for row in texts], [row.label for row in texts])
    targets = learner.source.batch(every).targets.numpy()
    plain = np.zeros_like(targets)
    said = []
    for number, held in enumerate(parts):
        job.progress(0, 0, f"part {number + 1} of {len(parts)} held out")
        said.append(learner.answers(f"{PLAIN}-{number}", sorted(set(every) - set(held)), {}))
        plain[held] = said[-1][held]
    threshold = find_threshold(plain.max(axis=1), plain.argmax(axis=1) == _classes(targets), asked.precision)
    told: dict[str, object] = {"kept": False, "threshold": threshold, "texts": 0, "of": len(learner.unlabelled)}
    if threshold is None:
        return {}, told
    classes = learner.given.classes
    if asked.when == "auto":
        with_labels = np.zeros_like(targets)
        for number, held in enumerate(parts):
            job.progress(0, 0, f"part {number + 1} of {len(parts)} held out, with texts that it was sure of")
            kept, answers = sorted(set(every) - set(held)), said[number]
            for turn in range(asked.rounds):
                answers = learner.answers(f"{turn}-{number}", kept, choose(answers[count:], classes, threshold))
            with_labels[held] = answers[held]
        scores = {PLAIN: _brier(plain, targets), PSEUDO: _brier(with_labels, targets)}
        told["tried"] = scores
        if scores[PSEUDO] >= scores[PLAIN]:
            return {}, told
    labels: dict[int, str] = {}
    for turn in range(asked.rounds):
        job.progress(0, 0, f"round {turn + 1} of {asked.rounds}: which texts it is sure of")
        labels = choose(learner.answers(f"round-{turn}", every, labels)[count:], classes, threshold)
    return labels, told | {"kept": bool(labels), "texts": len(labels)}


def find_threshold(confidence: NDArray[np.float32], right: NDArray[np.bool_], precision: float) -> float | None:
    """The lowest confidence such that, of the answers that are no less sure, at least this share is right; None where none is.

    confidence, right: of each answer [answers].
    """
    order = np.argsort(-confidence, kind="stable")
    shares = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    # Of answers that are equally sure all count.
    last = np.append(np.diff(confidence[order]) != 0, True)
    good = np.flatnonzero(last & (shares >= precision))
    return float(confidence[order[good[-1]]]) if len(good) else None


def choose(probabilities: NDArray[np.float32], classes: Sequence[str], threshold: float) -> dict[int, str]:
    """The class of each text [texts, classes] that is sure enough; of a class no more than the median class has, the surest."""
    best, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    sure = np.flatnonzero(confidence >= threshold)
    sure = sure[np.argsort(-confidence[sure], kind="stable")]
    by_class = [sure[best[sure] == number] for number in range(len(classes))]
    counts = [len(rows) for rows in by_class if len(rows)]
    most = int(np.median(counts)) if counts else 0
    return {int(row): classes[number] for number, rows in enumerate(by_class) for row in rows[:most]}


def _classes(targets: NDArray[np.float32]) -> NDArray[np.int64]:
    """The class of each row of wanted probabilities; -1, which nothing answers, for a text of no class."""
    return np.where(targets.max(axis=1) == 1.0, targets.argmax(axis=1), -1)


def _brier(probabilities: NDArray[np.float32], targets: NDArray[np.float32]) -> float:
    """The Brier score (Brier 1950), mean over rows."""
    return round(float(np.square(probabilities - targets).sum(axis=1).mean()), 6)
