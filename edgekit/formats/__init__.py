"""FORMATS: how a student is written to disk for a runtime."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from edgekit.errors import EdgekitError
from edgekit.formats import gguf, onnx
from edgekit.formats.source import FormatOptions, Processor, Reading, Source
from edgekit.runtimes import RUNTIMES
from edgekit.schema import parse, pick
from edgekit.workspace import library_version

if TYPE_CHECKING:
    from edgekit.artifact import ModelFile, Parity
    from edgekit.cost import Cost
    from edgekit.grid import Grid
    from edgekit.model import Model
    from edgekit.runtimes import Runtime
    from edgekit.runtimes.package import Package

__all__ = [
    "DEFAULT",
    "FLOATS",
    "FORMATS",
    "Format",
    "FormatOptions",
    "Processor",
    "Reading",
    "Source",
    "candidates",
    "coarser",
    "domains_of",
    "finds_scheme",
    "finer",
    "format_of",
    "library_versions",
    "packages",
    "parse_options",
    "runtime_of",
]

DEFAULT = onnx.NAME
# Schemes of all formats that round no weight to integers.
FLOATS = frozenset({"fp16", "fp32", "f16", "bf16", "f32"})


Chosen = TypeVar("Chosen", bound="FormatOptions")


class FormatOf(Protocol[Chosen]):
    """What a format's module offers; it takes options of its own kind."""

    NAME: str
    RUNTIMES: tuple[str, ...]
    """The entries of `runtimes.RUNTIMES` that run its files; edgekit itself proves what it writes in the first."""
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
    LIBRARIES: tuple[str, ...]
    """What its files' bytes depend on, beside the packages of its runtimes."""
    CARRIES_TOKENIZER: bool
    """Whether the artifact's main file holds the tokenizer, so that none has to lie beside it."""

    @property
    def Options(self) -> type[Chosen]:  # noqa: N802  (a dataclass in the module)
        """The dataclass of a target's `[export.<task>]` table, less `format`."""

    def mixes(self, options: Chosen) -> bool:
        """Whether types follow from the model's gradients and the target's processor, which are then among what is given."""

    def domains(self, options: Chosen) -> tuple[str, ...]:
        """The domains of the ONNX operators that its files may have; "" is ONNX's own."""

    def grid(self, model: Model, options: Chosen, output: str) -> Grid:
        """The numbers that its files can hold of a model's weights, from its headers alone.

        Raises EdgekitError for a scheme that a model cannot be trained for.
        """

    def costs(self, model: Model, output: str, options: Sequence[Chosen]) -> list[Cost]:
        """What a model that answers with `output` takes in each of several options, from its headers alone."""

    def write(self, source: Source, options: Chosen, out: Path) -> ModelFile:
        """Write a student into a folder.

        Raises EdgekitError where its runtime does not compute with the whole file what the float model computes.
        """

    def adopt(self, file: Path, out: Path, reading: Reading) -> ModelFile:
        """Copy what something else wrote into a folder, so that `verify` can judge it."""

    def check_reading(
        self,
        model: Model,
        file: Path,
        texts: Sequence[str],
        conversations: Sequence[Mapping[str, object]] | None,
    ) -> Parity | None:
        """Prove that what the file holds of tokenizer and chat template reads as the checkpoint's.

        None where it holds none. conversations: None of models that take none. Raises EdgekitError with the first difference.
        """

    def file_digest(self, file: Path) -> str:
        """sha256 over a file and the files of its weights: what an adopted artifact depends on."""


# A table holds formats of every kind of options; `parse_options` gives a format with its own.
Format = FormatOf[Any]
FORMATS: dict[str, Format] = {
    onnx.NAME: onnx,
    gguf.NAME: gguf,
}


def candidates(
    format_: Format, tables: Mapping[str, object], output: str, domains: Collection[str], where: str
) -> tuple[str, ...]:
    """The runtimes that may run a file on a target: those that the target's `[runtime.<name>]` tables name and that run such
    files, in the tables' order; where they name none of the format's, its first.

    domains: of the file's operators. Raises EdgekitError where the format's that are named do not run it; where: the target.
    """
    first, *others = format_.RUNTIMES  # what a format writes or adopts was run in the first
    able = [first]
    able += [one for one in others if output in RUNTIMES[one].OUTPUTS and {*domains} <= {*RUNTIMES[one].DOMAINS}]
    named = [name for name in tables if name in format_.RUNTIMES]
    if not named:
        return (first,)
    if chosen := tuple(name for name in named if name in able):
        return chosen
    more = ", ".join(sorted({*domains} - {""})) or "no others"
    raise EdgekitError(
        f"{where}: runtime.{named[0]}: does not run such a file ({output}; operators of ONNX and {more}); add"
        f" [runtime.{first}], or choose another scheme or layout in the export table"
    )


def domains_of(operators: Iterable[str]) -> set[str]:
    """The domains of operators as an artifact lists them: "MatMul" is of "", "com.microsoft.FusedMatMul" of another."""
    return {name.rpartition(".")[0] for name in operators}


def runtime_of(format_: Format) -> Runtime:
    """The runtime that edgekit proves the format's files in."""
    return RUNTIMES[format_.RUNTIMES[0]]


def packages(format_: Format, runtimes: Sequence[str]) -> list[Package]:
    """The packages of the runtimes that a format's files need here: the one that proves them and the target's."""
    return [RUNTIMES[name].PACKAGE for name in dict.fromkeys([format_.RUNTIMES[0], *runtimes])]


def library_versions(format_: Format, runtimes: Sequence[str] = ()) -> dict[str, str]:
    """The installed versions of what a format's files and their answers in these runtimes depend on, by library."""
    engines = {package.name: package.distributions for package in packages(format_, runtimes)}
    return {name: library_version(name, *engines.get(name, ())) for name in sorted({*format_.LIBRARIES, *engines})}


def parse_options(table: Mapping[str, object], output: str, where: str) -> tuple[Format, FormatOptions]:
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


def finds_scheme(format_: Format, options: FormatOptions, output: str) -> bool:
    """Whether `write` finds the scheme by what each candidate loses: then the recipe's limits are among its inputs."""
    return options.scheme == "auto" and output in format_.AUTO


def finer(format_name: str, output: str, scheme: str) -> list[str]:
    """Schemes of more bits a weight than this one, the nearest first, for models of an output; [] where there are none.

    Of a scheme that chooses by itself (auto, mixed), or is not ours, all that have a fixed number of bits.
    """
    known = pick(FORMATS, format_name, "format")
    above = known.BY_BITS[known.BY_BITS.index(scheme) + 1 :] if scheme in known.BY_BITS else known.BY_BITS
    return [one for one in above if one in known.SCHEMES.get(output, ())]


def coarser(format_name: str, output: str, scheme: str) -> list[str]:
    """Schemes of fewer bits a weight than this one, the nearest first; [] of one that chooses by itself, or is not ours."""
    known = pick(FORMATS, format_name, "format")
    below = known.BY_BITS[: known.BY_BITS.index(scheme)] if scheme in known.BY_BITS else ()
    return [one for one in reversed(below) if one in known.SCHEMES.get(output, ())]


def format_of(file: Path) -> Format:
    """The format of a file that something else made, by how its name ends; EdgekitError where it is none of ours."""
    for known in FORMATS.values():
        if file.suffix == known.SUFFIX:
            return known
    suffixes = " or ".join(known.SUFFIX for known in FORMATS.values())
    raise EdgekitError(f"{file}: of no format that edgekit knows; expected a name that ends in {suffixes}")
