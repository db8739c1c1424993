"""A scorer as the reward: what it says is what transformers says, a student's answers rise by it, and what cannot score is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_letters, digits, printable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgekit import distill as training
from edgekit.distill.on_policy import continue_texts
from edgekit.distill.options import read_distill_options
from edgekit.distill.rewards import Reward
from edgekit.distill.scorer import check_scorer, make_scorer
from edgekit.errors import EdgekitError
from edgekit.model import load_model
from tests.architectures.decoders import END, make_decoder
from tests.distill.test_on_policy import TAUGHT, asked, away, drawn, open_tap, write_questions
from tests.steps import content, distill_inputs

LETTERS = ascii_letters + digits + " ?.,"
WHERE = "recipe.toml: distill.on_policy.reward"


def make_folder(folder: Path, *, labels: Sequence[str] = ("score",), positions: int = 96) -> Path:
    """An encoder of one block that reads letters, untrained, as transformers saves it."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *printable]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
        id2label=dict(enumerate(labels)),
        label2id={label: place for place, label in enumerate(labels)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def small_letters(text: str) -> float:
    """What the scorer is taught to prefer: the share of small letters."""
    return sum(letter.islower() for letter in text) / max(len(text), 1)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one output, trained to say how many of a text's letters are small, five times their share."""
    from transformers import BertForSequenceClassification

    folder = make_folder(tmp_path_factory.mktemp("scorer") / "model")
    model, read = BertForSequenceClassification.from_pretrained(folder).train(), load_model(folder)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        likely = torch.rand(32, 1, generator=generator)
        weights = torch.where(torch.tensor([one.islower() for one in LETTERS]), likely, 1 - likely)
        drawn_ids = torch.multinomial(weights, 30, replacement=True, generator=generator).tolist()
        texts = ["".join(LETTERS[one] for one in row) for row in drawn_ids]
        said = model(input_ids=torch.tensor(read.encode(texts, 64))).logits[:, 0]
        loss = (said - 5 * torch.tensor([small_letters(text) for text in texts])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def transformers_say(folder: Path, texts: Sequence[str]) -> torch.Tensor:
    """The logits of each text by itself."""
    from transformers import BertForSequenceClassification

    model, read = BertForSequenceClassification.from_pretrained(folder).eval(), load_model(folder)
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor(read.encode([text], 1 << 20))).logits for text in texts])


def test_scores_are_those_of_transformers(scorer: Path, tmp_path: Path) -> None:
    """Of texts of unlike lengths at once; a label's log-probability, or of a model of several labels that of each for itself."""
    texts = [
        "What is red? A ROSE",
        "",
        "What is blue? the sky, and much else " * 2,
        *(f"{place} and more" for place in range(40)),
    ]
    found = make_scorer(scorer, None, "cpu")(texts)
    torch.testing.assert_close(torch.tensor(found), transformers_say(scorer, texts)[:, 0], atol=1e-5, rtol=1e-5)
    assert found[2] > found[0] + 1, "it learned what it was taught"
    several = make_folder(tmp_path / "several", labels=("bad", "good", "best"))
    wanted = transformers_say(several, texts)
    said = make_scorer(several, "good", "cpu")(texts)
    torch.testing.assert_close(torch.tensor(said), wanted.log_softmax(-1)[:, 1], atol=1e-5, rtol=1e-5)
    config = json.loads((several / "config.json").read_text())
    (several / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    said = make_scorer(several, "good", "cpu")(texts)
    torch.testing.assert_close(torch.tensor(said), wanted.sigmoid().log()[:, 1], atol=1e-5, rtol=1e-5)


def test_the_score_rises_while_the_teacher_holds_it(scorer: Path, tmp_path: Path) -> None:
    teacher = make_decoder("llama", tmp_path / "teacher")
    write_questions(tmp_path)
    score, found = make_scorer(scorer, None, "cpu"), {}

    def worth(folder: Path) -> float:
        texts, tokenizer = asked(folder) * 25, load_model(folder).tokenizer()
        said = continue_texts(open_tap(folder), texts, [6] * len(texts), [END], drawn(1.0, seed=8))
        scores = score(
            [tokenizer.decode(text) + tokenizer.decode(more) for text, more in zip(texts, said, strict=True)]
        )
        return sum(scores) / len(scores)

    for name, held in (("loose", 0.02), ("held", 1.0)):
        (tmp_path / name).mkdir()
        written = {"share": 1.0, "new_tokens": 6, "reward": {"scorer": str(scorer), "weight": 2.0}}
        options: dict[str, Any] = TAUGHT | {
            "losses": {"reverse_kl": held},
            "on_policy": written,
            "epochs": 25,
            "batch": 14,
        }
        options |= {"learning_rate": 5e-3, "warmup": 0.0}
        given = {"task": "text-generation", "layers": 3, "options": options, "max_length": 48}
        taught_by(teacher, tmp_path, scorer, tmp_path / name, given)
        found[name] = (worth(tmp_path / name), away(tmp_path / name, teacher))
    before = worth(teacher)
    assert found["held"][0] > before + 0.1
    assert found["loose"][0] > before + 0.25
    assert found["held"][1] < 0.75 * found["loose"][1]


def taught_by(teacher: Path, data: Path, scorer: Path, out: Path, given: dict[str, Any]) -> None:
    inputs = distill_inputs(teacher, data, **given)
    training.distill(replace(inputs, scorer=content(scorer)), out)


def test_what_cannot_score_is_told(scorer: Path, checkpoint: Path, tmp_path: Path) -> None:
    several = make_folder(tmp_path / "several", labels=("bad", "good"))
    encoder = shutil.copytree(scorer, tmp_path / "encoder")
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    decoder = make_decoder("llama", tmp_path / "llama")
    for folder, label, told in (
        (tmp_path / "nowhere", None, "scorer: no such folder"),
        (encoder, None, "scorer: .* has no head that scores texts"),
        (decoder, None, "scorer: .* is a llama: a decoder"),
        (scorer, "good", "label: .* has one output, which is the score; remove this key"),
        (several, None, r"label: missing; .* tells 2 labels apart: name the one .* \(bad, good\)"),
        (several, "goood", r"label: .* has no label 'goood' \(did you mean good\?\)"),
    ):
        with pytest.raises(EdgekitError, match=f"{WHERE}.{told}"):
            check_scorer(folder, Reward(scorer=str(folder), label=label), WHERE)
    check_scorer(several, Reward(scorer="several", label="good"), WHERE)
    check_scorer(scorer, Reward(scorer="scorer"), WHERE)


def test_a_text_that_is_too_long_and_a_score_that_is_no_number_are_told(scorer: Path, tmp_path: Path) -> None:
    with pytest.raises(
        EdgekitError, match=r"reads 96 tokens, and a prompt with its answer has 102 \('a+\); set on_policy.new_tokens"
    ):
        make_scorer(scorer, None, "cpu")(["short", "a" * 100])
    assert len(make_scorer(scorer, None, "cpu")(["a" * 94])) == 1
    broken = shutil.copytree(scorer, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["classifier.weight"].fill_(3e38)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EdgekitError, match="broken: the scorer says NaN or infinity of an answer"):
        make_scorer(broken, None, "cpu")(["a"])


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ({"scorer": "s", "check": "json"}, r"reward.check: give either check or scorer, not both"),
        ({"check": "json", "label": "good"}, r"reward.label: has no use for the check json"),
        ({"scorer": "s", "most": 3}, r"reward.most: has no use for a scorer"),
        ({"label": "good"}, r"reward.check: missing; give a check, or a scorer"),
    ],
)
def test_a_table_that_cannot_work_is_refused(reward: dict[str, object], said: str) -> None:
    with pytest.raises(EdgekitError, match=said):
        read_distill_options({"on_policy": {"reward": reward}}, "tokens", "recipe.toml: distill")
