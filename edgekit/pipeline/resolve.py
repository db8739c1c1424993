"""Preflight: whatever can fail cheaply fails here, in seconds, before anything is trained or exported."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError, require
from edgekit.model import Model, load_model
from edgekit.outputs import OUTPUTS
from edgekit.pipeline.cost import estimate
from edgekit.pipeline.labels import check_written
from edgekit.pipeline.plan import Plan, Session, Settings
from edgekit.pipeline.shapes import made_model
from edgekit.pipeline.teacher import find_others, find_teacher
from edgekit.prompts import PromptSet, gather, sources
from edgekit.prompts.prompt import ASIDE
from edgekit.prompts.unlabelled import find_unlabelled
from edgekit.recipe import Recipe
from edgekit.schema import nearest, parse, pick
from edgekit.state import check_state
from edgekit.target import Target
from edgekit.typed_json import as_list
from edgekit.weights import note_stale_index
from edgekit.workspace import Product, file_sha256, fingerprint

if TYPE_CHECKING:
    from edgekit.formats import FormatOptions

log = logging.getLogger("edgekit")


def gather_prompts(recipe: Recipe, session: Session) -> Product:
    """The recipe's prompts as a product; read and checked once for as long as the files stay the same.

    Says what was left out of them, and what is unusual.
    """
    splits = needed_splits(recipe)
    files = {
        # The name tells the kind of file, and which split it is.
        name: [place.name, file_sha256(place)] if isinstance(place, Path) else place
        for name, place in sources(recipe, splits).items()
    }
    if (texts := find_unlabelled(recipe)) is not None and "train" in splits:
        files["unlabelled"] = [texts.name, file_sha256(texts)]
    # A share is no file.
    named = {name for name in splits if isinstance(getattr(recipe.data, name), str | None)}
    data = {key: value for key, value in vars(recipe.data).items() if key not in {"path", "unlabelled", *named}}
    inputs = {
        "files": files,
        "splits": splits,
        "data": {key: str(value) for key, value in data.items()},
        "task": recipe.task,
        "seed": recipe.seed,
    }
    with session.listener.during("prompts", "reading the data"):
        product = session.workspace.once("prompts", inputs, lambda out: gather(recipe, splits, out))
    for line in product.facts["notes"]:
        session.listener.say(f"data: {line}")
    return _judged_by_final(recipe, product, session) if session.final else product


def _judged_by_final(recipe: Recipe, prompts: Product, session: Session) -> Product:
    """The same prompts with the final split in the place of verify."""
    if recipe.data.final is None:
        raise EdgekitError(f"{recipe.path}: data.final: missing key; --final judges on the file that it names")
    return judged_by(prompts, "final", f"judged on the final split ({recipe.data.final}), not on verify", session)


def judged_by(prompts: Product, split: str, note: str, session: Session) -> Product:
    """The same prompts with another split in the place of verify, which they then lack."""
    rows = {name: count for name, count in prompts.facts["rows"].items() if name != split}
    facts = {**prompts.facts, "rows": rows | {"verify": prompts.facts["rows"][split]}}
    facts["notes"] = [*prompts.facts["notes"], note]

    def make(out: Path) -> dict[str, object]:
        for name in rows:
            shutil.copyfile(prompts.folder / f"{split if name == 'verify' else name}.jsonl", out / f"{name}.jsonl")
        # What is written for the train split is held against it too: whatever judges, the same is taught.
        shutil.copyfile(prompts.folder / "verify.jsonl", out / f"{ASIDE}.jsonl")
        return facts

    return session.workspace.once("prompts", {"judged_by": split, "prompts": prompts.digest, "facts": facts}, make)


def needed_splits(recipe: Recipe) -> tuple[str, ...]:
    """Train is needed only where something is trained."""
    teacher = recipe.teacher
    trains = any(table is not None for table in (recipe.student, recipe.qad, teacher.finetune, teacher.create))
    splits = ("train", "calibrate", "verify") if trains else ("calibrate", "verify")
    own = {"recover": recipe.data.recover, "final": recipe.data.final}
    return (*splits, *(name for name, given in own.items() if given))


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A recipe that was checked, whatever the target: its settings, the teacher's folder (None where it is created), the folder
    that the recipe names, of which that may have been made, and its commit, if it comes from a hub."""

    settings: Settings
    teacher: Path | None = None
    source: Path | None = None
    revision: str | None = None


def read_settings(recipe: Recipe) -> Settings:
    """The recipe's tables as options; EdgekitError for an unknown task, and for training that cannot work."""
    from edgekit.distill import read_training
    from edgekit.tasks import TASKS

    pick(TASKS, recipe.task, f"{recipe.path}: task")
    return Settings(recipe=recipe, training=read_training(recipe, str(recipe.path)))


def resolve(
    checked: Checked,
    target: Target,
    prompts: Product,
    session: Session,
    choice: tuple[str | None, str | None] = (None, None),
    scheme: str | None = None,
) -> Plan:
    """Check everything of a target that can fail cheaply, and say what each step will get.

    choice: a format and a scheme by name, instead of the target's own (None); scheme: as in `draft`.

    Raises EdgekitError for whatever `check_target` refuses, and a model that does not fit the target.
    """
    from edgekit.formats import FORMATS
    from edgekit.tasks import TASKS

    with session.listener.during("check", f"what each step gets for {target.name}"):
        plan = draft(checked, target, prompts, choice, scheme)
        plan = replace(plan, estimate=estimate(plan, prompts))
        trained = checked.settings.training.qad
        if trained is not None:
            output = TASKS[plan.recipe.task].OUTPUT
            made = made_model(plan, output, len(prompts.facts["labels"]))
            FORMATS[plan.format].grid(made, plan.options, output).check(trained.train)
        _check_engines(plan, session)
        check_fits(plan)
    return plan


def draft(
    checked: Checked,
    target: Target,
    prompts: Product,
    choice: tuple[str | None, str | None] = (None, None),
    scheme: str | None = None,
) -> Plan:
    """The plan of `resolve` without what follows from the student: the recipe may not say yet which that is.

    scheme: what the one that was asked for becomes, where that is known. Raises EdgekitError for whatever `check_target` refuses.
    """
    from edgekit.formats import FORMATS, candidates, packages
    from edgekit.tasks import TASKS

    format_name, options = check_target(target, checked.settings.recipe.task, *choice)
    format_, output = FORMATS[format_name], TASKS[checked.settings.recipe.task].OUTPUT
    options = options if scheme is None else replace(options, scheme=scheme)
    runtimes = candidates(format_, target.runtime, output, format_.domains(options), str(target.path))
    check_browser(target, runtimes, generates=OUTPUTS[output].generates)
    _check_measure(target)
    for package in packages(format_, runtimes):
        if package.extra:
            require(package.module, extra=package.extra)
    return Plan(
        settings=checked.settings,
        target=target,
        teacher=checked.teacher,
        source=checked.source,
        revision=checked.revision,
        splits=needed_splits(checked.settings.recipe),
        prompts=prompts.facts,
        format=format_name,
        options=options,
        mixes=format_.mixes(options),
        runtimes=runtimes,
        choice=choice,
    )


def check_browser(target: Target, runtimes: Sequence[str], *, generates: bool) -> None:
    """Refuse a browser as the device of what no page runs, before anything is made for it.

    runtimes: those that may answer. generates: whether the model writes tokens.
    """
    from edgekit.devices import DEVICES
    from edgekit.probes import web

    if DEVICES[str(target.device.get("kind", "local"))].PROBE != web.NAME:
        return
    runs = web.WEB_RUNTIMES["tokens" if generates else "rows"]
    if others := [name for name in runtimes if name != runs]:
        what, format_ = ("models that write", "gguf") if generates else ("classifiers and encoders", "onnx")
        raise EdgekitError(
            f"{target.path}: runtime.{others[0]}: pages run {what} in {runs} alone; build them with --format {format_} for the"
            " target `browser`, or leave out --device to judge them in this machine's runtime"
        )


def _check_measure(target: Target) -> None:
    """Refuse what the device's probe does not time, before anything is made."""
    from edgekit.devices import DEVICES
    from edgekit.probes import PROBES

    kind = str(target.device.get("kind", "local"))
    if (target.measure.sustained_s or target.measure.sweep) and not PROBES[DEVICES[kind].PROBE].SUSTAINS:
        raise EdgekitError(
            f"{target.path}: neither calls without a pause nor other threads are timed on devices of kind {kind}: leave out"
            " --sustained and --sweep (in its file: sustained_s and sweep of [measure])"
        )


def _check_engines(plan: Plan, session: Session) -> None:
    """Where the target is judged on this machine and not on its CPU, whether its runtimes' engines do take the work there.

    Raises EdgekitError for a build of an engine that is made for it and cannot: nothing that is built would pass. Where this
    machine has no such build, a note says so: the CPU then answers, and the report says what that does not prove.
    """
    from edgekit.devices import DEVICES, open_device
    from edgekit.probes.proof import ask
    from edgekit.runtimes import RUNTIMES
    from edgekit.runtimes.onnxruntime import CPU
    from edgekit.runtimes.proof import PROOFS, fault

    where = plan.target.path
    known = [name for name in plan.runtimes if name in PROOFS]
    asked = {name: RUNTIMES[name].joined(plan.target.runtime.get(name, {}), {}) for name in known}
    placed = {
        name: options
        for name, options in asked.items()
        if options.get("gpu_layers") or options.get("provider", CPU) != CPU
    }
    if not placed or DEVICES[str(plan.target.device.get("kind", "local"))].REMOTE:
        return
    with closing(open_device(plan.target.device, f"{where}: device")) as device:
        for name, options in placed.items():
            proof = ask(device, name, options)
            found = fault(name, proof)
            if found is None:
                session.listener.say(f"{name}: {proof['used']} takes the work, as a session of a second shows")
            elif proof.get("asked") in proof.get("available", ()) or "failed" in proof:
                raise EdgekitError(f"{where}: runtime.{name}: {found}")
            else:
                session.listener.say(
                    f"note: {name}: {found}; here the CPU will answer, which proves no speed of the target"
                )


def check_recipe(recipe: Recipe, prompts: Product, session: Session) -> Checked:
    """Check everything of a recipe that can fail cheaply, and find its teacher.

    Raises EdgekitError for an unknown task, loss, margin or family, a teacher that is not there or cannot do the task, a
    student that cannot be cut from it, and labels that differ.
    """
    from edgekit.distill.options import choose_blocks
    from edgekit.verify import check_accuracy_table

    settings = read_settings(recipe)
    check_accuracy_table(recipe.task, recipe.accuracy, f"{recipe.path}: accuracy")
    check_state()
    if settings.training.control:
        _check_control(recipe, prompts)
    check_written(recipe, prompts, session)
    if recipe.teacher.create is not None:
        return Checked(settings=settings)
    found = find_teacher(recipe, session)
    if note := note_stale_index(found.folder):
        session.listener.say(f"note: {note}")
    _check_teacher(recipe, load_model(found.folder), prompts, session)
    for layers in settings.training.assistants[:1]:
        choose_blocks(load_model(found.folder).layers, layers, None, f"{recipe.path}: distill.assistants.0")
    return Checked(settings=settings, teacher=found.folder, source=found.source, revision=found.revision)


def _check_control(recipe: Recipe, prompts: Product) -> None:
    """Refuse a control run of a classifier that would have nothing to learn from: labels are all that it is taught by."""
    from edgekit.tasks import TASKS

    rows = PromptSet(folder=prompts.folder).split("train")
    if OUTPUTS[TASKS[recipe.task].OUTPUT].has_classes and all(row.label is None for row in rows):
        raise EdgekitError(
            f"{recipe.path}: distill.control: no train row has a label, and without its teacher nothing else teaches the student;"
            " give labels (data.label), or remove this key"
        )


def _check_teacher(recipe: Recipe, model: Model, prompts: Product, session: Session) -> None:
    from edgekit.distill import choose_layers
    from edgekit.distill.several import check_teachers
    from edgekit.distill.sizes import choose_sizes

    _check_kind(recipe, model)
    if recipe.student is not None:
        if not recipe.student.fit:
            choose_layers(model, recipe.student, f"{recipe.path}: student")
        choose_sizes(model, recipe.student, f"{recipe.path}: student")
        if (most := recipe.student.vocabulary) is not None and most >= model.rows:
            raise EdgekitError(
                f"{recipe.path}: student.vocabulary: {most}: the teacher has {model.rows:,.0f} tokens; give fewer, or remove it"
            )
    _check_labels(recipe, model, prompts)
    _check_length(recipe, model)
    head = {"num_labels": len(prompts.facts["labels"])} if recipe.teacher.finetune is not None else None
    _check_loads(model, recipe.task, head if recipe.task == "text-classification" else None, session)
    others = find_others(recipe, session)
    for other in others:
        _check_kind(recipe, load_model(other))
        _check_length(recipe, load_model(other))
        _check_loads(load_model(other), recipe.task, None, session)
    check_teachers(model.folder, others, recipe.task, prompts.facts["labels"] if head else ())


def _check_kind(recipe: Recipe, model: Model) -> None:
    """Refuse a decoder where the task needs an encoder, and the other way round."""
    from edgekit.architectures import find_architecture, is_decoder
    from edgekit.tasks import TASKS

    family = find_architecture(model.architecture, str(model.folder / "config.json"))
    if is_decoder(family) != OUTPUTS[TASKS[recipe.task].OUTPUT].generates:
        kind = "decoder, which generates text" if is_decoder(family) else "encoder, which generates no text"
        raise EdgekitError(
            f"{recipe.path}: task: {recipe.task}, but {model.folder} is a {model.architecture}: a {kind}"
        )


def _check_loads(model: Model, task: str, head: Mapping[str, object] | None, session: Session) -> None:
    """Whether transformers makes the task's model of the checkpoint. The answer is kept: asking imports torch, for seconds."""

    def make(_out: Path) -> Mapping[str, object]:
        from edgekit.tasks.loading import check_checkpoint

        check_checkpoint(model.folder, task, head)
        return {}

    # All that decides: no weight is read.
    shapes = {name: [info.dtype, *info.shape] for name, info in model.tensors.items()}
    inputs = {"config": file_sha256(model.folder / "config.json"), "tensors": fingerprint(shapes)}
    session.workspace.once("check", inputs | {"task": task, "head": head}, make)


def check_target(
    target: Target, task: str, format_name: str | None = None, scheme: str | None = None
) -> tuple[str, FormatOptions]:
    """The format and its options in the target's `[export.<task>]` table; every table of the target was checked then.

    format_name: another format than the table's, with that format's own defaults. scheme: another scheme; of the table's format
    or, where that has none of the name and no format is given, of the one that has.
    """
    from edgekit.devices import DEVICES
    from edgekit.formats import DEFAULT, FORMATS, parse_options
    from edgekit.runtimes import RUNTIMES
    from edgekit.tasks import TASKS

    table, output = target.export_for(task), TASKS[task].OUTPUT
    where = f"{target.path}: export.{task}"
    own = str(table.get("format", DEFAULT))
    pick(FORMATS, own, f"{where}.format")
    if scheme is not None:
        format_name, where = format_name or _format_with(scheme, output, own), "--scheme"
    if format_name is not None and format_name != own:
        table = _table_of(format_name, target, output)
    if scheme is not None:
        table = {**table, "scheme": scheme}
    format_, options = parse_options(table, output, where)
    for name, asked in target.runtime.items():
        parse(pick(RUNTIMES, name, f"{target.path}: runtime").Options, asked, f"{target.path}: runtime.{name}")
    device = pick(DEVICES, str(target.device.get("kind", "local")), f"{target.path}: device.kind")
    parse(device.Options, target.device, f"{target.path}: device")
    target.budget_for(task)
    return format_.NAME, options


def _format_with(scheme: str, output: str, own: str) -> str:
    """The format that has a scheme: the target's own before others."""
    from edgekit.formats import FORMATS

    named = [own, *(name for name in FORMATS if name != own)]
    if found := next((name for name in named if scheme in FORMATS[name].SCHEMES.get(output, ())), None):
        return found
    known = {name: FORMATS[name].SCHEMES[output] for name in named if output in FORMATS[name].SCHEMES}
    told = "; ".join(f"{name}: {', '.join(schemes)}" for name, schemes in known.items())
    close = nearest(scheme, [one for schemes in known.values() for one in schemes])
    raise EdgekitError(f"--scheme {scheme}: no format has it{close if 'did you' in close else ''}; choose of {told}")


def _table_of(format_name: str, target: Target, output: str) -> dict[str, object]:
    """The export table of another format than the target's own: that format's defaults."""
    from edgekit.formats import FORMATS

    asked = pick(FORMATS, format_name, "--format")
    if target.runtime and not set(asked.RUNTIMES) & target.runtime.keys():
        first, *others = asked.RUNTIMES
        raise EdgekitError(
            f"--format {format_name}: {target.path} has no [runtime.{first}]"
            f"{''.join(f' or [runtime.{name}]' for name in others)}; add that table, empty if you like, where"
            f" {' or '.join(asked.RUNTIMES)} runs there"
        )
    scheme = asked.SCHEME_FOR.get(output)
    return {"format": format_name, **({"scheme": scheme} if scheme else {})}


def choices(formats: Sequence[str], schemes: Sequence[str], output: str) -> list[tuple[str | None, str | None]]:
    """What to build of each target: every scheme in the formats that have it, and those formats that no scheme is of."""
    from edgekit.formats import FORMATS

    if not formats:
        return [(None, scheme) for scheme in schemes] or [(None, None)]
    pairs: list[tuple[str | None, str | None]] = []
    for scheme in schemes:
        having = [name for name in formats if scheme in FORMATS[name].SCHEMES.get(output, ())]
        pairs += [(name, scheme) for name in having or formats[:1]]
    return [*pairs, *((name, None) for name in formats if all(name != one for one, _ in pairs))]


def check_places(plan: Plan, session: Session) -> None:
    """Refuse to begin where the bundle, its archive or its report would replace something that edgekit did not write, where a
    place cannot be written, and where the disk is too full."""
    from edgekit.bundle.destination import refuse_foreign

    refuse_foreign(session.out, plan.name)
    check_room(plan, session)


def _check_labels(recipe: Recipe, model: Model, prompts: Product) -> None:
    if recipe.task != "text-classification" or recipe.teacher.finetune is not None:
        return
    if not any("ForSequenceClassification" in str(name) for name in as_list(model.config.get("architectures"))):
        raise EdgekitError(
            f"{model.folder}: not a classifier (architectures: {model.config.get('architectures')});"
            " add [teacher.finetune] to train one on the recipe's labels"
        )
    kind = model.config.get("problem_type")
    if len(model.labels) == 1 or kind in {"regression", "multi_label_classification"}:
        raise EdgekitError(
            f"{model.folder / 'config.json'}: not a single-label classifier ({len(model.labels)} outputs, problem_type {kind});"
            " edgekit builds single-label classifiers"
        )
    renamed = set((recipe.data.labels or {}).values())
    for label in prompts.facts["labels"]:
        if label not in model.labels and label in renamed:
            raise EdgekitError(
                f"{recipe.path}: data.labels: names a class {label!r} that the teacher has not{nearest(label, model.labels)}"
            )
        if label not in model.labels:
            raise EdgekitError(
                f"{recipe.path}: data: the label {label!r} is not one of the teacher's{nearest(label, model.labels)};"
                f" {_other_names(label, model.labels)}"
            )


def _other_names(label: str, classes: Sequence[str]) -> str:
    """How to say which label is which class, from the side that has bare numbers."""
    numbered = not label.isdigit() and any(re.fullmatch(r"LABEL_\d+", name) for name in classes)
    old, new = (classes[0], "...") if numbered else (label, classes[0] if label == "0" else "...")
    return f'where only the names differ, map them: data.labels = {{ "{old}" = "{new}", ... }}'


def _check_length(recipe: Recipe, model: Model) -> None:
    limit = model.max_positions
    if limit is not None and recipe.data.max_length > limit:
        raise EdgekitError(
            f"{recipe.path}: data.max_length: {recipe.data.max_length} tokens, but the teacher's positions end at"
            f" {limit}; set data.max_length = {limit}"
        )


def check_fits(plan: Plan) -> None:
    """Refuse (EdgekitError) a model that does not fit the target's memory."""
    needed = plan.estimate.needed_mb
    if needed > plan.usable_mb:
        raise EdgekitError(
            f"{plan.target.path}: hardware: {plan.usable_mb} MB are usable, but the artifact and its runtime need about"
            f" {needed:.0f} MB; choose a smaller teacher, a [student] with fewer layers, a scheme of fewer bits (--scheme), or a"
            " larger target"
        )


def check_room(plan: Plan, session: Session) -> None:
    """Raises EdgekitError where the cache or the place of the bundles cannot be written, or has too little room."""
    for place in (session.workspace.root, session.out):
        existing = next(parent for parent in (place.resolve(), *place.resolve().parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            problem = "cannot be written" if existing.is_dir() else "is a file"
            raise EdgekitError(f"{place}: {existing} {problem}; choose another place (--out, EDGEKIT_CACHE)")
        free = shutil.disk_usage(existing).free / 1e6
        if free < plan.estimate.disk_mb:
            raise EdgekitError(
                f"{place}: {free:.0f} MB are free, but this build needs about {plan.estimate.disk_mb:.0f} MB; free space or"
                " choose other places (--out, EDGEKIT_CACHE)"
            )
