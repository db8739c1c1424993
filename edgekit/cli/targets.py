"""The command group `targets`: where a model must run."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.options import complete_target, json_option
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
    from edgekit.cli.tables import table_lines
    from edgekit.cli.terminal import paint, print_json
    from edgekit.target import Target, find_targets, load_target

    readable: list[Target] = []
    broken: dict[str, str] = {}
    entries: list[dict[str, object]] = []
    for name, path in find_targets().items():
        try:
            target = load_target(str(path))
            readable.append(target)
            entries.append({"name": name, "title": target.title, "tasks": sorted(target.export)})
        except EdgekitError as bad:
            broken[name] = bad.message
            entries.append({"name": name, "error": bad.message})
    if as_json:
        print_json({"targets": entries})
        return
    for line in table_lines([(target.name, target.title) for target in readable], wraps=[1]):
        click.echo(line)
    for name, message in broken.items():
        click.echo(paint(f"{name}: {message}", "red"))


@targets.command()
@click.argument("name", shell_complete=complete_target)
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a target's file.

    \b
    Example:
      edgekit targets show raspberrypi
    """
    from edgekit.cli.terminal import print_json
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
    from edgekit.cli.terminal import paint, print_json
    from edgekit.pipeline import check_target
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
    from edgekit.cli.terminal import print_json
    from edgekit.target import copy_target

    path = copy_target(name, new, out=out, force=force)
    if as_json:
        print_json({"target": new, "file": str(path)})
    else:
        click.echo(f"wrote {path}; edit it, then: edgekit targets check {new}; edgekit build --target {new}")


@targets.command()
@click.option("--name", required=True, help="The new target's name; it becomes targets/NAME.toml.")
@click.option(
    "--device",
    "url",
    metavar="URL",
    help="Measure this device instead of this machine: ssh://user@host, adb:, browser:.",
)
@click.option("--p95-ms", type=click.FloatRange(min=0, min_open=True), help="A latency limit for its budget, ms.")
@click.option("--memory-mb", type=click.FloatRange(min=0, min_open=True), help="A memory limit for its budget, MB.")
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("targets"), show_default=True,
              help="The folder that gets the file.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a target that is there.")
@click.option("--busy", is_flag=True, help="Write what a busy machine measured; the file says so.")
@json_option
def probe(
    name: str, url: str | None, p95_ms: float | None, memory_mb: float | None, out: Path, force: bool, busy: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure this machine, or a device, and write it as a target; refused while other programs keep it busy.

    \b
    Examples:
      edgekit targets probe --name my-laptop --p95-ms 20
      edgekit targets probe --name my-pi --device ssh://pi@raspberrypi.local
      edgekit targets probe --name my-phone --device adb:
    """
    from edgekit.cli.terminal import print_json
    from edgekit.devices import device_table
    from edgekit.target import load_target
    from edgekit.target_probe import Limits, probe_target

    limits = Limits(p95_ms=p95_ms, memory_mb=memory_mb)
    table = None if url is None else device_table(url)
    click.echo(f"measuring {url or 'this machine'} (some ten seconds, of an emulated board a minute)", err=True)
    path = probe_target(name, device=table, limits=limits, out=out, force=force, busy=busy)
    emulated = load_target(str(path)).probed.get("emulated") is True
    if as_json:
        print_json({"target": name, "file": str(path), "emulated": emulated})
        return
    click.echo(f"wrote {path}; next: edgekit build --target {name}")
    if emulated:
        click.echo("it is emulated: the file states no speed, and a build there proves accuracy only")
