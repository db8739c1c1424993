"""`data.labels`: where teacher and data name the classes otherwise, one map says which is which, everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.errors import EdgekitError
from edgekit.model import load_model
from edgekit.pipeline import Session, check_recipe, gather_prompts
from edgekit.pipeline.teacher import RenameInputs, rename_classes
from edgekit.recipe import load_recipe
from edgekit.workspace import Workspace
from tests.conftest import LABELS, Answer
from tests.steps import content

Command = Callable[..., Answer]
DRY = ("build", "-t", "laptop-cpu", "--dry-run")


def number(classifier: Path) -> None:
    """The classes as transformers names them where nobody does."""
    config = json.loads((classifier / "config.json").read_text())
    config["id2label"] = {str(place): f"LABEL_{place}" for place in range(len(LABELS))}
    config["label2id"] = {f"LABEL_{place}": place for place in range(len(LABELS))}
    (classifier / "config.json").write_text(json.dumps(config))


def test_a_numbered_teacher(command: Command, project: Path, classifier: Path) -> None:
    number(classifier)
    weights = (classifier / "model.safetensors").read_bytes()
    refused = command(*DRY)
    assert refused.code == 1
    assert """map them: data.labels = { "LABEL_0" = "...", ... }""" in refused.err
    names = ", ".join(f'LABEL_{place} = "{label}"' for place, label in enumerate(LABELS))
    with project.open("a") as stream:
        stream.write(f"labels = {{ {names} }}\n")
    dry = command(*DRY)
    assert dry.code == 0, dry.err
    assert "teacher   " + str(classifier) in dry.out, "what the recipe names, not what is made of it"
    assert not (project.parent / "cache").exists()
    recipe = load_recipe(project)
    session = Session(workspace=Workspace(project.parent / "cache"), out=project.parent / "dist")
    teacher = check_recipe(recipe, gather_prompts(recipe, session), session).teacher
    assert teacher is not None
    assert load_model(teacher).labels == LABELS
    assert load_model(classifier).labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert (teacher / "model.safetensors").read_bytes() == weights
    assert json.loads((teacher / "config.json").read_text())["label2id"] == {label: n for n, label in enumerate(LABELS)}


def test_a_class_that_is_misspelt_in_the_map(command: Command, project: Path) -> None:
    """The remedy is in the map itself, not another map."""
    for path in (project.parent / "data").glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | {"label": LABELS.index(row["label"])}) + "\n" for row in rows))
    with project.open("a") as stream:
        stream.write('labels = { "0" = "light_of", "1" = "light_on", "2" = "music" }\n')
    refused = command(*DRY)
    assert refused.code == 1
    assert "data.labels: names a class 'light_of' that the teacher has not (did you mean light_off?)" in refused.err


def test_numbered_data(command: Command, project: Path) -> None:
    for path in (project.parent / "data").glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | {"label": LABELS.index(row["label"])}) + "\n" for row in rows))
    refused = command(*DRY)
    assert refused.code == 1
    assert f"""map them: data.labels = {{ "0" = "{LABELS[0]}", ... }}""" in refused.err
    with project.open("a") as stream:
        stream.write(f"labels = {json.dumps({str(n): label for n, label in enumerate(LABELS)}).replace(': ', ' = ')}\n")
    dry = command(*DRY)
    assert dry.code == 0, dry.err
    assert "3 labels" in dry.out
    assert "verify: 12 rows converted from int" in dry.out


def test_two_classes_of_one_name(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match=r"two classes of .* would be named 'music'"):
        rename_classes(RenameInputs(model=content(classifier), labels={"light_on": "music"}), tmp_path / "out")
