"""The loader: at most 60 lines, three packages, and the same answers as the session that verified."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgekit.bundle.loaders import BOUND, LOADERS
from edgekit.bundle.open import Bundle, load_bundle, open_bundle
from edgekit.bundle.package import Lineage, PackageInputs, package
from edgekit.formats import FORMATS
from edgekit.modalities.text import of_tokens
from edgekit.runtimes import RUNTIMES
from edgekit.runtimes.onnxruntime import outputs
from edgekit.tasks import text_classification
from tests.artifacts import LABELS, MAX_LENGTH, make_artifact, make_report, make_target, make_tokenizer
from tests.bundle.faults import seal
from tests.bundle.test_bundle import pack_as

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "examples" / "embed-python"
NEEDED = ("onnxruntime", "tokenizers", "numpy")
TEXTS = [
    "turn on the light",
    "TURN OFF the light",
    "play some jazz music",
    "",
    "   ",
    "unknown words only",
    "turn on " * 500 + "music " * 50,
    "light\nlight\tlight",
    "\N{GRINNING FACE} play \N{GRINNING FACE}",
]


def make_bundle(folder: Path, **made: Any) -> Path:
    folder.mkdir(parents=True)
    artifact = make_artifact(folder / "artifact", **made)
    report = make_report(folder / "report", artifact)
    return pack_as(folder, artifact, report).bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("loader") / "made")


def shipped(bundle: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("load", bundle / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def edit(bundle: Path, **change: Any) -> None:
    seal(bundle, **change)


def test_prompts_are_put_before_a_text(bundle: Path, tmp_path: Path) -> None:
    """The checkpoint's default prompt without being asked, another by its name, none where it is empty."""
    copy = Path(shutil.copytree(bundle, tmp_path / "prompted"))
    settings = json.loads((copy / "bundle.json").read_text())["settings"]
    prompts = {"order": "turn off the ", "none": ""}
    edit(copy, settings=settings | {"prompt": "play some ", "prompts": prompts})
    plain, prompted = shipped(bundle).Bundle(bundle), shipped(copy).Bundle(copy)
    assert prompted("music") == plain("play some music")
    assert prompted("light", prompt="order") == plain("turn off the light")
    assert prompted("light", prompt="none") == plain("light") != plain("play some light")
    assert prompted("light", prompt="") == plain("light")
    with pytest.raises(ValueError, match=r"no prompt 'ordr': those of this model are \['none', 'order'\]"):
        prompted("light", prompt="ordr")


def test_the_loader_is_short_and_needs_three_packages() -> None:
    source = LOADERS["onnxruntime", "text", "logits"].path.read_text()
    assert len(source.splitlines()) <= 60
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) == set(NEEDED)


def test_answers_equal_those_of_the_task_on_the_same_session(bundle: Path) -> None:
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    tokenizer = make_tokenizer(bundle.parent / "tokenizer.json", MAX_LENGTH)
    settings = json.loads((bundle / "bundle.json").read_text())["settings"]
    opened = shipped(bundle).Bundle(bundle)
    for text in TEXTS:
        ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
        logits = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
        answer = opened(text)
        assert answer[0][0] == text_classification.answer(logits, settings, LABELS)[0]
        probabilities = dict(zip(LABELS, text_classification.softmax(logits)[0].tolist(), strict=True))
        assert {label: score for label, score in answer if label in LABELS} == probabilities
        np.testing.assert_array_equal(opened.output(text), logits[0])


def test_long_texts_are_cut_where_the_verified_ones_were(bundle: Path) -> None:
    opened = shipped(bundle).Bundle(bundle)
    start = " ".join(["turn", "on", "the"] * 2)  # with [CLS] and [SEP] these are 8 tokens
    np.testing.assert_array_equal(opened.output(f"{start} music music"), opened.output(start))


def test_a_text_without_tokens_still_gets_an_answer(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    tokenizer = json.loads((copy / "tokenizer.json").read_text()) | {"post_processor": None}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert shipped(copy).Bundle(copy, check=False)("")[0][0] == "none"


def test_the_threshold_rejects_with_the_rest_of_the_score(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    edit(copy, threshold=1.1)
    rejected = shipped(copy).Bundle(copy)("turn on the light")
    assert [label for label, _ in rejected[:2]] == ["none", "light_on"]
    assert rejected[0][1] == pytest.approx(1 - rejected[1][1])
    edit(copy, threshold=None)
    accepted = shipped(copy).Bundle(copy)("what?")
    assert len(accepted) == 3
    assert sum(score for _, score in accepted) == pytest.approx(1)


def test_embeddings_come_as_they_are(tmp_path: Path) -> None:
    copy = make_bundle(tmp_path / "made", output="embedding")
    answer = shipped(copy).Bundle(copy)("play music")
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(answer, [-1, -1, 8])


def test_session_options_of_the_manifest_are_used(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    class Session:
        def __init__(self, file: str, options: Any, **keywords: Any) -> None:
            seen.update(keywords, file=file, threads=options.intra_op_num_threads)
            seen["exact"] = options.get_session_config_entry("session.x64quantprecision")

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    loader = shipped(bundle)
    loader.Bundle(str(bundle))
    assert seen["threads"] == 1
    assert seen["disabled_optimizers"] == ["ConstantFolding", "SkipLayerNormFusion"]
    assert seen["exact"] == "1"
    assert seen["providers"] == ["CPUExecutionProvider"]
    loader.Bundle(bundle, provider="NoSuchExecutionProvider")
    assert seen["providers"] == ["CPUExecutionProvider"]
    loader.Bundle(bundle, threads=3)
    assert seen["threads"] == 3
    copy = shutil.copytree(bundle, tmp_path / "copy")
    edit(copy, runtime=json.loads((copy / "bundle.json").read_text())["runtime"] | {"threads": None})
    loader.Bundle(copy)
    assert seen["threads"] == 0


def test_a_runtime_that_is_too_old_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.9.0")
    with pytest.raises(RuntimeError, match=r"1.9.0 is too old for this bundle: it needs 1.18"):
        shipped(bundle).Bundle(bundle)


def test_the_example_app_runs_in_a_venv_with_three_packages(bundle: Path, tmp_path: Path) -> None:
    """The venv sees the three packages and what they need, through links to the ones installed here: no network."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    python = next(path for path in (home / "bin" / "python", home / "Scripts" / "python.exe") if path.exists())
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    )
    for name in (*NEEDED, "numpy.libs", "google", "flatbuffers", "packaging"):
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            spec = None
        places = list(spec.submodule_search_locations or []) if spec else []
        if name == "numpy.libs":
            places = [str(Path(np.__file__).parents[1] / name)]
        for place in places:
            if Path(place).is_dir() and not (site / name).exists():
                shutil.copytree(
                    place,
                    site / name,
                    ignore=shutil.ignore_patterns("tests", "__pycache__", "transformers", "tools", "quantization"),
                )
    ran = subprocess.run(
        [python, APP / "app.py", bundle],
        input="turn on the light\nplay some music\nthe the the\n",
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert "light_on" in lines[0]
    assert "play_music" in lines[1]
    assert "did not understand" in lines[2]
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    (damaged / "tokenizer.json").unlink()
    for wrong in (damaged, tmp_path / "none"):
        ran = subprocess.run([python, APP / "app.py", wrong], capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert re.fullmatch(r".*(tokenizer\.json: missing; copy the whole bundle|load\.py').*\n", ran.stderr)
    absent = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    assert absent.returncode != 0


def test_answers_equal_those_of_the_session_that_verifies(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    options = {
        key: manifest["runtime"][key] for key in ("threads", "provider", "disabled_optimizers", "config_entries")
    }
    tokenizer = make_tokenizer(bundle.parent / "tokenizer.json", MAX_LENGTH)
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    verified = outputs(bundle / "model.onnx", of_tokens(ids, manifest["pad_id"]).prompts, options=options)
    opened = shipped(bundle).Bundle(bundle)
    np.testing.assert_array_equal(np.stack([opened.output(text) for text in TEXTS]), verified)


def test_a_bundle_for_cuda_is_asked_with_what_measured_it(bundle: Path, tmp_path: Path) -> None:
    """`bound.py` ships, and load.py opens the model with it: here on the CPU, where its answers are those of a plain run."""
    artifact = make_artifact(tmp_path / "artifact")
    report = make_report(tmp_path / "report", artifact)
    target = make_target(tmp_path)
    cuda = {"provider": "CUDAExecutionProvider", "disabled_optimizers": ["ConstantFolding"]}
    inputs = PackageInputs(
        artifact=artifact,
        report=report,
        name="demo-gpu",
        recipe="demo",
        target=replace(target, runtime={**target.runtime, "onnxruntime": cuda}),
        lineage=Lineage(),
    )
    made = package(inputs, tmp_path / "out").bundle
    assert (made / "bound.py").read_bytes() == BOUND.read_bytes()
    opened, plain = shipped(made).Bundle(made), shipped(bundle).Bundle(bundle)
    assert type(opened.session).__name__ == "Bound"
    assert opened.session.why == "CUDAExecutionProvider did not start"
    for text in TEXTS:
        np.testing.assert_array_equal(opened.output(text), plain.output(text))
    # edgekit itself runs its own copy, never the bundle's.
    (made / "bound.py").write_text("raise SystemExit('a bundle may come from anywhere')")
    own = load_bundle(Bundle(folder=made, manifest=open_bundle(bundle).manifest), made)
    assert own(TEXTS[0]) == plain(TEXTS[0])
    off = {**cuda, "cuda_graphs": False}
    without = replace(inputs, name="plain", target=replace(target, runtime={**target.runtime, "onnxruntime": off}))
    plainly = package(without, tmp_path / "out").bundle
    assert not (plainly / "bound.py").exists()
    assert type(shipped(plainly).Bundle(plainly).session) is onnxruntime.InferenceSession
    assert not (bundle / "bound.py").exists()


@pytest.mark.parametrize(
    ("runtime", "output"),
    [
        (runtime, output)
        for entry in FORMATS.values()
        for runtime in entry.RUNTIMES
        for output in entry.SCHEMES
        if output in RUNTIMES[runtime].OUTPUTS
    ],
)
def test_whatever_is_exported_has_a_loader(runtime: str, output: str) -> None:
    loader = LOADERS[runtime, "text", output]
    tree = ast.parse(loader.path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    needed = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    package = RUNTIMES[runtime].PACKAGE
    assert needed == {package.module if name == package.name else name for name in loader.needs}
