"""What an artifact answered to each verify prompt: outcomes.json of verify, and NAME.outcomes.json beside a bundle.

Two bundles that were verified on one set are compared prompt by prompt by it. A prompt is a hash there, never a text: the verify
set may be private, and one that goes round with a model is trained on, whereupon it proves nothing. Who guesses a text can still
check it, so the file is evidence for those who build; no app and no release carries it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.schema import dump_json, read_json
from edgekit.typed_json import MAY_BE_ABSENT, read_table, to_table

FILE = "outcomes.json"
# Raised where an older edgekit would misread it.
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """One entry for each verify prompt, in their order. artifact: sha256 of the model. prompts: hashes of text and wanted answer.

    groups: what err together has one number. right: whether the answer is the wanted one; None where none is known. answers: of a
    classifier, the labels. nats, tokens: of a decoder, the surprise of so many tokens together; None where it is no number.
    """

    format_version: int = FORMAT
    artifact: str
    prompts: tuple[str, ...]
    groups: tuple[int, ...]
    right: tuple[bool | None, ...]
    answers: tuple[str, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)
    nats: tuple[float | None, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)
    tokens: tuple[int, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)

    def to_json(self) -> str:
        """The text of the file: equal outcomes are equal bytes."""
        return dump_json(to_table(self))


def read_outcomes(path: Path) -> Outcomes | None:
    """What the file says; None where there is none. Raises EdgekitError for a file that is none, or of another edgekit."""
    if not path.is_file():
        return None
    found = read_table(Outcomes, read_json(path), str(path))
    columns = (found.groups, found.right, found.answers, found.nats, found.tokens)
    if found.format_version != FORMAT:
        raise EdgekitError(f"{path}: format_version {found.format_version}: written by another edgekit; use that one")
    if any(column is not None and len(column) != len(found.prompts) for column in columns):
        raise EdgekitError(f"{path}: its columns are not equally long; run edgekit build again")
    return found
