"""DEVICES: where an artifact runs, by kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgekit.devices.adb import AdbDevice, adb_table
from edgekit.devices.browser import BrowserDevice, browser_table
from edgekit.devices.device import Device, Facts, Feels, Finished, Keeps
from edgekit.devices.known import ask_facts, known_facts
from edgekit.devices.local import LocalDevice
from edgekit.devices.ssh import SshDevice, ssh_table
from edgekit.errors import EdgekitError
from edgekit.schema import pick

__all__ = [
    "DEVICES",
    "AdbDevice",
    "BrowserDevice",
    "Device",
    "Facts",
    "Feels",
    "Finished",
    "Keeps",
    "LocalDevice",
    "SshDevice",
    "ask_facts",
    "device_table",
    "known_facts",
    "open_device",
    "ssh_table",
]

DEVICES: dict[str, type[Device]] = {"local": LocalDevice, "ssh": SshDevice, "adb": AdbDevice, "browser": BrowserDevice}
# How a device's address begins, for --device -> what makes a `[device]` table of the address.
ADDRESSES: dict[str, Callable[[str], dict[str, object]]] = {
    "ssh": ssh_table,
    "adb": adb_table,
    "browser": browser_table,
}


def open_device(table: Mapping[str, object], where: str) -> Device:
    """The device of a target's `[device]` table, which is not contacted yet.

    Raises EdgekitError for a kind that DEVICES does not have, and for what the kind refuses of the table.
    """
    return pick(DEVICES, str(table.get("kind", "local")), f"{where}.kind")(table, where)


def device_table(address: str) -> dict[str, object]:
    """The `[device]` table of a device's address, as --device takes it: ssh://user@host, adb:SERIAL.

    Raises EdgekitError for what is no address of a device.
    """
    kind = address.partition(":")[0]
    if ":" not in address or kind not in ADDRESSES:
        raise EdgekitError(
            f"{address}: not a device's address; it begins with {' or '.join(f'{name}:' for name in ADDRESSES)}"
        )
    return ADDRESSES[kind](address)
