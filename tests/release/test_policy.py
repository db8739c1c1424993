"""The policy: every planted violation is named by its clause, and no release is left of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import CheckFailed, EdgekitError
from edgekit.release.policy import allows, read_policy
from edgekit.release.signature import Signer, Trusted, key_id, public_key_id
from edgekit.release.verify import find_faults
from edgekit.release.write import ReleaseInputs, gather, release
from tests.release.conftest import Keys, make_bundle

KEPT = """
[licences]
model = ["Apache-2.0"]
data = ["CC0-1.0"]
tools = ["Apache-2.0", "MIT", "BSD-3-Clause", "BSD-2-Clause", "0BSD", "Zlib", "CC0-1.0", "BSL-1.0"]
[evidence]
verdict = "pass"
checks = ["latency p95, ms"]
max_age_days = 30
devices = ["board", "A test CPU"]
emulated = false
[signer]
keys = ["{key}"]
"""


def ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat()


def released(folder: Path, bundle: Path, policy: str, signer: Signer | None, at: str | None) -> Path:
    (folder / "policy.toml").write_text(policy)
    inputs = ReleaseInputs(
        bundle=bundle,
        evidence=gather(bundle, [], at),
        cache=folder,
        signer=signer,
        policy=folder / "policy.toml",
    )
    release(inputs, folder / "out")
    return folder / "out"


def test_a_policy_that_is_kept_lets_a_release_pass(tmp_path: Path, bundle: Path, keys: Keys) -> None:
    text = KEPT.format(key=key_id(keys.signer))
    out = released(tmp_path, bundle, text, keys.signer, ago(2))
    policy, trusted = read_policy(tmp_path / "policy.toml"), Trusted(key=keys.path("key.pub"))
    assert find_faults(out, trusted, policy) == []
    (tmp_path / "policy.toml").write_text(text.replace("max_age_days = 30", "max_age_days = 1"))
    (fault,) = find_faults(out, trusted, read_policy(tmp_path / "policy.toml"))
    assert fault.startswith("policy: evidence.max_age_days: the report of board on A test CPU is 2.0 days old")


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        (('model = ["Apache-2.0"]', 'model = ["MIT"]'), "licences.model: demo-board is under Apache-2.0; allowed: MIT"),
        (("[licences]", '[licences]\nteacher = ["MIT"]'), "licences.teacher: nobody states the licence of org/teacher"),
        (('"CC0-1.0"]\ntools', '"MIT"]\ntools'), "licences.data: data of demo is under CC0-1.0; allowed: MIT"),
        (("Zlib", "ISC"), "licences.tools: numpy is under"),
        (('["latency p95, ms"]', '["energy_j"]'), "evidence.checks: the report of board on A test CPU has nothing for"),
        (
            ("max_age_days = 30", "max_age_days = 1.5"),
            "evidence.max_age_days: the report of board on A test CPU is 2.0",
        ),
        (('"board", ', '"Cortex-A76", '), "evidence.devices: no report is of Cortex-A76"),
        (("emulated = false", "comparable = true"), "evidence.comparable: the times of the report of board"),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_a_broken_clause_is_named(
    tmp_path: Path, bundle: Path, keys: Keys, change: tuple[str, str], clause: str
) -> None:
    text = KEPT.format(key=key_id(keys.signer))
    assert change[0] in text
    with pytest.raises(CheckFailed) as failed:
        released(tmp_path, bundle, text.replace(*change), keys.signer, ago(2))
    assert clause in failed.value.message
    assert " | " not in failed.value.message
    assert not (tmp_path / "out").exists()


def a_verdict_less(table: dict[str, Any]) -> None:
    table["verdict"] = "not proven"


def an_emulator(table: dict[str, Any]) -> None:
    table["emulated"] = True


def a_failed_check(table: dict[str, Any]) -> None:
    table["checks"][1]["verdict"] = "not proven"


@pytest.mark.parametrize(
    ("harm", "clause"),
    [
        (a_verdict_less, "evidence.verdict: the report of board on A test CPU says not proven, at least pass is asked"),
        (an_emulator, "evidence.emulated: an emulator measured the report of board"),
        (a_failed_check, "evidence.checks: the report of board on A test CPU has not proven for latency p95, ms"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_evidence_that_is_not_enough_is_named(
    tmp_path: Path, keys: Keys, harm: Callable[[dict[str, Any]], None], clause: str
) -> None:
    bundle = make_bundle(tmp_path / "made")
    path = bundle.with_name("demo-board.report.json")
    table = json.loads(path.read_text())
    harm(table)
    path.write_text(json.dumps(table))
    with pytest.raises(CheckFailed) as failed:
        released(tmp_path, bundle, KEPT.format(key=key_id(keys.signer)), keys.signer, ago(2))
    assert clause in failed.value.message
    assert " | " not in failed.value.message


@pytest.mark.parametrize(
    ("signer", "at", "clause"),
    [
        ("other.pem", 2.0, "signer.keys: the key"),
        (None, 2.0, "signer.required: nobody signs it"),
        ("key.pem", None, "evidence.max_age_days: nobody knows when the report of board on A test CPU was measured"),
        ("key.pem", -9.0, "evidence.max_age_days: the report of board on A test CPU is from the future"),
    ],
)
def test_who_signs_and_when_it_was_measured_are_asked(
    tmp_path: Path, bundle: Path, keys: Keys, signer: str | None, at: float | None, clause: str
) -> None:
    who = Signer(key=str(keys.path(signer))) if signer else None
    with pytest.raises(CheckFailed) as failed:
        released(tmp_path, bundle, KEPT.format(key=key_id(keys.signer)), who, None if at is None else ago(at))
    assert clause in failed.value.message
    assert " | " not in failed.value.message


def test_a_key_has_one_name(keys: Keys) -> None:
    assert key_id(keys.signer) == public_key_id(keys.path("key.pub")) != public_key_id(keys.path("other.pub"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[licences]\nteachers = []", "teachers: unknown key (did you mean teacher?)"),
        ("[evidence]\nmax_age_days = 0", "max_age_days"),
        ('[evidence]\nverdict = "good"', "verdict"),
        ('[signer]\nkeys = ["abc"]', "signer.keys: 'abc' is not the sha256 of a public key"),
        ("licences = 3", "expected a table"),
    ],
)
def test_a_policy_that_cannot_be_read_is_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(EdgekitError) as failed:
        read_policy(tmp_path / "policy.toml")
    assert said in failed.value.message


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("mit", True),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("(GPL-3.0-only OR MIT) AND Apache-2.0", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("MIT AND (Apache-2.0", False),
        ("MIT GPL-3.0-only", False),
        ("", False),
    ],
)
def test_which_expressions_are_allowed(expression: str, allowed: bool) -> None:
    assert allows(expression, ["MIT", "Apache-2.0"]) == allowed
