"""Labels that a language model gives to texts without one: scored once, audited, and then part of the train split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.inputs import Content
from edgekit.pipeline.answers import check_answers, check_writer
from edgekit.pipeline.origin import model_content, split_content, with_read
from edgekit.pipeline.plan import Session, run_step
from edgekit.prompts import PromptSet
from edgekit.recipe import Data, Labelling, Recipe
from edgekit.schema import nearest
from edgekit.workspace import Product, file_sha256, installed_version

if TYPE_CHECKING:
    from edgekit.written.labels import LabelsInputs

_LABELLED = "labelled"


def labelled(recipe: Recipe, prompts: Product, session: Session) -> Product:
    """The prompts with the texts that the recipe has labelled in their train split; as they are where it asks for none.

    Says how the labels agree with people's. Raises EdgekitError where that is not proven to be enough, or nobody can label.
    """
    if recipe.labelling is None or _LABELLED in prompts.facts or "train" not in prompts.facts["rows"]:
        return prompts
    from edgekit.written.audit import AUDIT, Auditing, describe, label
    from edgekit.written.labels import score_labels

    asked = recipe.labelling
    inputs = _inputs(recipe, asked, prompts)
    place = inputs.writer.path
    sources = [] if place.is_file() else [place]
    scored = run_step(session, inputs, with_read(score_labels, prompts, "train", *sources), note=f"by {place.name}")
    auditing = Auditing(calibrate=asked.calibrate, agreement=asked.agreement, least=asked.least)
    by = f"{place.name} ({str(inputs.writer.digest)[:12]})"

    def make(out: Path) -> dict[str, object]:
        found = label(inputs, scored.folder, auditing, out)
        placed, bare = found.pop("placed"), prompts.facts.get("unlabelled", 0)
        assert isinstance(placed, int)
        return {
            **prompts.facts,
            **({"unlabelled": bare - placed} if bare else {}),
            "rows": {**prompts.facts["rows"], "train": found["rows"]},
            "notes": [*prompts.facts["notes"], describe(found, by)],
            _LABELLED: {"by": by, **found},
            "read": scored.facts["read"],
        }

    key = {"prompts": prompts.digest, "scores": scored.digest, "auditing": vars(auditing), "by": by}
    made = session.workspace.once("labelled", key, make)
    told, audit = made.facts[_LABELLED], made.folder / AUDIT
    session.listener.say(f"data: {made.facts['notes'][-1]} (what is in doubt: {audit})")
    if told["interval"][0] < asked.agreement:
        raise EdgekitError(_why_not(recipe, told, audit))
    return made


def _why_not(recipe: Recipe, told: dict[str, object], audit: Path) -> str:
    """Why the labels are not trained on."""
    interval, suspects = told["interval"], told["suspects"]
    assert isinstance(interval, list)
    assert isinstance(suspects, list)
    shown = "".join(f"; {one['text'][:60]!r} is {one['label']!r}, it said {one['said']!r}" for one in suspects[:3])
    return (
        f"{recipe.path}: labelling.agreement: {told['by']} agrees with {told['agreed']} of {told['gold']} labelled train rows:"
        f" surely with {interval[0]:.1%}, and {told['wanted']:.1%} are wanted, so nothing is trained on its labels{shown} (all:"
        f" {audit}). Mend labels of yours that are wrong, say more with question and names, label more rows (audit), take"
        " a better model, or lower agreement"
    )


def provenance(prompts: Product) -> str | None:
    """Who gave how many labels of the train split; None where nobody did."""
    told = prompts.facts.get(_LABELLED)
    return (
        None if told is None else f"{told['kept']} labels by {told['by']}, agreement {told['agreed']} of {told['gold']}"
    )


def _check_table(recipe: Recipe, labelling: Labelling, where: str) -> None:
    if recipe.task != "text-classification":
        raise EdgekitError(
            f"{where}: labels are given for text-classification, not for {recipe.task}; remove this table"
        )
    if recipe.student is None and recipe.qad is None and recipe.teacher.finetune is None:
        raise EdgekitError(
            f"{where}: nothing learns from them; add [student] or [teacher.finetune], or remove this table"
        )
    if labelling.question is not None and "{text}" not in labelling.question:
        raise EdgekitError(f"{where}.question: has no {{text}}, so the model would not see the text; add it")


def check_written(recipe: Recipe, prompts: Product, session: Session) -> None:
    """Refuse, before anything is made, answers and labels that nobody could write."""
    check_answers(recipe, prompts, session)
    _check_labelling(recipe, prompts)


def _check_labelling(recipe: Recipe, prompts: Product) -> None:
    """Refuse, before anything is made, texts and models that are not there, and names of no label."""
    asked = recipe.labelling
    if asked is None:
        return
    where = f"{recipe.path}: labelling"
    _check_table(recipe, asked, where)
    if asked.texts is not None and not recipe.locate(asked.texts).is_file():
        raise EdgekitError(f"{where}.texts: no such file: {recipe.locate(asked.texts)}")
    if asked.texts is None and "train" in prompts.facts["rows"]:
        from edgekit.written.labels import find_bare

        if not find_bare(PromptSet(folder=prompts.folder)):
            raise EdgekitError(
                f"{where}.texts: missing key, and every train row has a label; name a file of texts without labels here, or as"
                " data.unlabelled"
            )
    check_writer(recipe.locate(asked.by), f"{where}.by")
    for name in asked.names or {}:
        if name not in prompts.facts["labels"]:
            raise EdgekitError(f"{where}.names: {name!r} is no label{nearest(name, prompts.facts['labels'])}")


def _inputs(recipe: Recipe, asked: Labelling, prompts: Product) -> LabelsInputs:
    from edgekit.written.labels import QUESTION, LabelsInputs

    place, data = recipe.locate(asked.by), recipe.data
    texts = None if asked.texts is None else recipe.locate(asked.texts)
    labels, is_file = list(prompts.facts["labels"]), place.is_file()
    return LabelsInputs(
        writer=Content(path=place, digest=file_sha256(place)) if is_file else model_content(place),
        texts=None if texts is None else Content(path=texts, digest=file_sha256(texts)),
        prompts=split_content(prompts, "train"),
        labels=labels,
        names={name: name.replace("_", " ") for name in labels} | (asked.names or {}),
        question=asked.question or QUESTION,
        score=asked.score,
        audit=asked.audit,
        data=Data(text=data.text, label=None, delimiter=data.delimiter, encoding=data.encoding, bad_rows=data.bad_rows),
        llama=installed_version("llama-cpp-python") if is_file else None,
    )
