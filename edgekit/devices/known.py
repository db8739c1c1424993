"""What remote devices said of themselves is kept in the user's state: a build in which nothing changed contacts none.

`<state>/devices/<key>.json`: {"device": its identity, "facts": what it said when it was last asked}. A device is asked before
each new measurement, and with --fresh: only then is a change of the machine noticed.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.devices.device import Device, Facts
from edgekit.errors import EdgekitError
from edgekit.schema import dump_json, read_json
from edgekit.state import state_folder
from edgekit.workspace import fingerprint, make_folder, write_atomically


def known_facts(device: Device) -> Facts | None:
    """What a remote device said when it was last asked; None where it never was, and of this machine, which costs nothing to ask.

    What is kept and cannot be read is no answer.
    """
    path = _path(device)
    if not device.REMOTE or not path.is_file():
        return None
    try:
        content = read_json(path)
    except EdgekitError:
        return None
    kept = content.get("facts") if isinstance(content, dict) and content.get("device") == device.identity else None
    return kept if isinstance(kept, dict) else None


def ask_facts(device: Device) -> Facts:
    """What a device says of itself now; kept where it is remote.

    Raises DeviceFailed where it does not answer, EdgekitError where the state folder cannot be written.
    """
    facts = device.facts()
    if device.REMOTE:
        path = _path(device)
        make_folder(path.parent)
        write_atomically(path, dump_json({"device": device.identity, "facts": dict(facts)}))
    return facts


def _path(device: Device) -> Path:
    return state_folder() / "devices" / f"{fingerprint(device.identity)[:32]}.json"
