"""The dry run is the plan: what is kept, how many bytes come, what can be proven, how long it takes here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.formats.onnx import graph
from edgekit.formats.onnx.sizes import predict_bytes
from edgekit.model import Model
from tests.conftest import Answer

Command = Callable[..., Answer]
SCHEMES = ("fp32", "fp16", "w8", "w4", "int8-dynamic")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Sequence[Sequence[int]], onnx.ModelProto]:
    """A BERT of some size, saved and traced once."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from edgekit.formats.onnx.float_graph import export_float

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            config = BertConfig(
                vocab_size=8000, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512,
                max_position_embeddings=512, num_labels=5, attn_implementation="eager",
            )  # fmt: skip
            self.model = BertForSequenceClassification(config)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            types = torch.zeros_like(input_ids)
            return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=types).logits

    folder = tmp_path_factory.mktemp("bert")
    module = Classifier().eval()
    module.model.save_pretrained(folder)
    ids = [np.random.default_rng(length).integers(5, 8000, size=length).tolist() for length in (5, 9, 20)]
    return Model(folder=folder), ids, export_float(module, ids, pad_id=0, output_name="logits")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_are_within_two_percent(exported: Any, tmp_path: Path, scheme: str) -> None:
    from edgekit.formats.onnx.blocks import quantize_blocks, to_half
    from edgekit.formats.onnx.quantize import Int8, quantize_int8
    from edgekit.formats.onnx.simplify import simplified

    model, ids, traced = exported
    made = simplified(graph.copy_model(traced), ids, pad_id=0, for_cpu=scheme != "fp16")
    if scheme == "fp16":
        made = to_half(made)
    elif scheme != "fp32":
        rewritten = graph.Graph(made)
        if scheme == "int8-dynamic":
            quantize_int8(rewritten, Int8(ranges=None))
        else:
            quantize_blocks(rewritten, bits=int(scheme[1:]), block=32)
        made = rewritten.model
    size = graph.save(made, tmp_path / "model.onnx")
    assert predict_bytes(model, scheme, 32, layers=4, classes=5) == pytest.approx(size, rel=0.02)


def plan(command: Command, *arguments: str) -> dict[str, Any]:
    answer = command("build", "-t", "laptop-cpu", "--dry-run", "--json", *arguments)
    assert answer.code == 0, answer.err
    return dict(json.loads(answer.out)["plans"][0])


def test_what_is_kept_is_told(command: Command, project: Path) -> None:
    """Each step by its own fingerprint; nothing is made, and no look is taken at the prompts."""
    (project.parent / "cache").mkdir()
    assert set(plan(command)["kept"].values()) == {False}
    assert sorted(path.name for path in (project.parent / "cache").iterdir()) == ["locks", "prompts"]
    assert command("calibrate", "teacher", "-o", "made/calibration").code == 0
    assert command("record", "teacher", "teacher", "-o", "made/reference").code == 0
    assert set(plan(command)["kept"].values()) == {False}, "what lies at --out is not the cache's"
    from edgekit.build import calibrate, gather_prompts, record
    from edgekit.cli.options import open_session
    from edgekit.recipe import load_recipe

    recipe, session = load_recipe(project), open_session(project.parent / "cache", Path("dist"))
    prompts, teacher = gather_prompts(recipe, session), project.parent / "teacher"
    calibrate(recipe, teacher, prompts, session)
    assert [step for step, kept in plan(command)["kept"].items() if kept] == ["calibrate"]
    record(recipe, teacher, teacher, prompts, session)
    assert [step for step, kept in plan(command)["kept"].items() if kept] == ["calibrate", "record"]
    assert [step for step, kept in plan(command, "--set", "data.max_length=16")["kept"].items() if kept] == []


def test_a_busy_machine_tells_no_time(command: Command, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (100.0, 1.0, 1.0), raising=False)
    guess = plan(command)["estimate"]
    assert guess["seconds"] is None
    assert guess["busy"].startswith("load 100.0 on ")
    said = command("build", "-t", "laptop-cpu", "--dry-run").out.splitlines()
    assert said[-1].startswith("in all: time unknown: this machine is busy (load 100.0")
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)
    guess = plan(command)["estimate"]
    assert guess["seconds"] == sum(guess["seconds_by_step"].values()) > 0
    both = command("build", "-t", "laptop-cpu", "-t", "raspberrypi", "--dry-run").out.splitlines()
    assert re.fullmatch(r"in all: about \d+ (s|min), \d+ MB of memory, \d+ MB of disk", both[-1])
    assert sum(line.startswith("in all") for line in both) == 1


def test_what_the_prompts_can_prove_is_told_before_anything_runs(command: Command, project: Path) -> None:
    said = command("build", "-t", "laptop-cpu", "--dry-run", "--set", "accuracy.student_margin=0.01").out
    assert "prompts cannot prove 1.00 points" in " ".join(said.split())
    assert all(len(line) <= 80 for line in said.splitlines() if "teacher" not in line and "in all" not in line)
