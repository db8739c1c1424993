"""record, of decoders: likelihoods and answers are those of transformers, and bounded in size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.errors import EdgekitError
from edgekit.record import tokens
from edgekit.reference import Reference
from edgekit.tasks.text_generation import Passage
from tests.architectures.decoders import END, ROOMS, SPECIAL, make_decoder, orders, teach_decoder
from tests.steps import record

ORDERS = [{"text": said, "label": answer} for said, answer in orders(ROOMS[10:12])]


def write_prompts(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "verify.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def recorded(
    talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Reference, dict[str, np.ndarray]]]:
    """What was recorded of some prompts, with its arrays; the talker is the student, and the teacher unless one is given."""
    monkeypatch.setattr(tokens, "measure_alone", lambda asked, *_: {folder: {} for folder in asked})

    def run(rows: list[dict[str, Any]], teacher: Path = talker, student: Path = talker, **options: Any) -> Any:
        prompts = write_prompts(tmp_path / "prompts", rows)
        facts = record(
            teacher, student, prompts, task="text-generation", out=tmp_path, **({"max_length": 64} | options)
        )
        with np.load(tmp_path / "reference.npz", allow_pickle=False) as arrays:
            return facts, {name: arrays[name] for name in arrays.files}

    return run


def rows_of(arrays: dict[str, np.ndarray], name: str, offsets: str) -> list[list[int]]:
    return [part.tolist() for part in np.split(arrays[name], arrays[offsets][1:-1])]


def model_of(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_likelihoods_are_transformers(recorded: Any, talker: Path) -> None:
    facts, arrays = recorded(ORDERS)
    model, tokenizer = model_of(talker), tokenizer_of(talker)
    wanted: dict[str, list[np.ndarray]] = {"ids": [], "logprobs": [], "nll": []}
    sequences = rows_of(arrays, "ids", "offsets")
    assert len(sequences) == facts.sequences.passages == 6
    for row, ids, start in zip(ORDERS, sequences, arrays["starts"], strict=True):
        talk = [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]
        assert ids == tokenizer.apply_chat_template(talk, return_dict=False)
        assert tokenizer.decode(ids[start:]) == f"{row['label']}{SPECIAL[END]}"
        with torch.inference_mode():
            likely = torch.log_softmax(model(torch.tensor([ids])).logits[0, start - 1 : -1].double(), -1)
        top = likely.topk(512)
        wanted["ids"].append(top.indices.numpy())
        wanted["logprobs"].append(top.values.numpy())
        wanted["nll"].append(-likely[range(len(likely)), ids[start:]].numpy())
    assert facts.sequences.tokens == len(np.concatenate(wanted["nll"]))
    np.testing.assert_allclose(arrays["student_nll"], np.concatenate(wanted["nll"]), atol=1e-4)
    np.testing.assert_allclose(arrays["student_logprobs"], np.concatenate(wanted["logprobs"]), atol=1e-4)
    assert (arrays["student_ids"][:, 0] == np.concatenate(wanted["ids"])[:, 0]).all()
    np.testing.assert_allclose(np.exp(arrays["student_logprobs"]).sum(1), 1.0, atol=1e-5)
    assert "teacher_nll" not in arrays, "one folder is run once"


def test_answers_are_transformers_own_and_in_words(recorded: Any, talker: Path, tmp_path: Path) -> None:
    facts, arrays = recorded(ORDERS)
    model, tokenizer = model_of(talker), tokenizer_of(talker)
    questions, answers = (rows_of(arrays, name, f"{key}_offsets") for name, key in
                          (("asked", "asked"), ("student_answers", "student_answer")))  # fmt: skip
    told = json.loads((tmp_path / "answers.json").read_text(encoding="utf-8"))
    assert list(told) == ["student"]
    longest = max(len(tokenizer(row["label"], add_special_tokens=False).input_ids) for row in ORDERS)
    assert facts.sequences.max_new == 2 * (longest + 1), "twice the longest wanted answer with its end"
    for asked, said, words, place in zip(questions, answers, told["student"], arrays["asked_prompts"], strict=True):
        talk = [{"role": "user", "content": ORDERS[place]["text"]}]
        assert asked == tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
        made = model.generate(torch.tensor([asked]), max_new_tokens=facts.sequences.max_new, do_sample=False)
        assert [*said, END] == made[0, len(asked) :].tolist()
        assert words == ORDERS[place]["label"], "it was taught to"


def test_conversations_without_answers_end_in_the_students_own(recorded: Any, talker: Path) -> None:
    facts, arrays = recorded([{"text": row["text"], "label": None} for row in ORDERS])
    tokenizer = tokenizer_of(talker)
    for ids, start, place in zip(rows_of(arrays, "ids", "offsets"), arrays["starts"], arrays["prompts"], strict=True):
        assert tokenizer.decode(ids[start:]) == ORDERS[place]["label"]
    assert facts.sequences.max_new == tokens.ANSWER_TOKENS


def test_wanted_answers_beyond_the_room_for_one_are_not_compared_by_their_words(recorded: Any, talker: Path) -> None:
    """Greedy answers end after ANSWER_TOKENS: a longer wanted one could never be said, and 0 % by 0 % would pass."""
    tokenizer = tokenizer_of(talker)
    long = " ".join(row["label"] for row in ORDERS) * 4
    room = tokens.ANSWER_TOKENS - 1
    spaces = next(count for count in range(200) if len(tokenizer("a" + "! " * count).input_ids) >= room)
    fits = "a" + "! " * spaces
    assert len(tokenizer(fits, add_special_tokens=False).input_ids) in {room - 1, room}
    assert len(tokenizer(long, add_special_tokens=False).input_ids) > 100
    rows = [*ORDERS[:2], {"text": "all of it", "label": long}, {"text": "nearly all", "label": fits}]
    facts, arrays = recorded(rows, max_length=60)
    assert arrays["asked_prompts"].tolist() == [0, 1, 2, 3], "the long one's answer is compared by its length"
    assert arrays["asked_worded"].tolist() == [True, True, False, True]
    assert facts.sequences.max_new == tokens.ANSWER_TOKENS
    assert facts.sequences.left_out == 0
    (warning,) = facts.warnings
    assert warning.startswith("1 wanted answers take more than 64 tokens: ")
    _, arrays = recorded([{"text": row["text"], "label": long} for row in ORDERS])
    assert not arrays["asked_worded"].any()
    assert len(arrays["asked_prompts"]) == len(ORDERS)


def test_a_model_that_says_nothing_is_refused(recorded: Any, talker: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    silent = Path(shutil.copytree(talker, tmp_path / "silent"))
    weights = load_file(silent / "model.safetensors")
    weights["lm_head.weight"].zero_()
    # All logits are alike, and the first of them is taken: make that the one which ends.
    (silent / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}), encoding="utf-8")
    save_file(weights, silent / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EdgekitError, match=r"prompts: nothing in the verify prompts is said .*silent gives none"):
        recorded([{"text": "hi", "label": None}], silent, silent)


def test_a_teacher_of_the_same_vocabulary_is_compared_token_by_token(recorded: Any, tmp_path: Path) -> None:
    teacher = teach_decoder(tmp_path / "teacher", layers=1, seed=5, steps=2)
    facts, arrays = recorded(ORDERS, teacher)
    assert facts.sequences.shared_vocabulary is True
    model = model_of(teacher)
    found = []
    for ids, start in zip(rows_of(arrays, "ids", "offsets"), arrays["starts"], strict=True):
        with torch.inference_mode():
            likely = torch.log_softmax(model(torch.tensor([ids])).logits[0, start - 1 : -1].double(), -1)
        found.append(-likely[range(len(likely)), ids[start:]].numpy())
    np.testing.assert_allclose(arrays["teacher_nll"], np.concatenate(found), atol=1e-4)
    assert arrays["teacher_ids"].shape == arrays["student_ids"].shape


def test_a_teacher_of_another_vocabulary_answers_and_chooses(recorded: Any, tmp_path: Path) -> None:
    teacher = make_decoder("llama", tmp_path / "teacher", vocab_size=400, num_hidden_layers=1)
    rows = [ORDERS[0], ORDERS[1], ORDERS[2] | {"choices": ["music", "light_on"]}]
    facts, arrays = recorded(rows, teacher)
    assert facts.sequences.shared_vocabulary is False
    assert not {"teacher_ids", "teacher_nll", "teacher_logprobs"} & set(arrays)
    told = json.loads((tmp_path / "answers.json").read_text(encoding="utf-8"))
    assert len(told["teacher"]) == len(told["student"]) == 2
    assert facts.sequences.choices == len(arrays["teacher_choice_nll"]) == len(arrays["student_choice_nll"]) == 2
    assert arrays["choice_prompts"].tolist() == [2, 2]
    # In the teacher's own tokens.
    tokenizer, model = tokenizer_of(teacher), model_of(teacher)
    for choice, nll in zip(rows[2]["choices"], arrays["teacher_choice_nll"], strict=True):
        talk = [{"role": "user", "content": rows[2]["text"]}]
        start = len(tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False))
        ids = tokenizer.apply_chat_template([*talk, {"role": "assistant", "content": choice}], return_dict=False)
        with torch.inference_mode():
            likely = torch.log_softmax(model(torch.tensor([ids])).logits[0, start - 1 : -1].double(), -1)
        assert nll == pytest.approx(-float(likely[range(len(likely)), ids[start:]].mean()), abs=1e-4)


def test_choices_alone_are_enough(talker: Path, tmp_path: Path) -> None:
    """Nothing is asked for an answer, and what float costs is measured all the same."""
    rows = [row | {"choices": ["music", "light_on", "light_off"]} for row in ORDERS]
    prompts = write_prompts(tmp_path / "prompts", rows)
    facts = record(talker, talker, prompts, task="text-generation", max_length=64, out=tmp_path)
    assert facts.sequences.choices == 18
    for role in ("teacher", "student"):
        figures = facts.models[role]
        assert figures.bytes == (talker / "model.safetensors").stat().st_size
        assert figures.ttft_ms > 0
        assert figures.tokens_per_second.decode > 0
    with np.load(tmp_path / "reference.npz", allow_pickle=False) as arrays:
        assert len(arrays["asked"]) == 0
        chosen = arrays["student_choice_nll"].reshape(6, 3).argmin(1)
    assert [rows[0]["choices"][place] for place in chosen] == [row["label"] for row in rows]


def test_of_long_prompts_a_window_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 texts of 250 tokens and some short ones: all are scored, in no more than MOST_TOKENS, the same ones each time."""
    made = np.random.default_rng(0)
    said = [
        Passage(ids=made.integers(0, 2000, size=length).tolist(), start=1, prompt=place)
        for place, length in enumerate([250] * 300 + [40] * 20)
    ]
    found = tokens._chosen(said)
    assert [one.prompt for one in found] == list(range(320))
    assert found == tokens._chosen(said)
    lengths = [len(one.ids) - one.start for one in found]
    assert 0.98 * tokens.MOST_TOKENS < sum(lengths) <= tokens.MOST_TOKENS
    assert set(lengths) == {106, 39}
    for one, whole in zip(found, said, strict=True):
        assert one.ids == whole.ids[: len(one.ids)]
    starts = [one.start for one in found[:300]]
    assert min(starts) < 15
    assert max(starts) > 130, "windows lie everywhere"
    monkeypatch.setattr(tokens, "MOST_TOKENS", 100 * tokens.LEAST)
    few = tokens._chosen(said[:300])
    assert len(few) == 100
    assert {len(one.ids) - one.start for one in few} == {tokens.LEAST}


def test_whole_prompts_are_left_out_beyond_the_limit(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    every, arrays = recorded(ORDERS)
    lengths = np.diff(arrays["offsets"]) - arrays["starts"]
    monkeypatch.setattr(tokens, "MOST_TOKENS", int(lengths.sum()) - 1)
    monkeypatch.setattr(tokens, "MOST_LIKELY", 7)
    facts, fewer = recorded(ORDERS)
    assert every.sequences.left_out == 0
    assert every.warnings == ()
    (warning,) = facts.warnings
    assert warning.startswith(f"{facts.sequences.left_out} of 6 verify prompts are not scored: ")
    assert facts.sequences.left_out == len(ORDERS) - facts.sequences.passages > 0
    assert facts.sequences.tokens < every.sequences.tokens
    assert fewer["student_logprobs"].shape == (facts.sequences.tokens, 7)
    kept = fewer["prompts"].tolist()
    assert kept == sorted(kept)
    whole = rows_of(arrays, "ids", "offsets")
    assert rows_of(fewer, "ids", "offsets") == [whole[place] for place in kept]


def test_the_same_models_give_the_same_bytes(recorded: Any, tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        recorded(ORDERS[:2])
        found.append([(tmp_path / name).read_bytes() for name in ("reference.npz", "answers.json")])
    assert found[0] == found[1]
