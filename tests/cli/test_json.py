"""--json: one object of one documented shape from every command, of successes and of errors; JUnit; pipes that end early."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from jsonschema import Draft202012Validator

import edgekit.cli
from edgekit.cli.junit import write_junit
from edgekit.cli.terminal import JSON_VERSION
from edgekit.errors import CheckFailed, DeviceFailed, EdgekitError
from edgekit.evidence import read_report
from edgekit.pipeline import Built, exit_code
from tests.artifacts import make_artifact, make_report
from tests.cli.test_cli import ALL
from tests.conftest import Answer, child_environment

Command = Callable[..., Answer]
SCHEMA = json.loads((Path(edgekit.cli.__file__).parent / "json_schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)


def read(answer: Answer) -> dict[str, Any]:
    """The object, once it is of the documented shape and says the command's exit code."""
    found = dict(json.loads(answer.out))
    VALIDATOR.validate(found)
    assert (found["json_version"], found["exit_code"]) == (JSON_VERSION, answer.code)
    return found


def test_the_schema_is_one_and_covers_every_command() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    named = {entry["if"]["properties"]["command"]["const"] for entry in SCHEMA["else"]["allOf"] if "if" in entry}
    assert named == {" ".join(path) for path in ALL}


@pytest.mark.parametrize(
    "change",
    [{"command": "bild"}, {"exit_code": 7}, {"json_version": 2}, {"more": 1}, {"folder": 3}, {"folder": None}],
    ids=str,
)
def test_the_schema_refuses_other_shapes(change: Mapping[str, Any]) -> None:
    good = {"json_version": 1, "command": "record", "exit_code": 0, "folder": "work/reference"}
    assert VALIDATOR.is_valid(good)
    assert not VALIDATOR.is_valid({**good, **change})


@pytest.mark.parametrize(
    "arguments",
    [
        ("targets", "list"),
        ("targets", "show", "raspberrypi"),
        ("targets", "check"),
        ("targets", "copy", "raspberrypi", "my-pi"),
        ("cache", "list"),
        ("cache", "prune"),
        ("doctor",),
        ("completion", "zsh"),
        ("explain", "kl"),
        ("inspect", "teacher"),
        ("build", "-t", "raspberrypi", "-t", "laptop-cpu", "--dry-run"),
        ("record", "teacher", "teacher", "-o", "made/reference"),
        ("init", "--teacher", "teacher", "--data", "data", "-o", "new/recipe.toml"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_json_is_one_object_and_else_text(command: Command, project: Path, arguments: tuple[str, ...]) -> None:
    plain = command(*arguments)
    assert plain.code in ({0, 1} if arguments == ("doctor",) else {0}), plain.err
    assert "\x1b" not in plain.out + plain.err
    again = (*arguments, "--json", *(("--force",) if arguments[0] == "init" or arguments[1:2] == ("copy",) else ()))
    answer = command(*again)
    assert answer.code == plain.code
    found = read(answer)
    assert found["command"] == " ".join(arguments[:2] if arguments[0] in {"targets", "cache"} else arguments[:1])
    assert plain.out != answer.out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("targets", "show", "nowhere"), 1),
        (("build",), 2),
        (("build", "-t", "nowhere"), 1),
        (("inspect", "nowhere"), 1),
        (("bild",), 2),
        (("cache", "prune", "--max-size", "much"), 1),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else "",
)
def test_an_error_is_of_the_same_shape(command: Command, arguments: tuple[str, ...], code: int) -> None:
    answer = command(*arguments, "--json")
    assert answer.code == code
    found = read(answer)
    assert found["error"]
    assert found["command"].split(" ")[0] == arguments[0]


@pytest.fixture
def built(tmp_path: Path) -> dict[str, Built]:
    """A bundle of each kind: passed, not proven and not written, failed, device gone."""
    artifact = make_artifact(tmp_path / "artifact")

    def one(verdict: str, **facts: Any) -> Built:
        folder = make_report(tmp_path / verdict.replace(" ", "-"), artifact, verdict)
        return Built(target="board", report=read_report(folder), **facts)

    (tmp_path / "a.tar.gz").write_bytes(b"x")
    return {
        "pass": one("pass", bundle=tmp_path / "a", archive=tmp_path / "a.tar.gz"),
        "not proven": one("not proven", error=CheckFailed("not proven")),
        "fail": one("fail", error=CheckFailed("failed")),
        "device": Built(target="board", error=DeviceFailed("gone")),
        "error": Built(target="board", error=EdgekitError("no")),
    }


def test_a_bundle_says_all_that_a_pipeline_asks(built: Mapping[str, Built]) -> None:
    shape = Draft202012Validator({"$ref": "#/$defs/bundle", "$defs": SCHEMA["$defs"]})
    told = {name: one.summary(strict=True) for name, one in built.items()}
    for one in told.values():
        shape.validate(one)
    assert {name: one["exit_code"] for name, one in told.items()} == {
        "pass": 0, "not proven": 3, "fail": 3, "device": 4, "error": 1,
    }  # fmt: skip
    passed = told["pass"]
    assert len(passed["sha256"]) == len(passed["archive_sha256"]) == 64
    assert passed["bytes"] > 0
    assert passed["p95_ms"] > 0
    assert 0 < passed["accuracy"]["artifact"] <= 1
    assert (told["fail"]["bundle"], told["fail"]["archive"]) == (None, None)


def test_the_worst_bundle_counts(built: Mapping[str, Built]) -> None:
    assert exit_code([built["pass"]], strict=True) == 0
    assert exit_code([built["pass"], built["fail"]], strict=False) == 3
    assert exit_code([built["pass"], built["device"], built["fail"]], strict=False) == 4
    assert exit_code([], strict=True) == 0


@pytest.mark.parametrize("strict", [False, True])
def test_junit(built: Mapping[str, Built], tmp_path: Path, strict: bool) -> None:
    write_junit(list(built.values()), tmp_path / "new" / "checks.xml", strict=strict)
    suites = ElementTree.parse(tmp_path / "new" / "checks.xml").getroot().findall("testsuite")
    assert len(suites) == len(built)
    counts = [
        {key: int(suite.get(key, "-1")) for key in ("tests", "failures", "skipped", "errors")} for suite in suites
    ]
    checks = len(built["pass"].report.checks if built["pass"].report else ())
    assert [one["tests"] for one in counts] == [checks, checks, checks, 1, 1]
    assert counts[0]["failures"] == 0
    assert (counts[1]["failures"] > 0, counts[1]["skipped"] > 0) == (strict, not strict)
    assert counts[2]["failures"] > 0
    assert [one["errors"] for one in counts] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("lines", [0, 1])
@pytest.mark.parametrize("arguments", [("targets", "list"), ("completion", "bash")], ids=" ".join)
def test_a_reader_that_has_enough_is_no_error(arguments: tuple[str, ...], lines: int) -> None:
    """As `edgekit inspect X | head -1` with pipefail, or a pager that is left: before or after a first line."""
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "edgekit", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        for _ in range(lines):
            child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(60) == 0
