"""What decoders answer here is what their owners' libraries answer: transformers' generate, llama.cpp's chat and completion."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from gguf_files import write_gguf

from edgekit.errors import EdgekitError
from edgekit.prompts import Prompt
from edgekit.written.decoders import Checkpoint, File, Sampling, _take, check_file, open_decoder, say
from tests.architectures.decoders import make_decoder
from tests.stories import need_stories, write_stories

GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=24)
ASKED = ["please turn the big kitchen light on", "some jazz on the long hall speaker would be nice"]
BEGINNING = "Once upon a time, there was a"


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with a chat template that says nothing of sense, and ends its answer to the first of ASKED after some tokens."""
    folder = make_decoder("llama", tmp_path_factory.mktemp("written") / "talker")
    with closing(open_decoder(folder)) as decoder:
        ids, said = decoder.asked(Prompt(text=ASKED[0])), list[int]()
        while len(said) < 6:
            said.append(int(decoder.logits(said[-1:] or ids, slice(-1, None))[0].argmax()))
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"eos_token_id": said[-1]}))
    return folder


@pytest.fixture(scope="module")
def talking_file(talker: Path) -> Path:
    return write_gguf(talker, talker.parent / "talker.gguf")


@pytest.fixture(scope="module")
def telling_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stories(tmp_path_factory.mktemp("written") / "stories.gguf")


def llama(path: Path) -> Any:
    from llama_cpp import Llama

    return Llama(str(path), n_ctx=256, verbose=False, type_k=0, type_v=0, chat_format="chat_template.default")


def test_a_checkpoint_says_what_transformers_does(talker: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(talker), AutoModelForCausalLM.from_pretrained(talker)
    ends = []
    with closing(open_decoder(talker)) as decoder:
        for text in ASKED:
            messages = [{"role": "user", "content": text}]
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                made = model.generate(ids, do_sample=False, max_new_tokens=GREEDY.max_tokens)[0, ids.shape[1] :]
            written = say(decoder, Prompt(text=text), GREEDY, (0,))
            stopped = int(made[-1]) == model.generation_config.eos_token_id
            assert written.answer == tokenizer.decode(made[:-1] if stopped else made, skip_special_tokens=True)
            assert written.end == ("stop" if stopped else "length")
            ends.append(written.end)
    assert "stop" in ends


def test_a_file_says_what_llama_cpp_does(talking_file: Path, telling_file: Path) -> None:
    owner = llama(talking_file)
    with closing(open_decoder(talking_file)) as decoder:
        for text in ASKED:
            messages = [{"role": "user", "content": text}]
            told = owner.create_chat_completion(messages, temperature=0.0, max_tokens=GREEDY.max_tokens)["choices"][0]
            written = say(decoder, Prompt(text=text), GREEDY, (0,))
            # Half characters are nothing to llama_cpp.
            answer = str(written.answer).replace("\N{REPLACEMENT CHARACTER}", "")
            assert (answer, written.end) == (told["message"]["content"], told["finish_reason"])
    owner = llama(telling_file)
    with closing(open_decoder(telling_file)) as decoder:
        told = owner.create_completion(BEGINNING, temperature=0.0, max_tokens=GREEDY.max_tokens)["choices"][0]
        written = say(decoder, Prompt(text=BEGINNING), GREEDY, (0,))
        assert (written.answer, written.end) == (told["text"], told["finish_reason"])
        assert len(str(written.answer)) > 40


def test_both_ways_to_the_same_model_say_the_same(telling_file: Path) -> None:
    texts = []
    for place in (need_stories(), telling_file):
        with closing(open_decoder(place)) as decoder:
            texts.append([say(decoder, Prompt(text=BEGINNING), GREEDY, (0,)).answer for _ in range(2)])
    # The file has 8 bits: its first words are the checkpoint's.
    assert texts[0][0] == texts[0][1]
    assert texts[1][0] == texts[1][1]
    assert str(texts[0][0])[:20] == str(texts[1][0])[:20]


def test_draws_follow_temperature_and_top_p() -> None:
    scores, draws = np.log(np.array([0.1, 0.5, 0.15, 0.25])), 4000

    def shares(**how: float) -> list[float]:
        sampling, random = Sampling(max_tokens=1, **({"top_p": 1.0} | how)), np.random.default_rng(0)
        counts = Counter(_take(scores, sampling, random) for _ in range(draws))
        return [counts[token] / draws for token in range(4)]

    # Within four standard errors of the closed form.
    assert shares(temperature=1.0) == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.032)
    squares = np.array([0.01, 0.25, 0.0225, 0.0625]) / 0.345
    assert shares(temperature=0.5) == pytest.approx(list(squares), abs=0.032)
    assert shares(temperature=1.0, top_p=0.75) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.032)
    assert shares(temperature=1.0, top_p=0.1) == [0, 1, 0, 0]
    assert shares(temperature=0.0) == [0, 1, 0, 0]


def test_a_seed_draws_the_same_and_another_other_tokens() -> None:
    hot = Sampling(temperature=1.5, top_p=1.0, max_tokens=16)
    with closing(open_decoder(need_stories())) as decoder:
        drawn = [say(decoder, Prompt(text=BEGINNING), hot, (0, 0, sample)).answer for sample in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_what_cannot_answer_says_so(talking_file: Path, tmp_path: Path) -> None:
    with closing(Checkpoint(need_stories())) as decoder:
        with pytest.raises(EdgekitError, match="no chat template"):
            say(decoder, Prompt(text="", messages=[{"role": "user", "content": "hello"}]), GREEDY, (0,))
        with pytest.raises(EdgekitError, match=r"no room for an answer; .*answers\.begin"):
            say(decoder, Prompt(text=200 * BEGINNING), GREEDY, (0,))
    with closing(File(talking_file)) as decoder, pytest.raises(EdgekitError, match="no room for an answer"):
        say(decoder, Prompt(text=300 * ASKED[0]), GREEDY, (0,))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(talking_file.read_bytes()[:-4096])
    with pytest.raises(EdgekitError, match=r"cut\.gguf"):
        check_file(cut)
    check_file(talking_file)
