"""--check: a release's papers are made again from what it holds, and the first difference is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.release.check import check
from edgekit.release.contents import BOM, CARD, NOTICE
from tests.conftest import Answer
from tests.release.conftest import relist

Command = Callable[..., Answer]


def test_what_was_made_is_made_again(signed: Path, bundle: Path, tmp_path: Path) -> None:
    found = check(signed, tmp_path)
    assert found.difference is None
    assert {BOM, CARD, NOTICE, "provenance.intoto.json", "evidence/measurement-1.intoto.json"} <= set(found.same)
    assert found.not_remade == ("bundle: name its recipe to build it again: --recipe",)
    built = check(signed, tmp_path, lambda scratch: Path(shutil.copytree(bundle, scratch / "again")))
    assert built.not_remade == ()
    assert {"bundle/model.onnx", "bundle/bundle.json"} <= set(built.same)


@pytest.mark.parametrize(
    ("name", "was", "now"),
    [
        (CARD, "What was measured", "What was guessed"),
        (NOTICE, "licence: CC0-1.0", "licence: CC0-1.1"),
        (BOM, '"value": "2.5"', '"value": "1.5"'),
        ("provenance.intoto.json", '"recipe": "demo"', '"recipe": "demi"'),
    ],
)
def test_the_first_difference_is_named(copied: Path, tmp_path: Path, name: str, was: str, now: str) -> None:
    text = (copied / name).read_text()
    (copied / name).write_text(text.replace(was, now, 1))
    assert text != (copied / name).read_text()
    relist(copied)
    found = check(copied, tmp_path)
    number = next(index for index, line in enumerate(text.splitlines(), 1) if was in line)
    line = text.splitlines()[number - 1].strip()
    difference = f"{name}: line {number} is {line.replace(was, now)!r}, and was made again as {line!r}"
    assert found.difference == difference


def test_another_model_is_named_by_its_first_byte(signed: Path, bundle: Path, tmp_path: Path) -> None:
    def build(scratch: Path) -> Path:
        again = Path(shutil.copytree(bundle, scratch / "again"))
        content = bytearray((again / "model.onnx").read_bytes())
        content[100] ^= 1
        (again / "model.onnx").write_bytes(content)
        return again

    found = check(signed, tmp_path, build)
    assert found.difference is not None
    assert found.difference.startswith("bundle/model.onnx: differs from byte 100 on")


def test_the_command_says_what_was_made_again(command: Command, copied: Path) -> None:
    whole = command("release", copied, "--check")
    assert whole.code == 0
    assert whole.out.endswith("7 files made again, the same bytes\n")
    (copied / NOTICE).write_text("nothing")
    relist(copied)
    broken = command("release", copied, "--check", "--json")
    told = json.loads(broken.out)
    assert (broken.code, told["difference"]) == (
        3,
        "NOTICE: line 1 is 'nothing', and was made again as 'demo-board'",
    )
    refused = command("release", copied, "--recipe", "recipe.toml")
    assert "name the release with --check" in refused.err
