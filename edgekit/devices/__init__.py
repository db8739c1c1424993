"""DEVICES: where an artifact runs, by kind."""

from __future__ import annotations

from edgekit.devices.device import Device, Finished
from edgekit.devices.local import LocalDevice

__all__ = ["DEVICES", "Device", "Finished", "LocalDevice"]

DEVICES: dict[str, type[Device]] = {"local": LocalDevice}
