"""FORMATS: how a student is written to disk for a runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.errors import EdgekitError
from edgekit.formats import gguf, onnx
from edgekit.progress import Progress, silent
from edgekit.schema import parse, pick

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from edgekit.calibrate import Calibration
    from edgekit.formats.smallest import Limits
    from edgekit.model import Model

DEFAULT = onnx.NAME


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Of a target's CPU what the types of a mixture depend on (`target.Hardware`)."""

    arch: str
    features: Sequence[str]
    bandwidth_gbs: float | None


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a format writes: a checkpoint, with what its task and the calibrate prompts say of it.

    load gives the task's module, calibration the statistics: a format that needs no torch asks for neither. ids: the
    calibrate prompts as the model reads them; texts: what was said in them, conversations: as {messages, tools}. name: what
    the model is called; license: what it ships under, where that is not the checkpoint's own; dataset: what its prompts are;
    fingerprints: sha256 of what it was made from, by what. processor: the target's, where the options say that the file
    depends on it (`Format.mixes`). output: the task's OUTPUT. score(float answers, answers), [n, width] each: greater is
    better; None where the output is not rows. starts: of a decoder, the index of each row's first token that the model says;
    limits: what it may lose (see `smallest`). progress(done, total, note) is told how far it is.
    """

    model: Model
    load: Callable[[], nn.Module]
    calibration: Callable[[], Calibration]
    ids: Sequence[Sequence[int]]
    texts: Sequence[str]
    conversations: Sequence[Mapping[str, Any]]
    output: str
    name: str
    dataset: str
    fingerprints: Mapping[str, str]
    processor: Processor | None
    score: Callable[[NDArray[np.float32], NDArray[np.float32]], float] | None
    pad_id: int
    max_length: int
    license: str | None = None
    starts: Sequence[int] = ()
    limits: Limits | None = None
    progress: Progress = silent


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a file that something else made is read: the checkpoint that it came from, the task's OUTPUT, the padding's id and how
    many tokens a text has at most."""

    model: Model
    output: str
    pad_id: int
    max_length: int


class Format(Protocol):
    """What a format's module offers."""

    NAME: str
    RUNTIME: str
    """The entry of RUNTIMES that runs it."""
    SUFFIX: str
    """How its main file's name ends."""
    SCHEMES: Mapping[str, tuple[str, ...]]
    """By output of a task (logits, embedding, tokens): what models of it can be written in; no output that is not there."""
    SCHEME_FOR: Mapping[str, str]
    """The scheme by output, where that is another than the default of Options."""
    AUTO: Mapping[str, tuple[str, ...]]
    """By output: what "auto" picks the smallest of that keeps the limits; no output for which it decides in another way."""
    BY_BITS: tuple[str, ...]
    """The schemes of a fixed number of bits, the fewest first."""
    NEEDS: tuple[str, ...]
    """Modules of an extra of its name, without which nothing can be built."""
    LIBRARIES: tuple[str, ...]
    """What its files' bytes and its runtime's answers depend on."""
    CARRIES_TOKENIZER: bool
    """Whether the artifact's main file holds the tokenizer, so that none has to lie beside it."""

    @property
    def Options(self) -> type[Any]:  # noqa: N802  (a dataclass in the module)
        """The dataclass of a target's `[export.<task>]` table, less `format`."""

    def mixes(self, options: Any) -> bool:
        """Whether types follow from the model's gradients and the target's processor, which are then among what is given."""

    def predict(self, model: Model, options: Any) -> dict[str, Any] | None:
        """Of headers alone: {bytes, bytes_per_token, cache_bytes_per_token, fallbacks} of an export; None: nobody knows yet."""

    def write(self, source: Source, options: Any, out: Path) -> dict[str, Any]:
        """Write a student into a folder; returns the artifact's facts that the format knows."""

    def adopt(self, file: Path, out: Path, reading: Reading) -> dict[str, Any]:
        """Copy what something else wrote into a folder, so that `verify` can judge it; returns the facts of `write`."""

    def check_reading(
        self,
        model: Model,
        file: Path,
        texts: Sequence[str],
        conversations: Sequence[Mapping[str, Any]] | None,
    ) -> dict[str, Any]:
        """Prove that what the file holds of tokenizer and chat template reads as the checkpoint's: {texts, limits, ...}.

        {} where it holds none. conversations: None of models that take none. Raises EdgekitError with the first difference.
        """

    def file_digest(self, file: Path) -> str:
        """sha256 over a file and the files of its weights: what an adopted artifact depends on."""


FORMATS: dict[str, Format] = {
    onnx.NAME: onnx,
    gguf.NAME: gguf,
}


def parse_options(table: Mapping[str, Any], output: str, where: str) -> tuple[Format, Any]:
    """The format and the Options of a target's `[export.<task>]` table, for a task's output.

    Raises EdgekitError for what no format has, and for what this one does not have for such models.
    """
    name = str(table.get("format", DEFAULT))
    found = pick(FORMATS, name, f"{where}.format")
    asked = {key: value for key, value in table.items() if key != "format"}
    if output in found.SCHEME_FOR:
        asked = {"scheme": found.SCHEME_FOR[output]} | asked
    options = parse(found.Options, asked, where)
    if output not in found.SCHEMES:
        others = " or ".join(repr(other.NAME) for other in FORMATS.values() if output in other.SCHEMES)
        raise EdgekitError(f"{where}.format: {name} has no models that answer with {output}; use {others}")
    if options.scheme not in found.SCHEMES[output]:
        raise EdgekitError(
            f"{where}.scheme: {options.scheme} is not for {name} models that answer with {output}; use one of"
            f" {', '.join(found.SCHEMES[output])}"
        )
    return found, options


def finds_scheme(format_: Format, options: Any, output: str) -> bool:
    """Whether `write` finds the scheme by what each candidate loses: then the recipe's limits are among its inputs."""
    return options.scheme == "auto" and output in format_.AUTO


def finer(format_name: str, output: str, scheme: str) -> list[str]:
    """Schemes of more bits a weight than this one, the nearest first, for models of an output; [] where there are none.

    Of a scheme that chooses by itself (auto, mixed), or is not ours, all that have a fixed number of bits.
    """
    known = pick(FORMATS, format_name, "format")
    above = known.BY_BITS[known.BY_BITS.index(scheme) + 1 :] if scheme in known.BY_BITS else known.BY_BITS
    return [one for one in above if one in known.SCHEMES.get(output, ())]


def format_of(file: Path) -> Format:
    """The format of a file that something else made, by how its name ends; EdgekitError where it is none of ours."""
    for known in FORMATS.values():
        if file.suffix == known.SUFFIX:
            return known
    suffixes = " or ".join(known.SUFFIX for known in FORMATS.values())
    raise EdgekitError(f"{file}: of no format that edgekit knows; expected a name that ends in {suffixes}")
