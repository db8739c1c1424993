"""distill: fine-tune a teacher on the recipe's labels, and teach a student that is cut from its layers.

Both fill a folder with config.json, model.safetensors and the tokenizer's files, and nothing else; while they run it also
holds the checkpoint from which a killed run continues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.distill.options import TrainingOptions, choose_blocks, read_create_options, read_distill_options
from edgekit.errors import EdgekitError
from edgekit.model import load_model
from edgekit.progress import Progress, silent
from edgekit.prompts import Prompt, PromptSet
from edgekit.schema import parse, pick
from edgekit.tasks import TASKS
from edgekit.tasks.contentless import untaught

if TYPE_CHECKING:
    from edgekit.recipe import Recipe


def check_options(recipe: Recipe, where: str) -> None:
    """Refuse, before anything runs, training tables that cannot work (`where` is the recipe's file)."""
    if recipe.teacher.create is not None:
        _check_create(recipe.task, f"{where}: teacher.create")
        read_create_options(recipe.teacher.create, recipe.data.max_length, f"{where}: teacher.create")
    if recipe.teacher.finetune is not None:
        _check_finetune(recipe.task, recipe.teacher.finetune, f"{where}: teacher.finetune")
    kind = pick(TASKS, recipe.task, f"{where}: task")
    read_distill_options(recipe.distill, kind.OUTPUT, f"{where}: distill")


def check_layers(teacher: Path, layers: int | None, keep: Sequence[int] | None, where: str) -> list[int]:
    """Which of the teacher's layers a student keeps; EdgekitError where the teacher does not have them."""
    return choose_blocks(load_model(teacher).layers, layers, keep, where)


def create(
    prompts: Path,
    *,
    options: Mapping[str, Any],
    max_length: int,
    out: Path,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Make a decoder and its tokenizer from nothing but the train split, into `out`; a killed run continues there.

    It is trained to say the next token of running text, of texts with an answer the two behind each other, in blocks of
    max_length tokens. Raises EdgekitError for unknown options, sizes that do not fit, and a train split that is too short.
    """
    settings = read_create_options(options, max_length, "teacher.create")
    rows = PromptSet(folder=prompts).split("train")
    if any(row.messages for row in rows):
        raise EdgekitError(f"{prompts}: a model made from nothing has no chat template; give texts (data.text)")
    from edgekit.distill.create import create_decoder

    texts = [row.text + (row.label or "") for row in rows]
    return create_decoder(texts, settings, max_length=max_length, out=out, seed=seed, progress=progress)


def finetune(
    base: Path,
    prompts: Path,
    *,
    task: str,
    options: Mapping[str, Any],
    max_length: int,
    out: Path,
    seed: int = 0,
    out_of_scope: str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train a model on the labels of the train split, into `out`; a killed run continues there.

    text-classification: a classifier on an encoder. The classes are the labels in sorted order, without `out_of_scope`: its
    texts are taught as "no class in particular", and so are some that say nothing (`tasks.contentless`).
    text-generation: the wanted answers, or all tokens of running text.
    Raises EdgekitError for unknown options, a task without fine-tuning, and a train split without two labels or any answer.
    """
    settings = _check_finetune(task, options, "teacher.finetune")
    if task == "text-generation":
        from edgekit.distill.language import teach_answers

        texts = PromptSet(folder=prompts).split("train")
        return teach_answers(base, texts, settings, max_length=max_length, out=out, seed=seed, progress=progress)
    rows = [prompt for prompt in PromptSet(folder=prompts).split("train") if prompt.label is not None]
    rows += _contentless(rows, out_of_scope)
    classes = sorted({str(prompt.label) for prompt in rows} - {out_of_scope})
    if len(classes) < 2:
        raise EdgekitError(f"{prompts}: the train split has {len(classes)} label(s); fine-tuning needs at least two")
    from edgekit.distill.lessons import teach_labels

    return teach_labels(
        base,
        rows,
        classes,
        settings,
        max_length=max_length,
        out=out,
        seed=seed,
        out_of_scope=out_of_scope,
        progress=progress,
    )


def distill(
    teacher: Path,
    prompts: Path,
    *,
    task: str,
    options: Mapping[str, Any],
    max_length: int,
    out: Path,
    layers: int | None = None,
    keep: Sequence[int] | None = None,
    seed: int = 0,
    out_of_scope: str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Cut a student from the teacher's layers and teach it on the train split, into `out`; a killed run continues there.

    `layers` says how many layers to keep, or `keep` which. Raises EdgekitError for unknown options or losses, layers that
    the teacher does not have, labels that are not its classes, and an empty train split.
    """
    kind = pick(TASKS, task, "task")
    settings, weights = read_distill_options(options, kind.OUTPUT, "distill")
    kept = check_layers(teacher, layers, keep, "student")
    rows = PromptSet(folder=prompts).split("train")
    if not rows:
        raise EdgekitError(f"{prompts}: the train split is empty")
    if kind.OUTPUT == "logits":
        rows += _contentless(rows, out_of_scope)
    if kind.OUTPUT == "tokens":
        from edgekit.distill.language import teach_decoder

        return teach_decoder(
            teacher,
            rows,
            kept,
            settings,
            weights,
            max_length=max_length,
            out=out,
            seed=seed,
            progress=progress,
        )
    from edgekit.distill.lessons import teach_student

    return teach_student(
        teacher,
        rows,
        kept,
        settings,
        weights,
        task=kind,
        max_length=max_length,
        out=out,
        seed=seed,
        out_of_scope=out_of_scope,
        progress=progress,
    )


def _contentless(rows: Sequence[Prompt], out_of_scope: str | None) -> list[Prompt]:
    """Texts that say nothing, to be taught as of no class: a tenth of the rows at most, and none without such a class."""
    texts = [] if out_of_scope is None else untaught(row.text for row in rows)
    step = -(-len(texts) // max(len(rows) // 10, 1)) or 1
    return [Prompt(text=text, label=out_of_scope) for text in texts[::step]]


def _check_create(task: str, where: str) -> None:
    if task != "text-generation":
        raise EdgekitError(f"{where}: only models for text-generation can be made from nothing, not for {task}")


def _check_finetune(task: str, options: Mapping[str, Any], where: str) -> TrainingOptions:
    if task not in {"text-classification", "text-generation"}:
        raise EdgekitError(
            f"{where}: fine-tuning is for text-classification and text-generation, not {task}; remove this table"
        )
    return parse(TrainingOptions, options, where)
