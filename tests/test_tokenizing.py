"""What the tokenizers library cannot read or take is an error that names the file or the text."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from tokenizers import BertWordPieceTokenizer, Tokenizer

from edgekit.errors import EdgekitError
from edgekit.model import load_model
from edgekit.tokenizing import readable_part


def changed(talker: Path, folder: Path, **changes: object) -> Path:
    copy = Path(shutil.copytree(talker, folder / "copy"))
    content = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    (copy / "tokenizer.json").write_text(json.dumps(content | changes), encoding="utf-8")
    return copy


def test_a_tokenizer_of_another_version_is_an_error(talker: Path, tmp_path: Path) -> None:
    folder = changed(talker, tmp_path, pre_tokenizer={"type": "OfTheYear2031"})
    with pytest.raises(
        EdgekitError, match=r"tokenizer\.json: the installed tokenizers library cannot read it: .*save it again"
    ):
        load_model(folder).tokenizer()


def test_a_text_at_which_a_regular_expression_gives_up_is_named(talker: Path, tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    model = load_model(changed(talker, tmp_path, pre_tokenizer=split))
    assert model.encode(["fine"], 32)
    with pytest.raises(EdgekitError, match=r"does not take the text 'xxxx.*retry-limit"):
        model.encode(["fine", "x" * 80], 32)
    with pytest.raises(EdgekitError, match=r"does not take the text '\\ud800': it is not Unicode"):
        model.encode(["\ud800"], 32)


def words(room: int, *, side: str = "right") -> Tokenizer:
    """A tokenizer of BERT's kind that truncates."""
    pieces = [
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[PAD]",
        "[MASK]",
        *"abcde.\u00e9",
        *(f"##{one}" for one in "abcde"),
        "query",
        ":",
    ]
    tokenizer = Tokenizer.from_str(
        BertWordPieceTokenizer({piece: place for place, piece in enumerate(pieces)}).to_str()  # type: ignore[arg-type]
    )
    tokenizer.enable_truncation(room, direction=side)
    return tokenizer


def test_the_part_of_a_long_text_gives_the_ids_of_the_whole() -> None:
    """Also of texts of accents on spaces, control characters, other white space, special tokens and half words."""
    chosen = random.Random(7)
    pieces = [
        "a",
        "bad",
        "dead.",
        "E\u0301",
        "\u0301",
        "\u00e9",
        "\x00",
        "\u200b",
        "\n",
        "\u00a0",
        "\u3000",
        "\u4e2d",
        "[MASK]",
    ]
    pieces += ["[MASK", "\u03a3", "\u0130", "x" * 120, "     ", "...", ""]
    shorter = 0
    for _ in range(300):
        room = chosen.choice([4, 8, 16])
        tokenizer, before = words(room), chosen.choice(["", "query: ", "query:a"])
        text = chosen.choice(["", " " * 500, ". " * 300]) + " ".join(chosen.choices(pieces, k=chosen.randint(1, 600)))
        part = readable_part(tokenizer, text, before)
        assert tokenizer.encode(before + part).ids == tokenizer.encode(before + text).ids
        assert any(map(str.isalnum, part)) == any(map(str.isalnum, text))
        shorter += len(part) < len(text)
    assert shorter > 100


def test_four_megabytes_are_not_read_to_their_end() -> None:
    text = "bad dead " * 450_000
    assert len(readable_part(words(64), text)) < 2000
    assert readable_part(words(64), "bad " * 20) == "bad " * 20


def test_a_tokenizer_whose_words_have_no_such_end_gets_the_whole(talker: Path) -> None:
    text = "bad " * 1000
    assert readable_part(words(8, side="left"), text) == text
    spaced = words(8)
    spaced.add_special_tokens(["bad dead"])
    assert readable_part(spaced, text) == text
    assert readable_part(load_model(talker).tokenizer(8), text) == text
    endless = words(8)
    endless.no_truncation()
    assert readable_part(endless, text) == text
