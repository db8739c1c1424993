"""Several processes of one training: the same losses as one, the same bytes after a kill, and none that outlives its command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

from edgekit.distill import DistillInputs, processes
from edgekit.distill.journal import FILE as JOURNAL
from edgekit.distill.lessons import Teaching, make_lesson
from edgekit.distill.options import read_distill_options
from edgekit.distill.processes import pack, unpack
from edgekit.distill.ranks import Ranks
from edgekit.errors import EdgekitError, Unfinished
from edgekit.inputs import identity
from edgekit.progress import Progress, silent
from edgekit.workspace import Workspace, file_sha256
from tests import warm
from tests.architectures.decoders import make_decoder
from tests.conftest import LABELS, child_environment, make_checkpoint, make_data
from tests.steps import distill_inputs, distill_saving

# Twelve train rows in batches of five: of the last one a rank of two has one row, of three, none of them has two.
OPTIONS: dict[str, Any] = {"epochs": 3, "batch": 5, "holdout": 0.2, "precision": "fp32", "device": "cpu"}


class Begun:
    """A rank that a warm process was forked for; its standard input is ours."""

    def __init__(self, folder: Path, index: int, environment: Mapping[str, str]) -> None:
        (folder / f"rank-{index}.log").touch()
        read, self._write = os.pipe()
        known = child_environment() | {name: one for name, one in environment.items() if name.startswith(warm.RANKED)}
        with os.fdopen(read, "rb") as given:
            self._run = warm.ask(warm.server(known), ["-m", "edgekit.distill", folder], Path.cwd(), known, given)
        self.pid = self._run.pid
        self.stdout: IO[str] | None = self._run.stdout

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self._run.wait(timeout=0)
        return None

    def kill(self) -> None:
        self._run.kill()

    def wait(self) -> int:
        with suppress(OSError):
            os.close(self._write)
        return self._run.wait(timeout=60)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> list[Begun]:
    """What `spread` starts, in the order in which it does."""
    begun = list[Begun]()

    def start(*given: Any) -> Begun:
        begun.append(Begun(*given))
        return begun[-1]

    monkeypatch.setattr(processes, "start", start)
    return begun


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DistillInputs]:
    """The inputs of a student of a teacher without dropout: what it leaves out, each process draws for itself."""
    folder = tmp_path_factory.mktemp("encoder")
    teacher, data = make_checkpoint(folder / "teacher", labels=LABELS), make_data(folder / "data")
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(
        json.dumps(config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    )

    def inputs(**options: Any) -> DistillInputs:
        asked: dict[str, Any] = {"task": "text-classification", "layers": 1, "max_length": 32}
        return distill_inputs(teacher, data, options=OPTIONS | options, **asked)

    return inputs


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JOURNAL).read_text(encoding="utf-8").splitlines()]


def teach(inputs: DistillInputs, out: Path, progress: Progress = silent) -> dict[str, object]:
    out.mkdir(exist_ok=True)
    return distill_saving(inputs, out, progress)


def compare(one: DistillInputs, several: DistillInputs, folder: Path) -> None:
    facts = [teach(inputs, folder / name) for name, inputs in (("one", one), ("several", several))]
    alone, shared = told(folder / "one"), told(folder / "several")
    assert [line["step"] for line in shared] == [line["step"] for line in alone]
    for mine, theirs in zip(alone, shared, strict=True):
        for key in ("loss", "norm", "rate"):
            assert theirs[key] == pytest.approx(mine[key], rel=1e-4, abs=1e-5), (mine["step"], key)
        assert theirs["losses"] == pytest.approx(mine["losses"], abs=1e-4)
    assert facts[1]["scores"] == pytest.approx(facts[0]["scores"], abs=1e-4)
    assert facts[1]["best_epoch"] == facts[0]["best_epoch"]


def test_two_processes_learn_what_one_does(
    encoder: Callable[..., DistillInputs], ranks: list[Begun], tmp_path: Path
) -> None:
    compare(encoder(), encoder(processes=2, micro_batch=2), tmp_path)
    assert len(ranks) == 2
    assert [rank.poll() for rank in ranks] == [0, 0]
    assert identity(encoder(processes=2).options) == identity(encoder().options)
    assert encoder(processes=2).machine == {**encoder().machine, "processes": 2}


def test_two_processes_of_a_decoder(ranks: list[Begun], tmp_path: Path) -> None:
    """Its loss is a mean over tokens, of which each process has another number; of texts, too."""
    make_decoder("llama", tmp_path / "teacher")
    (tmp_path / "data").mkdir()
    rows = [{"text": f"what follows {place}", "label": f"it is {place + 1} " * (1 + place % 5)} for place in range(13)]
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def inputs(count: int) -> DistillInputs:
        losses = {"logits": 0.5, "labels": 0.5, "hidden": 1.0}
        options = OPTIONS | {"epochs": 1, "losses": losses, "per": "sequence", "processes": count}
        asked: dict[str, Any] = {"task": "text-generation", "layers": 1, "max_length": 32}
        return distill_inputs(tmp_path / "teacher", tmp_path / "data", options=options, **asked)

    compare(inputs(1), inputs(2), tmp_path)
    assert len(ranks) == 2


def test_two_processes_write_what_one_does(ranks: list[Begun], tmp_path: Path) -> None:
    """Each behind its own rows, of the last batch one has none; a reward is told beside the losses."""
    make_decoder("llama", tmp_path / "teacher")
    (tmp_path / "data").mkdir()
    rows = [{"text": f"what follows {place}", "label": f"it is {place + 1}"} for place in range(9)]
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def inputs(count: int) -> DistillInputs:
        reward = {"check": "length", "most": 6, "weight": 0.5}
        writes = {"share": 1.0, "new_tokens": 8, "reward": reward}
        options = OPTIONS | {
            "epochs": 1,
            "batch": 8,
            "holdout": 0.0,
            "losses": {"reverse_kl": 1.0},
            "on_policy": writes,
        }
        asked: dict[str, Any] = {"task": "text-generation", "layers": 1, "max_length": 32}
        return distill_inputs(tmp_path / "teacher", tmp_path / "data", options=options | {"processes": count}, **asked)

    compare(inputs(1), inputs(2), tmp_path)
    assert len(ranks) == 2
    assert all("reward" in line["losses"] for line in told(tmp_path / "several"))


def test_a_killed_rank_ends_all_and_the_next_run_goes_on(
    encoder: Callable[..., DistillInputs], ranks: list[Begun], tmp_path: Path
) -> None:
    """Also where all are killed at once. Dropout is on: each rank's random state is in the snapshot."""
    inputs = encoder(processes=2)
    teacher = tmp_path / "teacher"
    (tmp_path / "teacher").mkdir()
    for path in inputs.teacher.path.iterdir():
        (teacher / path.name).write_bytes(path.read_bytes())
    config = json.loads((teacher / "config.json").read_text()) | {"hidden_dropout_prob": 0.1}
    (teacher / "config.json").write_text(json.dumps(config))
    inputs = replace(inputs, teacher=replace(inputs.teacher, path=teacher))
    teach(inputs, tmp_path / "whole")
    ranks.clear()
    workspace = Workspace(tmp_path / "cache")

    def make(stop: int, killed: tuple[int, ...]) -> Path:
        def progress(done: int, _total: int, note: str) -> None:
            if done == stop and note.startswith("loss"):
                for index in killed:
                    os.kill(ranks[index].pid, signal.SIGKILL)

        ranks.clear()
        return workspace.once("distill", {}, lambda out: teach(inputs, out, progress)).folder

    for stop, killed in ((2, (1,)), (4, (0, 1))):
        with pytest.raises(
            Unfinished, match=rf"process {killed[0] + 1} of 2 ended with SIGKILL.*run the command again"
        ):
            make(stop, killed)
        for rank in ranks:
            with pytest.raises(ProcessLookupError):
                os.kill(rank.pid, 0)
    done = make(0, ())
    assert file_sha256(done / "model.safetensors") == file_sha256(tmp_path / "whole" / "model.safetensors")
    lines = told(done)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert [line["loss"] for line in lines] == [line["loss"] for line in told(tmp_path / "whole")]


def test_ranks_end_with_who_started_them(
    encoder: Callable[..., DistillInputs], ranks: list[Begun], tmp_path: Path
) -> None:
    """A Ctrl-C here, and a start that is killed itself: its end of their standard input closes."""

    def interrupt(done: int, _total: int, note: str) -> None:
        if note.startswith("loss"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(encoder(processes=2, epochs=50), tmp_path / "interrupted", interrupt)
    assert [rank.poll() for rank in ranks] == [-9, -9]
    ranks.clear()

    def leave(_done: int, _total: int, note: str) -> None:
        if note.startswith("loss"):
            for rank in ranks:
                rank.kill = lambda: None  # type: ignore[method-assign]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(encoder(processes=2, epochs=50), tmp_path / "left", leave)
    assert [rank.poll() for rank in ranks] == [1, 1]


def test_an_error_of_the_training_is_told_once(
    encoder: Callable[..., DistillInputs], ranks: list[Begun], tmp_path: Path
) -> None:
    inputs = encoder(processes=2)
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(EdgekitError, match="the train split is empty") as bad:
        teach(replace(inputs, prompts=replace(inputs.prompts, path=tmp_path)), tmp_path / "out")
    assert not isinstance(bad.value, Unfinished), "another run would end alike"
    assert len(ranks) == 2


def test_inputs_survive_the_way(encoder: Callable[..., DistillInputs]) -> None:
    inputs = encoder(temperature={"start": 4.0, "end": 1.0})
    assert unpack(json.loads(json.dumps(pack(inputs)))) == inputs
    with pytest.raises(TypeError, match="cannot be told to another process"):
        pack({"a": object()})


def test_rows_are_shared_out() -> None:
    rows = list(range(7))
    for count in (1, 2, 3, 9):
        own = [Ranks(index, count).own(rows) for index in range(count)]
        assert sorted(row for part in own for row in part) == rows
        assert max(map(len, own)) - min(map(len, own)) <= 1


def test_losses_that_compare_rows_are_refused() -> None:
    losses = {"contrastive": 1.0, "embedding": 1.0}
    with pytest.raises(EdgekitError, match=r"distill\.processes: contrastive compares all rows of a batch"):
        read_distill_options({"processes": 2, "losses": losses}, "embedding", "distill")
    teaching = Teaching(weights=losses, ranks=Ranks(0, 2))
    with pytest.raises(EdgekitError, match=r"distill\.losses\.contrastive: compares all rows"):
        make_lesson(None, None, None, teaching)  # type: ignore[arg-type]
