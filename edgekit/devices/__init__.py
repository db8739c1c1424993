"""DEVICES: where an artifact runs, by kind."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.devices.device import Device, Facts, Finished
from edgekit.devices.known import ask_facts, known_facts
from edgekit.devices.local import LocalDevice
from edgekit.devices.ssh import SshDevice, ssh_table
from edgekit.schema import pick

__all__ = [
    "DEVICES",
    "Device",
    "Facts",
    "Finished",
    "LocalDevice",
    "SshDevice",
    "ask_facts",
    "known_facts",
    "open_device",
    "ssh_table",
]

DEVICES: dict[str, type[Device]] = {"local": LocalDevice, "ssh": SshDevice}


def open_device(table: Mapping[str, object], where: str) -> Device:
    """The device of a target's `[device]` table, which is not contacted yet.

    Raises EdgekitError for a kind that DEVICES does not have, and for what the kind refuses of the table.
    """
    return pick(DEVICES, str(table.get("kind", "local")), f"{where}.kind")(table, where)
