"""Builds for browsers, judged in a real Chromium: the answers are the host's, token ids too, and the times are a browser's."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from instruction_sets import CALIBRATE, decoder
from instruction_sets import stories as texts

from edgekit.devices import open_device
from edgekit.pipeline import run
from edgekit.probes.web.npm import PACKAGES, fetch_packages
from edgekit.verify import generation
from tests.conftest import Answer
from tests.devices.chromium import need_chromium
from tests.e2e.conftest import ROOT, SLOWEST, Project
from tests.stories import need_stories

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SLOWEST)]

# Of its texts; so few prove no loss, and are enough to compare.
ROWS = CALIBRATE + 10

# What an app does: the bundle's own module, and both libraries.
APP = """
export async function main(io) {
  const [bundle, packages, texts] = io.args;
  const ort = await import(new URL(`${packages}/onnxruntime-web/ort.wasm.min.mjs`, io.root));
  const { Tokenizer } = await import(new URL(`${packages}/tokenizers/tokenizers.min.mjs`, io.root));
  const { open } = await import(new URL(`${bundle}/load.mjs`, io.root));
  const answer = await open(new URL(`${bundle}/`, io.root), { ort, Tokenizer });
  const found = [];
  for (const text of JSON.parse(new TextDecoder().decode(await io.read(texts)))) found.push((await answer(text))[0]);
  await io.out(JSON.stringify(found));
}
"""


def test_a_browser_gives_the_hosts_answers(demo: Project, tmp_path: Path) -> None:
    need_chromium()
    bundle = demo.build("--example", "assistant", "--target", "browser", "--device", "browser:")["bundles"][0]
    report = json.loads(Path(demo.folder, bundle["report"]).read_text(encoding="utf-8"))
    assert report["device"]["arch"] == "wasm32"
    assert "Chromium" in report["device"]["cpu"]
    assert report["runtime"]["version"] == PACKAGES["onnxruntime-web"].version
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert verdicts["device_tokenizer"] == verdicts["accuracy_vs_student"] == "pass"
    assert verdicts["p95_ms"] == "not proven", "the target states no speed: a visitor's machine may be any"
    # Another engine, WebAssembly's, and the same answers as here but for rounding.
    assert verdicts["as_on_host"] == "pass", report["host"]
    assert report["host"]["prompts"] == report["prompts"]
    times = report["latency_ms"]
    assert times["cold"] > times["load"] > 0
    assert times["first_ten"][0] == times["first"]
    assert len(times["first_ten"]) == 10
    assert report["memory_mb"] > 1

    lines = (ROOT / "calib_data/assistant/verify.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    (tmp_path / "app").mkdir()
    (tmp_path / "app/app.mjs").write_text(APP, encoding="utf-8")
    (tmp_path / "app/texts.json").write_text(json.dumps(texts), encoding="utf-8")
    folder = Path(demo.folder, bundle["bundle"])
    with closing(open_device({"kind": "browser"}, "device")) as device:
        app, packages = device.push(tmp_path / "app"), device.push(fetch_packages([*PACKAGES]))
        words = [f"{app}/app.mjs", device.push(folder), packages, f"{app}/texts.json"]
        ended = device.run(words, timeout_s=600)
    assert ended.returncode == 0, ended.stderr
    there, here = json.loads(ended.stdout), run(folder, texts)
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    threshold, rejected = manifest["threshold"], manifest["out_of_scope"]
    # A best score so near to the threshold may fall on its other side: see below.
    other = [text for text, (label, _), answer in zip(texts, there, here, strict=True) if label != answer["label"]]
    best = [max(score for label, score in answer["scores"].items() if label != rejected) for answer in here]
    near = [text for text, score in zip(texts, best, strict=True) if abs(score - threshold) < 0.01]
    assert set(other) <= set(near)
    assert len(other) <= 2
    # Where an 8-bit activation lies between two steps, the last bit of a float decides.
    pairs = [
        (score, answer["score"]) for (label, score), answer in zip(there, here, strict=True) if label == answer["label"]
    ]
    assert [score for score, _ in pairs] == pytest.approx([score for _, score in pairs], abs=0.02)


def test_a_storyteller_writes_in_a_browser_what_it_writes_here(
    command: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder's whole build, by wllama. With matrices of 16 bits only ties of a hundredth of a logit are rounding (near_ties)."""
    pytest.importorskip("llama_cpp")
    from near_ties import compare_written, read_ends, split

    need_chromium()
    recipe = decoder(tmp_path / "stories", need_stories(), texts()[:ROWS])
    few = {**generation.TIMING, "prompts": (16,), "new": 10, "repeats": 1, "seconds": 0.0, "sweep": False}
    monkeypatch.setattr(generation, "TIMING", few)
    done = command(
        "build", "--recipe", recipe, "--target", "browser", "--scheme", "f16", "--device", "browser:", "--json"
    )
    assert done.code == 0, done.err
    (entry,) = json.loads(done.out)["bundles"]
    report = json.loads(Path(entry["report"]).read_text(encoding="utf-8"))
    assert (report["device"]["arch"], report["runtime"]["version"]) == ("wasm32", PACKAGES["wllama"].engine)
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert verdicts["device_tokenizer"] == "pass"
    assert "fail" not in verdicts.values(), report["checks"]
    assert report["host"]["ratio"] == pytest.approx(1, abs=0.1)
    assert (len(report["latency_ms"]["first_ten"]), report["memory_mb"] > 10) == (10, True)

    (outputs,), (reference,) = Path("cache/verify").glob("*/outputs.npz"), Path("cache/record").glob("*/reference.npz")
    with np.load(outputs) as there, np.load(reference) as asked:
        prompts = [*split(asked["asked"], asked["asked_offsets"])]
        said = [*split(there["answers"], there["answer_offsets"])]
    file, ends = Path(entry["bundle"], "model.gguf"), read_ends(reference.parent)
    found = compare_written(file, {"threads": 1, "context": 0}, prompts, said, ends)
    assert found.answers == ROWS - CALIBRATE
    assert found.same >= found.answers - 1
    assert found.is_rounding, found
    assert found.bound < 0.03
