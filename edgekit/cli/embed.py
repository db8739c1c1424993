"""The command that brings a bundle into an app: `embed`."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.options import PLATFORM_NAMES, json_option


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--for", "platform", type=click.Choice(PLATFORM_NAMES), required=True, help="What the app is written for."
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="The folder that is written. [default: NAME-PLATFORM here]"
)
@json_option
def embed(bundle: Path, platform: str, out: Path | None, as_json: bool) -> None:
    """Put a bundle and the code that uses it into an app's folder, and say how it is used.

    BUNDLE is a bundle's folder or archive, or a release, whose signature then lies beside the bundle for trust.py or trust.mjs.
    The code checks the bundle's files, the runtime's version and its golden answers before its first answer, and needs nothing
    of edgekit. What lies in the folder already is replaced only where this command wrote it and nobody changed it.

    \b
    Examples:
      edgekit embed dist/assistant-raspberrypi --for python
      edgekit embed dist/assistant-raspberrypi.tar.gz --for node --out app/assistant
    """
    from edgekit.bundle.embed import embed as put
    from edgekit.cli.terminal import print_json

    made = put(bundle, platform, out)
    found = made.embedding
    if as_json:
        print_json(
            {
                "folder": str(made.folder),
                "files": list(made.files),
                "install": list(found.install),
                "use": found.use,
                "notes": list(found.notes),
                "ran": found.ran,
            }
        )
        return
    *first, last = dict.fromkeys(name.split("/")[0] + "/" * ("/" in name) for name in made.files)
    click.echo(f"{made.folder}: {', '.join(first)} and {last}")
    for line in (*found.install, "", *found.use.split("\n")):
        click.echo(f"  {line}".rstrip())
    for note in found.notes:
        click.echo(note)
