"""Checkpoints of the shapes that hubs have are read as transformers and sentence-transformers read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.modalities.text import of_tokens, token_ids
from edgekit.model import load_model
from edgekit.prompts import Prompt
from edgekit.record.original_rows import ask, compare
from edgekit.reference import OwnersRows
from edgekit.tasks import TASKS, outputs
from edgekit.tasks.text_classification import softmax
from edgekit.verify.as_original import check_original
from tests.hub_variants import CLASSIFIERS, EMBEDDERS, LABELS, TEXTS

LENGTH = 24


def answers(task: str, folder: Path) -> tuple[list[list[int]], np.ndarray]:
    """What edgekit reads and answers."""
    kind = TASKS[task]
    model = kind.open_model(folder)
    encoded = kind.encode(model, [Prompt(text=text) for text in TEXTS], LENGTH)
    return token_ids(encoded), outputs(kind.load(folder), encoded)


@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_classifiers(variant: str, tmp_path: Path) -> None:
    """Ids of AutoTokenizer, labels and scores of `pipeline`, one text at a time."""
    from transformers import AutoTokenizer, pipeline

    CLASSIFIERS[variant](tmp_path / "model")
    ids, ours = answers("text-classification", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert ids == [tokenizer(text, truncation=True, max_length=LENGTH)["input_ids"] for text in TEXTS]
    asked = pipeline("text-classification", str(tmp_path / "model"), device="cpu", top_k=None)
    for text, logits in zip(TEXTS, ours, strict=True):
        theirs = {entry["label"]: entry["score"] for entry in asked([text], truncation=True, max_length=LENGTH)[0]}
        np.testing.assert_allclose(softmax(logits), [theirs[label] for label in LABELS], atol=1e-5)


def test_the_variants_differ(tmp_path: Path) -> None:
    """Each of these settings changes what is read: else the comparison would prove nothing."""
    harmless = {"as saved", "padding_side", "model_max_length", "no post_processor", "roberta"}
    CLASSIFIERS["as saved"](tmp_path / "plain")
    CLASSIFIERS["roberta"](tmp_path / "roberta")
    plain = {answers_ids(tmp_path / "plain"), answers_ids(tmp_path / "roberta")}
    for place, variant in enumerate(sorted(set(CLASSIFIERS) - harmless)):
        CLASSIFIERS[variant](tmp_path / str(place))
        assert answers_ids(tmp_path / str(place)) not in plain, variant


def answers_ids(folder: Path) -> str:
    kind = TASKS["text-classification"]
    return repr(token_ids(kind.encode(kind.open_model(folder), [Prompt(text=text) for text in TEXTS], LENGTH)))


@pytest.mark.parametrize("variant", EMBEDDERS)
def test_embedders(variant: str, tmp_path: Path) -> None:
    """Ids of sentence-transformers' tokenizer, embeddings of its `encode`."""
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    EMBEDDERS[variant](tmp_path / "model")
    ids, ours = answers("feature-extraction", tmp_path / "model")
    model = library.SentenceTransformer(str(tmp_path / "model"), device="cpu", local_files_only=True)
    model.max_seq_length = min(model.max_seq_length, LENGTH)
    prompt = model.prompts.get(model.default_prompt_name or "", "")
    for text, tokens in zip(TEXTS, ids, strict=True):
        assert tokens == model.preprocess([text], prompt=prompt)["input_ids"][0].tolist()
    theirs = np.stack([model.encode(text) for text in TEXTS])
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def told(folder: Path, *, ids: list[list[int]], scores: np.ndarray) -> OwnersRows:
    found = ask(folder, "text-classification", TEXTS, max_length=LENGTH, classes=LABELS)
    return compare(found, TEXTS, prompts=of_tokens(ids, 0).prompts, answers=scores, compared=len(TEXTS))


def test_a_difference_is_named(tmp_path: Path) -> None:
    """The first text whose ids or scores are not the owner's, with both; equal ones pass."""
    folder = tmp_path / "model"
    CLASSIFIERS["truncation_side"](folder)
    ids, logits = answers("text-classification", folder)
    scores = softmax(logits)
    same = told(folder, ids=ids, scores=scores)
    assert (same.ids_equal, same.answers_equal, same.first) == (len(TEXTS), len(TEXTS), None)
    assert str(same.by).startswith("transformers ")
    passed = check_original({"teacher": same}, [], len(TEXTS))
    assert (passed.verdict, passed.measured) == ("pass", "as the original")

    model = load_model(folder)
    right = replace(
        model, tokenizer_text=(model.read_text or "").replace('"direction": "Left"', '"direction": "Right"')
    )
    read = right.encode(TEXTS, LENGTH)
    other = told(folder, ids=read, scores=scores)
    cut = [place for place, (one, two) in enumerate(zip(ids, read, strict=True)) if one != two]
    assert cut
    assert (other.ids_equal, other.answers_equal) == (len(TEXTS) - len(cut), len(TEXTS))
    assert str(other.first).startswith(f"'{TEXTS[cut[0]][:40]}")
    assert "edgekit reads the ids [" in str(other.first)
    failed = check_original({"teacher": other}, [], len(TEXTS))
    assert (failed.name, failed.verdict) == ("as_original", "fail")
    assert "edgekit does not read this checkpoint as transformers" in (failed.remedy or "")

    shifted = scores + np.array([[0.0, 0.002, -0.002, 0.0]], dtype=np.float32)
    assert "of the answer is" in str(told(folder, ids=ids, scores=shifted).first)


def test_what_cannot_be_asked_is_not_proven(tmp_path: Path) -> None:
    """No answer of the owner's library, and no reference that has one, prove nothing."""
    folder = tmp_path / "model"
    CLASSIFIERS["as saved"](folder)
    ids, logits = answers("text-classification", folder)
    (folder / "model.safetensors").unlink()
    facts = told(folder, ids=ids, scores=softmax(logits))
    assert facts.ids_equal is None
    check = check_original({"teacher": facts}, [], len(TEXTS))
    assert (check.verdict, check.measured) == ("not proven", "unknown")
    assert "OSError" in (check.remedy or "")
    assert check_original(None, [], 7).verdict == "not proven"


def test_the_tokenizer_that_ships_counts_too() -> None:
    equal = {"rows": 3, "ids_equal": 3, "answers_equal": 3, "compared": 3}
    facts = OwnersRows(by="transformers", first=None, failed=None, limits=None, **equal)
    check = check_original({"teacher": facts}, ["a text"], 3)
    assert check.verdict == "fail"
    assert "reads 1 of 3 prompts otherwise than the checkpoint's owner, the first 'a text'" in (check.remedy or "")
