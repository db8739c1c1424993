"""The command group `cache`: the finished steps, and tidying them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from edgekit.cli.options import cache_option, json_option


@click.group()
def cache() -> None:
    """List and prune finished steps."""


@cache.command("list")
@cache_option
@json_option
def list_cache(cache: Path | None, as_json: bool) -> None:
    """List the finished steps, how long ago they were last used, and their size.

    \b
    Example:
      edgekit cache list
    """
    import time

    from edgekit.cache import kept
    from edgekit.cli.tables import table_lines
    from edgekit.cli.terminal import print_json
    from edgekit.workspace import Workspace

    workspace = Workspace(cache or Path(os.environ.get("EDGEKIT_CACHE", ".edgekit")))
    products = sorted(kept(workspace), key=lambda product: (product.step, product.folder.name))
    ages = [round((time.time() - product.used) / 86400, 2) for product in products]
    if as_json:
        rows = [
            {
                "step": product.step,
                "folder": str(product.folder),
                "finished": product.finished,
                "bytes": product.bytes,
                "age_days": age,
            }
            for product, age in zip(products, ages, strict=True)
        ]
        print_json({"products": rows})
        return
    cells = [
        (
            product.step,
            f"{product.bytes / 1e6:.1f} MB",
            f"{age:.2f} days",
            "" if product.finished else "half",
            str(product.folder),
        )
        for product, age in zip(products, ages, strict=True)
    ]
    for line in table_lines(cells, right=(1, 2)):
        click.echo(line)
    click.echo(
        f"{len(products)} products, {sum(product.bytes for product in products) / 1e6:.1f} MB in {workspace.root}"
    )


@cache.command()
@click.option("--older-than", "days", type=click.FloatRange(min=0), default=0.0,
              help="Only what no build made or used for so many days.")  # fmt: skip
@click.option(
    "--max-size", "size", metavar="SIZE", help="Only as much, the longest unused first, as leaves SIZE (2GB)."
)
@click.option("--dry-run", is_flag=True, help="Say what would go; delete nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask first, as is done on a terminal.")
@cache_option
@json_option
def prune(days: float, size: str | None, dry_run: bool, yes: bool, cache: Path | None, as_json: bool) -> None:
    """Delete finished and half-finished steps; the next build makes them again. Nothing else in the folder is touched.

    \b
    Examples:
      edgekit cache prune --older-than 30
      edgekit cache prune --max-size 2GB --dry-run
    """
    from edgekit import cache as tidy
    from edgekit.cli.tables import table_lines
    from edgekit.cli.terminal import print_json
    from edgekit.workspace import Workspace

    workspace = Workspace(cache or Path(os.environ.get("EDGEKIT_CACHE", ".edgekit")))
    most = tidy.read_size(size) if size is not None else None
    chosen = tidy.choose(tidy.kept(workspace), older_than_days=days, most_bytes=most)
    asks = bool(chosen) and not (dry_run or yes or as_json) and is_terminal()
    if asks or (dry_run and not as_json):
        for line in table_lines(
            [(one.step, f"{one.bytes / 1e6:.1f} MB", str(one.folder)) for one in chosen], right=[1]
        ):
            click.echo(line)
    if asks:
        click.confirm(f"Delete these {len(chosen)} folders?", abort=True)
    gone = chosen if dry_run else tidy.prune(workspace, chosen)
    freed = sum(one.bytes for one in gone)
    if as_json:
        folders = [str(one.folder) for one in gone]
        print_json({"removed": [] if dry_run else folders, "would_remove": folders if dry_run else [], "bytes": freed})
    else:
        click.echo(f"{'would remove' if dry_run else 'removed'} {len(gone)} folders, {freed / 1e6:.1f} MB")


def is_terminal() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty()
