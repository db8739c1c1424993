"""A language model labels texts; the labels are held against people's before anything is trained on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.cli.options import open_session
from edgekit.errors import EdgekitError
from edgekit.pipeline import check_recipe, distill, gather_prompts, kept_steps, labelled, read_settings, resolve
from edgekit.pipeline.labels import provenance
from edgekit.prompts import PromptSet
from edgekit.recipe import load_recipe
from edgekit.target import load_target
from edgekit.workspace import Product
from tests.architectures.decoders import ORDERS, ROOMS
from tests.conftest import Answer

LABELLING = """
[student]
layers = 1

[distill]
epochs = 1

[labelling]
by = "talker"
texts = "texts.csv"
question = "{text}"
agreement = 0.7

[labelling.names]
light_on = "light_on"
light_off = "light_off"
"""
RIGHT = {said.format(room): label for room in ROOMS for label, said in ORDERS.items()}


class Build:
    """Parts of a build of the project, as `edgekit build` calls them."""

    def __init__(self, recipe: Path, *overrides: str) -> None:
        self.folder = recipe.parent
        self.recipe = load_recipe(recipe, overrides)
        self.session = open_session(self.folder / "cache", self.folder / "dist")
        self.prompts = gather_prompts(self.recipe, self.session)

    def labelled(self) -> Product:
        check_recipe(self.recipe, self.prompts, self.session)
        return labelled(self.recipe, self.prompts, self.session)

    def distill(self) -> Path:
        return distill(read_settings(self.recipe), self.folder / "teacher", self.labelled(), self.session)


@pytest.fixture
def unlabelled(project: Path, talker: Path) -> Path:
    """The project with a file of texts, and a decoder that was taught to label such."""
    shutil.copytree(talker, project.parent / "talker")
    (project.parent / "texts.csv").write_text("text\n" + "".join(f"{text}\n" for text in RIGHT))
    project.write_text(project.read_text() + LABELLING)
    return project


def test_texts_get_labels_and_the_student_learns_from_them(unlabelled: Path) -> None:
    build = Build(unlabelled)
    made = build.labelled()
    assert set(made.facts["labelled"]) >= {"agreed", "gold", "interval", "suspects"}
    assert (made.facts["labelled"]["agreed"], made.facts["labelled"]["gold"]) == (12, 12)
    assert made.facts["labelled"]["interval"][0] == pytest.approx(0.05 ** (1 / 12), abs=1e-6)
    rows = PromptSet(folder=made.folder).split("train")
    assert made.facts["rows"]["train"] == len(rows) == 12 + made.facts["labelled"]["kept"]
    assert all(RIGHT[row.text] == row.label for row in rows[12:])
    # "the attic" is nearly "the dusty attic" of another split; so are five other rooms, in three orders each.
    assert made.facts["labelled"]["left_out"] == {"nearly what another split has": 18}
    assert len(rows) == 12 + len(RIGHT) - 18
    assert str(provenance(made)).endswith("agreement 12 of 12")
    assert made.manifest["files"]["verify.jsonl"] == build.prompts.manifest["files"]["verify.jsonl"]
    student = build.distill()
    assert Build(unlabelled).distill() == student
    again = Build(unlabelled, "labelling.least=0.999999", "labelling.calibrate=false")
    assert again.labelled().digest != made.digest
    assert len([*(build.folder / "cache" / "labels").iterdir()]) == 1, "what was scored once serves every audit"


def test_texts_of_the_data_without_labels_get_them_where_they_are(unlabelled: Path) -> None:
    """`data.unlabelled` alone: what the model is sure of has a label, the rest teaches as it did."""
    (unlabelled.parent / "texts.csv").rename(unlabelled.parent / "more.csv")
    recipe = unlabelled.read_text().replace('texts = "texts.csv"\n', "")
    unlabelled.write_text(recipe.replace("[data]", '[data]\nunlabelled = "more.csv"'))
    build = Build(unlabelled)
    own = PromptSet(folder=build.prompts.folder).split("train")
    waiting = [row.text for row in own if row.label is None]
    assert build.prompts.facts["unlabelled"] == len(waiting) == 3, (
        "the others are near to a split's, or to one of these"
    )
    made = build.labelled()
    rows = PromptSet(folder=made.folder).split("train")
    assert [row.text for row in rows] == [row.text for row in own]
    assert all(row.label == RIGHT[row.text] for row in rows if row.text in waiting)
    told = made.facts["labelled"]
    assert (told["kept"], told["rows"], made.facts["rows"]["train"], made.facts["unlabelled"]) == (3, 15, 15, 0)
    first, *_ = json.loads((made.folder / "audit.json").read_text())["unsure"]
    sure = Build(unlabelled, f"labelling.least={first['probability'] + 1e-4}").labelled()
    assert [row.text for row in PromptSet(folder=sure.folder).split("train") if row.label is None] == [first["text"]]
    assert (sure.facts["labelled"]["kept"], sure.facts["unlabelled"]) == (2, 1)
    # A teacher may learn from them where no student does.
    unlabelled.write_text(unlabelled.read_text().replace("[student]\nlayers = 1", "[teacher.finetune]\nepochs = 1"))
    assert Build(unlabelled).labelled().digest == made.digest
    unlabelled.write_text(recipe)
    with pytest.raises(
        EdgekitError, match=r"labelling.texts: missing key, and every train row has a label; name a file"
    ):
        Build(unlabelled).labelled()


def test_a_model_that_disagrees_stops_the_build_before_anything_is_trained(
    unlabelled: Path, command: Callable[..., Answer]
) -> None:
    path = unlabelled.parent / "data" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    wrong = {"light_on": "music", "music": "light_off", "light_off": "light_on"}
    for row in rows[::2]:
        row["label"] = wrong[row["label"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = command("distill", "teacher", "--recipe", "recipe.toml", "--out", "work/student")
    assert told.code == 1
    said = " ".join(told.err.split())
    assert "agrees with 6 of 12 labelled train rows" in said
    assert "nothing is trained on its labels" in said
    assert not (unlabelled.parent / "work").exists()
    audit = next((unlabelled.parent / "cache" / "labelled").glob("*/audit.json"))
    suspects = json.loads(audit.read_text())["suspects"]
    assert {one["text"] for one in suspects} == {row["text"] for row in rows[::2]}
    assert (
        command(
            "distill", "teacher", "--recipe", "recipe.toml", "--out", "work/student", "--set", "labelling.agreement=0.2"
        ).code
        == 0
    )


def test_a_killed_labelling_goes_on_to_the_same_bytes(unlabelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.written import labels

    whole = Build(unlabelled).labelled()
    shutil.rmtree(unlabelled.parent / "cache" / "labels")
    asked, score = list[str](), labels._scores

    def killed(decoder: labels.Decoder, text: str, inputs: labels.LabelsInputs) -> list[float] | None:
        if len(asked) == 20:
            raise KeyboardInterrupt
        asked.append(text)
        return score(decoder, text, inputs)

    monkeypatch.setattr(labels, "_scores", killed)
    with pytest.raises(KeyboardInterrupt):
        Build(unlabelled).labelled()
    asked.clear()
    monkeypatch.setattr(labels, "_scores", lambda *given: asked.append(given[1]) or score(*given))
    assert Build(unlabelled).labelled().digest == whole.digest
    assert len(asked) == len(RIGHT) + 12 + 3 - 20


def test_a_plan_labels_nothing_and_knows_what_is_kept(unlabelled: Path) -> None:
    def plan() -> dict[str, bool]:
        build = Build(unlabelled)
        checked = check_recipe(build.recipe, build.prompts, build.session)
        found = resolve(checked, load_target("laptop-cpu"), build.prompts, build.session)
        assert found.steps[:2] == ("labels", "distill")
        return kept_steps(found, build.prompts, build.session)

    assert not any(plan().values())
    assert not (unlabelled.parent / "cache" / "labels").exists()
    Build(unlabelled).distill()
    kept = plan()
    assert (kept["labels"], kept["distill"], kept["linear"], kept["record"]) == (True, True, False, False)


BAD = {
    "no texts": ("labelling.texts=nothing.csv", r"labelling\.texts: no such file"),
    "no model": ("labelling.by=nothing", r"labelling\.by: no such file or folder"),
    "an encoder": ("labelling.by=teacher", "an encoder, which writes no text"),
    "no label": ("labelling.names.musik=x", r"labelling\.names: 'musik' is no label \(did you mean music\?\)"),
    "no text": ("labelling.question=what is it", r"labelling\.question: has no \{text\}"),
    "a share that is none": ("labelling.agreement=1.0", r"labelling\.agreement"),
    "another task": ("task=feature-extraction", r"labelling: labels are given for text-classification"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_work_is_told_before_anything_runs(unlabelled: Path, name: str) -> None:
    override, told = BAD[name]
    with pytest.raises(EdgekitError, match=told):
        Build(unlabelled, override).labelled()
    assert not (unlabelled.parent / "cache" / "labels").exists()


def test_nothing_that_learns(unlabelled: Path) -> None:
    unlabelled.write_text(unlabelled.read_text().replace("[student]\nlayers = 1", ""))
    build = Build(unlabelled)
    with pytest.raises(EdgekitError, match="nothing learns from them"):
        build.labelled()
