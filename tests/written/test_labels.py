"""One pass for all labels gives what one pass for each gives, by transformers and by llama.cpp; and what is made of the scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from gguf_files import write_gguf

from edgekit.errors import EdgekitError
from edgekit.inputs import Content
from edgekit.prompts import Prompt, PromptSet
from edgekit.recipe import Data
from edgekit.runtimes.llamacpp.branches import Branches
from edgekit.written.audit import Auditing, describe, label, probabilities
from edgekit.written.decoders import open_decoder
from edgekit.written.journal import Journal
from edgekit.written.labels import FREE, GOLD, TEXTS, LabelsInputs, Scored, ask, choose_gold, read_texts, score_names
from tests.architectures.decoders import DECODERS, make_decoder
from tests.stories import need_stories, write_stories

QUESTION = "Once upon a time there was a little girl who loved to play in the garden. She found a"
NAMES = ["red ball", "red", "dog", "big friendly dog", "cat", "red ball and a very long rope"]
LOGITS = Data(label=None)


def naive(asked: Sequence[int], whole: Sequence[Sequence[int]], logits: Any) -> list[np.ndarray]:
    """Of each label the log-probabilities of what it adds to the question; logits: ids -> [tokens, vocabulary]."""
    found = []
    for ids in whole:
        start = next((place for place, (a, b) in enumerate(zip(asked, ids, strict=False)) if a != b), len(asked))
        scores = np.asarray(logits(ids), np.float64)
        logs = scores - scores.max(axis=1, keepdims=True)
        logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
        found.append(np.array([logs[place - 1, ids[place]] for place in range(start, len(ids))]))
    return found


def compare(place: Path, logits: Any) -> None:
    with closing(open_decoder(place)) as decoder:
        prompt = Prompt(text=QUESTION)
        names = NAMES if decoder.chats else [f" {name}" for name in NAMES]
        whole = [decoder.asked(prompt, begun=name) for name in names]
        expected = naive(decoder.asked(prompt), whole, logits)
        for score, reduce in (("mean", np.mean), ("sum", np.sum)):
            found = score_names(decoder, QUESTION, NAMES, score)
            assert found is not None
            assert found == pytest.approx([float(reduce(each)) for each in expected], abs=1e-4)
        assert len({round(one, 3) for one in found}) == len(NAMES)


@pytest.mark.parametrize("family", [*DECODERS, "stories"])
def test_one_pass_is_transformers_own_pass_for_each_label(family: str, tmp_path: Path) -> None:
    """Families with windows of 16 tokens, soft caps and rotations of every kind; the question is longer than a window."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    place = need_stories() if family == "stories" else make_decoder(family, tmp_path / family)
    auto = AutoModelForImageTextToText if family == "gemma3" else AutoModelForCausalLM
    model = auto.from_pretrained(place, dtype=torch.float32)

    def logits(ids: Sequence[int]) -> Any:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([list(ids)])).logits[0].numpy()

    compare(place, logits)


@pytest.mark.parametrize("model", ["stories", "llama"])
def test_one_pass_is_llama_cpps_own_pass_for_each_label(model: str, tmp_path: Path) -> None:
    from llama_cpp import Llama

    place = tmp_path / "model.gguf"
    if model == "stories":
        write_stories(place)
    else:
        write_gguf(make_decoder("llama", tmp_path / "llama"), place)
    owner = Llama(str(place), n_ctx=256, logits_all=True, verbose=False, type_k=0, type_v=0)

    def logits(ids: Sequence[int]) -> Any:
        owner.reset()
        owner.eval(list(ids))
        return owner.scores[: len(ids)].copy()

    compare(place, logits)


def test_more_labels_than_one_step_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of sequences, and of outputs, give the same; a context grows for a longer text."""
    path, exact = write_stories(tmp_path / "model.gguf"), {"kv_k": "f32", "kv_v": "f32"}
    prefix, branches = [1, 410, 420, 330], [[300 + index % 7, *range(301, 301 + index % 4)] for index in range(300)]
    with closing(Branches(path, exact)) as one:
        assert one._loaded.most_sequences == 256
        whole = one.log_probabilities(prefix, branches)
        monkeypatch.setattr("edgekit.runtimes.llamacpp.branches._LOGITS_BYTES", 4 * 512 * 9)
        again = one.log_probabilities(prefix, branches)
        for first, second in zip(whole, again, strict=True):
            assert first == pytest.approx(second, abs=1e-4)
        long = one.log_probabilities(prefix * 80, branches[:3])
        assert [len(each) for each in long] == [1, 2, 3]


def test_a_text_that_the_model_has_no_room_for_has_no_scores(tmp_path: Path) -> None:
    with closing(open_decoder(make_decoder("qwen2", tmp_path / "model"))) as decoder:
        assert score_names(decoder, 40 * QUESTION, NAMES, "mean") is None
        with pytest.raises(EdgekitError, match="no token of their own"):
            score_names(decoder, QUESTION, ["", "x"], "mean")


def test_the_text_is_put_in_last() -> None:
    assert ask("{labels}: {text} ({labels})", ["a", "b"], "{labels} {text}") == "a, b: {labels} {text} (a, b)"


def test_probabilities_are_a_softmax_held_against_what_says_nothing() -> None:
    scores = np.log([[0.2, 0.3], [0.6, 0.1]])
    assert probabilities(scores) == pytest.approx(np.array([[0.4, 0.6], [6 / 7, 1 / 7]]))
    free = np.log([[0.2, 0.1], [0.4, 0.6]])  # 2/3 and 2/5, 1/3 and 3/5: means 8/15 and 7/15
    expected = np.array([[0.4 * 15 / 8, 0.6 * 15 / 7], [6 / 7 * 15 / 8, 1 / 7 * 15 / 7]])
    assert probabilities(scores, free) == pytest.approx(expected / expected.sum(axis=1, keepdims=True))
    assert probabilities([[-2000.0, -2001.0]])[0, 0] == pytest.approx(1 / (1 + np.exp(-1)))


@pytest.fixture
def audited(tmp_path: Path) -> Any:
    """Labels by planted scores: gold [(text, label, said)], texts [(text, said, probability)]."""

    def made(gold: Sequence[Any], texts: Sequence[Any], *, verify: Sequence[str] = (), least: float = 0.0) -> Any:
        prompts, scored, out = (tmp_path / name for name in ("prompts", "scored", "out"))
        for folder in (prompts, scored, out):
            folder.mkdir()
        rows = [{"text": text, "label": own} for text, own, _ in gold]
        (prompts / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (prompts / "verify.jsonl").write_text("".join(json.dumps({"text": one, "label": "a"}) + "\n" for one in verify))
        (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text, _, _ in texts))
        inputs = LabelsInputs(
            writer=Content(path=tmp_path, digest=""),
            texts=Content(path=tmp_path / "texts.txt", digest=""),
            prompts=Content(path=prompts, digest=""),
            labels=["a", "b"],
            names={},
            question="",
            score="mean",
            audit=100,
            data=LOGITS,
        )
        journal = Journal(scored, Scored)

        def add(place: tuple[int, int], said: str | None, probability: float) -> None:
            shares = np.log([probability, 1 - probability] if said == "a" else [1 - probability, probability])
            journal.add(place, Scored(scores=None if said is None else [float(one) for one in shares]))

        for index, row in enumerate(choose_gold(prompts, inputs.labels, inputs.audit)):
            add((index, GOLD), next(said for text, _, said in gold if text == row.text), 0.9 - index / 1000)
        said = {text: (one, probability) for text, one, probability in texts}
        for index, text in enumerate(read_texts(inputs)):
            add((index, TEXTS), *said[text])
        add((0, FREE), "a", 0.5)
        facts = label(inputs, scored, Auditing(calibrate=True, agreement=0.8, least=least), out)
        return facts, json.loads((out / "audit.json").read_text()), PromptSet(folder=out).split("train")

    return made


def test_the_audit_tells_agreement_suspects_and_doubts(audited: Any) -> None:
    gold = [(f"this is text {name} of gold", "a", "a") for name in ("one", "two", "six", "ten", "nine", "four")]
    gold += [("wrong in the data", "a", "b"), ("too long for it", "b", None)]
    texts = [("a fine kettle", "a", 0.99), ("some doubt here", "b", 0.55), ("less doubt now", "b", 0.7)]
    facts, report, train = audited(gold, texts)
    assert (facts["agreed"], facts["gold"], facts["kept"], facts["rows"]) == (6, 8, 3, 11)
    # Clopper and Pearson's 95 % bounds of 6 of 8, each one-sided.
    assert facts["interval"] == pytest.approx([0.4003, 0.9536], abs=1e-4)
    assert [(one["text"], one["label"], one["said"]) for one in report["suspects"]] == [("wrong in the data", "a", "b")]
    assert report["by_label"] == {"a": [6, 7], "b": [0, 1]}
    assert [one["text"] for one in report["unsure"]] == ["some doubt here", "less doubt now", "a fine kettle"]
    assert [(row.text, row.label) for row in train[-3:]] == [(text, said) for text, said, _ in texts]
    assert describe(facts, "m") == (
        "train: 3 labels by m, which agrees with 6 of 8 labelled rows (40.0% to 95.4%, each bound at 95 %)"
    )


def test_texts_that_may_not_train_are_counted(audited: Any) -> None:
    gold = [("known already", "a", "a"), ("another known one", "b", "b")]
    texts = [
        ("Known, already!", "b", 0.9),
        ("please paint the long hall in blue", "b", 0.9),
        ("unsure of this", "a", 0.55),
        ("endless", None, 0.5),
        ("a new text", "a", 0.9),
        ("A new text!", "a", 0.9),
    ]
    facts, _, train = audited(gold, texts, verify=["paint the long hall in blue"], least=0.6)
    assert [row.text for row in train] == ["known already", "another known one", "a new text"]
    assert facts["left_out"] == {
        "in the train split already": 1,
        "less probable than least": 1,
        "nearly what another split has": 1,
        "too long for the model": 1,
    }
