"""The three recordings of a recipe's teacher, by one command: what it says of train, its activations on calibrate, its answers to
verify. Each is a product of its own, with one header (`origin.as_recording`), and is made again where what it is of changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from edgekit.pipeline.answers import answered
from edgekit.pipeline.plan import Listener, Session
from edgekit.pipeline.resolve import Checked
from edgekit.pipeline.steps import calibrate, create, distill, finetune, record, record_train
from edgekit.workspace import NotMade, Product, Workspace


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recording: the split and the model (`teacher` or `student`) that it is of, and where it lies.

    made: now, or before (False). rows: prompts; tokens: that were recorded, None where answers are rows of numbers. model,
    tokenizer, template, data: sha256 of what it belongs to; None for what the model has not.
    """

    split: str
    of: str
    folder: str
    made: bool
    rows: int
    tokens: int | None
    bytes: int
    model: str
    tokenizer: str | None
    template: str | None
    data: str


def record_splits(checked: Checked, prompts: Product, session: Session, *, with_student: bool) -> list[Recording]:
    """Make the recordings of a recipe's teacher that are not there yet, and tell of each of them.

    with_student: also of the student (its activations, and its answers beside the teacher's), which is made where it is not
    there: a build then records nothing. Without a train split, as of a recipe that trains nothing, there are two.
    """
    settings = checked.settings
    base = checked.teacher or create(settings, prompts, session)
    teacher = finetune(settings, base, prompts, session)
    prompts = answered(settings.recipe, teacher, prompts, session)
    found = []
    if "train" in prompts.facts["rows"]:
        found.append(_once("train", "teacher", session, partial(record_train, settings, teacher, prompts)))
    models = {"teacher": teacher}
    if with_student:
        models["student"] = distill(settings, teacher, prompts, session)
    for name, model in models.items():
        found += [
            _once("calibrate", name, session, partial(calibrate, settings, model, prompts)),
            _once("verify", name, session, partial(record, settings, teacher, model, prompts)),
        ]
    return found


def _once(split: str, of: str, session: Session, make: Callable[[Session], Product]) -> Recording:
    """Make a recording unless it is there. of: the model that it is of."""
    looking = replace(session, workspace=Workspace(session.workspace.root, makes=False), listener=Listener())
    try:
        make(looking)
        made = session.fresh
    except NotMade:
        made = True
    product = make(session)
    told, tokens = product.facts["recording"], product.facts.get("tokens")
    if tokens is None:
        tokens = product.facts.get("sequences", {}).get("tokens")
    return Recording(
        split=split,
        of=of,
        folder=str(product.folder),
        made=made,
        rows=told["rows"][split],
        tokens=tokens,
        bytes=sum(entry["bytes"] for entry in product.manifest["files"].values()),
        model=told["model"],
        tokenizer=told["tokenizer"],
        template=told["template"],
        data=told["data"][split],
    )
