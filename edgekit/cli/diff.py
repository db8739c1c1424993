"""The command `diff`: what changed from one bundle to the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.options import json_option
from edgekit.errors import CheckFailed

if TYPE_CHECKING:
    from edgekit.diff import Difference
    from edgekit.diff.asked import Asked, Right
    from edgekit.diff.delta import Written
    from edgekit.diff.identity import Setting, Told
    from edgekit.diff.measured import Measured
    from edgekit.diff.tensors import Weights
    from edgekit.diff.verified import Verified
    from edgekit.diff.vocabulary import TokenizerChange

# Tensors, settings and files that are worth a line; --json has all.
MOST = 8


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--prompts", type=click.Path(path_type=Path),
              help="A file of labelled texts that both are asked. [default: the golden texts of both]")  # fmt: skip
@click.option("--delta", type=click.Path(path_type=Path, dir_okay=False),
              help="Also write what makes B of A, where that is smaller than B's archive.")  # fmt: skip
@click.option("--ask/--no-ask", "asks", default=True, help="Whether both are asked anything.")
@json_option
def diff(a: Path, b: Path, prompts: Path | None, delta: Path | None, asks: bool, as_json: bool) -> int:
    """Say what changed from A to B, and whether an app that uses A can use B as it is.

    A and B are bundles (folders or archives), releases, or model files alone (.onnx, .ort, .gguf). Told are weights by tensor,
    labels, thresholds and other settings, the tokenizer, answers, accuracy (paired, on the verify prompts of both, or on
    --prompts), size and speed (of the reports beside them). The exit code is 3 where B is not compatible with A.

    \b
    Examples:
      edgekit diff dist/before dist/after
      edgekit diff old.release new.release --prompts test.csv --json
      edgekit diff dist/before dist/after --delta update.delta
    """
    from edgekit.cli.terminal import print_json
    from edgekit.diff import diff as compare
    from edgekit.diff.delta import refuse, write_delta
    from edgekit.diff.sides import open_side
    from edgekit.typed_json import to_table

    sides = open_side(a), open_side(b)
    if delta is not None:
        refuse(*sides, delta)
    found = compare(*sides, prompts, asks=asks)
    written = write_delta(*sides, delta) if delta is not None else None
    code = CheckFailed.exit_code if found.compatible is False else 0
    if as_json:
        print_json({**to_table(found), "delta": to_table(written) if written else None}, exit_code=code)
        return code
    for line in (*lines(found), *(["", _delta(written)] if written else [])):
        click.echo(line)
    return code


def lines(found: Difference) -> Iterator[str]:
    """A difference as lines for people."""
    from edgekit.cli.tables import table_lines
    from edgekit.diff.identity import label_words

    yield from table_lines([_told("A", found.a), _told("B", found.b)], right=(4, 5))
    yield ""
    if found.same:
        yield "they are the same, byte for byte"
        return
    if found.compatible is not None:
        good = "B is compatible with A: an app that uses A can use B as it is"
        yield good if found.compatible else "B is not compatible with A:"
    yield from (f"  {reason}" for reason in found.reasons)
    yield from (f"note: {note}" for note in found.notes)
    rows = [("weights", line) for line in _weights(found.weights, same=found.a.sha256 == found.b.sha256)]
    if found.labels is not None:
        rows.append(("labels", label_words(found.labels)))
    rows += [("settings", line) for line in _settings(found.settings)]
    if found.tokenizer is not None:
        rows.append(("tokenizer", _tokenizer(found.tokenizer)))
    if found.asked is not None:
        rows += [("answers", line) for line in _asked(found.asked)]
    rows.append(("size", _size(found)))
    if found.verified is not None:
        rows += [("verified", line) for line in _verified(found.verified)]
    if found.measured is not None:
        rows += [("measured", line) for line in _measured(found.measured)]
    shown = [(name if not index or rows[index - 1][0] != name else "", text) for index, (name, text) in enumerate(rows)]
    yield from table_lines(shown, wraps=(1,))
    if found.weights is not None and found.weights.tensors:
        yield ""
        yield from table_lines([*_tensors(found.weights)], right=(3, 4, 5))


def _told(name: str, told: Told) -> tuple[str, ...]:
    from edgekit.report.figures import MISSING, human_bytes

    version = told.version or (str(told.digest)[:12] if told.digest else told.sha256[:12])
    scheme = f"{told.format} {told.scheme or ''}".strip()
    return (name, told.path, f"{told.name} {version}", told.task or MISSING, scheme, human_bytes(told.bytes))


def _weights(weights: Weights | None, *, same: bool) -> Iterator[str]:
    if same:
        yield "the same file"
    elif weights is not None:
        parts = {
            "changed": weights.changed,
            "added": weights.added,
            "removed": weights.removed,
            "the same": weights.same,
        }
        yield ", ".join(f"{count} {word}" for word, count in parts.items() if count) + " (tensors)"


def _tensors(weights: Weights) -> Iterator[tuple[str, ...]]:
    from edgekit.report.figures import number, share

    yield ("tensor", "change", "held as", "largest", "mean", "relative")
    for one in weights.tensors[:MOST]:
        held = one.b if one.a == one.b or one.a is None else one.a if one.b is None else f"{one.b}, was {one.a}"
        relative = "-" if one.relative is None else share(one.relative)
        yield (one.name, one.change, str(held), number(one.largest, 3), number(one.mean, 3), relative)
    if len(weights.tensors) > MOST:
        yield (f"and {len(weights.tensors) - MOST} more", "", "", "", "", "")


def _settings(settings: Sequence[Setting]) -> Iterator[str]:
    for one in settings[:MOST]:
        yield f"{one.key.removeprefix('settings.')}: {_value(one.b)}, was {_value(one.a)}"
    if len(settings) > MOST:
        yield f"and {len(settings) - MOST} more"


def _value(value: object) -> str:
    from edgekit.report.figures import number

    text = "none" if value is None else number(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _tokenizer(change: TokenizerChange) -> str:
    if change.same:
        return "the same"
    parts = {"added": change.added, "removed": change.removed, "with another id": change.moved}
    tokens = (
        ", ".join(f"{count} tokens {word}" for word, count in parts.items() if count) or "the same tokens, other rules"
    )
    if change.texts is None:
        return tokens
    examples = "".join(f"; such as {text!r}" for text in change.examples[:1])
    return f"{tokens}; {change.otherwise} of {change.texts} texts read otherwise{examples}"


def _asked(asked: Asked) -> Iterator[str]:
    from edgekit.report.figures import share

    if not asked.texts:
        yield f"{asked.of}: none has an answer of both that could be compared"
        return
    low, high = (share(end or 0.0) for end in asked.interval)
    yield f"{asked.changed} of {asked.texts} {asked.of} answered otherwise [{low}, {high}]"
    for example in asked.examples[:3]:
        yield f"  {example.text!r}: {example.b}, was {example.a}"
    if asked.cosine is not None:
        yield f"embeddings alike by {asked.cosine[0]:.4f} (cosine, mean), {asked.cosine[1]:.4f} (least)"
    if asked.right is not None:
        yield _right(asked.right)


def _right(right: Right) -> str:
    from edgekit.report.figures import percent

    ends = ", ".join(f"{100 * (end or 0.0):+.2f}" for end in right.interval)
    return (
        f"accuracy {percent(right.b)}, was {percent(right.a)}: {100 * right.difference:+.2f} points [{ends}] on"
        f" {right.prompts} prompts, {right.lost} lost and {right.gained} gained"
    )


def _verified(verified: Verified) -> Iterator[str]:
    from edgekit.report.figures import MISSING

    if verified.right is not None:
        yield _right(verified.right)
    if verified.changed is not None:
        yield f"{verified.changed} of {verified.prompts} verify prompts answered otherwise"
    if (nats := verified.nats) is not None:
        ends = ", ".join(MISSING if end is None else f"{end:+.4f}" for end in nats.interval)
        yield (
            f"{nats.b:.4f} nats a token, was {nats.a:.4f}: {nats.difference:+.4f} [{ends}] on {verified.prompts} prompts,"
            " less is better"
        )
    yield from (f"not paired: {why}" for why in verified.why_not)


def _size(found: Difference) -> str:
    from edgekit.report.figures import human_bytes

    more = found.b.bytes - found.a.bytes
    sign = "+" if more >= 0 else "-"
    names = [change.name for change in found.files]
    files = f"; other files: {', '.join(names[:MOST])}{', ...' if len(names) > MOST else ''}" if names else ""
    return f"{human_bytes(found.b.bytes)}, was {human_bytes(found.a.bytes)} ({sign}{human_bytes(abs(more))}){files}"


def _delta(written: Written) -> str:
    from edgekit.report.figures import human_bytes

    sizes = f"{human_bytes(written.bytes)}, and B's archive {human_bytes(written.archive_bytes)}"
    if written.path is None:
        return f"no delta: it would take {sizes}"
    return f"{written.path}: {sizes}; edgekit patch makes B of it and A"


def _measured(measured: Measured) -> Iterator[str]:
    from edgekit.report.figures import number, percent

    a, b = measured.a, measured.b
    if a.accuracy is not None and b.accuracy is not None:
        old = f"{percent(a.accuracy)} on {a.prompts}"
        yield f"accuracy {percent(b.accuracy)} on {b.prompts} prompts, was {old}, each by its own report"
    times = f"p50 {number(b.p50_ms, 3)} ms on {b.device}, was {number(a.p50_ms, 3)} ms on {a.device}"
    if measured.ratio is None or measured.interval is None:
        yield f"{times}; not held against each other: {'; '.join(measured.why_not)}"
    else:
        ends = ", ".join(f"{end or 0:.3f}" for end in measured.interval)
        yield f"{times}: {measured.ratio:.3f} times A's [{ends}]; edgekit compare finds smaller differences"
