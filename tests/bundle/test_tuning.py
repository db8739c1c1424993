"""The best setting beside a bundle: `edgekit run` takes it where it is of this model and this machine, a loader where it is given."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle.loaders import LOADERS
from edgekit.bundle.open import load_bundle, open_bundle
from edgekit.bundle.package import Packaged
from edgekit.errors import EdgekitError
from edgekit.runtimes import machine
from tests.bundle.test_bundle import pack
from tests.conftest import Answer


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packaged:
    folder = tmp_path_factory.mktemp("tuned")
    return pack(folder / "made", folder / "out")


def lay(packed: Packaged, **changes: Any) -> Path:
    """A setting of three threads, of the bundle's artifact on this machine, beside the bundle."""
    best = {"threads": 3, "cpus": None, "p50": 1.0}
    found = {"artifact": open_bundle(packed.bundle).manifest.artifact.sha256, "cpu": machine.describe()["cpu"]}
    found |= {
        "runtime": "onnxruntime",
        "version": "1",
        "device": "local",
        "sequence": 64,
        "best": best,
        "tried": [best],
    }
    file = packed.bundle.with_name(f"{packed.bundle.name}.tuning.json")
    file.write_text(json.dumps(found | changes))
    return file


def threads(bundle: Any) -> int:
    found: int = bundle.session.get_session_options().intra_op_num_threads
    return found


def test_it_is_used_by_folder_and_archive_where_it_is_of_this_model_and_machine(
    packed: Packaged, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_bundle(packed.bundle)
    lay(packed)
    for path in (packed.bundle, packed.archive):
        caplog.clear()
        assert threads(load_bundle(opened, path, tuned=True)) == 3
        assert caplog.messages == ["demo-board.tuning.json: 3 threads; --no-tuning leaves it aside"]
    assert threads(load_bundle(opened, packed.bundle, tuned=True, threads=2)) == 2
    assert threads(load_bundle(opened, packed.bundle)) == 1
    for changes, says in (
        ({"artifact": "0" * 64}, "with another artifact"),
        ({"cpu": "Cortex-A76"}, "on Cortex-A76, and"),
    ):
        caplog.clear()
        lay(packed, **changes)
        assert threads(load_bundle(opened, packed.bundle, tuned=True)) == 1
        assert says in caplog.text
    lay(packed).write_text("{}")
    with pytest.raises(EdgekitError, match="leave it aside with --no-tuning"):
        load_bundle(opened, packed.bundle, tuned=True)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system gives no process its cores")
def test_its_cores_are_given_to_the_process(packed: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cpus: given.append(cpus))
    lay(packed, best={"threads": 2, "cpus": [4, 5], "p50": 1.0})
    assert threads(load_bundle(open_bundle(packed.bundle), packed.bundle, tuned=True)) == 2
    assert given == [(4, 5)]


def test_run_says_what_it_took(
    packed: Packaged, command: Callable[..., Answer], caplog: pytest.LogCaptureFixture
) -> None:
    lay(packed)
    for options, said in (((), 1), (("--no-tuning",), 0), (("--threads", "2"), 0)):
        caplog.clear()
        done = command("run", packed.bundle, "turn on the light", *options)
        assert done.code == 0, done.err
        assert done.out.startswith("light_on")
        assert caplog.text.count("demo-board.tuning.json: 3 threads") == said


def test_a_loader_takes_the_file_and_leaves_another_models(packed: Packaged) -> None:
    spec = importlib.util.spec_from_file_location("load", packed.bundle / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert threads(module.Bundle(packed.bundle, threads=lay(packed))) == 3
    assert threads(module.Bundle(packed.bundle, threads=lay(packed, artifact="0" * 64))) == 1
    # The other loaders need their engines; what they read is the same.
    assert all(
        'CHECK["tuned"](self.manifest, threads)' in loader.path.read_text("utf-8") for loader in LOADERS.values()
    )
