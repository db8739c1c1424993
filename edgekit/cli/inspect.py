"""The command `inspect`: what is in a file or folder, whoever made it."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.options import json_option


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--grid",
    "student",
    type=click.Path(path_type=Path),
    help="With a .gguf or .onnx: whether it holds the weights of STUDENT.",
)
@json_option
def inspect(path: Path, student: Path | None, as_json: bool) -> None:
    """Say what is in a model, artifact, bundle, calibration, .onnx, .ort, .gguf or .safetensors file, whoever made it.

    \b
    Examples:
      edgekit inspect dist/assistant-raspberrypi
      edgekit inspect dist/chat-laptop/model.gguf --grid work/student
    """
    from edgekit.cli.described import describe_lines
    from edgekit.cli.terminal import print_json
    from edgekit.inspect import inspect as look

    if student is None:
        found = look(path)
    else:
        from edgekit.inspect.on_grid import compare

        found = compare(path, student)
    if as_json:
        print_json(found)
    else:
        for line in describe_lines(found):
            click.echo(line)
