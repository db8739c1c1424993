"""What is taught: labels to a teacher, a teacher's signal to a student."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgekit.distill.loop import Lesson, reproducible, train
from edgekit.distill.losses import LOSSES, Batch, Signal, labels
from edgekit.distill.machine import choose_precision
from edgekit.distill.options import SIGNAL_BYTES, DistillOptions, TrainingOptions
from edgekit.distill.snapshot import drop_checkpoint
from edgekit.distill.students import Tap, cut, match_blocks
from edgekit.errors import EdgekitError
from edgekit.owners_tokenizer import quiet
from edgekit.progress import Progress, silent
from edgekit.prompts import Prompt
from edgekit.schema import nearest
from edgekit.tasks import Task, batches, find_pad_id, pad, text_classification
from edgekit.tasks.encoders import Encoder, dimensions, load_encoder
from edgekit.workspace import file_sha256, fingerprint

# Files of a checkpoint folder that say how texts become ids and vectors become embeddings; they go along unchanged.
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
CHAT_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")
EMBEDDING_FILES = (
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "*_*/config.json",
    "*_*/model.safetensors",
)
READING, ANSWERING = "reading the texts", "texts that the teacher has answered"


def teach_labels(
    base: Path,
    rows: Sequence[Prompt],
    classes: Sequence[str],
    options: TrainingOptions,
    *,
    max_length: int,
    out: Path,
    seed: int,
    out_of_scope: str | None,
    progress: Progress,
) -> dict[str, Any]:
    """Train a fresh classifier on an encoder. Early stop: the Brier score (Brier 1950) of the held-out rows, which unlike
    cross-entropy does not punish a model for growing surer of what it gets right."""
    progress(0, 0, READING)
    model = text_classification.open_model(base)
    ids = [tokens for _, tokens in text_classification.encode(model, rows, max_length)]
    targets = make_targets(rows, classes, out_of_scope, str(base))
    pad_id = find_pad_id(model)
    progress(0, 0, f"loading {base.name}")
    with reproducible(seed):
        head = {
            "num_labels": len(classes),
            "id2label": dict(enumerate(classes)),
            "label2id": {name: place for place, name in enumerate(classes)},
            "problem_type": "single_label_classification",
        }
        module = load_encoder(base, "text-classification", head)
        precision = choose_precision(options.precision)
        tap = Tap(module, precision=precision)

        def answer(places: list[int]) -> tuple[Signal, Batch]:
            tokens, mask = pad([ids[place] for place in places], pad_id)
            return tap(tokens, mask), Batch(mask=mask, targets=targets[places])

        def loss(places: list[int]) -> Tensor:
            signal, batch = answer(places)
            return labels(signal, signal, batch, 1.0)

        def brier(places: list[int]) -> Tensor:
            signal, batch = answer(places)
            return (signal.output.softmax(dim=-1) - batch.targets).square().sum(dim=-1).mean()

        lesson = _lesson(rows, ids, options.holdout, loss, brier)
        run = identify(base, ids, targets, options, seed, {})
        width = dimensions(cast(Any, module.model).config).hidden
        facts = train(module, lesson, options, width=width, seed=seed, folder=out, run=run, progress=progress)
    save(module, base, out, TOKENIZER_FILES)
    return facts | {"classes": list(classes), "precision": precision}


def teach_student(
    teacher: Path,
    rows: Sequence[Prompt],
    kept: Sequence[int],
    options: DistillOptions,
    weights: Mapping[str, float],
    *,
    task: Task,
    max_length: int,
    out: Path,
    seed: int,
    out_of_scope: str | None,
    progress: Progress,
) -> dict[str, Any]:
    """Train a student of the kept layers on the weighted sum of losses. Early stop: the same sum on the held-out rows."""
    progress(0, 0, READING)
    model = task.open_model(teacher)
    ids = [tokens for _, tokens in task.encode(model, rows, max_length)]
    targets = make_targets(rows, model.labels if task.OUTPUT == "logits" else [], out_of_scope, str(teacher))
    pad_id = find_pad_id(model)
    progress(0, 0, f"loading the teacher, {teacher.name}")
    with reproducible(seed):
        module = cast(Encoder, task.load(teacher))
        cut(module, kept)
        relations, hidden = "attention_relation" in weights, "hidden" in weights
        matched = match_blocks(model.layers, kept)
        precision = choose_precision(options.precision)
        tap = Tap(module, blocks=range(len(kept)) if hidden else (), relations=relations, precision=precision)
        shown = Tap(cast(Encoder, task.load(teacher)), blocks=matched if hidden else (), relations=relations)
        ask = ask_teacher(shown, ids, pad_id, SIGNAL_BYTES, progress)

        def loss(places: list[int]) -> Tensor:
            tokens, mask = pad([ids[place] for place in places], pad_id)
            batch = Batch(mask=mask, targets=targets[places])
            said, wanted = tap(tokens, mask), ask(places)
            terms = [
                weight * LOSSES[name](said, wanted, batch, options.temperature) for name, weight in weights.items()
            ]
            return torch.stack(terms).sum()

        lesson = _lesson(rows, ids, options.holdout, loss, loss)
        run = identify(teacher, ids, targets, options, seed, {"keep": list(kept), "losses": dict(weights)})
        width = dimensions(cast(Any, module.model).config).hidden
        facts = train(module, lesson, options, width=width, seed=seed, folder=out, run=run, progress=progress)
    save(module, teacher, out, TOKENIZER_FILES + (EMBEDDING_FILES if task.OUTPUT == "embedding" else ()))
    return facts | {
        "keep": list(kept),
        "teacher_layers": model.layers,
        "matched_layers": matched if hidden else [],
        "losses": dict(weights),
        "temperature": options.temperature,
        "precision": precision,
    }


def make_targets(rows: Sequence[Prompt], classes: Sequence[str], out_of_scope: str | None, where: str) -> Tensor:
    """Wanted probabilities [rows, classes]: one class, all alike for an out-of-scope text that has none, zeros without a label.

    Raises EdgekitError (beginning with `where`) for a label that is not a class.
    """
    places = {name: place for place, name in enumerate(classes)}
    targets = torch.zeros(len(rows), len(classes))
    if not classes:
        return targets
    for place, row in enumerate(rows):
        if row.label is None:
            continue
        if row.label in places:
            targets[place, places[row.label]] = 1.0
        elif row.label == out_of_scope:
            targets[place] = 1 / len(classes)
        else:
            raise EdgekitError(
                f"{where}: the label {row.label!r} is not one of its classes{nearest(row.label, classes)}"
            )
    return targets


def ask_teacher(
    tap: Tap, ids: Sequence[Sequence[int]], pad_id: int, limit_bytes: int, progress: Progress = silent
) -> Callable[[list[int]], Signal]:
    """A function from rows to the teacher's signal, without dropout and gradients.

    Where the signals of all texts fit into the limit they are computed once; else each batch is asked anew.
    """

    def live(places: list[int]) -> Signal:
        with torch.no_grad():
            return tap(*pad([ids[place] for place in places], pad_id))

    probe = live([0])
    per_token = sum(one.shape[-1] for one in probe.hidden)
    per_token += sum(one.shape[1] * one.shape[-1] for one in probe.projections)
    whole = probe.output.ndim == 2  # one row per text; a decoder's has one per token
    needed = 4 * per_token * sum(map(len, ids))
    needed += 4 * probe.output.shape[-1] * (len(ids) if whole else sum(map(len, ids)))
    if needed > limit_bytes:
        return live

    known: dict[int, Signal] = {}
    progress(0, len(ids), ANSWERING)
    for places, _, _ in batches(ids, pad_id, 32):
        signal = live(places)
        for row, place in enumerate(places):
            length = len(ids[place])
            known[place] = Signal(
                output=signal.output[row] if whole else signal.output[row, :length].clone(),
                hidden=tuple(one[row, :length].clone() for one in signal.hidden),
                projections=tuple(one[row, :, :length].clone() for one in signal.projections),
            )
        progress(len(known), len(ids), ANSWERING)
    return lambda places: _stack([known[place] for place in places])


def _stack(signals: Sequence[Signal]) -> Signal:
    """One batch of single texts' signals, zeros where a text is shorter than the longest."""
    from torch.nn.utils.rnn import pad_sequence

    hidden = [pad_sequence(list(one), batch_first=True) for one in zip(*(each.hidden for each in signals), strict=True)]
    turned = zip(*([one.transpose(0, 1) for one in each.projections] for each in signals), strict=True)
    projections = [pad_sequence(list(one), batch_first=True).transpose(1, 2) for one in turned]
    outputs = [each.output for each in signals]
    return Signal(
        output=torch.stack(outputs) if outputs[0].ndim == 1 else pad_sequence(outputs, batch_first=True),
        hidden=tuple(hidden),
        projections=tuple(projections),
    )


def _lesson(
    rows: Sequence[Prompt],
    ids: Sequence[Sequence[int]],
    holdout: float,
    loss: Callable[[list[int]], Tensor],
    judge: Callable[[list[int]], Tensor],
) -> Lesson:
    kept, held = hold_out([row.text for row in rows], holdout)
    return Lesson(lengths=[len(row) for row in ids], train=kept, held=held, loss=loss, judge=judge)


def hold_out(texts: Sequence[str], share: float) -> tuple[list[int], list[int]]:
    """Places of the texts to train on, and of those held out: by a text's hash, so that it stays when others are added."""
    drawn = [int.from_bytes(hashlib.sha256(f"holdout:{text}".encode()).digest()[:8], "big") / 2**64 for text in texts]
    held = [place for place, number in enumerate(drawn) if number < share]
    kept = [place for place, number in enumerate(drawn) if number >= share]
    return (kept, held) if kept else (held, [])


def identify(
    model: Path,
    ids: Sequence[Sequence[int]],
    targets: Tensor,
    options: TrainingOptions,
    seed: int,
    more: Mapping[str, Any],
) -> str:
    """What a checkpoint must agree with to be continued."""
    files = sorted(model.glob("*.safetensors"))
    return fingerprint(
        {
            "model": {path.name: file_sha256(path) for path in [model / "config.json", *files]},
            "ids": ids,
            "targets": hashlib.sha256(targets.numpy().tobytes()).hexdigest(),
            "options": asdict(options),
            "seed": seed,
            **more,
        }
    )


def save(module: nn.Module, source: Path, out: Path, patterns: Sequence[str]) -> None:
    """Write a module's weights and configuration, copy the files that the patterns name, and drop the checkpoint."""
    model: Any = module.model
    # Where a model was loaded from is this machine's business: without it equal models are equal bytes.
    model.config._name_or_path = ""
    with quiet():
        model.save_pretrained(out)
    for pattern in patterns:
        for path in sorted(source.glob(pattern)):
            place = out / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    drop_checkpoint(out)
