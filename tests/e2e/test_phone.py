"""A build for a phone, judged by what speaks adb's protocol with Android's shell: the commands of README."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.devices.native import Platform
from edgekit.workspace import file_sha256
from tests.conftest import Answer
from tests.devices.native import HERE, lay_probe
from tests.devices.phone import Phone
from tests.e2e.conftest import SLOWEST

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SLOWEST)]


def test_from_a_bare_phone_to_a_verdict(
    own_adb: None, phone: Phone, project: Path, command: Callable[..., Answer]
) -> None:
    """Without a probe it says what to run; then it judges, keeps the verdict without the phone, and leaves nothing there."""
    build = ("build", "--recipe", project, "--target", "android-midrange", "--device", phone.url, "--json")
    bare = command(*build)
    assert bare.code == 4, bare.err
    assert f"run: edgekit devices native --arch {HERE.arch} --system android" in bare.out
    lay_probe(HERE, Platform(arch=HERE.arch, system="android"))

    done = command(*build)
    assert done.code == 0, done.err
    report = json.loads(done.out)["bundles"][0]["report"]
    said = json.loads(Path(report).read_text(encoding="utf-8")) if isinstance(report, str) else report
    assert (said["device"]["system"], said["device"]["arch"]) == ("Android 14, Pretend 8", HERE.arch)
    assert [entry["verdict"] for entry in said["comparisons"] if entry["verdict"] is not None]
    model = Path(json.loads(done.out)["bundles"][0]["bundle"]) / "model.ort"
    assert said["artifact"]["sha256"] == file_sha256(model), "the phone was given what ships"
    verdicts = {check["name"]: check["verdict"] for check in said["checks"]}
    assert verdicts["memory_mb"] == "not proven", "it is no phone of the target"
    cleaned = command("devices", "clean", phone.url, "--json")
    assert json.loads(cleaned.out)["bytes"] > 10**7
    assert phone.own_files() == []
    phone.unplug()
    assert command(*build).code == 0, "nothing changed, so nothing is asked"
