"""The family of hashed n-grams: its rows by plain integers, texts of any length, what transformers makes of a saved one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.distill.files import copy_tokenizer, save_model
from edgekit.distill.options import Ngrams, read_distill_options
from edgekit.distill.students import Hashed, make_student
from edgekit.errors import EdgekitError
from edgekit.formats.onnx.float_graph import export_float
from edgekit.formats.onnx.graph import Graph
from edgekit.formats.onnx.session import Session
from edgekit.formats.onnx.simplify import simplified
from edgekit.hashing import PRIME, columns, factors, rows_of, spell
from edgekit.model import load_model
from edgekit.prompts import Prompt
from edgekit.record.original_rows import ask
from edgekit.tasks import TASKS, outputs
from edgekit.tasks.ngrams import NgramsConfig, find_rows
from tests.conftest import LABELS

TEXTS = ["please turn the kitchen light on", "jazz", "some jazz on the hall speaker would be nice", "", "hall lamp"]
TABLE = Ngrams(buckets=2048, width=8, grams=((0,), (0, 1), (0, 2)))


def config_of(table: Ngrams) -> NgramsConfig:
    return NgramsConfig(
        buckets=table.buckets, width=table.width, characters=table.characters,
        grams=[list(gram) for gram in table.grams], spelling=[list(gram) for gram in table.spelling],
    )  # fmt: skip


def by_hand(ids: Sequence[int], letters: Sequence[Sequence[int]], table: Ngrams) -> list[list[int]]:
    """The rows of a text's n-grams as find_rows tells them, by Python's integers; letters: of each of its tokens."""
    words, inside = factors(table.grams), factors(table.spelling)
    rows = []
    for first, spelled in enumerate(letters):
        row = []
        for kind, gram in enumerate(table.grams):
            there = first + max(gram) < len(ids)
            code = sum(words[place][kind] * (ids[first + place] + 1) for place in gram) if there else 0
            row.append(code % PRIME % (table.buckets - 1) + 1 if there else 0)
        for kind, gram in enumerate(table.spelling):
            for begin in range(table.characters - max(gram)):
                code = sum(inside[place][kind] * spelled[begin + place] for place in gram)
                row.append(code % PRIME % (table.buckets - 1) + 1 if spelled[begin + max(gram)] else 0)
        rows.append(row)
    return rows


def test_rows_are_exact_and_padding_is_none() -> None:
    """Ids up to the largest vocabularies, tokens of all lengths; padded on either side, and as an accelerator adds them up."""
    generator = torch.Generator().manual_seed(0)
    spelled = torch.randint(1, 256, (2**20, TABLE.characters), generator=generator, dtype=torch.uint8)
    spelled *= torch.arange(TABLE.characters) < torch.randint(0, 1 + TABLE.characters, (2**20, 1), generator=generator)
    texts = [[101, 7, 2**20 - 1, 102], [5], [2**20 - 1] * 6]
    for before, behind in ((0, 0), (0, 3), (2, 0)):
        longest = 6 + before + behind
        ids, mask = torch.zeros(3, longest, dtype=torch.int64), torch.zeros(3, longest, dtype=torch.int64)
        for row, text in enumerate(texts):
            ids[row, before : before + len(text)] = torch.tensor(text)
            mask[row, before : before + len(text)] = 1
        codes, there = find_rows(ids, mask, spelled, config_of(TABLE))
        for found, text, real in zip(codes * there, texts, mask, strict=True):
            assert found[real.bool()].tolist() == by_hand(text, spelled[text].tolist(), TABLE)
            assert not found[~real.bool()].any()
        words = rows_of(((ids + 1) * mask).numpy(), TABLE.grams, TABLE.buckets)
        assert np.array_equal((codes * there)[..., : len(TABLE.grams)], words)
    by = torch.tensor(columns(TABLE.grams, TABLE.spelling, TABLE.characters)[0])
    numbers = torch.randint(0, 2**20, (2, 5, len(by)), generator=generator)
    assert torch.equal(numbers @ by, (numbers.unsqueeze(-1) * by).sum(dim=-2))


def test_few_ngrams_share_a_row() -> None:
    """Pairs of small ids fall into no fewer rows than random ones would: 1 - 1/e of the table for as many pairs as rows."""
    ids = torch.cartesian_prod(torch.arange(64), torch.arange(64))
    config = config_of(Ngrams(buckets=4097, grams=((0, 1),)))
    rows = find_rows(ids, torch.ones_like(ids), torch.zeros(64, config.characters, dtype=torch.uint8), config)[0][
        :, 0, 0
    ]
    assert len(rows.unique()) > 0.95 * 4096 * (1 - np.exp(-1))


def test_tokens_are_spelled_as_their_tokenizer_writes_them() -> None:
    """WordPiece marks what goes on in a word, others what begins one; a long token's end is not read."""
    table = spell({"light": 1, "##s": 2, "kitchenette": 3}, 5, "##", 6)
    mark, letters = 1 + ord("^"), [1 + ord(letter) for letter in "light"]
    assert table.tolist() == [[0] * 6, [mark, *letters], [1 + ord("s"), 0, 0, 0, 0, 0], table[3].tolist(), [0] * 6]
    assert table[3].tolist() == [mark, *(1 + ord(letter) for letter in "kitch")]
    assert spell({"Ġa": 0}, 1, None, 2).tolist() == [[1 + ord("Ġ") % 255, 1 + ord("a")]]


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of n-grams whose weights are drawn at random."""
    student = make_student(Hashed(folder=checkpoint, table=TABLE), TASKS["text-classification"])
    torch.manual_seed(0)
    with torch.no_grad():
        student.module.model.ngram_embedding.weight[1:].normal_()
    out = tmp_path_factory.mktemp("ngrams")
    save_model(student.module, out)
    copy_tokenizer(checkpoint, out)
    return out


def test_a_saved_student_answers_as_transformers_says(folder: Path) -> None:
    """Each text alone, all together, and by transformers' own pipeline."""
    task = TASKS["text-classification"]
    model, module = task.open_model(folder), task.load(folder)
    assert (model.architecture, model.layers, model.labels) == ("ngrams", 0, LABELS)
    encoded = task.encode(model, [Prompt(text=text) for text in TEXTS], 32)
    together = outputs(module, encoded, batch=8)
    np.testing.assert_allclose(together, outputs(module, encoded, batch=1), atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 0.1
    owner = ask(folder, task.NAME, TEXTS, max_length=32, classes=LABELS)
    assert owner.failed is None
    assert owner.outputs is not None
    np.testing.assert_allclose(owner.outputs, together, atol=1e-6)


def test_its_graph_is_small_and_answers_as_it_does(folder: Path) -> None:
    """A call's time is that of its nodes, about a microsecond each: the tables are small."""
    task = TASKS["text-classification"]
    module, model = task.load(folder), task.open_model(folder)
    encoded = task.encode(model, [Prompt(text=text) for text in TEXTS], 32)
    graph = simplified(export_float(module, encoded, output_name="logits"), encoded, for_cpu=True)
    assert len(graph.graph.node) <= 30
    assert Graph(graph).linears()[0].path == "model.classifier"
    assert len(Graph(graph).linears()) == 1
    answers = Session(graph).outputs(encoded)
    np.testing.assert_allclose(answers, outputs(module, encoded, batch=1), atol=1e-6)


def test_it_reads_as_its_teacher(folder: Path, checkpoint: Path) -> None:
    assert load_model(folder).encode(TEXTS, 32) == load_model(checkpoint).encode(TEXTS, 32)


def test_a_token_that_autotokenizer_adds_has_a_row(classifier: Path, tmp_path: Path) -> None:
    """A BERT is given a [MASK], which its own vocabulary lacks here: the token's text would else end a session."""
    path = classifier / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("[MASK]", "[MARK]"), encoding="utf-8")
    student = make_student(Hashed(folder=classifier, table=TABLE), TASKS["text-classification"])
    out = tmp_path / "student"
    save_model(student.module, out)
    copy_tokenizer(classifier, out)
    known = load_model(out).tokenizer().get_vocab(with_added_tokens=True)
    assert known["[MASK]"] == len(known) - 1
    assert load_model(out).tensors["spelled"].shape[0] == len(known)


def test_what_it_is_not(folder: Path) -> None:
    with pytest.raises(EdgekitError, match="model_type ngrams: transformers has no feature-extraction of it"):
        TASKS["feature-extraction"].load(folder)


def test_it_learns_by_losses_of_the_output_alone() -> None:
    options, weights = read_distill_options({}, "logits", "distill", "ngrams")
    assert weights == {"labels": 0.5, "logits": 0.5}
    assert (options.batch, options.warmup) == (128, 0.0)
    with pytest.raises(EdgekitError, match=r"distill.losses.hidden: does not apply to ngrams"):
        read_distill_options({"losses": {"hidden": 1.0}}, "logits", "distill", "ngrams")
