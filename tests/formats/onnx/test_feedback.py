"""w4 with feedback (GPTQ), on models that were trained: nearer to them on texts that nobody saw, and never by belief alone."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgekit.errors import EdgekitError
from edgekit.formats import Source
from edgekit.formats import onnx as format_onnx
from edgekit.formats.onnx import Options, feedback
from edgekit.formats.onnx.decoder import write_decoder
from edgekit.formats.smallest import Limits
from edgekit.formats.source import is_judged
from edgekit.modalities.text import of_tokens
from edgekit.model import load_model
from edgekit.runtimes import onnxruntime
from edgekit.runtimes.scores import kl
from edgekit.tasks import TASKS, outputs
from edgekit.tasks.decoders import Decoder
from edgekit.typed_json import to_table
from tests.conftest import ROOT
from tests.steps import source

SHARED = ROOT.parent / "shared" / "data"
PROMPTS, HELD = 60, 24


def data(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"needs ../shared/data/{name}")
    return SHARED / name


class Stories:
    """A decoder of 260,000 weights, and stories of its own: some calibrate, the others are held out."""

    def __init__(self) -> None:
        self.folder = data("stories260K/hf")
        loaded = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32, attn_implementation="eager")
        self.module = Decoder(loaded.eval()).eval()
        torch.manual_seed(0)
        begun = torch.ones((PROMPTS + HELD, 1), dtype=torch.long)
        told = loaded.generate(begun, max_new_tokens=80, do_sample=True, eos_token_id=-1).tolist()
        self.calibrating, self.held = told[:PROMPTS], told[PROMPTS:]

    def source(self, ids: Sequence[Sequence[int]], **more: Any) -> Source:
        return source(load_model(self.folder), lambda: self.module, ids, starts=[1] * len(ids), **more)

    def write(
        self, out: Path, *, ids: Sequence[Sequence[int]] | None = None, limits: Any = None, **options: Any
    ) -> Any:
        out.mkdir()
        given = self.source(self.calibrating if ids is None else ids, limits=limits)
        return to_table(write_decoder(given, Options(**({"scheme": "w4"} | options)), out))

    def loss(self, file: Path, facts: Any) -> float:
        """KL divergence in nats a token from the float model, over stories that were held out."""
        generator = onnxruntime.generator(file, {"threads": 1} | facts["runtime_options"])
        losses = []
        for row in self.held:
            with torch.inference_mode():
                wanted = self.module.model(input_ids=torch.tensor([row])).logits[0].numpy()
            generator.clear()
            losses.append(kl(wanted, generator.logits(row)).mean())
        return float(np.mean(losses))


@pytest.fixture(scope="module")
def stories() -> Stories:
    return Stories()


@pytest.fixture(scope="module")
def plain(stories: Stories, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The file without feedback."""
    out = tmp_path_factory.mktemp("plain") / "out"
    return SimpleNamespace(facts=stories.write(out, feedback=False), file=out / "model.onnx")


def test_a_decoder_loses_less_at_the_same_bytes(stories: Stories, plain: SimpleNamespace, tmp_path: Path) -> None:
    facts = stories.write(tmp_path / "out")
    file = tmp_path / "out" / "model.onnx"
    assert stories.loss(file, facts) < 0.75 * stories.loss(plain.file, plain.facts)
    assert (facts["bytes"], facts["runtime_options"]) == (plain.facts["bytes"], plain.facts["runtime_options"])
    told = facts["choices"]["feedback"]
    assert told["kl"] < told["kl_without"]
    assert "feedback" not in plain.facts["choices"]
    stories.write(tmp_path / "again")
    assert (tmp_path / "again" / "model.onnx").read_bytes() == file.read_bytes()


def test_an_encoder_loses_less_at_the_same_bytes(tmp_path: Path) -> None:
    """The BANKING77 teacher, whose query, key and value are one product in the file, on texts that are not among the prompts."""
    folder = data("banking77-teacher")
    model, task = load_model(folder), TASKS["text-classification"]
    module = task.load(folder)
    with data("banking77/train.csv").open(encoding="utf-8", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)][::40]
    ids = model.encode(texts, 64)
    held = of_tokens(ids[1::2], 0)
    wanted = outputs(module, held)
    losses, facts = {}, {}
    for fed in (False, True):
        out = tmp_path / f"{fed}"
        out.mkdir()
        given = source(model, lambda: module, ids[::2], output="logits", score=lambda _one, _other: 0.0)
        facts[fed] = to_table(format_onnx.write_encoder(given, Options(scheme="w4", feedback=fed), out))
        session = onnxruntime.load(out / "model.onnx", {"threads": 1} | facts[fed]["runtime_options"])
        answers = np.stack([session.run(prompt) for prompt in held.prompts])
        losses[fed] = kl(wanted, answers).mean()
    assert losses[True] < 0.6 * losses[False]
    assert facts[True]["bytes"] == facts[False]["bytes"]
    told = facts[True]["choices"]["feedback"]
    assert told["loss"] < told["loss_without"]
    changed = _products(tmp_path / "True" / "model.onnx"), _products(tmp_path / "False" / "model.onnx")
    assert all(not np.array_equal(*pair) for pair in zip(*changed, strict=True)), (
        "every product was rounded with feedback"
    )


def _products(file: Path) -> list[np.ndarray]:
    graph = onnx.load(file).graph
    known = {one.name: one for one in graph.initializer}
    return [onnx.numpy_helper.to_array(known[node.input[1]]) for node in graph.node if node.op_type == "MatMulNBits"]


def test_what_does_not_help_is_left_out(
    stories: Stories, plain: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes that are wrong: prompts that took no part tell, and the file is the one without feedback."""
    rounded = feedback.round_linears

    def wrong(*given: Any) -> Any:
        for name, found in rounded(*given):
            yield name, replace(found, packed=found.packed[:, ::-1].copy() * 0)

    monkeypatch.setattr(feedback, "round_linears", wrong)
    facts = stories.write(tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").read_bytes() == plain.file.read_bytes()
    told = facts["choices"]["feedback"]
    assert told["kl"] > told["kl_without"]


def test_few_prompts_change_nothing(stories: Stories, tmp_path: Path) -> None:
    few = [row for row in stories.calibrating if not is_judged(row)][:12]
    few += [row for row in stories.calibrating if is_judged(row)][: feedback.LEAST_JUDGED - 1]
    facts = stories.write(tmp_path / "out", ids=few)
    stories.write(tmp_path / "plain", ids=few, feedback=False)
    assert "feedback" not in facts["choices"]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (tmp_path / "plain" / "model.onnx").read_bytes()


def test_one_text_over_and_over_is_one(stories: Stories, tmp_path: Path) -> None:
    judged = next(row for row in stories.calibrating if is_judged(row))
    facts = stories.write(tmp_path / "out", ids=[judged] * 60)
    assert "feedback" not in facts["choices"]


def test_neither_file_is_refused_before_one_is_chosen(
    stories: Stories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where 4 bits lose too much, auto takes more, and w4 says so of the file that ships."""
    from edgekit.formats import written

    bounds = {least: (1e-9 if least == 0.0 else limit) for least, limit in written.BOUNDS.items()}
    monkeypatch.setattr(written, "BOUNDS", bounds)
    limits = {"kl": 1e-9, "top1": 0.01, "perplexity": 9.0, "far_kl": 9.0, "far_share": 0.01}
    wide = limits | {"kl": 9.0}
    facts = stories.write(tmp_path / "auto", scheme="auto", limits=Limits(fewer_bits=limits, eight_bits=wide))
    tried = facts["choices"]["auto"]["tried"]
    assert (facts["scheme"], [one["scheme"] for one in tried]) == (tried[1]["scheme"], ["w4", tried[1]["scheme"]])
    assert tried[0]["passages"] < tried[1]["passages"] == facts["choices"]["auto"]["passages"]
    assert f"on {tried[0]['passages']};" not in facts["notes"][0]
    assert facts["notes"][0].endswith(f"on {tried[0]['passages']}")
    with pytest.raises(EdgekitError, match=r"out.model\.onnx: onnxruntime's logits are "):
        stories.write(tmp_path / "out")


@pytest.mark.parametrize(
    ("losses", "better", "told"),
    [
        ((2.0, 1.0), True, (2.0, 1.0)),
        ((1.0, 1.0), False, (1.0, 1.0)),
        ((np.nan, 1.0), True, (None, 1.0)),
        ((1.0, np.nan), False, (1.0, None)),
        ((np.inf, np.nan), False, (None, None)),
    ],
)
def test_no_number_is_never_the_nearer_one(
    losses: tuple[float, float], better: bool, told: tuple[float | None, float | None]
) -> None:
    assert feedback.decide(*losses, "kl") == (better, {"kl": told[1], "kl_without": told[0]})


def test_threads_of_others_change_no_byte(stories: Stories, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        stories.write(tmp_path / f"{count}")
    torch.set_num_threads(threads)
    one, two = ((tmp_path / f"{count}" / "model.onnx").read_bytes() for count in (1, 2))
    assert one == two


def test_auto_judges_it_on_prompts_that_it_has_not_seen(
    stories: Stories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.formats import smallest

    asked: list[list[int]] = []
    hear: Callable[..., Any] = smallest.hear
    monkeypatch.setattr(smallest, "hear", lambda *given: asked.extend(ids for ids, _ in given[1]) or hear(*given))
    wide = {"kl": 9.0, "top1": 0.01, "perplexity": 9.0, "far_kl": 9.0, "far_share": 0.01}
    facts = stories.write(tmp_path / "out", scheme="auto", limits=Limits(fewer_bits=wide, eight_bits=wide))
    unseen = sorted(row for row in stories.calibrating if is_judged(row))
    assert facts["scheme"] == "w4"
    assert sorted(asked) == unseen
    assert facts["choices"]["auto"]["passages"] == len(unseen)
    stories.write(tmp_path / "named")
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (tmp_path / "named" / "model.onnx").read_bytes()


def test_the_ladder_offers_it_where_it_is_off() -> None:
    offered = [way.options for way in Options(scheme="w4", feedback=False).gentler("w4")]
    assert offered == [{"feedback": True}, {"block": 16}]
    assert [way.options for way in Options(scheme="w4").gentler("w4")] == [{"block": 16}]
    assert [way.options for way in Options(scheme="w8", feedback=False).gentler("w8")] == [{"block": 16}]
