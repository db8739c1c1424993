"""The command `doctor`: what may be wrong with this machine."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.options import cache_option, json_option


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

    from edgekit.cli.tables import table_lines, wrapped
    from edgekit.cli.terminal import paint, print_json
    from edgekit.doctor import doctor as examine

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
