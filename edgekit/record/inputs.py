"""What `record` is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgekit.inputs import Content


@dataclass(frozen=True, kw_only=True)
class RecordInputs:
    """Two models, which may be one, and the calibrate and verify prompts.

    teacher_origin: what the teacher was made of, wherever its folder lies; libraries: the versions of those whose answers
    "as the original" compares with.
    """

    STEP: ClassVar[str] = "record"
    teacher: Content
    teacher_origin: str
    student: Content
    prompts: Content
    task: str
    max_length: int
    libraries: Mapping[str, str | None]
