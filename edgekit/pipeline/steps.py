"""The verbs: each gathers its inputs, which are its arguments and its fingerprint, and fills one folder from others."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import read_artifact
from edgekit.errors import EdgekitError
from edgekit.inputs import Content, identity
from edgekit.pipeline.answers import as_given, writer
from edgekit.pipeline.origin import (
    as_recording,
    model_content,
    model_digest,
    origin,
    origin_of,
    split_content,
    split_digests,
    with_read,
)
from edgekit.pipeline.plan import Plan, Session, Settings, run_step
from edgekit.pipeline.teacher import find_others
from edgekit.pipeline.trained import is_trained, train_step
from edgekit.progress import Progress
from edgekit.prompts import PromptSet
from edgekit.recipe import Student
from edgekit.schema import pick
from edgekit.workspace import Product, file_sha256, fingerprint, installed_version, open_product

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgekit.distill import CreateInputs, DistillInputs, FinetuneInputs, SignalsInputs
    from edgekit.distill.options import DistillOptions
    from edgekit.export import TraceInputs
    from edgekit.formats import Processor
    from edgekit.formats.smallest import Limits

# What a control learns by.
LABELS: Mapping[str, float] = {"labels": 1.0}


def create(settings: Settings, prompts: Product, session: Session, at: Path | None = None) -> Path:
    """The teacher that the recipe describes, made from nothing but the train split."""
    from edgekit.distill import create as make

    inputs = _create_inputs(settings, prompts)
    note = f"{prompts.facts['rows']['train']} texts"
    filled = with_read(make, prompts, "train")
    return train_step(settings.recipe, session, inputs, filled, note=note, at=at).folder


def finetune(settings: Settings, base: Path, prompts: Product, session: Session, at: Path | None = None) -> Path:
    """The teacher, fine-tuned where the recipe asks; else the checkpoint as it is."""
    if settings.training.finetune is None:
        return base
    from edgekit.distill import finetune as make
    from edgekit.distill.finetuning import describe

    inputs = _finetune_inputs(settings, base, prompts)
    note = f"{len(prompts.facts['labels'])} labels, {prompts.facts['rows']['train']} texts"
    filled = with_read(make, prompts, "train", base, *writer(prompts))
    product = train_step(settings.recipe, session, inputs, filled, note=note, at=at)
    for line in describe(product.facts):
        session.listener.say(f"note: {line}")
    return product.folder


def signals(settings: Settings, teacher: Path, prompts: Product, session: Session) -> Product | None:
    """What the teacher says of the train split, recorded for any student of it; None where it answers while a student learns."""
    inputs = _signals_inputs(settings, teacher, prompts)
    return None if inputs is None else _record_teacher(inputs, teacher, prompts, session)


def record_train(settings: Settings, teacher: Path, prompts: Product, session: Session) -> Product:
    """The recording of `signals`, whether the recipe's student learns from it or not.

    Raises EdgekitError for a decoder whose temperature is a schedule.
    """
    return _record_teacher(signals_inputs(settings, teacher, prompts), teacher, prompts, session)


def _record_teacher(inputs: SignalsInputs, teacher: Path, prompts: Product, session: Session) -> Product:
    from edgekit.distill import record_teacher as make

    note = f"{prompts.facts['rows']['train']} texts"
    filled = with_read(as_recording(make, teacher, prompts, "train"), prompts, "train", teacher, *writer(prompts))
    return run_step(session, inputs, filled, note=note)


def _signals_inputs(settings: Settings, teacher: Path, prompts: Product) -> SignalsInputs | None:
    if settings.recipe.student is None or settings.training.distill.signals != "recorded":
        return None
    return signals_inputs(settings, teacher, prompts)


def signals_inputs(settings: Settings, teacher: Path, prompts: Product) -> SignalsInputs:
    """What a recording of the train split follows from; raises as `record_train` does."""
    from edgekit.distill import SignalsInputs
    from edgekit.distill.machine import conditions
    from edgekit.outputs import OUTPUTS
    from edgekit.tasks import TASKS

    recipe, options = settings.recipe, settings.training.distill
    # A row is recorded whole, and has all temperatures; texts of no class are taught to classifiers alone.
    output = OUTPUTS[TASKS[recipe.task].OUTPUT]
    temperature = options.temperature if output.generates else 0.0
    if not isinstance(temperature, float):
        raise EdgekitError(
            f"{recipe.path}: distill.temperature: a teacher is recorded at one temperature; give a number"
        )
    return SignalsInputs(
        teacher=model_content(teacher),
        prompts=split_content(prompts, "train"),
        task=recipe.task,
        temperature=temperature,
        device=options.device,
        max_length=recipe.data.max_length,
        seed=recipe.seed,
        machine=conditions(options),
        out_of_scope=recipe.data.out_of_scope if output.has_classes else None,
    )


def distill(settings: Settings, teacher: Path, prompts: Product, session: Session, at: Path | None = None) -> Path:
    """The student that the recipe describes, through its assistants; the teacher itself where it describes none."""
    from edgekit.model import load_model

    recipe = settings.recipe
    if recipe.student is None:
        return teacher
    teachers, told = [teacher, *find_others(recipe, session)], dict[str, object]()
    chain = [load_model(teacher).layers]
    for layers in settings.training.assistants:
        between = replace(settings, recipe=replace(recipe, student=Student(layers=layers)))
        chain = [*chain, layers]
        teachers = [_distill(between, teachers, told, prompts, session)]
        told = {**open_product(teachers[0], "distill").facts, "chain": [*chain, recipe.student.layers]}
        told = {key: told[key] for key in ("teachers", "chain") if key in told}
    return _distill(settings, teachers, told, prompts, session, at)


def _distill(
    settings: Settings,
    teachers: Sequence[Path],
    told: Mapping[str, object],
    prompts: Product,
    session: Session,
    at: Path | None = None,
) -> Path:
    """A student of one teacher or of several. told: what its product says of those that taught its teacher, where it has any."""
    from edgekit.distill import distill as make
    from edgekit.model import load_model

    teacher, *others = teachers
    inputs = replace(
        _distill_inputs(settings, teacher, prompts, session),
        others=tuple(model_content(other) for other in others),
        weights=settings.recipe.teacher.shares if others else (),
    )
    asked = _signals_inputs(settings, teacher, prompts)
    if asked is not None:
        # Known by what it is made of: a student that is kept needs no recording.
        known = Content(path=session.workspace.root, digest=origin_of(asked))
        inputs = replace(inputs, signals=known)
        if not is_trained(settings.recipe, session, inputs, at=at):
            recorded = _record_teacher(asked, teacher, prompts, session)
            inputs = replace(inputs, signals=replace(known, path=recorded.folder))
    left = inputs.layers or len(inputs.kept) or "a table of n-grams"
    note = f"{load_model(teacher).layers} layers to {left}{', narrower' if inputs.sizes else ''}"
    note += f", by {1 + len(others)} teachers" if others else ""

    def made(given: DistillInputs, out: Path, progress: Progress) -> dict[str, object]:
        return {**make(given, out, progress), **told}

    scorers = [] if inputs.scorer is None else [inputs.scorer.path]
    filled = with_read(made, prompts, "train", *teachers, *scorers, *writer(prompts))
    return train_step(settings.recipe, session, inputs, filled, note=note, at=at).folder


def control(
    settings: Settings, teacher: Path, student: Path, prompts: Product, session: Session
) -> tuple[Product, ...]:
    """The records of the control run, where the recipe asks for one: what the same student answers that had no teacher, and what
    the one that had it does, where a later step trains it further and the build's own record is of that."""
    from edgekit.distill import ControlInputs
    from edgekit.distill import control as make

    recipe = settings.recipe
    if not settings.training.control:
        return ()
    given, taught = _distill_inputs(settings, teacher, prompts, session), open_product(student, "distill")
    options = replace(given.options, losses={**LABELS}, signals="live", on_policy=None)
    alone = replace(given, losses=LABELS, options=options, scorer=None)
    inputs = ControlInputs(**vars(alone), epochs=int(taught.facts["epochs"]))
    filled = with_read(make, prompts, "train", teacher, *writer(prompts))
    folder = train_step(recipe, session, inputs, filled, note=f"{inputs.epochs} epochs without the teacher").folder
    models = [folder, *([student] if recipe.qad is not None else [])]
    return tuple(record(settings, model, model, prompts, session) for model in models)


def importance(settings: Settings, teacher: Path, prompts: Product, session: Session) -> Product | None:
    """How much each part of the teacher does; None where the recipe's student is cut by rule alone."""
    student = settings.recipe.student
    if student is None or not student.by_importance:
        return None
    from edgekit.distill import ImportanceInputs
    from edgekit.distill import rank as make
    from edgekit.distill.machine import conditions

    recipe, options = settings.recipe, settings.training.distill
    inputs = ImportanceInputs(
        teacher=model_content(teacher),
        prompts=split_content(prompts, "train"),
        task=recipe.task,
        device=options.device,
        max_length=recipe.data.max_length,
        seed=recipe.seed,
        machine=conditions(options),
    )
    note = "which heads, neurons and channels do most"
    return run_step(session, inputs, with_read(make, prompts, "train", teacher), note=note)


def _distill_inputs(settings: Settings, teacher: Path, prompts: Product, session: Session) -> DistillInputs:
    """What a recipe's student follows from."""
    from edgekit.distill import DistillInputs, choose_layers, choose_ngrams, find_scorer
    from edgekit.distill.machine import conditions
    from edgekit.distill.sizes import choose_sizes
    from edgekit.model import load_model

    recipe, training = settings.recipe, settings.training
    assert recipe.student is not None
    student, model, where = recipe.student, load_model(teacher), f"{recipe.path}: student"
    kept, sizes = choose_layers(model, student, where), choose_sizes(model, student, where)
    ranked = importance(settings, teacher, prompts, session)
    influential, scorer = student.depth == "influence", find_scorer(recipe, training.distill)
    return DistillInputs(
        teacher=model_content(teacher),
        prompts=_learned(prompts, training.distill),
        task=recipe.task,
        kept=() if influential else kept,
        layers=len(kept) if influential else None,
        sizes=sizes,
        importance=None if ranked is None else Content(path=ranked.folder, digest=ranked.digest),
        options=training.distill,
        losses=training.losses,
        out_of_scope=recipe.data.out_of_scope,
        max_length=recipe.data.max_length,
        seed=recipe.seed,
        machine=conditions(training.distill),
        ngrams=choose_ngrams(recipe.student),
        vocabulary=recipe.student.vocabulary,
        scorer=None if scorer is None else model_content(scorer),
    )


def _learned(prompts: Product, options: DistillOptions) -> Content:
    """What a student reads: the train split, and where new texts are made of it the others too, which none may be near."""
    train = split_content(prompts, "train")
    if not options.spliced:
        return train
    others = sorted({row.text for row in PromptSet(folder=prompts.folder).apart()})
    return replace(train, digest={**split_digests(prompts, "train"), "apart": fingerprint(others)})


def linear(settings: Settings, base: Path, prompts: Product, session: Session) -> Product | None:
    """The linear model that the report draws as a line, on the tokens of the checkpoint that the recipe names; None where the
    recipe classifies nothing, or has no labels to learn from."""
    from edgekit.linear import LinearInputs, fit, is_drawn

    recipe = settings.recipe
    if not is_drawn(recipe, prompts.facts):
        return None
    inputs = LinearInputs(
        model=model_content(base),
        prompts=split_content(prompts, "train", "calibrate"),
        task=recipe.task,
        out_of_scope=recipe.data.out_of_scope,
        rejection=recipe.rejection,
        max_length=recipe.data.max_length,
    )
    note = f"{prompts.facts['rows']['train']} texts"
    return run_step(session, inputs, with_read(fit, prompts, "train", base, *writer(prompts)), note=note)


def qad(plan: Plan, teacher: Path, student: Path, prompts: Product, session: Session, at: Path | None = None) -> Path:
    """The student, trained with the weights that the target's file will hold, where the recipe asks; else as it is."""
    recipe, training = plan.recipe, plan.settings.training
    if training.qad is None:
        return student
    from edgekit.distill.machine import conditions
    from edgekit.qad import QadInputs
    from edgekit.qad import qad as make

    inputs = QadInputs(
        teacher=model_content(teacher),
        student=model_content(student),
        prompts=_learned(prompts, training.qad),
        task=recipe.task,
        format=plan.format,
        export=plan.options,
        options=training.qad,
        losses=training.qad_losses,
        out_of_scope=recipe.data.out_of_scope,
        max_length=recipe.data.max_length,
        seed=recipe.seed,
        machine=conditions(training.qad),
        libraries=libraries(plan.format),
    )
    filled = with_read(make, prompts, "train", teacher, student, *writer(prompts))
    return train_step(recipe, session, inputs, filled, note=f"{plan.format} {plan.scheme}", at=at).folder


def record(
    settings: Settings, teacher: Path, student: Path, prompts: Product, session: Session, at: Path | None = None
) -> Product:
    """Teacher and float student on the calibrate and verify prompts."""
    from edgekit.record import RecordInputs
    from edgekit.record import record as make

    recipe, rows = settings.recipe, prompts.facts["rows"]
    inputs = RecordInputs(
        teacher=model_content(teacher),
        teacher_origin=origin(teacher),
        student=model_content(student),
        prompts=split_content(prompts, "calibrate", "verify"),
        task=recipe.task,
        max_length=recipe.data.max_length,
        libraries={name: installed_version(name) for name in ("transformers", "sentence-transformers")},
    )
    note = f"{rows['calibrate']} calibrate and {rows['verify']} verify prompts"
    made = as_recording(lambda *given: make(*given).facts(), student, prompts, "calibrate", "verify")
    filled = with_read(made, prompts, None, teacher, student)
    product = run_step(session, inputs, filled, note=note, at=at, fresh=session.fresh)
    _say_warnings(product, session)
    return product


def calibrate(
    settings: Settings,
    student: Path,
    prompts: Product,
    session: Session,
    at: Path | None = None,
    *,
    gradients: bool = False,
) -> Product:
    """The student's activation statistics on the calibrate prompts; with gradients, which some formats weigh by."""
    from edgekit.calibrate import CalibrateInputs
    from edgekit.calibrate import calibrate as make

    recipe = settings.recipe
    inputs = CalibrateInputs(
        student=model_content(student),
        prompts=split_content(prompts, "calibrate"),
        task=recipe.task,
        options=recipe.calibrate,
        max_length=recipe.data.max_length,
        seed=recipe.seed,
        gradients=gradients,
    )
    note = f"{prompts.facts['rows']['calibrate']} prompts"
    filled = with_read(as_recording(make, student, prompts, "calibrate"), prompts, "calibrate", student)
    product = run_step(session, inputs, filled, note=note, at=at)
    _say_warnings(product, session)
    return product


def export(
    plan: Plan, student: Path, calibration: Product, prompts: Product, session: Session, at: Path | None = None
) -> Product:
    """The artifact in the target's format and scheme."""
    from edgekit.export import ExportInputs
    from edgekit.export import export as make

    recipe, digest = plan.recipe, model_digest(student)
    if calibration.manifest["inputs"]["student"] != digest:
        raise EdgekitError(f"{calibration.folder}: of another model; run: edgekit calibrate {student}")
    card = student / "README.md"
    inputs = ExportInputs(
        student=Content(path=student, digest=digest),
        calibration=Content(path=calibration.folder, digest=calibration.digest),
        prompts=split_content(prompts, "calibrate"),
        task=recipe.task,
        format=plan.format,
        options=plan.options,
        max_length=recipe.data.max_length,
        out_of_scope=recipe.data.out_of_scope,
        rejection=recipe.rejection,
        name=recipe.name,
        license=recipe.license,
        card=file_sha256(card) if card.is_file() else None,
        processor=processor(plan) if plan.mixes else None,
        limits=_limits(plan),
        libraries=libraries(plan.format),
    )

    def made(given: ExportInputs, out: Path, progress: Progress) -> dict[str, object]:
        return make(given, out, progress, partial(_keep, session)).facts()

    filled = with_read(made, prompts, "calibrate", student, calibration)
    product = run_step(session, inputs, filled, note=f"{plan.format} {plan.scheme}", at=at)
    for line in read_artifact(product).file.notes or ():
        session.listener.say(f"note: {line}")
    return product


def _keep(session: Session, inputs: TraceInputs, fill: Callable[[Path], None]) -> Path:
    """The folder of a traced graph in the session's workspace."""

    def make(out: Path) -> dict[str, object]:
        fill(out)
        return {}

    return session.workspace.once(inputs.STEP, identity(inputs), make).folder


def teacher_origin(settings: Settings, base: Path | None, prompts: Product) -> str:
    """The `origin` of the teacher that a recipe asks for. base: the checkpoint that it names, None where it is created."""
    if settings.training.create is not None:
        return origin_of(_create_inputs(settings, prompts))
    assert base is not None
    if settings.training.finetune is not None:
        return origin_of(_finetune_inputs(settings, base, prompts))
    return origin(base)


def libraries(format_: str, runtimes: Sequence[str] = ()) -> dict[str, str]:
    """The installed versions of what a format's files, and their answers in a target's runtimes, depend on."""
    from edgekit.formats import FORMATS, library_versions

    return library_versions(pick(FORMATS, format_, "export.format"), runtimes)


def _create_inputs(settings: Settings, prompts: Product) -> CreateInputs:
    """What a created teacher follows from."""
    from edgekit.distill import CreateInputs
    from edgekit.distill.machine import conditions

    recipe, options = settings.recipe, settings.training.create
    assert options is not None
    return CreateInputs(
        prompts=as_given(prompts),
        task=recipe.task,
        options=options,
        max_length=recipe.data.max_length,
        seed=recipe.seed,
        machine=conditions(options),
    )


def _finetune_inputs(settings: Settings, base: Path, prompts: Product) -> FinetuneInputs:
    """What a fine-tuned teacher follows from."""
    from edgekit.distill import FinetuneInputs
    from edgekit.distill.machine import conditions

    recipe, options = settings.recipe, settings.training.finetune
    assert options is not None
    return FinetuneInputs(
        base=model_content(base),
        prompts=as_given(prompts),
        task=recipe.task,
        options=options,
        out_of_scope=recipe.data.out_of_scope,
        max_length=recipe.data.max_length,
        seed=recipe.seed,
        machine=conditions(options),
    )


def processor(plan: Plan) -> Processor:
    """Of the target's CPU what the types of a mixture depend on."""
    from edgekit.formats import Processor

    hardware = plan.target.hardware
    return Processor(arch=hardware.arch, features=hardware.features, bandwidth_gbs=hardware.bandwidth_gbs)


def _limits(plan: Plan) -> Limits | None:
    """What a decoder may lose, where that decides its scheme; else None."""
    from edgekit.formats import FORMATS, finds_scheme
    from edgekit.formats.smallest import Limits
    from edgekit.tasks import TASKS
    from edgekit.verify.margins import limits_at, read_limits

    if not finds_scheme(FORMATS[plan.format], plan.options, TASKS[plan.recipe.task].OUTPUT):
        return None
    limits = read_limits(plan.recipe.accuracy)
    return Limits(fewer_bits=limits_at(limits, 4.0), eight_bits=limits_at(limits, 8.0))


def _say_warnings(product: Product, session: Session) -> None:
    for warning in product.facts["warnings"]:
        session.listener.say(f"warning: {warning}")
