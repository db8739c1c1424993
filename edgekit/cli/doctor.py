"""The command `doctor`: what may be wrong with this machine, or with a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.options import cache_option, complete_target, json_option

if TYPE_CHECKING:
    from edgekit.devices import Device
    from edgekit.doctor import Finding
    from edgekit.runtimes.survey import Survey


@click.command()
@click.option(
    "--device", "url", metavar="URL", help="Check this device instead of this machine: ssh://user@host, adb:, browser:."
)
@click.option(
    "--target", shell_complete=complete_target, help="Also whether the engines compute where this target wants it."
)
@cache_option
@json_option
def doctor(url: str | None, target: str | None, cache: Path | None, as_json: bool) -> int:
    """Check this machine, or a device: versions, known conflicts, CPU, disk, and what hinders a fair measurement; with remedies.

    \b
    Examples:
      edgekit doctor
      edgekit doctor --device ssh://pi@raspberrypi.local
      edgekit doctor --device adb:
      edgekit doctor --target laptop-gpu
    """
    import dataclasses

    from edgekit.cli.tables import table_lines, wrapped
    from edgekit.cli.terminal import paint, print_json

    if url is not None and target is not None:
        raise click.UsageError("--target asks the engines of this machine: it does not go with --device.")
    findings, emulated = _examine_here(cache, target) if url is None else _examine_device(url)
    code = 1 if any(finding.status == "problem" for finding in findings) else 0
    if as_json:
        table = {"findings": [dataclasses.asdict(finding) for finding in findings], "emulated": emulated}
        print_json(table if url is None else {**table, "device": url}, exit_code=code)
    else:
        colours = {"ok": "green", "warning": "yellow", "problem": "red"}
        rows = [(paint(one.status, colours[one.status]), one.name, one.found) for one in findings]
        remedies = [line for one in findings if one.remedy for line in wrapped(f"{one.name}: {one.remedy}", "-> ")]
        for line in [*table_lines(rows), *remedies]:
            click.echo(line)
    return code


def _examine_here(cache: Path | None, target: str | None) -> tuple[list[Finding], bool]:
    """What is wrong here, what hinders a fair measurement, and whether this machine is emulated."""
    from edgekit.doctor import doctor as examine
    from edgekit.hindrances import find_hindrances
    from edgekit.runtimes.survey import look
    from edgekit.target import load_target

    wanted = load_target(target).runtime if target else None
    survey = look(engines=False)
    hindering = [finding for finding in find_hindrances(survey) if finding.status != "ok"]
    return [*examine(cache, wanted), *hindering], bool(survey["emulated"])


def _examine_device(url: str) -> tuple[list[Finding], bool]:
    """The same of a device."""
    from edgekit.devices import AdbDevice, device_table, open_device
    from edgekit.devices.survey import ask_survey
    from edgekit.hindrances import check_engines, find_hindrances
    from edgekit.probes import web

    device = open_device(device_table(url), "device")
    renew: str | None = f"edgekit devices setup {url}"
    try:
        if device.PROBE == web.NAME:
            survey, renew = _survey_browser(device), None
        else:
            survey = ask_survey(device)
        if isinstance(device, AdbDevice):
            renew = device.platform.build_command
    finally:
        device.close()
    return [*check_engines(survey, renew), *find_hindrances(survey)], bool(survey["emulated"])


def _survey_browser(device: Device) -> Survey:
    """What a page says, and the state of this machine, on which its browser runs."""
    from edgekit.probes import web
    from edgekit.runtimes.survey import look

    said, here = web.ask_survey(device, speed=False), look(engines=False)
    page: Survey = {**here, "machine": said["machine"], "system": said["system"], "engines": said["engines"]}
    return {**page, "board": None}
