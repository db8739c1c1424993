"""The devices: one conformance test for all kinds, and this machine."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from edgekit.devices import DEVICES, LocalDevice
from edgekit.errors import DeviceFailed, EdgekitError


@pytest.mark.parametrize("kind", DEVICES)
def test_device_conforms(kind: str) -> None:
    assert DEVICES[kind].Options().kind == kind
    for name in ("push", "run", "fetch", "describe", "close", "python", "work"):
        assert hasattr(DEVICES[kind], name)


def test_local_device_refuses_unknown_options() -> None:
    with pytest.raises(EdgekitError, match=r"my.toml: device.hots: unknown key"):
        LocalDevice({"kind": "local", "hots": 1}, "my.toml: device")


def test_local_device_pushes_runs_and_fetches(tmp_path: Path) -> None:
    pushed = tmp_path / "a model"
    pushed.mkdir()
    (pushed / "weights").write_text("7", encoding="utf-8")
    script = (
        "import sys, pathlib; o = pathlib.Path('out'); o.mkdir(); (o / 'y').write_text(open(sys.argv[1]).read() * 2)"
    )
    with LocalDevice({"kind": "local"}) as device:
        place = device.push(pushed)
        ended = device.run([device.python, "-c", script, os.path.join(place, "weights")], timeout_s=60)
        assert ended.returncode == 0, ended.stderr
        device.fetch("out", tmp_path / "fetched")
        work = Path(device.work)
        assert work.is_dir()
    assert not work.exists()
    assert (tmp_path / "fetched/y").read_text(encoding="utf-8") == "77"
    assert sorted(path.name for path in pushed.iterdir()) == ["weights"]


def test_local_device_takes_arguments_as_they_are_and_passes_variables() -> None:
    script = "import os, sys; print(sys.argv[1], os.environ['EDGEKIT_X']); sys.stderr.write('\\xff'); sys.exit(7)"
    with LocalDevice({}) as device:
        ended = device.run([device.python, "-c", script, "$HOME; a  b"], timeout_s=60, env={"EDGEKIT_X": "1"})
    assert (ended.returncode, ended.stdout.strip()) == (7, "$HOME; a  b 1")
    assert ended.stderr


def test_local_device_fails_in_one_line(tmp_path: Path) -> None:
    with LocalDevice({}) as device:
        started = time.monotonic()
        with pytest.raises(DeviceFailed, match=r"no end after 0.5 s"):
            device.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.5)
        assert time.monotonic() - started < 30
        with pytest.raises(DeviceFailed, match=r"no-such-program: cannot be started"):
            device.run(["no-such-program"], timeout_s=5)
        with pytest.raises(DeviceFailed, match=r"no such folder"):
            device.push(tmp_path / "none")
        with pytest.raises(DeviceFailed, match=r"no such folder"):
            device.fetch("none", tmp_path / "out")


def test_identity_is_stable() -> None:
    with LocalDevice({}) as device:
        first = device.describe()
        assert first == device.describe()
    assert first["kind"] == "local"
    assert first["arch"]
    assert first["cores"] >= 1
