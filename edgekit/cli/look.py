"""The commands that look: targets, inspect, doctor, cache."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from edgekit.cli.options import cache_option, complete_check, complete_target, json_option
from edgekit.errors import EdgekitError


@click.group()
def targets() -> None:
    """List, show, check, copy and measure targets: where a model must run."""


@targets.command("list")
@json_option
def list_targets(as_json: bool) -> None:
    """List every target: the packaged ones and those in ./targets.

    \b
    Example:
      edgekit targets list
    """
    from edgekit.cli.show import paint, print_json
    from edgekit.cli.tables import table_lines
    from edgekit.target import find_targets, load_target

    found: list[dict[str, Any]] = []
    for name, path in find_targets().items():
        try:
            target = load_target(str(path))
            found.append({"name": name, "title": target.title, "tasks": sorted(target.export)})
        except EdgekitError as broken:
            found.append({"name": name, "error": broken.message})
    if as_json:
        print_json({"targets": found})
        return
    for line in table_lines([(one["name"], one["title"]) for one in found if "title" in one], wraps=[1]):
        click.echo(line)
    for one in found:
        if "error" in one:
            click.echo(paint(f"{one['name']}: {one['error']}", "red"))


@targets.command()
@click.argument("name", shell_complete=complete_target)
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a target's file.

    \b
    Example:
      edgekit targets show raspberrypi
    """
    from edgekit.cli.show import print_json
    from edgekit.schema import read_text, read_toml
    from edgekit.target import load_target

    path = load_target(name).path
    if as_json:
        print_json({"name": path.stem, "target": read_toml(path)})
    else:
        click.echo(f"# {path}\n{read_text(path)}", nl=False)


@targets.command()
@click.argument("names", nargs=-1, shell_complete=complete_target)
@json_option
def check(names: tuple[str, ...], as_json: bool) -> int:
    """Check target files: all of them, or those named.

    \b
    Example:
      edgekit targets check targets/my-board.toml
    """
    from edgekit.build import check_target
    from edgekit.cli.show import paint, print_json
    from edgekit.target import check_targets, find_targets

    problems = check_targets(names or tuple(find_targets()), check_target)
    code = 1 if any(problems.values()) else 0
    if as_json:
        told = [{"name": name, "problem": problem} for name, problem in problems.items()]
        print_json({"targets": told}, exit_code=code)
    else:
        for name, problem in problems.items():
            click.echo(
                f"{paint('ok', 'green')}       {name}" if problem is None else f"{paint('problem', 'red')}  {problem}"
            )
    return code


@targets.command()
@click.argument("name", shell_complete=complete_target)
@click.argument("new")
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("targets"), show_default=True,
              help="The folder that gets the file.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a target that is there.")
@json_option
def copy(name: str, new: str, out: Path, force: bool, as_json: bool) -> None:
    """Copy target NAME as NEW, to be edited: another scheme, limits, runtime options.

    \b
    Example:
      edgekit targets copy raspberrypi my-pi
    """
    from edgekit.cli.show import print_json
    from edgekit.target import copy_target

    path = copy_target(name, new, out=out, force=force)
    if as_json:
        print_json({"target": new, "file": str(path)})
    else:
        click.echo(f"wrote {path}; edit it, then: edgekit targets check {new}; edgekit build --target {new}")


@targets.command()
@click.option("--name", required=True, help="The new target's name; it becomes targets/NAME.toml.")
@click.option("--p95-ms", type=click.FloatRange(min=0, min_open=True), help="A latency limit for its budget, ms.")
@click.option("--memory-mb", type=click.FloatRange(min=0, min_open=True), help="A memory limit for its budget, MB.")
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("targets"), show_default=True,
              help="The folder that gets the file.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a target that is there.")
@click.option("--busy", is_flag=True, help="Write what a busy machine measured; the file says so.")
@json_option
def probe(
    name: str, p95_ms: float | None, memory_mb: float | None, out: Path, force: bool, busy: bool, as_json: bool
) -> None:
    """Measure this machine and write it as a target; refused while other programs keep it busy.

    \b
    Example:
      edgekit targets probe --name my-laptop --p95-ms 20
    """
    from edgekit.cli.show import print_json
    from edgekit.probed import probe_target

    path = probe_target(name, p95_ms=p95_ms, memory_mb=memory_mb, out=out, force=force, busy=busy)
    if as_json:
        print_json({"target": name, "file": str(path)})
    else:
        click.echo(f"wrote {path}; next: edgekit build --target {name}")


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def inspect(path: Path, as_json: bool) -> None:
    """Say what is in a model, artifact, bundle, calibration, .onnx, .gguf or .safetensors file, whoever made it.

    \b
    Example:
      edgekit inspect dist/assistant-raspberrypi
    """
    from edgekit.cli.described import describe_lines
    from edgekit.cli.show import print_json
    from edgekit.inspect import inspect as look

    found = look(path)
    if as_json:
        print_json(found)
    else:
        for line in describe_lines(found):
            click.echo(line)


@click.command()
@click.argument("check", required=False, shell_complete=complete_check)
@json_option
def explain(check: str | None, as_json: bool) -> None:
    """Say what a CHECK of a report proves and what it does not; without one, list them all.

    \b
    Example:
      edgekit explain accuracy_vs_teacher
    """
    from edgekit.cli.show import print_json
    from edgekit.cli.tables import table_lines
    from edgekit.verify.explain import EXPLANATIONS
    from edgekit.verify.explain import explain as tell

    texts = {check: tell(check)} if check else EXPLANATIONS
    if as_json:
        print_json({"checks": [{"name": name, "text": text} for name, text in texts.items()]})
    elif check:
        click.echo(texts[check])
    else:
        for line in table_lines([(name, text.splitlines()[0]) for name, text in texts.items()], wraps=[1]):
            click.echo(line)


@click.command()
@cache_option
@json_option
def doctor(cache: Path | None, as_json: bool) -> int:
    """Check this machine: versions, known conflicts and their remedy, CPU features, disk.

    \b
    Example:
      edgekit doctor
    """
    import dataclasses

    from edgekit.cli.show import paint, print_json
    from edgekit.cli.tables import table_lines, wrapped
    from edgekit.devices import doctor as examine

    findings = examine(cache)
    code = 1 if any(finding.status == "problem" for finding in findings) else 0
    if as_json:
        print_json({"findings": [dataclasses.asdict(finding) for finding in findings]}, exit_code=code)
    else:
        colours = {"ok": "green", "warning": "yellow", "problem": "red"}
        rows = [(paint(one.status, colours[one.status]), one.name, one.found) for one in findings]
        remedies = [line for one in findings if one.remedy for line in wrapped(f"{one.name}: {one.remedy}", "-> ")]
        for line in [*table_lines(rows), *remedies]:
            click.echo(line)
    return code


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
    from edgekit.cli.show import print_json
    from edgekit.cli.tables import table_lines
    from edgekit.workspace import Workspace

    workspace = Workspace(cache or Path(os.environ.get("EDGEKIT_CACHE", ".edgekit")))
    rows: list[dict[str, Any]] = [
        {
            "step": one.step,
            "folder": str(one.folder),
            "finished": one.finished,
            "bytes": one.bytes,
            "age_days": round((time.time() - one.used) / 86400, 2),
        }
        for one in sorted(kept(workspace), key=lambda one: (one.step, one.folder.name))
    ]
    if as_json:
        print_json({"products": rows})
        return
    cells = [
        (
            row["step"],
            f"{row['bytes'] / 1e6:.1f} MB",
            f"{row['age_days']:.2f} days",
            "" if row["finished"] else "half",
            row["folder"],
        )
        for row in rows
    ]
    for line in table_lines(cells, right=(1, 2)):
        click.echo(line)
    click.echo(f"{len(rows)} products, {sum(row['bytes'] for row in rows) / 1e6:.1f} MB in {workspace.root}")


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
    from edgekit.cli.show import print_json
    from edgekit.cli.tables import table_lines
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


COMMANDS = (targets, inspect, explain, doctor, cache)
