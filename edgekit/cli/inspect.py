"""The command `inspect`: what is in a file or folder, whoever made it."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.options import json_option


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def inspect(path: Path, as_json: bool) -> None:
    """Say what is in a model, artifact, bundle, calibration, .onnx, .ort, .gguf or .safetensors file, whoever made it.

    \b
    Example:
      edgekit inspect dist/assistant-raspberrypi
    """
    from edgekit.cli.described import describe_lines
    from edgekit.cli.terminal import print_json
    from edgekit.inspect import inspect as look

    found = look(path)
    if as_json:
        print_json(found)
    else:
        for line in describe_lines(found):
            click.echo(line)
