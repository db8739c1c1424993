"""A recorded teacher: right on average, small, resumable, and the same lesson as a live one where nothing is left to draws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgekit.distill import courses, recorded, student_rows
from edgekit.distill.decoders import Body
from edgekit.distill.divergences import LossOptions, forward_kl, recorded_kl
from edgekit.distill.lessons import Teaching, make_lesson
from edgekit.distill.options import read_distill_options, read_qad_options
from edgekit.distill.recorded import DRAWN, EXACT, RECORD, Reader, summarize
from edgekit.distill.recording import record_teacher
from edgekit.distill.signals import Recorded
from edgekit.distill.tap import Tap
from edgekit.distill.teachers import TEACHERS, Teacher, TeacherInputs
from edgekit.errors import EdgekitError
from edgekit.progress import silent
from edgekit.tasks import TASKS
from edgekit.tasks.text_generation import Passage
from tests.conftest import make_data
from tests.distill.test_decoders import make_decoder, write_train
from tests.steps import distill

TASK, HEAT = "text-generation", 1.5
IDS = [[3, 14, 15, 9, 26, 5, 35], [8, 9, 7, 9, 3], [2, 38, 4]]


def weights(records: np.ndarray, width: int) -> torch.Tensor:
    """What records say of each token's probabilities."""
    dense = torch.zeros(len(records), width, dtype=torch.float64)
    shares = np.concatenate([records["exact"], np.repeat(records["tail"][:, None] / DRAWN, DRAWN, axis=1)], axis=1)
    return dense.scatter_add_(1, torch.from_numpy(records["ids"].astype(np.int64)), torch.from_numpy(shares).double())


def read(records: np.ndarray) -> Recorded:
    shares = np.concatenate([records["exact"], np.repeat(records["tail"][:, None] / DRAWN, DRAWN, axis=1)], axis=1)
    return Recorded(
        ids=torch.from_numpy(records["ids"].astype(np.int64)),
        weights=torch.from_numpy(shares).double(),
        entropy=torch.from_numpy(records["entropy"].copy()).double(),
    )


def test_a_record_is_small_and_exact_where_it_says_so() -> None:
    assert RECORD.itemsize <= 300, "bytes a token, of any vocabulary"
    logits = torch.randn(5, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    p = (logits / HEAT).softmax(-1)
    records = summarize(logits, HEAT, torch.full((5,), 0.3, dtype=torch.float64))
    largest, ids = p.topk(EXACT)
    assert np.array_equal(records["ids"][:, :EXACT], ids.numpy())
    np.testing.assert_allclose(records["exact"], largest.numpy(), rtol=1e-6)
    entropy = torch.distributions.Categorical(logits=logits / HEAT).entropy()
    np.testing.assert_allclose(records["entropy"], entropy.numpy(), rtol=1e-6)
    torch.testing.assert_close(weights(records, 4000).sum(-1), torch.ones(5, dtype=torch.float64), atol=1e-6, rtol=0)
    assert not set(records["ids"][0, :EXACT].tolist()) & set(records["ids"][0, EXACT:].tolist())


@pytest.mark.parametrize("width", [20, 700])
def test_the_mean_over_draws_is_the_teacher(width: int) -> None:
    """Over all places of the random number: the probabilities, the loss and its gradient of all the teacher's logits."""
    generator = torch.Generator().manual_seed(width)
    wanted, given = (torch.randn(1, width, dtype=torch.float64, generator=generator) * 2 for _ in range(2))
    places = 2000
    random = (torch.arange(places, dtype=torch.float64) + 0.5) / places
    records = summarize(wanted.expand(places, width), HEAT, random)
    mean = weights(records, width).mean(0)
    torch.testing.assert_close(mean, (wanted[0] / HEAT).softmax(-1), atol=1e-5, rtol=2e-2)
    options = LossOptions(temperature=HEAT)
    values, gradients = recorded_kl(given.expand(places, width), read(records), options)
    exact, gradient = forward_kl(given, wanted, options)
    torch.testing.assert_close(values.mean(0), exact[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients.mean(0), gradient[0], rtol=0, atol=2e-5)
    truncated = records["exact"] / records["exact"].sum(axis=1, keepdims=True)
    assert abs(float(truncated[0, 0]) - float((wanted[0] / HEAT).softmax(-1).max())) > 1e-3, "the largest alone are not"


def test_nothing_left_to_draw(tmp_path: Path) -> None:
    """A teacher that is sure of a token, and one with fewer tokens than are kept exactly."""
    sure = torch.full((1, 300), -1e9, dtype=torch.float64)
    sure[0, 7] = 0.0
    narrow = torch.zeros(1, 5, dtype=torch.float64)
    for logits in (sure, narrow):
        found = summarize(logits, 1.0, torch.zeros(1, dtype=torch.float64))
        torch.testing.assert_close(weights(found, logits.shape[1]), logits.softmax(-1), atol=1e-7, rtol=0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_decoder("llama", tmp_path_factory.mktemp("teacher") / "llama")


def made_of(teacher: Path, ids: Sequence[list[int]] = IDS) -> TeacherInputs:
    tap = Tap(Body(TASKS[TASK].load(teacher).model))  # type: ignore[arg-type]
    passages = [Passage(ids=row, start=1, prompt=index) for index, row in enumerate(ids)]
    source = courses.passage_source(passages, range(len(ids)), [])
    return TeacherInputs(folder=teacher, source=source, open=lambda: tap)


def test_a_recorded_teacher_gives_a_live_ones_lesson(teacher: Path, tmp_path: Path) -> None:
    """Of a teacher all of whose tokens are kept exactly: the same loss and gradients, whatever the batch."""
    inputs = made_of(teacher)
    width = len(inputs.open().head.weight)
    assert width > EXACT
    student = Body(TASKS[TASK].load(teacher).model)  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    with pytest.MonkeyPatch.context() as patch:
        kept = np.dtype([("ids", "<u4", (width + DRAWN,)), ("exact", "<f4", (width,)), *RECORD.descr[2:]])
        patch.setattr(recorded, "EXACT", width)
        patch.setattr(recorded, "RECORD", kept)
        recorded.record(teacher, inputs.open(), inputs.source, tmp_path, temperature=HEAT, seed=3)
        known = TEACHERS["recorded"](replace(inputs, recording=tmp_path))
        found = []
        for teaches in (known, TEACHERS["live"](inputs)):
            assert isinstance(teaches, Teacher)
            tap = Tap(student)
            teaching = Teaching(weights={"logits": 1.0, "labels": 0.5}, options=lambda _: LossOptions(temperature=HEAT))
            lesson = make_lesson(tap, teaches, inputs.source, teaching)
            student.zero_grad()
            losses = list(lesson.parts([2, 0], 0.0))
            losses[0].backward()
            found.append(
                (losses[0].detach(), [one.grad.clone() for one in student.parameters() if one.grad is not None])
            )
    (mine, gradients), (theirs, wanted) = found
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_a_killed_recording_ends_in_the_same_bytes(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "_ROWS", 1)
    whole, broken, other = (tmp_path / name for name in ("whole", "broken", "other"))
    for folder in (whole, broken, other):
        folder.mkdir()
    inputs = made_of(teacher)

    def record(out: Path, seed: int = 3, progress: Any = silent) -> None:
        recorded.record(teacher, inputs.open(), inputs.source, out, temperature=HEAT, seed=seed, progress=progress)

    record(whole)
    said: list[int] = []

    def stop(done: int, _total: int, _note: str = "") -> None:
        said.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(broken, progress=stop)
    first = {path.name: path.stat().st_mtime_ns for path in broken.iterdir()}
    assert len(first) == 2
    record(broken)
    assert {path.name: path.read_bytes() for path in broken.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }
    assert {name: (broken / name).stat().st_mtime_ns for name in first} == first, "what was there is kept"
    record(other, seed=4)
    assert (other / "signals-00000.npy").read_bytes() != (whole / "signals-00000.npy").read_bytes()
    for cut in (RECORD.itemsize, RECORD.itemsize // 2):
        (broken / "signals-00001.npy").write_bytes((whole / "signals-00001.npy").read_bytes()[:-cut])
        with pytest.raises(EdgekitError, match=r"signals-00001.npy: no whole recording: it was cut, .* delete it"):
            Reader(broken, inputs.source.counts)
    (broken / "signals-00001.npy").unlink()
    with pytest.raises(EdgekitError, match=r"holds \d+ recorded tokens, but the texts have \d+.* delete it"):
        Reader(broken, inputs.source.counts)


def test_a_student_learns_from_records_without_its_teacher(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": "what is one", "label": "one is two"}, {"text": "what is three", "label": "three is four"}]
    data = write_train(tmp_path / "data", rows)
    recording, out = tmp_path / "recording", tmp_path / "student"
    recording.mkdir()
    out.mkdir()
    job = courses.Job(task=TASKS[TASK], max_length=64, out=recording)
    facts = record_teacher(teacher, student_rows(data, TASK, None), job, 2.0, "cpu")
    assert facts["bytes_per_token"] == RECORD.itemsize
    monkeypatch.setitem(TEACHERS, "kept", lambda _: pytest.fail("asked"))
    monkeypatch.setitem(TEACHERS, "live", lambda _: pytest.fail("asked"))
    options: dict[str, Any] = {"epochs": 20, "batch": 2, "learning_rate": 2e-3, "holdout": 0.0, "signals": "recorded"}
    made = distill(teacher, data, task=TASK, layers=1, options=options, max_length=64, out=out, signals=recording)
    assert made["losses"] == {"labels": 0.5, "logits": 1.0}, "those that can be recorded"
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 1


@pytest.mark.parametrize(
    ("table", "output", "message"),
    [
        (
            {"losses": {"reverse_kl": 1.0}},
            "tokens",
            r"losses.reverse_kl: a recorded teacher cannot .* use labels and logits",
        ),
        ({"losses": {"hidden": 1.0}}, "tokens", r"losses.hidden: a recorded teacher cannot"),
        ({"temperature": {"start": 1, "end": 2}}, "tokens", r"temperature: a teacher is recorded at one temperature"),
        ({"confidence": 1.0}, "tokens", r"confidence: needs all of the teacher's probabilities"),
        ({"correct_teacher": 0.2}, "tokens", r"correct_teacher: needs all"),
        (
            {"losses": {"hidden": 1.0}},
            "logits",
            r"losses.hidden: .* its outputs alone are recorded; use .*logits",
        ),
        (
            {"augment": {"case": 0.1, "answers": "asked"}},
            "logits",
            r"augment.answers: a recorded teacher is asked nothing",
        ),
        ({"signals": "sparse"}, "tokens", r"signals: "),
    ],
)
def test_what_cannot_be_recorded_is_told(table: dict[str, object], output: str, message: str) -> None:
    with pytest.raises(EdgekitError, match="recipe.toml: distill." + message):
        read_distill_options({"signals": "recorded"} | table, output, "recipe.toml: distill")


def test_rows_are_recorded_whole(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier's rows, in two files: transformers' own logits; a student of them is the student of the teacher itself."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    monkeypatch.setattr(recorded, "_ROWS", 5)
    data, recording = make_data(tmp_path / "data"), tmp_path / "recording"
    recording.mkdir()
    job = courses.Job(task=TASKS["text-classification"], max_length=32, out=recording)
    texts = student_rows(data, "text-classification", None)
    assert len(texts) == 12
    record_teacher(classifier, texts, job, 0.0, "cpu")
    read_rows = np.concatenate([np.load(path) for path in sorted(recording.glob("signals-*.npy"))])
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    with torch.no_grad():
        wanted = model(**tokenizer([row.text for row in texts], padding=True, return_tensors="pt")).logits
    np.testing.assert_allclose(read_rows, wanted.numpy(), atol=2e-5)
    found = []
    for signals in (recording, None):
        (out := tmp_path / f"student-{len(found)}").mkdir()
        options: dict[str, Any] = {"epochs": 2, "holdout": 0.0, "losses": {"labels": 0.5, "logits": 1.0}}
        with pytest.MonkeyPatch.context() as patch:
            if signals is not None:
                options["signals"] = "recorded"
                patch.setitem(TEACHERS, "kept", lambda _: pytest.fail("asked"))
            distill(
                classifier,
                data,
                task="text-classification",
                layers=1,
                options=options,
                max_length=32,
                out=out,
                signals=signals,
            )
        found.append(load_file(out / "model.safetensors"))
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], atol=1e-4, rtol=1e-3)
    (recording / "signals-00001.npy").unlink()
    with pytest.raises(EdgekitError, match="holds 7 recorded rows, but the texts have 12"):
        recorded.RowReader(recording, len(texts))


def test_a_grid_has_no_recorded_teacher() -> None:
    with pytest.raises(EdgekitError, match=r"qad.signals: only \[distill\] learns from a recorded teacher"):
        read_qad_options({"signals": "recorded"}, "tokens", "recipe.toml: qad")
