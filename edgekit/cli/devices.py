"""The command group `devices`: machines that an artifact is measured on, and what must be there for that."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.options import json_option

# The platforms of `edgekit.devices.native`, written out because --help loads none of it; a test compares them.
ARCHES = ("aarch64", "x86_64")
SYSTEMS = ("linux", "android")
# The keys of libllama.VARIANTS, written out because --help loads no table; a test compares them.
VARIANTS = ("armv8-a", "armv8.2-a+dotprod")


@click.group()
def devices() -> None:
    """Set up and tidy devices: boards behind SSH, phones behind adb."""


@devices.command()
@click.argument("url")
@click.option(
    "--gguf", is_flag=True, help="llama.cpp too, compiled there (it needs a C++ compiler) or from --llama-library."
)
@click.option(
    "--llama-library",
    "library",
    type=click.Path(path_type=Path),
    help="FOLDER with libllama.so for the device's CPU, as `devices cross-build` makes it; implies --gguf.",
    metavar="FOLDER",
)
@json_option
def setup(url: str, gguf: bool, library: Path | None, as_json: bool) -> None:
    """Make an environment with onnxruntime and NumPy on the device at URL, from wheels that are fetched here.

    \b
    Examples:
      edgekit devices setup ssh://pi@raspberrypi.local
      edgekit devices setup ssh://pi@raspberrypi.local --llama-library llama-arm
    """
    from edgekit.cli.terminal import print_json
    from edgekit.devices import SshDevice, device_table
    from edgekit.devices.setup import set_up
    from edgekit.errors import EdgekitError

    table = device_table(url)
    if table["kind"] != "ssh":
        raise EdgekitError(f"{url}: no device for an environment of Python: {_INSTEAD[str(table['kind'])]}")
    with SshDevice(table) as device:
        versions = set_up(device, gguf=gguf or library is not None, library=library, progress=_say)
        python = device.venv
        sent = device.sent_bytes
    if as_json:
        print_json({"device": url, "environment": python, "versions": versions, "sent_bytes": sent})
    else:
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        click.echo(f"{url}: {named} in {python}; next: edgekit build --target TARGET --device {url}")


@devices.command("cross-build")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--variant",
    type=click.Choice(VARIANTS),
    default=VARIANTS[0],
    show_default=True,
    help="What it needs: armv8-a runs on every 64-bit ARM; with dotprod it is faster, and does not run on a Raspberry Pi 4.",
)
@json_option
def cross_build(folder: Path, variant: str, as_json: bool) -> None:
    """Compile llama.cpp's library for 64-bit ARM Linux into FOLDER, with Debian's cross compiler: about two minutes.

    \b
    Example:
      edgekit devices cross-build llama-arm
    """
    from edgekit.cli.terminal import print_json
    from edgekit.devices import libllama

    libllama.cross_build(folder, variant=variant, progress=_say)
    if as_json:
        print_json({"folder": str(folder), "variant": variant, "version": libllama.version()})
    else:
        click.echo(f"{folder}: libllama of {libllama.PACKAGE} {libllama.version()} for {libllama.VARIANTS[variant]}")
        click.echo(f"next: edgekit devices setup URL --llama-library {folder}")


# What `setup` does not do, by kind of device.
_INSTEAD = {
    "adb": "build the program that runs there: edgekit devices native --help",
    "browser": "it needs none, its engines are fetched when they are first asked for; go on with: edgekit build",
}


def _say(_done: int, _total: int, note: str) -> None:
    """A line for each thing that takes long."""
    click.echo(note, err=True)


@devices.command()
@click.option(
    "--arch", type=click.Choice(ARCHES), required=True, help="The device's architecture, as `uname -m` says it."
)
@click.option("--system", type=click.Choice(SYSTEMS), default="linux", show_default=True, help="The device's system.")
@click.option(
    "--onnxruntime",
    type=click.Path(path_type=Path),
    help="libonnxruntime.so for the device, its folder, or onnxruntime's .whl or .aar. [default: the wheel of the version here]",
)
@click.option(
    "--llama-library",
    "llama",
    type=click.Path(path_type=Path),
    help="For decoders: FOLDER with libllama.so, as `devices cross-build` makes it. [default, for this machine: its own]",
    metavar="FOLDER",
)
@click.option("--compiler", help="A C++17 compiler for the device. [default: g++, or Debian's ARCH-linux-gnu-g++]")
@json_option
def native(
    arch: str, system: str, onnxruntime: Path | None, llama: Path | None, compiler: str | None, as_json: bool
) -> None:
    """Build the probe for devices without Python: a C++ program beside onnxruntime's library, and llama.cpp's for decoders.

    \b
    Examples:
      edgekit devices native --arch aarch64
      edgekit devices native --arch aarch64 --llama-library llama-arm
    """
    from edgekit.cli.terminal import print_json
    from edgekit.devices.native import PROGRAM, Platform, build_probe

    wanted = Platform(arch=arch, system=system)
    folder = build_probe(wanted, onnxruntime=onnxruntime, llama=llama, compiler=compiler)
    if as_json:
        print_json({"platform": f"{system}-{arch}", "folder": str(folder), "program": PROGRAM})
    else:
        click.echo(f"{folder}: {PROGRAM} for {system}-{arch}")


@devices.command()
@click.argument("url")
@json_option
def clean(url: str, as_json: bool) -> None:
    """Delete everything that edgekit has on the device at URL: pushed folders and the environment.

    \b
    Example:
      edgekit devices clean ssh://pi@raspberrypi.local
      edgekit devices clean adb:
    """
    from edgekit.cli.terminal import print_json
    from edgekit.devices import Keeps, device_table, open_device

    device = open_device(device_table(url), url)
    try:
        freed = device.clean() if isinstance(device, Keeps) else 0
    finally:
        device.close()
    if as_json:
        print_json({"device": url, "bytes": freed})
    else:
        click.echo(f"{device.identity}: removed {freed / 1e6:.1f} MB")
