"""Vocabularies that are cut: the texts at hand read the same, every other text loses nothing, and models answer as before."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgekit.distill.students import cut_tokens, load_module
from edgekit.distill.vocabulary import choose_tokens, find_tokens, trim
from edgekit.errors import EdgekitError
from edgekit.model import Model, load_model
from edgekit.pipeline.shapes import planned_student
from edgekit.qad import qad
from edgekit.recipe import Student
from edgekit.tasks import TASKS
from tests import steps
from tests.architectures.families import MORE, make_family
from tests.conftest import LABELS, ROOT, make_data
from tests.test_qad import inputs

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
ASSISTANT = ROOT / "calib_data" / "assistant" / "train.jsonl"
LEARNED = [json.loads(line)["text"] for line in ASSISTANT.read_text(encoding="utf-8").splitlines()[:400]]
SEEN = LEARNED[:30]
OTHERS = ["mending heavy doors", "a neighbourly kitchenette", "lamps!", "café of the small opens", "  "]


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return learn(tokenizer, trainers.WordPieceTrainer(vocab_size=600, special_tokens=SPECIAL, show_progress=False))


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return learn(
        tokenizer,
        trainers.BpeTrainer(vocab_size=800, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )


def suffixed() -> Tokenizer:
    """As CLIP's: the last piece of a word ends in </w>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    return learn(
        tokenizer,
        trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False),
    )


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return learn(
        tokenizer,
        trainers.UnigramTrainer(vocab_size=600, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
    )


def learn(tokenizer: Tokenizer, trainer: Any, texts: Sequence[str] = LEARNED) -> Tokenizer:
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    )
    return tokenizer


def read(folder: Path, tokenizer: Tokenizer) -> Model:
    tokenizer.save(str(folder / "tokenizer.json"))
    return Model(folder=folder, as_file=True)


@pytest.mark.parametrize("make", [word_piece, byte_level, suffixed, unigram])
@pytest.mark.parametrize("spare", [0, 15])
def test_texts_at_hand_read_the_same_and_others_lose_nothing(
    tmp_path: Path, make: Callable[[], Tokenizer], spare: int
) -> None:
    whole = make()
    model = read(tmp_path, whole)
    seen = {token for encoding in whole.encode_batch(SEEN) for token in encoding.ids}
    with pytest.raises(
        EdgekitError, match=r"student.vocabulary: 10: the tokens of the train texts.* are (\d+)"
    ) as told:
        choose_tokens(model, seen, 10, "student.vocabulary")
    least = int(str(told.value).partition(" are ")[2].partition(";")[0])
    assert least + spare < whole.get_vocab_size()
    kept = choose_tokens(model, seen, least + spare, "student.vocabulary")
    assert kept == sorted(kept)
    assert least + spare - 2 <= len(kept) <= least + spare
    numbers = {old: index for index, old in enumerate(kept)}
    small = Tokenizer.from_str(json.dumps(trim(model.tokenizer_content, numbers)))
    assert small.get_vocab_size() == len(kept)
    for text in SEEN:
        assert small.encode(text).ids == [numbers[token] for token in whole.encode(text).ids]
    for text in [*SEEN, *OTHERS, *LEARNED]:
        before, after = whole.encode(text), small.encode(text)
        assert small.decode(after.ids) == whole.decode(before.ids)
        assert after.tokens.count("<unk>") == before.tokens.count("<unk>")
    assert any(len(small.encode(text).ids) > len(whole.encode(text).ids) for text in LEARNED)


def test_a_tokenizer_of_whole_words_has_nothing_to_fall_into(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"jazz": 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(EdgekitError, match=r"\(WordLevel\) knows whole words alone"):
        choose_tokens(read(tmp_path, tokenizer), [0], 2, "student.vocabulary")


@pytest.mark.parametrize("family", MORE)
def test_models_answer_as_before(tmp_path: Path, family: str) -> None:
    """Also where positions are counted from the padding token, and where it is not the first one any more."""
    folder = make_family(family, tmp_path / family, LABELS)
    module, before = (load_module(TASKS["text-classification"], folder) for _ in range(2))
    kept = [0, 1, 2, 3, *range(9, 60, 2)]
    numbers = cut_tokens(module, kept)
    ids = torch.tensor([[2, 11, 59, 13, 3], [2, 9, 3, 0, 0]])
    mask = (ids != 0).long()
    with torch.no_grad():
        assert torch.allclose(module(numbers[ids], mask), before(ids, mask), atol=1e-5)
    assert module.model.get_input_embeddings().num_embeddings == module.model.config.vocab_size == len(kept)
    assert numbers[[5, 7]].tolist() == [-1, -1]


def answers(folder: Path, texts: Sequence[str]) -> torch.Tensor:
    """What transformers' own classes say."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(folder)(list(texts), return_tensors="pt", padding=True)
    with torch.no_grad():
        return AutoModelForSequenceClassification.from_pretrained(folder)(**inputs).logits


def make_teacher(folder: Path, tokenizer: Tokenizer, pad_token_id: int | None = 1) -> Path:
    """A BERT of random weights, so large that its answers follow its tokens, with as many tokens as its tokenizer and a row more. pad_token_id: its configuration's."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size() + 1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        pad_token_id=pad_token_id,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(10)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "vocab.txt").write_text("what would be wrong for a student", encoding="utf-8")
    return folder


def test_a_student_with_fewer_tokens(tmp_path: Path) -> None:
    """Its folder is whole by itself: without any training transformers answers the train texts as its teacher does."""
    data = make_data(tmp_path / "data")
    texts = [json.loads(line)["text"] for line in (data / "train.jsonl").read_text().splitlines()]
    tokenizer = learn(
        word_piece(), trainers.WordPieceTrainer(vocab_size=260, special_tokens=SPECIAL), [*texts, *LEARNED]
    )
    teacher = make_teacher(tmp_path / "teacher", tokenizer)
    out = tmp_path / "out"
    out.mkdir()
    facts = steps.distill(
        teacher,
        data,
        task="text-classification",
        options={"epochs": 1, "learning_rate": 1e-12, "weight_decay": 0.0, "spliced": 1},
        max_length=16,
        out=out,
        layers=2,
        vocabulary=140,
    )
    assert (facts["tokens"], facts["teacher_tokens"]) == (140, tokenizer.get_vocab_size() + 1)
    student = load_model(out)
    assert student.tensors["bert.embeddings.word_embeddings.weight"].shape == (140, 32)
    assert student.config["vocab_size"] == student.tokenizer().get_vocab_size() == 140
    assert torch.allclose(answers(out, texts), answers(teacher, texts), atol=1e-4)
    assert not (out / "vocab.txt").exists()
    recipe = SimpleNamespace(student=Student(layers=2, vocabulary=140))
    planned = planned_student(load_model(teacher), recipe, len(LABELS))
    assert {name: info.shape for name, info in planned.tensors.items()} == {
        name: info.shape for name, info in student.tensors.items()
    }
    # On the grid of its file it goes on from there, beside a teacher that sees the same tokens under its own numbers.
    how = {"format_": "onnx", "task": "text-classification", "student": out, "epochs": 1, "holdout": 0.3}
    asked = inputs(teacher, data, "w8", **how)
    (tmp_path / "grid").mkdir()
    told = qad(asked, tmp_path / "grid")
    assert isinstance(told["start"], float)
    assert told["start"] < 2e-4
    ids = find_tokens(teacher, out)
    assert ids is not None
    assert student.tokenizer().encode(texts[0]).ids != (whole := load_model(teacher).tokenizer().encode(texts[0]).ids)
    assert ids[student.tokenizer().encode(texts[0]).ids].tolist() == whole
    assert find_tokens(teacher, teacher) is None
    with pytest.raises(EdgekitError, match=r"the teacher has no token .*make the student from this teacher"):
        find_tokens(out, teacher)


def test_more_tokens_than_the_teacher_has(
    command: Callable[..., Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with project.open("a", encoding="utf-8") as file:
        file.write("\n[student]\nlayers = 1\nvocabulary = 4000\n")
    monkeypatch.chdir(project.parent)
    answer = command("build", "--target", "raspberrypi", "--dry-run")
    assert answer.code == 1
    assert "student.vocabulary: 4000: the teacher has" in answer.err


def test_only_the_rows_that_texts_read_are_trained(checkpoint: Path, tmp_path: Path) -> None:
    """The whole embedding is saved: rows of other tokens as they were, those of the texts trained."""
    data = make_data(tmp_path / "data")
    model = load_model(checkpoint)
    texts = [json.loads(line)["text"] for line in (data / "train.jsonl").read_text().splitlines()]
    read = {token for row in model.encode(texts, 32) for token in row}
    (tmp_path / "out").mkdir()
    options = {"epochs": 1, "batch": 4}
    task = "text-classification"
    steps.distill(checkpoint, data, task=task, options=options, max_length=32, out=tmp_path / "out", layers=2)
    name = "bert.embeddings.word_embeddings.weight"
    before, after = (load_file(folder / "model.safetensors")[name] for folder in (checkpoint, tmp_path / "out"))
    changed = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert 0 < len(changed) < len(before)
    assert set(changed) == read


def test_padding_that_only_the_tokenizer_knows_is_trained_with(tmp_path: Path) -> None:
    """Its row is among those that stay, though no text reads it."""
    data = make_data(tmp_path / "data")
    teacher = make_teacher(tmp_path / "teacher", word_piece(), None)
    assert TASKS["text-classification"].pad_id(load_model(teacher)) == 1
    (tmp_path / "out").mkdir()
    options = {"epochs": 1, "batch": 4}
    task = "text-classification"
    facts = steps.distill(teacher, data, task=task, options=options, max_length=32, out=tmp_path / "out", layers=2)
    assert facts["steps"] > 0
