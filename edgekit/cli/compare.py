"""The command `compare`: which of two bundles is faster on a device, and by how much."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgekit.cli.options import device_option, json_option

if TYPE_CHECKING:
    from edgekit.compare import Compared


@click.command()
@click.argument("a")
@click.argument("b")
@device_option
@click.option("--pairs", type=click.IntRange(min=20), default=400, show_default=True,
              help="How many pairs of turns: more of them find smaller differences.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(min=1), default=64, show_default=True,
              help="The length of the text or, of a decoder, of the prompt.")  # fmt: skip
@click.option("--first-token", is_flag=True, help="Of decoders: time the first token, not each new one.")
@json_option
def compare(a: str, b: str, device: str | None, pairs: int, tokens: int, first_token: bool, as_json: bool) -> None:
    """Let two bundles take turns on one device, and say how much faster B is, with an interval.

    A and B are folders or archives of bundles. Behind a colon follow a runtime and options that are not the bundle's own; a B
    that begins with the colon is A's bundle. A difference is named only where the 95 % interval of the ratio excludes 1.

    \b
    Examples:
      edgekit compare dist/before dist/after
      edgekit compare dist/assistant-raspberrypi:threads=1 :threads=4 --device ssh://pi@raspberrypi.local
      edgekit compare dist/assistant-laptop-cpu :runtime=openvino --json
    """
    from edgekit.cli.options import open_listener
    from edgekit.cli.terminal import print_json
    from edgekit.compare import compare as run
    from edgekit.compare import read_side
    from edgekit.devices import device_table, open_device
    from edgekit.typed_json import to_table

    sides = read_side(a), read_side(b, like=a)
    where = open_device(device_table(device) if device else {"kind": "local"}, "device")
    progress = open_listener().begin("compare", f"A {a}, B {b}")
    try:
        found = run(*sides, where, pairs=pairs, tokens=tokens, first=first_token, progress=progress)
    finally:
        where.close()
    if as_json:
        print_json(to_table(found))
    else:
        show(found)


def show(found: Compared) -> None:
    """Both sides in a table, the result in words, and of what it is."""
    from edgekit.cli.tables import table_lines

    rows = [
        (name, side.name, f"{side.format} {side.scheme}", f"{side.runtime} {side.version}", f"{side.p50_ms:.4g} ms")
        for name, side in (("A", found.a), ("B", found.b))
    ]
    for line in table_lines([("", "bundle", "artifact", "runtime", "median"), *rows], right=(4,)):
        click.echo(line)
    click.echo(f"\n{found.sentence}")
    click.echo(f"{found.what}, {found.pairs} pairs on {found.device} ({found.cpu})")
    for reason in found.disturbed:
        click.echo(f"disturbed: {reason}; the interval is wider for it")
