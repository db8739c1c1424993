"""What a GGUF file says: with float32 the very tokens of transformers, with float16 nearly always, for every family."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from edgekit.runtimes import llamacpp, scores
from tests.architectures.decoders import DECODERS, make_decoder
from tests.conftest import ROOT
from tests.formats.gguf.test_convert import EXACT, reference, tokens, write

STORIES = ROOT.parent / "shared" / "data" / "stories260K" / "hf"
NEW, CLOSE = 64, 1e-3


def greedy(file: Path, prompt: list[int], new: int = NEW) -> list[int]:
    """llama.cpp's likeliest tokens behind a prompt."""
    generator = llamacpp.generator(file, EXACT | {"context": len(prompt) + new})
    said: list[int] = []
    fed = prompt
    for _ in range(new):
        said.append(int(generator.logits(fed, slice(-1, None))[0].argmax()))
        fed = said[-1:]
    generator.close()
    return said


def check_greedy(folder: Path, prompt: list[int], said: list[int]) -> None:
    """Every token is transformers' likeliest after the same tokens, or as good as that."""
    logits = reference(folder, [*prompt, *said])[len(prompt) - 1 : -1]
    assert len(logits) == len(said)
    loss = logits.max(-1) - logits[np.arange(len(said)), said]
    assert (loss < CLOSE).all(), f"token {int(loss.argmax())} of {len(said)} is {loss.max():.4f} below the likeliest"


@pytest.mark.parametrize("family", DECODERS)
def test_every_family_says_what_transformers_says(family: str, tmp_path: Path) -> None:
    folder, prompt = make(family, tmp_path / "model"), tokens(24)
    write(folder, tmp_path / "f32.gguf")
    said = greedy(tmp_path / "f32.gguf", prompt)
    check_greedy(folder, prompt, said)


@pytest.mark.parametrize("family", DECODERS)
def test_float16_hardly_differs(family: str, tmp_path: Path) -> None:
    folder, ids = make(family, tmp_path / "model"), tokens(100)
    write(folder, tmp_path / "f16.gguf", "f16")
    generator = llamacpp.generator(tmp_path / "f16.gguf", {"threads": 1, "context": len(ids)})
    found = generator.logits(ids)
    generator.close()
    wanted = reference(folder, ids)
    assert scores.kl(wanted, found).mean() < 1e-4
    assert (found.argmax(-1) == wanted.argmax(-1)).mean() >= 0.99


def make(family: str, folder: Path) -> Path:
    """A checkpoint whose whole context llama.cpp computes alike: its graph of Mistral has no window."""
    return make_decoder(family, folder, **({"sliding_window": None} if family == "mistral" else {}))


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs ../shared/data/stories260K")
@pytest.mark.parametrize("saved", ["as-is", "by-transformers-5"])
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_stories_are_told_word_for_word(saved: str, kind: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from edgekit.model import load_model

    folder = STORIES
    if saved != "as-is":
        folder = tmp_path / "again"
        AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32).save_pretrained(folder)
        AutoTokenizer.from_pretrained(STORIES).save_pretrained(folder)
        assert not (folder / "tokenizer.model").exists()
    write(folder, tmp_path / "stories.gguf", kind)
    model = load_model(folder)
    prompt = model.encode(["Once upon a time"], 100)[0]
    said = greedy(tmp_path / "stories.gguf", prompt, 120)
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    told = module.generate(torch.tensor([prompt]), max_new_tokens=120, min_new_tokens=120, do_sample=False)[0]
    assert model.tokenizer().decode(said) == model.tokenizer().decode(told[len(prompt) :].tolist())
    shutil.rmtree(tmp_path / "again", ignore_errors=True)
