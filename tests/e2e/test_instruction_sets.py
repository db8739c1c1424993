"""What another CPU's arithmetic makes of an artifact: an x86-64 without VNNI saturates, and the report says in which prompts."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LABELS, PATTERNS, ROOT, SUBJECTS, Answer
from tests.devices.old_x86 import old_x86
from tests.devices.sshd import Reachable
from tests.e2e.conftest import SLOWEST

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SLOWEST)]
PROMPTS = 120


@pytest.fixture(scope="module")
def x86(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reachable]:
    with old_x86(tmp_path_factory.mktemp("x86")) as reachable:
        yield reachable


def flatten(checkpoint: Path) -> None:
    """Make the weights of all matrices of layers nearly alike in size: as bytes they are all near 127, and pairs of them saturate."""
    from safetensors.torch import load_file, save_file

    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith("weight") and tensor.ndim == 2 and "embeddings" not in name:
            tensors[name] = (tensor.sign() * tensor.abs() ** 0.5 * tensor.abs().mean() ** 0.5).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture
def orders(project: Path) -> Path:
    """The project, whose verify prompts are orders of words that the tokenizer has."""
    flatten(project.parent / "teacher")
    words = sorted({word for phrase in (*PATTERNS.values(), *SUBJECTS) for word in phrase.split() if word != "{}"})
    numbers = random.Random(0)
    rows = [
        {"text": " ".join(numbers.sample(words, numbers.randint(4, 12))), "label": LABELS[row % len(LABELS)]}
        for row in range(PROMPTS)
    ]
    (project.parent / "data" / "verify.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return project


def judged(done: Answer) -> dict[str, Any]:
    (entry,) = json.loads(done.out)["bundles"]
    report: dict[str, Any] = json.loads(Path(entry["report"]).read_text(encoding="utf-8"))
    return report | {"by_name": {check["name"]: check for check in report["checks"]}}


def test_saturation_is_foretold_prompt_by_prompt_and_named(
    x86: Reachable, orders: Path, command: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", f"{x86.commands}{os.pathsep}{os.environ['PATH']}")
    target = tmp_path / "old.toml"
    # Signed bytes that are dequantized before they are multiplied: what onnxruntime makes of them on such a CPU saturates.
    changes = {
        '[device]\nkind = "local"\n': f'[device]\nkind = "ssh"\nhost = "stand-in"\npython = "{x86.python}"\n',
        'activation = "uint8"': 'activation = "int8"\nlayout = "qdq"',
    }
    text = (ROOT / "targets" / "raspberrypi.toml").read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    target.write_text(text, encoding="utf-8")
    build = ("build", "--recipe", orders, "--target", target, "--scheme", "int8-static", "--json")

    report = judged(command(*build))
    assert report["device"]["cpu"].startswith("Emulated x86-64")
    assert "avx512_vnni" not in report["device"]["features"]
    host = report["host"]
    assert host["exact"]
    assert host["moved"] > PROMPTS // 10
    assert host["recall"] >= 0.9
    assert host["precision"] >= 0.7
    check = report["by_name"]["as_on_host"]
    assert (check["verdict"], host["diagnosis"]) == ("fail", "saturation")
    assert "reduce_range = true" in check["remedy"]

    # The remedy mends it: 7-bit weights fit.
    target.write_text(text.replace("reduce_range = false", "reduce_range = true"), encoding="utf-8")
    mended = judged(command(*build))
    assert mended["by_name"]["as_on_host"]["verdict"] == "pass", mended["host"]
    assert mended["host"]["moved"] == 0
