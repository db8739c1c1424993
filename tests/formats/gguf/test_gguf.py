"""The GGUF format as export calls it: every scheme, its facts, its size before and after, and bundles that answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.artifact import Parity, Running
from edgekit.bundle.open import open_speaker, run_bundle
from edgekit.bundle.package import Lineage, PackageInputs, package
from edgekit.errors import EdgekitError
from edgekit.formats import Processor, gguf
from edgekit.formats.gguf.file import read_gguf
from edgekit.formats.gguf.mixed import choose
from edgekit.formats.gguf.schemes import SCHEMES
from edgekit.formats.smallest import SHARE
from edgekit.formats.smallest import Limits as ByBits
from edgekit.modalities.text import of_tokens
from edgekit.model import load_model
from edgekit.runtimes import onnxruntime
from edgekit.target import load_target
from edgekit.verify.margins import Limits, limits_at
from edgekit.workspace import file_sha256, write_product
from tests.architectures.decoders import ROOMS, make_decoder, orders
from tests.artifacts import make_report
from tests.conftest import child_environment, make_checkpoint, make_data
from tests.steps import adopt, calibrate, export
from tests.test_model import with_token

pytest.importorskip("llama_cpp", reason="the [gguf] extra is not installed")

# Rows of 256: what K-quants need. Layers enough that llama.cpp's rules tell the first from the others.
SIZES = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4}

UNCOMPARED = Parity(texts=0, user_texts=0, kinds=(), limits=(), stops={})


def write_splits(folder: Path) -> Path:
    folder.mkdir()
    for name, rooms in {"train": ROOMS[:4], "calibrate": ROOMS[4:12], "verify": ROOMS[12:]}.items():
        rows = [json.dumps({"text": said, "label": answer}) for said, answer in orders(rooms)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


class Source:
    """A model with its prompts and its calibration, and what export makes of it."""

    def __init__(self, model: Path, folder: Path, task: str, *, gradients: bool = False) -> None:
        self.model, self.task, self.folder = model, task, folder
        self.license: str | None = None
        self.limits: dict[str, float] = {}
        self.prompts = write_splits(folder / "prompts")
        self.calibration = folder / "calibration"
        self.calibration.mkdir()
        facts = calibrate(model, self.prompts, task=task, max_length=64, gradients=gradients, out=self.calibration)
        write_product(self.calibration, "calibrate", key="test", inputs={}, facts=facts)

    def export(self, out: Path, **options: Any) -> dict[str, Any]:
        out.mkdir()
        limits = Limits(**self.limits)
        return export(
            student=self.model,
            calibration=self.calibration,
            prompts=self.prompts,
            task=self.task,
            options={"format": "gguf"} | options,
            max_length=64,
            out_of_scope=None,
            out=out,
            name="orders",
            processor=Processor(arch="x86_64", features=("avx2", "fma"), bandwidth_gbs=None),
            digests=("0" * 64, "1" * 64),
            license=self.license,
            limits=ByBits(fewer_bits=limits_at(limits, 4.0), eight_bits=limits_at(limits, 8.0)),
        )


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("decoder")
    return Source(make_decoder("llama", folder / "model", **SIZES), folder, "text-generation", gradients=True)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("embedder")
    return Source(make_checkpoint(folder / "model"), folder, "feature-extraction")


def tensor_bytes(file: Path) -> int:
    return sum(place.bytes for place in read_gguf(file).tensors.values())


@pytest.mark.parametrize("scheme", [name for name in gguf.SCHEMES["tokens"] if name not in {"auto", "mixed"}])
def test_every_scheme_is_what_was_predicted(decoder: Source, tmp_path: Path, scheme: str) -> None:
    facts = decoder.export(tmp_path / "out", scheme=scheme)
    file = read_gguf(tmp_path / "out" / "model.gguf")
    assert (facts["format"], facts["scheme"], facts["file"], facts["files"]) == (
        "gguf",
        scheme,
        "model.gguf",
        ["model.gguf"],
    )
    assert facts["sha256"] == file_sha256(tmp_path / "out" / "model.gguf")
    (cost,) = gguf.costs(load_model(decoder.model), "tokens", [gguf.Options(scheme=scheme)])  # type: ignore[arg-type]
    assert cost.memory.value == tensor_bytes(file.path)
    assert cost.file.value == pytest.approx(file.path.stat().st_size, rel=0.02)
    assert cost.read_per_token is not None
    assert cost.read_per_token.value == facts["bytes_per_token"] < cost.memory.value
    assert cost.cache_per_token is not None
    assert cost.cache_per_token.value == facts["cache_bytes_per_token"] == 2 * 2 * 8 * 2 * 64
    assert file.metadata["edgekit.scheme"] == scheme
    assert file.metadata["general.file_type"] == SCHEMES[scheme].file_type
    assert facts["quantized"] == {
        kind: sum(place.type == kind for place in file.tensors.values()) for kind in facts["quantized"]
    }
    # Norms are float; of the others most have the scheme's type.
    assert 8 * np.dtype(np.float32).itemsize >= facts["bits"]
    assert SCHEMES[scheme].type in facts["quantized"]
    weighed = scheme not in gguf.FLOATS
    assert (tmp_path / "out" / "imatrix.gguf").is_file() is weighed
    assert ("quantize.imatrix.file" in file.metadata) is weighed
    assert facts["parity"]["chat"]
    # Loaded whole, and run beside the float model.
    assert facts["running"]["sequences"] == 4
    assert facts["running"]["logits"] < 0.8 * facts["running"]["bound"]
    assert facts["running"]["logits"] > 0 or scheme in gguf.FLOATS


def test_auto_takes_the_smallest_that_keeps_the_limits(
    decoder: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights lose a lot at 4 bits; what is found is byte for byte the file of the scheme by name."""
    # What every export proves besides is tested above.
    monkeypatch.setattr(gguf, "check_reading", lambda *_: UNCOMPARED)
    monkeypatch.setattr(gguf, "check_running", lambda *_: Running(sequences=0, logits=None, bound=None))
    loose = {"top1": 0.01, "perplexity": 1000.0, "far_kl": 99.0}
    try:
        decoder.limits = loose | {"kl": 1e-9}
        none = decoder.export(tmp_path / "none")
        taken = [1e-9 * one["used"]["kl"] for one in none["choices"]["auto"]["tried"]]
        # What the third takes of this is a little less than auto allows.
        decoder.limits = loose | {"kl": taken[2] / SHARE * 1.01}
        facts = decoder.export(tmp_path / "auto", scheme="auto")
    finally:
        decoder.limits = {}
    told, every = facts["choices"]["auto"], none["choices"]["auto"]["tried"]
    assert [one["scheme"] for one in every] == list(gguf.AUTO["tokens"])
    assert taken == sorted(taken, reverse=True)
    assert [one["bytes"] for one in every] == sorted(one["bytes"] for one in every)
    assert [(one["scheme"], one["passes"]) for one in told["tried"]] == [
        ("q4_0", False), ("q4_k_m", False), ("q5_k_m", True)
    ]  # fmt: skip
    assert [(one["kl"], one["bytes"]) for one in told["tried"]] == [(one["kl"], one["bytes"]) for one in every[:3]]
    assert (facts["scheme"], told["passages"], told["tokens"] > 64) == ("q5_k_m", 24, True)
    decoder.export(tmp_path / "named", scheme=facts["scheme"])
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("auto", "named")]
    assert files[0] == files[1]
    for file in ("model.gguf", "imatrix.gguf"):
        assert (tmp_path / "auto" / file).read_bytes() == (tmp_path / "named" / file).read_bytes(), file
    assert facts["notes"][0].startswith("auto: q5_k_m (")
    # Where nothing keeps them: the one that loses least, said clearly.
    assert (none["scheme"], none["choices"]["auto"]["passes"]) == ("q8_0", False)
    assert none["notes"][0].startswith("auto: no scheme keeps the limits on 24 calibrate prompts")
    assert "--scheme f16" in none["notes"][0]


def test_auto_needs_prompts(decoder: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.formats.smallest.PASSAGES", 0)
    with pytest.raises(EdgekitError, match=r"decided on calibrate prompts, and there are none .* name a scheme"):
        decoder.export(tmp_path / "out")


def test_a_mixture_takes_the_bytes_of_its_model(
    decoder: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    like = "q4_0"
    monkeypatch.setattr(choose, "EVALUATIONS", 5)
    decoder.export(tmp_path / "plain", scheme=like)
    facts = decoder.export(tmp_path / "mixed", scheme="mixed", like=like)
    budget, taken = (tensor_bytes(tmp_path / name / "model.gguf") for name in ("plain", "mixed"))
    assert 0.99 * budget <= taken <= budget
    assert (tmp_path / "mixed" / "model.gguf").stat().st_size <= (tmp_path / "plain" / "model.gguf").stat().st_size
    assert facts["choices"]["tensor_bytes"] == taken
    assert facts["choices"]["measured_kl"] <= facts["choices"]["first_kl"]
    assert len(facts["quantized"]) > 2
    assert facts["scheme"] == "mixed"


def test_the_same_bytes_twice(decoder: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "EVALUATIONS", 3)
    for name in ("a", "b"):
        decoder.export(tmp_path / name, scheme="mixed", like="q4_0")
    for file in ("model.gguf", "imatrix.gguf", "tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_no_torch_is_loaded(decoder: Source, tmp_path: Path) -> None:
    """Conversion, quantization with an importance matrix, parity of tokenizer and template: without torch.

    Only the last proof, which runs the checkpoint itself beside the file, needs torch, and is left out here.
    """
    (tmp_path / "out").mkdir()
    asked = {
        "student": str(decoder.model),
        "calibration": str(decoder.calibration),
        "prompts": str(decoder.prompts),
        "out": str(tmp_path / "out"),
    }
    code = f"""
import sys
from pathlib import Path
from edgekit.formats import gguf
from edgekit.artifact import Running
from tests.steps import export
gguf.check_running = lambda *_: Running(sequences=0, logits=None, bound=None)
places = {{key: Path(value) for key, value in {asked!r}.items()}}
export(**places, task="text-generation", options={{"format": "gguf", "scheme": "q4_k_m"}}, max_length=64,
       out_of_scope=None)
print(sorted({{"torch", "transformers", "onnx", "onnxruntime"}} & set(sys.modules)))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=child_environment(), check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "[]"
    assert (tmp_path / "out" / "model.gguf").stat().st_size > 1_000_000


def packed(source: Source, folder: Path, **options: Any) -> Path:
    """The folder of a bundle of an export."""
    artifact = folder / "artifact"
    facts = source.export(artifact, **options)
    write_product(artifact, "export", key="test", inputs={"student": "a test"}, facts=facts)
    (folder / "board.toml").write_text(
        'title = "A test board"\n[hardware]\narch = "aarch64"\ncpu = "Cortex-A76"\ncores = 4\nfeatures = ["asimddp"]\n'
        f'memory_mb = 4096\nsources = ["none"]\n[export.{source.task}]\nformat = "gguf"\n[runtime.llama-cpp]\nthreads = 1\n'
        'kv_k = "f32"\nkv_v = "f32"\n',
        encoding="utf-8",
    )
    inputs = PackageInputs(
        artifact=artifact,
        report=make_report(folder / "report", artifact),
        name="orders-board",
        recipe="orders",
        target=load_target(str(folder / "board.toml")),
        lineage=Lineage(teacher="org/teacher", license="Apache-2.0"),
    )
    return package(inputs, folder / "dist").bundle


def test_a_chat_bundle_answers_through_the_loader_that_ships(talker: Path, tmp_path: Path) -> None:
    bundle = packed(Source(talker, tmp_path, "text-generation"), tmp_path, scheme="q8_0", imatrix=False)
    names = {path.name for path in bundle.iterdir()}
    assert names == {"model.gguf", "bundle.json", "README.md", "load.py", "check.py", "Modelfile"}
    texts, wanted = zip(*orders(ROOMS[20:22]), strict=True)
    assert run_bundle(bundle, texts) == list(wanted)
    speaker = open_speaker(bundle.with_name(f"{bundle.name}.tar.gz"))
    assert speaker.chats
    assert "".join(speaker.stream([{"role": "user", "content": texts[2]}])) == wanted[2]
    modelfile = (bundle / "Modelfile").read_text(encoding="utf-8")
    assert 'PARAMETER stop "<|end|>"' in modelfile
    assert "llama-cli -m model.gguf -c 64 -t 1" in (bundle / "README.md").read_text(encoding="utf-8")


def test_an_embedder_bundle_is_the_onnx_embedder(
    embedder: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = packed(embedder, tmp_path, scheme="f16")
    assert open_speaker(bundle) is None
    facts = embedder.export(tmp_path / "onnx", format="onnx", scheme="fp32")
    texts = [said for said, _ in orders(ROOMS[:6])]
    ids = load_model(embedder.model).encode(texts, 64)
    theirs = onnxruntime.outputs(tmp_path / "onnx" / facts["file"], of_tokens(ids, 0).prompts, options={"threads": 1})
    ours = np.array(run_bundle(bundle, texts))
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() > 0.999
    # Not because all texts are alike.
    assert (ours @ ours.T / np.outer(*[np.linalg.norm(ours, axis=1)] * 2)).min() < 0.99


def test_a_file_says_what_it_ships_under(talker: Path, tmp_path: Path) -> None:
    source = Source(talker, tmp_path, "text-generation")
    source.export(tmp_path / "a", scheme="f16", imatrix=False)
    assert "general.license" not in read_gguf(tmp_path / "a" / "model.gguf").metadata
    source.license = "Apache-2.0"
    source.export(tmp_path / "b", scheme="f16", imatrix=False)
    assert read_gguf(tmp_path / "b" / "model.gguf").metadata["general.license"] == "Apache-2.0"


def test_an_added_token_without_an_embedding_is_left_out(talker: Path, tmp_path: Path) -> None:
    """As llama.cpp's converter does it with Gemma 3's <image_soft_token>: parity is proven with it as text."""
    model = with_token(Path(shutil.copytree(talker, tmp_path / "model")), "<image_soft_token>")
    facts = Source(model, tmp_path, "text-generation").export(tmp_path / "out", scheme="f16", imatrix=False)
    tokens = read_gguf(tmp_path / "out" / "model.gguf").metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == facts["vocabulary"] == load_model(model).rows
    assert "<image_soft_token>" not in tokens
    assert facts["parity"]["texts"] > 100
    assert "image_soft" not in (tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["q8_0", "q4_0", "mixed"])
def test_an_embedder_is_quantized(embedder: Source, tmp_path: Path, scheme: str) -> None:
    options = {"scheme": scheme} | ({"like": "q8_0"} if scheme == "mixed" else {})
    facts = embedder.export(tmp_path / "out", **options)
    taken = tensor_bytes(tmp_path / "out" / "model.gguf")
    (cost,) = gguf.costs(load_model(embedder.model), "embedding", [gguf.Options(**options)])
    assert taken == cost.memory.value if scheme != "mixed" else taken <= cost.memory.value
    size = (tmp_path / "out" / "model.gguf").stat().st_size
    assert cost.file.value == pytest.approx(size, rel=0.02)
    if scheme == "mixed":
        assert facts["choices"]["tensor_bytes"] == taken
    assert "chat" not in facts["parity"]


def test_what_is_refused(
    decoder: Source, embedder: Source, checkpoint: Path, tmp_path: Path, classifier_source: Callable[[], Source]
) -> None:
    with pytest.raises(EdgekitError, match="gguf has no models that answer with logits; use 'onnx'"):
        classifier_source().export(tmp_path / "a", scheme="q8_0")
    decoder.export(tmp_path / "b", scheme="f16", imatrix=False)
    asked: dict[str, Any] = {"prompts": make_data(tmp_path / "data"), "max_length": 32, "out_of_scope": None}
    (tmp_path / "c").mkdir()
    with pytest.raises(EdgekitError, match="answers with tokens or embeddings, not with labels"):
        adopt(
            file=tmp_path / "b" / "model.gguf",
            checkpoint=checkpoint,
            task="text-classification",
            out=tmp_path / "c",
            **asked,
        )
    with pytest.raises(EdgekitError, match=r"scheme: .*q4_k_m.*got 'q4'"):
        decoder.export(tmp_path / "d", scheme="q4")
    with pytest.raises(EdgekitError, match="bytes is for scheme = 'mixed' alone"):
        decoder.export(tmp_path / "e", scheme="q4_0", bytes=1000)
    with pytest.raises(EdgekitError, match=r"mixed: .*bytes are too few"):
        decoder.export(tmp_path / "f", scheme="mixed", bytes=1000)


@pytest.fixture
def classifier_source(checkpoint: Path, tmp_path: Path) -> Callable[[], Source]:
    """A model that answers with labels, calibrated."""

    def make() -> Source:
        (tmp_path / "classifier").mkdir()
        return Source(checkpoint, tmp_path / "classifier", "text-classification")

    return make
