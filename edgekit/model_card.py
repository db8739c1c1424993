"""What the head of a checkpoint's model card (README.md) says; a card that cannot be read says nothing, which is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.errors import first_line

# As the hub finds it: REGEX_YAML_BLOCK of huggingface_hub.repocard, the import of which takes as long as a build in which
# nothing changed may.
_HEAD = re.compile(r"^\s*---(?:\r\n|\r|\n)([\S\s]*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)")


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card's metadata; note: why there is none although there is a card."""

    metadata: Mapping[str, object] = field(default_factory=dict)
    note: str | None = None

    @property
    def license(self) -> str | None:
        """The licence as the card names it: one, or several."""
        return ", ".join(texts(self.metadata.get("license"))) or None


def read_card(folder: Path) -> Card:
    """The model card of a checkpoint's folder, read as the hub reads it."""
    path = folder / "README.md"
    if not path.is_file():
        return Card()
    import yaml

    try:
        head = _HEAD.search(path.read_text(encoding="utf-8-sig"))
        metadata = yaml.safe_load(head[1]) if head else None
        if isinstance(metadata, dict | None):
            return Card(metadata=metadata or {})
        why = "its head is not YAML (repo card metadata block should be a dict)"
    except UnicodeDecodeError:
        why = "it is not UTF-8"
    except OSError as failed:
        why = failed.strerror or str(failed)
    except (yaml.YAMLError, ValueError, RecursionError) as bad:
        why = f"its head is not YAML ({first_line(bad)})"
    return Card(note=f"{path}: {why}: nothing is taken from this card")


def texts(value: object) -> list[str]:
    """A text or a list of them, as cards write either; anything else is none."""
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
