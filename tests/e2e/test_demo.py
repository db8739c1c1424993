"""The packaged example, built as `make demo` builds it, and README's commands on what it made."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.report.page import STYLE, TEMPLATE
from tests.e2e.conftest import ROOT, SLOWEST, Project

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SLOWEST)]

# In a line of README: a board (test_board runs these), a phone (test_phone), the NDK, a GPU, somebody's registry (tests/release).
NOT_HERE = ("ssh://", "adb:", "android", "laptop-gpu", "registry.example.org")
# Other programs that its lines call, as they are written there.
FOREIGN = ("openssl ", "model_signing ")


@pytest.fixture(scope="session")
def report(demo: Project) -> Mapping[str, Any]:
    """The demo's report.json."""
    return dict(json.loads((demo.folder / "dist" / "assistant-raspberrypi.report.json").read_text()))


def test_the_demo_keeps_its_accuracy(report: Mapping[str, Any]) -> None:
    accuracy = report["accuracy"]
    assert report["verdict"] != "fail"
    assert accuracy["artifact"] >= accuracy["student"] - 0.01
    assert accuracy["artifact"] >= accuracy["teacher"] - 0.03
    assert accuracy["teacher"] > 0.85


def test_what_ships_is_what_was_verified(demo: Project, report: Mapping[str, Any]) -> None:
    """The loader's labels on every verify prompt, and on long and empty texts, are those of the verified artifact."""
    from tokenizers import Tokenizer

    from edgekit.modalities.text import of_tokens
    from edgekit.runtimes import onnxruntime
    from edgekit.tasks import TASKS
    from edgekit.workspace import open_product

    bundle = demo.folder / "dist" / "assistant-raspberrypi"
    artifact = open_product(demo.made["export"], "export")
    facts = artifact.facts
    assert facts["sha256"] == report["artifact"]["sha256"]
    rows = (ROOT / "calib_data" / "assistant" / "verify.jsonl").read_text().splitlines()
    texts = [json.loads(row)["text"] for row in rows] + ["", " ", "turn on " * 400, "é" * 300]
    labels = [json.loads(row)["label"] for row in rows]
    tokenizer = Tokenizer.from_file(str(artifact.folder / "tokenizer.json"))
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    prompts = of_tokens(ids, facts["pad_id"]).prompts
    outputs = onnxruntime.outputs(artifact.folder / facts["file"], prompts, options=facts["runtime_options"])
    expected = TASKS["text-classification"].answer(outputs, facts["settings"], facts["classes"], texts)
    (demo.folder / "texts.txt").write_text("\n".join(texts[: len(rows)]) + "\n")
    run = demo.run("run", bundle, "--file", "texts.txt", "--json")
    answers = [one["answer"]["label"] for one in json.loads(run.stdout)["answers"]]
    assert answers == expected[: len(rows)]
    assert np.mean([one == label for one, label in zip(answers, labels, strict=True)]) == report["accuracy"]["artifact"]
    odd = json.loads(demo.run("run", bundle, *[text or " " for text in texts[len(rows) :]], "--json").stdout)["answers"]
    assert [one["answer"]["label"] for one in odd][1:] == expected[len(rows) + 1 :]


def test_readme_commands_run(demo: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every console line of README but those for what is not here, in its order, in a folder that has what they name."""
    shutil.copytree(ROOT / "examples", demo.folder / "examples")
    shutil.copytree(ROOT / "calib_data", demo.folder / "calib_data")
    shutil.copytree(demo.made["finetune"], demo.folder / "my-model")
    lines = ["text,label"]
    # Not those that the model was trained on: they would prove nothing of it, and `verify` refuses them.
    for split in ("verify", "calibrate"):
        rows = map(json.loads, (ROOT / "calib_data/assistant" / f"{split}.jsonl").read_text().splitlines())
        kept = [row for row in rows if row["label"] != "oos"][::3]  # enough of each label for a verdict
        lines += ['"{}",{}'.format(row["text"].replace('"', '""'), row["label"]) for row in kept]
    (demo.folder / "tickets.csv").write_text("\n".join(lines) + "\n")
    for name in ("before", "after"):
        shutil.copytree(demo.folder / "dist/assistant-raspberrypi", demo.folder / "dist" / name)
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    for line in [line for block in blocks for line in block.splitlines() if line.startswith(("edgekit ", *FOREIGN))]:
        if any(word in line for word in NOT_HERE):
            continue
        if line.startswith(FOREIGN):
            programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            for part in line.split(" && "):
                subprocess.run(shlex.split(part), cwd=demo.folder, env=os.environ | {"PATH": programs}, check=True)
            continue
        words = shlex.split(line)[1:]
        # Other tests run beside this one: the machine is as busy as `targets probe` refuses to measure.
        words += ["--busy"] if words[:2] == ["targets", "probe"] else []
        words += ["--pairs", "20"] if words[0] == "compare" else []
        started = demo.start(*words)
        out, err = started.communicate()
        assert started.returncode in {0, 3}, f"{line}\n{out}\n{err}"
        if started.returncode == 3:
            assert "build" in words, f"{line}\n{err}"


def test_a_wheel_in_an_empty_folder(demo: Project, tmp_path: Path) -> None:
    """The built wheel in a venv of its own: targets, prompts and the example travel in it. Its libraries are this venv's."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", ".edgekit", "dist", "__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "wheel", source],
        check=True,
        capture_output=True,
    )
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    wheel = next((tmp_path / "wheel").glob("*.whl"))
    assert {f"edgekit/report/{name}" for name in (TEMPLATE, STYLE)} <= set(zipfile.ZipFile(wheel).namelist())
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    site = Path(np.__file__).parents[1]
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    # A path file's folder is searched, but path files in it (such as this venv's editable edgekit) are not read.
    (own / "libraries.pth").write_text(f"{site}\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {name: value for name, value in demo.environment().items() if name != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [python, "-m", "edgekit", *arguments],
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run([python, "-c", "import edgekit; print(edgekit.__file__)"], cwd=empty, env=environment,
                           check=True, capture_output=True, text=True).stdout  # fmt: skip
    assert str(own) in where
    assert "raspberrypi" in run("targets", "list")
    assert "finetune distill linear record" in run("build", "--target", "raspberrypi", "--dry-run")
    bundle = json.loads(run("build", "--example", "assistant", "--target", "raspberrypi", "--json"))["bundles"][0]
    assert (empty / bundle["archive"]).is_file()
