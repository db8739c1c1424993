"""README's chat quickstart: a hub id becomes a bundle that talks. The hub is a stand-in, its model's weights are random."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")

from tests.architectures.decoders import SPECIAL, make_decoder
from tests.e2e.conftest import ROOT, SLOWEST, Project
from tests.pipeline.test_teacher import FIRST, Hub
from tests.test_chat_template import CHATML

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SLOWEST)]
ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
RECIPE, TARGET = ("--recipe", "examples/chat/recipe.toml"), ("--target", "raspberrypi")
# Random weights lose more by quantization than trained ones, and what they say says nothing.
LOOSE = ("kl=50.0", "top1=0.01", "perplexity=1000.0", "answer_length=0.01")
LIMITS = tuple(word for limit in LOOSE for word in ("--set", f"accuracy.{limit}"))
# As many prompts as say anything at all: the rest would take a minute and show nothing new.
FEW = 24
ASKED = "How do I get candle wax out of a tablecloth?"


@dataclass(frozen=True, kw_only=True)
class Online(Project):
    """A project that asks a hub."""

    url: str

    def environment(self) -> dict[str, str]:
        """The variables of a run, without anybody's token."""
        kept = {name: value for name, value in super().environment().items() if name != "HF_TOKEN"}
        hub = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.folder / "hf"), "HF_HUB_OFFLINE": "0"}
        return kept | hub | {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}


def make_chat_model(folder: Path) -> Path:
    """A Llama of SmolLM2's kind in small, with ChatML's tokens and template."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    make_decoder("llama", folder, **sizes, rope_parameters=rope, max_position_embeddings=2048, tie_word_embeddings=True)
    for path in folder.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        for old, new in zip(SPECIAL, ("<|im_start|>", "<|im_end|>"), strict=False):
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A stand-in\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    model = make_chat_model(tmp_path_factory.mktemp("hub") / "model")
    server = Hub({path.name: path.read_bytes() for path in sorted(model.iterdir())}, ID)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chat(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Online:
    folder = tmp_path_factory.mktemp("chat")
    for name in ("examples/chat", "calib_data/chat"):
        shutil.copytree(ROOT / name, folder / name)
    for path in (folder / "calib_data" / "chat").glob("*.jsonl"):
        path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:FEW]), encoding="utf-8")
    return Online(folder=folder, cache=folder / ".edgekit", url=hub.url)


@pytest.fixture(scope="module")
def built(chat: Online) -> Mapping[str, Any]:
    return dict(chat.build(*RECIPE, *TARGET, *LIMITS)["bundles"][0])


def test_a_hub_id_becomes_a_bundle(chat: Online, hub: Hub, built: Mapping[str, Any]) -> None:
    assert (built["format"], built["bundle"]) == ("gguf", "dist/chat-raspberrypi")
    assert hub.asked(f"/resolve/{FIRST}/chat_template.jinja")
    report = json.loads((chat.folder / built["report"]).read_text())
    assert {"kl_vs_student", "top1_vs_student", "perplexity_vs_student"} <= {
        check["name"] for check in report["checks"]
    }
    assert report["kl"]["mean"] > 0
    manifest = json.loads((chat.folder / built["bundle"] / "bundle.json").read_text())
    assert manifest["lineage"]["teacher"] == ID
    assert manifest["lineage"]["teacher_revision"] == FIRST
    assert manifest["licences"] == {"data": "CC0-1.0", "teacher": "apache-2.0", "this model": "Apache-2.0"}
    # The scheme was found by measurement, and what was tried is told.
    told = manifest["artifact"]["choices"]["auto"]
    assert [built["scheme"]] == [one["scheme"] for one in told["tried"] if one["passes"]]
    assert told["tried"][-1]["bytes"] == built["bytes"]
    assert manifest["settings"]["chat"]
    assert manifest["settings"]["stop"] == ["<|im_end|>"]


def test_it_talks(chat: Online, built: Mapping[str, Any]) -> None:
    ask = ("run", built["bundle"], ASKED, "--most", "12")
    said = chat.run(*ask).stdout
    (answer,) = json.loads(chat.run(*ask, "--json").stdout)["answers"]
    assert answer["text"] == ASKED
    assert answer["answer"].splitlines() == said.removesuffix("\n").splitlines() != []
    (other,) = json.loads(chat.run(*ask, "--system", "Answer in French.", "--json").stdout)["answers"]
    assert other["answer"] != answer["answer"]


def test_inspect_shows_what_is_in_the_file(chat: Online, built: Mapping[str, Any]) -> None:
    found = json.loads(chat.run("inspect", f"{built['bundle']}/model.gguf", "--json").stdout)
    text = json.dumps(found)
    for part in ("llama", built["scheme"], "quantize.imatrix"):
        assert part in text
    assert "chat" in chat.run("inspect", f"{built['bundle']}/model.gguf").stdout


def test_the_same_student_talks_through_onnx(chat: Online, built: Mapping[str, Any]) -> None:
    """One more export of the same student: its chat template lies in the bundle, and answers are the float model's."""
    told = chat.build(*RECIPE, *TARGET, *LIMITS, "--format", "onnx")["bundles"][0]
    bundle = chat.folder / told["bundle"]
    assert {path.name for path in bundle.iterdir()} == {
        "bundle.json", "check.py", "chat_template.jinja", "golden.json", "load.py", "model.onnx", "README.md", "tokenizer.json"
    }  # fmt: skip
    assert (bundle / "chat_template.jinja").read_text(encoding="utf-8") == CHATML
    assert "pip install onnxruntime tokenizers jinja2 numpy" in (bundle / "README.md").read_text(encoding="utf-8")
    ask = ("run", told["bundle"], ASKED, "--most", "12")
    said = chat.run(*ask).stdout
    (answer,) = json.loads(chat.run(*ask, "--json").stdout)["answers"]
    assert answer["answer"].splitlines() == said.removesuffix("\n").splitlines() != []
    warm = [chat.run(*ask, "--temperature", "5").stdout for _ in range(2)]
    assert len({said, *warm}) == 3
