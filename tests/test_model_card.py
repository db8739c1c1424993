"""Model cards as people write them: what can be read is taken, what cannot is told and stops nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.model_card import read_card


@pytest.mark.parametrize(
    ("head", "license_"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ('license: "apache-2.0"  # ours', "apache-2.0"),
        ("license:\n- mit\n- apache-2.0", "mit, apache-2.0"),
        ("license: 3", None),
        ("tags: [chat]", None),
        ("", None),
    ],
)
def test_the_licence(tmp_path: Path, head: str, license_: str | None) -> None:
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\n# A model\nlicense: not this\n")
    assert read_card(tmp_path).license == license_
    assert read_card(tmp_path).note is None


@pytest.mark.parametrize(
    ("card", "why"),
    [
        (b"---\nMy model: the best: ever\n---\n# Hi\n", "its head is not YAML"),
        (b"---\n- a list\n---\n", "its head is not YAML"),
        (b"---\nwhen: 2024-13-45\n---\n", "its head is not YAML"),
        (b"---\nx: !!python/object:os.system {}\n---\n", "its head is not YAML"),
        ("# Mod\xe8le\n".encode("latin-1"), "it is not UTF-8"),
    ],
)
def test_a_card_that_cannot_be_read(tmp_path: Path, card: bytes, why: str) -> None:
    (tmp_path / "README.md").write_bytes(card)
    found = read_card(tmp_path)
    assert (dict(found.metadata), found.license) == ({}, None)
    assert found.note is not None
    assert found.note.startswith(f"{tmp_path / 'README.md'}: {why}")
    assert "\n" not in found.note


def test_no_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Only a title\n---\nlicense: mit\n---\n")
    assert (dict(read_card(tmp_path).metadata), read_card(tmp_path).note) == ({}, None)
    assert read_card(tmp_path / "nothing").license is None
