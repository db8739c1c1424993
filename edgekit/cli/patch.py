"""The command `patch`: what was made by `diff --delta` makes the new bundle of the old one."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.options import json_option


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("delta", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The folder of B to write.")
@json_option
def patch(a: Path, delta: Path, out: Path, as_json: bool) -> None:
    """Make B of A and the delta that `edgekit diff A B --delta DELTA` wrote, every file byte for byte.

    A is a bundle (folder or archive) or a release, the very one that the delta is from. B is written as a new folder, which is
    there once every file of it is as it was; a delta that was cut off, changed, or is of another A leaves nothing.

    \b
    Example:
      edgekit patch dist/before update.delta --out dist/after
    """
    from edgekit.cli.terminal import print_json
    from edgekit.diff.delta import apply_delta
    from edgekit.diff.sides import open_side
    from edgekit.typed_json import to_table

    made = apply_delta(open_side(a), delta, out)
    if as_json:
        print_json(to_table(made))
        return
    click.echo(f"{made.folder}: {made.name}, {made.files} files, {made.same} of them as they were")
