"""Checkpoints of the shapes that hubs have are read as transformers and sentence-transformers read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.prompts import Prompt
from edgekit.tasks import TASKS, find_pad_id, outputs
from edgekit.tasks.text_classification import softmax
from tests.hub_variants import CLASSIFIERS, EMBEDDERS, LABELS, TEXTS

LENGTH = 24


def answers(task: str, folder: Path) -> tuple[list[list[int]], np.ndarray]:
    """What edgekit reads and answers."""
    kind = TASKS[task]
    model = kind.open_model(folder)
    ids = [tokens for _, tokens in kind.encode(model, [Prompt(text=text) for text in TEXTS], LENGTH)]
    return ids, outputs(kind.load(folder), ids, find_pad_id(model))


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
    return repr(kind.encode(kind.open_model(folder), [Prompt(text=text) for text in TEXTS], LENGTH))


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
