"""The command `explain`: what a check of a report proves."""

from __future__ import annotations

import click

from edgekit.cli.options import complete_check, json_option


@click.command()
@click.argument("check", required=False, shell_complete=complete_check)
@json_option
def explain(check: str | None, as_json: bool) -> None:
    """Say what a CHECK of a report proves and what it does not; without one, list them all.

    \b
    Example:
      edgekit explain accuracy_vs_teacher
    """
    from edgekit.cli.tables import table_lines
    from edgekit.cli.terminal import print_json
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
