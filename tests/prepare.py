"""Fetch and install what tests need of a fresh machine, before they begin: `python -m tests.prepare`.

Tests do the same where it was not done; here the net is waited for while something else computes, not while a test does.
"""

from __future__ import annotations

from functools import partial

import pytest

from edgekit.probes.web.npm import PACKAGES, fetch_packages
from tests.devices.arm_llama import arm_library
from tests.devices.chromium import need_chromium
from tests.devices.electron import need_electron
from tests.devices.emulated import need_board, root_file_system
from tests.devices.kotlin import compiler_folder
from tests.devices.native import ARM, HERE, cached_probe
from tests.devices.old_x86 import qemu
from tests.devices.ort_headers import header_folder
from tests.devices.phone import need_adb
from tests.devices.sshd import need_sshd
from tests.node_packages import node_modules
from tests.release.registry import need_registry


def prepare() -> None:
    """All of it, one after the other; says what cannot be had here, which skips the tests that need it."""
    for needed in (
        need_sshd,
        need_adb,
        need_registry,
        header_folder,
        compiler_folder,
        _browser,
        need_electron,
        node_modules,
        _board,
        partial(cached_probe, HERE),
        partial(cached_probe, ARM),
    ):
        try:
            needed()
        except pytest.skip.Exception as skipped:
            print(skipped)


def _browser() -> None:
    need_chromium()
    fetch_packages([*PACKAGES])


def _board() -> None:
    need_board()
    root_file_system()
    arm_library()
    qemu()


if __name__ == "__main__":
    prepare()
