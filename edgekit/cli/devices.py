"""The command group `devices`: machines that are reached over SSH."""

from __future__ import annotations

import click

from edgekit.cli.options import json_option


@click.group()
def devices() -> None:
    """Set up and tidy devices that are reached over SSH."""


@devices.command()
@click.argument("url")
@json_option
def setup(url: str, as_json: bool) -> None:
    """Make an environment with onnxruntime and NumPy on the device at URL, from wheels that are fetched here.

    \b
    Example:
      edgekit devices setup ssh://pi@raspberrypi.local
    """
    from edgekit.cli.terminal import print_json
    from edgekit.devices import SshDevice, ssh_table
    from edgekit.devices.setup import set_up

    with SshDevice(ssh_table(url)) as device:
        versions = set_up(device)
        python = device.venv
        sent = device.sent_bytes
    if as_json:
        print_json({"device": url, "environment": python, "versions": versions, "sent_bytes": sent})
    else:
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        click.echo(f"{url}: {named} in {python}; next: edgekit build --target TARGET --device {url}")


@devices.command()
@click.argument("url")
@json_option
def clean(url: str, as_json: bool) -> None:
    """Delete everything that edgekit has on the device at URL: pushed folders and the environment.

    \b
    Example:
      edgekit devices clean ssh://pi@raspberrypi.local
    """
    from edgekit.cli.terminal import print_json
    from edgekit.devices import SshDevice, ssh_table

    with SshDevice(ssh_table(url)) as device:
        freed = device.clean()
    if as_json:
        print_json({"device": url, "bytes": freed})
    else:
        click.echo(f"{url}: removed {freed / 1e6:.1f} MB")
