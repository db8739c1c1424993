"""What the tokenizers library cannot read or take is an error that names the file or the text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgekit.errors import EdgekitError
from edgekit.model import load_model


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
