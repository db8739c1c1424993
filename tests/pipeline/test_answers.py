"""Answers that a model writes teach the student; who writes them is asked once, of train prompts alone, and its key is nowhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")

from gguf_files import write_gguf

from edgekit.cli.options import open_session
from edgekit.errors import EdgekitError
from edgekit.pipeline import answered, check_recipe, distill, gather_prompts, kept_steps, read_settings, resolve
from edgekit.pipeline.answers import as_given, provenance
from edgekit.pipeline.origin import text_hashes, texts_read
from edgekit.prompts import PromptSet
from edgekit.recipe import load_recipe
from edgekit.target import load_target
from edgekit.workspace import Product, open_product
from tests.conftest import Answer
from tests.stories import need_stories
from tests.written.server import Served, completion, said, serve

KEY = "sk-very-secret-0123456789"
RECIPE = """
task = "text-generation"
[teacher]
source = "teacher"

[data]
path = "data"
text = "text"
answer = "label"
max_length = 96

[student]
layers = 1

[distill]
epochs = 1
holdout = 0.0

[answers]
max_tokens = 8
retries = 0
"""
ROOMS = [
    "big kitchen",
    "long hall",
    "front porch",
    "old garage",
    "dusty attic",
    "deep cellar",
    "small bathroom",
    "quiet study",
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(need_stories(), tmp_path / "teacher")
    (tmp_path / "data").mkdir()
    for split, ask in (
        ("train", "who cleaned the {}"),
        ("calibrate", "paint my {} soon"),
        ("verify", "is one {} warm"),
    ):
        rows = [{"text": ask.format(room), "label": f"own {room}"} for room in ROOMS]
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("A_KEY", KEY)
    with serve() as found:
        yield found


class Build:
    """Parts of a build of the project, as `edgekit build` calls them."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder = folder
        self.recipe = load_recipe(folder / "recipe.toml", overrides)
        self.session = open_session(folder / "cache", folder / "dist")
        self.prompts = gather_prompts(self.recipe, self.session)

    def answered(self) -> Product:
        check_recipe(self.recipe, self.prompts, self.session)
        return answered(self.recipe, self.folder / "teacher", self.prompts, self.session)

    def distill(self) -> Path:
        return distill(read_settings(self.recipe), self.folder / "teacher", self.answered(), self.session)


def at(served: Served) -> tuple[str, ...]:
    return (f"answers.by={served.url}", "answers.model=m", "answers.key_variable=A_KEY")


def test_the_teacher_answers_and_its_answers_are_the_labels(project: Path) -> None:
    build = Build(project, "answers.cut_off=keep")
    made = build.answered()
    rows = PromptSet(folder=made.folder).split("train")
    assert [row.text for row in rows] == [f"who cleaned the {room}" for room in ROOMS]
    assert not any(str(row.label).startswith("own") for row in rows)
    for split in ("calibrate", "verify"):
        name = f"{split}.jsonl"
        assert made.manifest["files"][name] == build.prompts.manifest["files"][name]
    assert "8 answers by the teacher (" in str(provenance(made))
    assert made.facts["notes"][-1].startswith("train: 8 answers written by the teacher (")
    assert as_given(made).digest == as_given(build.prompts).digest, "a teacher is trained on the data's own answers"
    assert (as_given(made).path / "train.jsonl").read_bytes() == (build.prompts.folder / "train.jsonl").read_bytes()
    student = build.distill()
    plain = Build(project)
    own = distill(read_settings(plain.recipe), project / "teacher", plain.prompts, plain.session)
    taught, alone = (open_product(folder, "distill").manifest["inputs"] for folder in (student, own))
    assert {key for key in taught if taught[key] != alone[key]} == {"prompts"}
    assert Build(project, "answers.cut_off=keep").distill() == student


@pytest.mark.parametrize("by", ["checkpoint", "gguf"])
def test_another_model_here_answers(project: Path, by: str) -> None:
    place = project / "other"
    if by == "gguf":
        place = write_gguf(project / "teacher", project / "other.gguf")
    else:
        shutil.copytree(project / "teacher", place)
    made = Build(project, f"answers.by={place.name}", "answers.cut_off=keep").answered()
    assert f"answers by {place.name} (" in str(provenance(made))
    assert made.facts["rows"]["train"] > 4


def test_an_endpoint_is_asked_once_and_its_key_is_in_no_file(
    project: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {f"who cleaned the {room}": f"answer to {room}" for room in ROOMS}
    answers["who cleaned the long hall"] = "paint my big kitchen soon, and then some"
    served.answer = lambda body: completion(answers[body["messages"][0]["content"]])
    build = Build(project, *at(served))
    student = build.distill()
    assert sorted(served.texts) == sorted(answers), "train prompts alone, each once"
    made = build.answered()
    assert provenance(made) == f"8 answers by m (served-1) at {served.url}"
    train = PromptSet(folder=made.folder).split("train")
    assert {row.text: row.label for row in train} == answers
    monkeypatch.delenv("A_KEY")
    assert (
        Build(project, *at(served), "answers.retries=3", "answers.parallel=1", "answers.timeout=9.0").distill()
        == student
    )
    # A changed verify split asks nobody anew, and what is nearly in it is taught no more.
    with (project / "data" / "verify.jsonl").open("a") as stream:
        stream.write('{"text": "paint my big kitchen soon and then some", "label": "no"}\n')
    again = Build(project, *at(served), "data.near_duplicates=drop")
    assert [row.text for row in PromptSet(folder=again.answered().folder).split("train")] == [
        text for text in answers if "long hall" not in text
    ]
    assert len(served.asked) == 8
    secrets = [path for path in project.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert secrets == []
    assert KEY.encode() not in b"".join(path.name.encode() for path in project.rglob("*"))
    with pytest.raises(EdgekitError, match="A_KEY is not set"):
        Build(project, *at(served), "answers.max_tokens=9").answered()


def test_what_is_taught_is_the_same_whatever_split_judges(project: Path, served: Served) -> None:
    """An answer that is nearly in verify or in final teaches neither the student that one judges nor the other's."""
    answers = {f"who cleaned the {room}": f"answer to {room}" for room in ROOMS}
    answers["who cleaned the long hall"] = "the kettle boils on the stove while it rains"
    answers["who cleaned the old garage"] = "a cat sleeps under the old tree all day"
    served.answer = lambda body: completion(answers[body["messages"][0]["content"]])
    with (project / "data" / "verify.jsonl").open("a") as stream:
        stream.write('{"text": "The kettle boils on the stove, while it rains", "label": "no"}\n')
    final = [
        {"text": "A cat sleeps under the old tree all day.", "label": "x"},
        {"text": "is it warm there", "label": "y"},
    ]
    (project / "final.jsonl").write_text("".join(json.dumps(row) + "\n" for row in final))
    taught = []
    for judged in (False, True):
        build = Build(project, *at(served), "data.final=final.jsonl")
        session = replace(build.session, final=judged)
        prompts = gather_prompts(build.recipe, session)
        made = answered(build.recipe, project / "teacher", prompts, session)
        taught.append((made.folder / "train.jsonl").read_bytes())
    assert taught[0] == taught[1]
    assert taught[0].count(b"\n") == len(ROOMS) - 2
    assert len(served.asked) == len(ROOMS)


def test_a_build_that_an_endpoint_stopped_goes_on(project: Path, served: Served) -> None:
    whole = Build(project, *at(served), "answers.parallel=1")
    expected = whole.answered()
    shutil.rmtree(project / "cache" / "asked")
    before, planned = len(served.asked), [completion(said(body)) for body in served.asked[:5]]
    served.replies = [*planned, completion("x", model="m")]
    served.replies[-1].status = 500
    with pytest.raises(EdgekitError, match="5 of 8 answers are kept"):
        whole.answered()
    assert whole.answered().digest == expected.digest
    assert len(served.asked) - before == 5 + 1 + 3


def test_what_read_verify_texts_may_not_write_for_them(project: Path) -> None:
    """A student has read what its writer has."""
    writer = Build(project)
    other = distill(read_settings(writer.recipe), project / "teacher", writer.prompts, writer.session)
    swapped = RECIPE.replace(
        'path = "data"', 'train = "data/calibrate.jsonl"\ncalibrate = "data/verify.jsonl"\nverify = "data/train.jsonl"'
    )
    (project / "recipe.toml").write_text(swapped)
    build = Build(project, f"answers.by={other}", "answers.cut_off=keep")
    student = build.distill()
    judged = {text for texts in texts_read(student).values() for text in texts}
    assert text_hashes(build.prompts, "verify") <= judged


def test_the_plan_has_the_step_and_knows_what_is_kept(project: Path, served: Served) -> None:
    def plan(*overrides: str) -> dict[str, bool]:
        build = Build(project, *overrides)
        checked = check_recipe(build.recipe, build.prompts, build.session)
        found = resolve(checked, load_target("laptop-cpu"), build.prompts, build.session, ("gguf", "q8_0"))
        assert found.steps[:2] == ("answers", "distill")
        return kept_steps(found, build.prompts, build.session)

    assert not plan(*at(served))["answers"]
    assert served.asked == [], "a plan asks nobody"
    Build(project, *at(served)).distill()
    kept = plan(*at(served))
    assert (kept["answers"], kept["distill"], kept["record"]) == (True, True, False)


def test_a_stage_asks_too(project: Path, served: Served, command: Callable[..., Answer]) -> None:
    (project / "recipe.toml").write_text(RECIPE + f'by = "{served.url}"\nmodel = "m"\n')
    told = command("distill", "teacher", "--recipe", "recipe.toml", "--out", "work/student")
    assert told.code == 0, told.err
    assert len(served.asked) == 8
    assert "8 answers written by m (served-1)" in told.err + told.out


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nobody there": ({"by": "nothing"}, r"answers\.by: no such file or folder"),
    "an encoder": ({"by": "encoder"}, "an encoder, which writes no text"),
    "no GGUF": ({"by": "recipe.toml"}, r"recipe\.toml"),
    "no model": ({"by": "https://host/v1"}, r"answers\.model: missing key"),
    "a key in the URL": ({"by": f"https://me:{KEY}@host/v1", "model": "m"}, "a key does not belong into a URL"),
    "a key behind it": ({"by": f"https://host/v1?key={KEY}", "model": "m"}, "a key does not belong into a URL"),
    "another scheme": ({"by": "file://host/etc/passwd", "model": "m"}, "not the URL of an endpoint"),
    "no host": ({"by": "http:///v1", "model": "m"}, "not the URL of an endpoint"),
    "a port that is none": ({"by": "http://host:99999/v1", "model": "m"}, "not a URL"),
    "a key of nobody": ({"key_variable": "A_KEY"}, r"answers\.key_variable: of an endpoint alone"),
    "no key": ({"by": "http://127.0.0.1:9/v1", "model": "m", "key_variable": "NOT_SET"}, "NOT_SET is not set"),
    "twice the same": ({"samples": 2}, r"answers\.temperature: 0 writes the same answer 2 times"),
    "upside down": ({"shortest": 9, "longest": 3}, r"answers\.longest: 3: shorter than shortest"),
    "no number": ({"samples": 0}, r"answers\.samples"),
    "an unknown key": ({"modle": "m"}, r"answers\.modle: unknown key \(did you mean model\?\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_work_is_told_before_anything_runs(project: Path, checkpoint: Path, name: str) -> None:
    if name == "an encoder":
        shutil.copytree(checkpoint, project / "encoder")
    keys, told = BAD[name]
    with pytest.raises(EdgekitError, match=told) as refused:
        Build(project, *(f"answers.{key}={json.dumps(value)}" for key, value in keys.items())).answered()
    assert KEY not in refused.value.message
    assert not (project / "cache" / "asked").exists()


def test_nothing_that_learns_or_another_task(project: Path) -> None:
    (project / "recipe.toml").write_text(RECIPE.replace("[student]\nlayers = 1\n", ""))
    with pytest.raises(EdgekitError, match="nothing learns from them"):
        Build(project).answered()
    (project / "recipe.toml").write_text(RECIPE.replace('answer = "label"\n', ""))
    with pytest.raises(EdgekitError, match="not for feature-extraction"):
        Build(project, "task=feature-extraction").answered()
