"""Release: what is in it, by foreign tools where there are some; the same bytes; no secret; nothing half-written."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from edgekit.errors import EdgekitError
from edgekit.evidence import read_report
from edgekit.history import append, entry_of
from edgekit.release import contents
from edgekit.release.contents import (
    BOM,
    CARD,
    NOTICE,
    PROVENANCE,
    QUANTIZATION,
    RELEASE,
    SIGNATURE,
    names_in,
    read_release,
)
from edgekit.release.licences import UNKNOWN, obligation
from edgekit.release.scan import SECRETS, scan
from edgekit.release.signature import KEY_VARIABLE, PASSWORD_VARIABLE, Signer, Trusted
from edgekit.release.verify import find_faults
from edgekit.release.write import ReleaseInputs, gather, release
from edgekit.workspace import file_sha256
from tests.bundle.test_bundle import die_before_change
from tests.release.conftest import Keys, make_bundle, make_release


def contents_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names_in(folder) if name != SIGNATURE}


def test_a_release_holds_the_bundle_as_it_is_and_all_that_is_said_of_it(signed: Path, bundle: Path) -> None:
    beside = {RELEASE, SIGNATURE, BOM, QUANTIZATION, PROVENANCE, NOTICE, CARD, "evidence/report-1.json"}
    beside.add("evidence/measurement-1.intoto.json")
    inside = {f"bundle/{path.name}" for path in bundle.iterdir()}
    assert set(names_in(signed)) == beside | inside
    assert all((signed / name).read_bytes() == (bundle / Path(name).name).read_bytes() for name in inside)
    listed = read_release(signed)
    assert listed.files.keys() == beside - {RELEASE, SIGNATURE} | inside
    assert (listed.name, listed.target, listed.verdict) == ("demo-board", "board", "pass")


def test_model_signing_itself_verifies_it_unchanged(signed: Path, keys: Keys) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", signed, "--signature", signed / SIGNATURE]
    done = subprocess.run(
        [*command, "--public_key", keys.path("key.pub")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    onnx.checker.check_model(str(signed / "bundle" / "model.onnx"))


def test_the_bill_is_cyclonedx_and_says_what_was_measured(signed: Path) -> None:
    text = (signed / BOM).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(text) is None
    bill = json.loads(text)
    model = bill["components"][0]
    report = json.loads((signed / "evidence/report-1.json").read_text())
    assert model["type"] == "machine-learning-model"
    assert model["hashes"][0]["content"] == file_sha256(signed / "bundle" / "model.onnx")
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    accuracy, latency = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert accuracy["value"] == "0.002"
    assert accuracy["confidenceInterval"] == {"lowerBound": "-0.003", "upperBound": "0.007"}
    assert latency["value"] == str(report["checks"][1]["measured"])
    assert latency["slice"] == "board on A test CPU, onnxruntime 1.31.1: pass"
    references = {one["url"]: one["hashes"][0]["content"] for one in model["externalReferences"]}
    assert references == {name: file_sha256(signed / name) for name in references}
    assert QUANTIZATION in references
    kinds = {one["bom-ref"]: one["type"] for one in bill["components"]}
    assert (kinds["teacher"], kinds["data"], kinds["tool/onnxruntime"]) == ("machine-learning-model", "data", "library")


# The public scorer's own list: OWASP AIBOM Generator, docs/AI_SBOM_Fields_Mapping_Reference.md: category, its points, and the
# fields with what their tier weighs (critical 3, important 2, supplementary 1).
REQUIRED = ("bomFormat", "specVersion", "serialNumber", "version")
METADATA = {"primaryPurpose": 3, "suppliedBy": 3, "standardCompliance": 1, "domain": 1, "autonomyType": 1}
BASIC = {"name": 3, "type": 2, "purl": 2, "description": 2, "licenses": 2}
MODEL_CARD = {"energyConsumption": 2, "hyperparameter": 2, "limitation": 2, "safetyRiskAssessment": 2, "typeOfModel": 2}
MODEL_CARD |= dict.fromkeys(
    ("modelExplainability", "energyQuantity", "energyUnit", "informationAboutTraining", "informationAboutApplication"),
    1,
)
MODEL_CARD |= dict.fromkeys(
    ("metric", "metricDecisionThreshold", "modelDataPreprocessing", "useSensitivePersonalInformation"), 1
)


def score(bill: dict[str, object]) -> float:
    """Points of 100 by that list. Its place for `limitation` is in no version of CycloneDX's schema: technicalLimitations is."""

    def named(table: dict[str, object]) -> set[str]:
        return {one["name"] for one in table.get("properties", ()) if one["value"]}

    model = bill["components"][0]
    about, card = named(bill["metadata"]), named(model["modelCard"])
    card |= about & {"typeOfModel"}
    card |= {"limitation"} if model["modelCard"]["considerations"]["technicalLimitations"] else set()
    parts = [
        (20, dict.fromkeys(REQUIRED, 3), {key for key in REQUIRED if bill.get(key)}),
        (20, METADATA, about),
        (20, BASIC, {key for key in BASIC if model.get(key)}),
        (30, MODEL_CARD, card),
        (10, {"distribution": 3}, {one["type"] for one in bill.get("externalReferences", ())}),
    ]
    return sum(
        points * sum(weight for key, weight in fields.items() if key in there) / sum(fields.values())
        for points, fields, there in parts
    )


def test_a_public_scorer_of_bills_gives_nine_tenths_of_its_points(signed: Path) -> None:
    bill = json.loads((signed / BOM).read_text())
    assert 90 <= score(bill) < 100, score(bill)
    bill["components"][0].pop("licenses")
    bill.pop("externalReferences")
    assert score(bill) < 90


def test_every_tensor_is_on_record(signed: Path) -> None:
    kept = json.loads((signed / QUANTIZATION).read_text())
    stored = {one.name: one for one in onnx.load(signed / "bundle" / "model.onnx").graph.initializer}
    assert [one["name"] for one in kept["tensors"]] == list(stored)
    table = next(one for one in kept["tensors"] if one["name"] == "table")
    assert (table["type"], table["shape"], table["bytes"]) == ("float32", [13, 3], 13 * 3 * 4)
    assert kept["artifact"] == file_sha256(signed / "bundle" / "model.onnx")


def test_statements_are_about_the_files_that_are_there(signed: Path) -> None:
    for name, kind in (
        (PROVENANCE, "https://slsa.dev/provenance/v1"),
        (contents.measurement_name(1), "https://edgekit.dev/measurement/v1"),
    ):
        statement = json.loads((signed / name).read_text())
        assert (statement["_type"], statement["predicateType"]) == ("https://in-toto.io/Statement/v1", kind)
        for subject in statement["subject"]:
            assert subject["digest"]["sha256"] == file_sha256(signed / subject["name"])
    measured = statement["predicate"]
    assert measured["device"]["cpu"] == "A test CPU"
    assert measured["report"]["sha256"] == file_sha256(signed / contents.report_name(1))
    assert measured["verdict"] == "pass"


def test_the_notice_says_what_each_licence_asks(signed: Path) -> None:
    text = (signed / NOTICE).read_text()
    assert "org/teacher\n  licence: not stated\n  it asks: no licence is stated" in text
    assert "data of demo\n  licence: CC0-1.0\n  it asks: asks nothing" in text
    assert "onnxruntime 1." in text
    assert "MIT\n  it asks: pass on the copyright line" in text


@pytest.mark.parametrize(
    ("licence", "asks"),
    [
        ("Apache-2.0", "say what was changed"),
        ("CC-BY-SA-4.0", "under the same licence"),
        ("CC-BY-4.0", "name the authors"),
        ("llama3.2", "Built with Llama"),
        ("GPL-3.0-only", "source"),
        ("MIT AND BSD-3-Clause", "copyright line"),
        ("own-terms", UNKNOWN),
    ],
)
def test_what_a_licence_asks(licence: str, asks: str) -> None:
    assert asks in obligation(licence)


def test_two_releases_are_the_same_bytes_but_for_the_signature(
    tmp_path: Path, signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another folder, year, time zone, locale, umask and number of threads; the bundle is made again, too."""
    for name, value in {"TZ": "Asia/Kolkata", "LC_ALL": "tr_TR.UTF-8", "OMP_NUM_THREADS": "2"}.items():
        monkeypatch.setenv(name, value)
    now = time.time() + 4e7
    monkeypatch.setattr(time, "time", lambda: now)
    before = os.umask(0o077)
    try:
        time.tzset()
        out = tmp_path / "other place" / "demo.release"
        make_release(make_bundle(tmp_path / "made again"), out, keys)
    finally:
        os.umask(before)
        monkeypatch.undo()
        time.tzset()
    assert contents_of(out) == contents_of(signed)
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()} == {0o644}


def test_a_release_has_a_date_where_it_is_given_one(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    make_release(bundle, tmp_path / "dated", None)
    assert json.loads((tmp_path / "dated" / BOM).read_text())["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "today")
    with pytest.raises(EdgekitError, match="SOURCE_DATE_EPOCH=today: seconds since 1970"):
        make_release(bundle, tmp_path / "undated", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dated"]


def test_a_report_of_another_model_is_refused(tmp_path: Path, bundle: Path) -> None:
    other = make_bundle(tmp_path / "other", scale=2.0)
    with pytest.raises(EdgekitError, match="this report is of another model"):
        gather(bundle, [other.with_name("demo-board.report.json")])
    with pytest.raises(EdgekitError, match="no such report"):
        gather(bundle, [tmp_path / "nothing.json"])


def test_the_history_tells_when_a_report_was_measured(bundle: Path, tmp_path: Path) -> None:
    assert [one.at for one in gather(bundle, [])] == [None]
    report = read_report(bundle.with_name("demo-board.report.json"))
    entry = entry_of(report, recipe="demo", tools={}, identity="this", prompts="those")
    append(entry)
    append(replace(entry, at="2020-01-01T00:00:00+00:00", p50_ms=(9.0,)))
    assert [one.at for one in gather(bundle, [])] == [entry.at]
    assert [one.at for one in gather(bundle, [], "2026-01-31")] == ["2026-01-31"]


# --- signatures


def signed_by(bundle: Path, out: Path, signer: Signer) -> Path:
    release(ReleaseInputs(bundle=bundle, evidence=gather(bundle, []), cache=out.parent, signer=signer), out)
    return out


def test_a_certificate_signs(tmp_path: Path, bundle: Path, keys: Keys) -> None:
    signer = Signer(key=str(keys.path("leaf.pem")), certificate=keys.path("leaf.crt"), chain=(keys.path("root.crt"),))
    out = signed_by(bundle, tmp_path / "out", signer)
    assert find_faults(out, Trusted(certificates=(keys.path("root.crt"),))) == []
    (fault,) = find_faults(out, Trusted(key=keys.path("key.pub")))
    assert "signed by no plain key" in fault
    (fault,) = find_faults(out, Trusted(certificates=(keys.path("leaf.crt"),)))
    assert fault.startswith("model.sig: does not hold")


def test_a_key_may_come_from_the_environment_and_have_a_password(
    tmp_path: Path, bundle: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, keys.path("locked.pem").read_text())
    with pytest.raises(EdgekitError, match=rf"\${KEY_VARIABLE}: cannot sign") as failed:
        signed_by(bundle, tmp_path / "out", Signer(key="env"))
    assert "PRIVATE" not in failed.value.message
    monkeypatch.setenv(PASSWORD_VARIABLE, "a password")
    out = signed_by(bundle, tmp_path / "out", Signer(key="env"))
    assert find_faults(out, Trusted(key=keys.path("key.pub"))) == []
    monkeypatch.setenv(KEY_VARIABLE, "")
    with pytest.raises(EdgekitError, match="is empty"):
        signed_by(bundle, tmp_path / "empty", Signer(key="env"))


@pytest.mark.parametrize("name", ["key.pub", "nothing.pem"])
def test_what_is_no_key_signs_nothing(tmp_path: Path, bundle: Path, keys: Keys, name: str) -> None:
    with pytest.raises(EdgekitError, match=name):
        signed_by(bundle, tmp_path / "out", Signer(key=str(keys.path(name))))
    assert not list(tmp_path.iterdir())


def test_without_a_network_nobody_signs_without_a_key(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loopback's port 9 answers nobody."""
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with pytest.raises(EdgekitError, match="keyless signing needs the network and an identity"):
        signed_by(bundle, tmp_path / "out", Signer(key="keyless"))


# --- secrets


def test_no_key_token_or_path_is_in_any_file(signed: Path, keys: Keys, tmp_path: Path) -> None:
    own = [keys.path("key.pem").read_bytes(), str(keys.folder).encode(), str(signed.parent).encode(), b"/home/"]
    own += [str(Path.home()).encode() + b"/", os.fsencode(sys.prefix), b"pytest-of"]
    for name in names_in(signed):
        content = (signed / name).read_bytes()
        assert not [one for one in own if one in content], name
        assert not list(scan(signed / name, SECRETS)), name


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("-----BEGIN EC PRIVATE KEY-----", "a private key"),
        ("hf_" + "a1B2" * 9, "a token of Hugging Face"),
        ("ghp_" + "a1B2" * 9, "a token of GitHub"),
        ("AKIA" + "ABCD" * 4, "a key of AWS"),
        ("{home}/models/teacher", "a path of your home folder"),
        ("correct horse battery", "the value of $MY_TOKEN"),
    ],
)
def test_what_holds_a_secret_is_no_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str, said: str
) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setenv("MY_TOKEN", "correct horse battery")
    secret = secret.format(home="/home/anna")
    bundle = make_bundle(tmp_path / "made")
    report = bundle.with_name("demo-board.report.json")
    table = json.loads(report.read_text())
    report.write_text(json.dumps(table | {"notes": [f"so it is: {secret}."]}))
    with pytest.raises(EdgekitError, match="must not") as failed:
        make_release(bundle, tmp_path / "out", None)
    assert said in failed.value.message
    assert secret not in failed.value.message
    assert not (tmp_path / "out").exists()


def test_a_secret_on_a_seam_is_found(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * ((1 << 22) - 9) + b" hf_" + b"a" * 40 + b" " * 100)
    assert list(scan(path, SECRETS)) == ["a token of Hugging Face"]


# --- places


def test_what_lies_there_is_only_replaced_where_edgekit_wrote_it(tmp_path: Path, bundle: Path, copied: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(EdgekitError, match="is not a release; move it away"):
        make_release(bundle, tmp_path / "mine", None)
    make_release(bundle, copied, None)
    assert not (copied / SIGNATURE).exists()
    (copied / NOTICE).write_text("changed")
    with pytest.raises(EdgekitError, match="NOTICE: changed after it was released"):
        make_release(bundle, copied, None)
    assert (copied / NOTICE).read_text() == "changed"


@pytest.mark.parametrize(("older", "start", "step"), [(False, 0, 4), (True, 2, 8)])
def test_killed_before_any_change_nothing_half_written_is_taken_for_a_release(
    tmp_path: Path, bundle: Path, signed: Path, keys: Keys, older: bool, start: int, step: int
) -> None:
    """Some twenty moments in all: what is at the place is whole, and the next run ends in the same bytes."""
    whole, trusted = contents_of(signed), Trusted(key=keys.path("key.pub"))
    other = make_bundle(tmp_path / "other", scale=2.0)
    for number in itertools.count(start, step):
        out = tmp_path / f"out {number}" / "demo.release"
        out.parent.mkdir()
        if older:
            make_release(other, out, None)
        killed = die_before_change(number, out.parent, partial(make_release, bundle, out, keys))
        if out.exists():
            unsigned = not (out / SIGNATURE).is_file()
            assert find_faults(out, None if unsigned else trusted) == [], number
            assert unsigned == (contents_of(out) != whole), number
        make_release(bundle, out, keys)
        assert contents_of(out) == whole, number
        assert not list(out.parent.glob(".*")), number
        if not killed:
            break
    assert number > 7 * step - 2


@pytest.mark.parametrize("module", ["cyclonedx", "model_signing"])
def test_without_the_extra_one_sentence_says_what_to_install(
    tmp_path: Path, bundle: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EdgekitError, match=rf'{module}: .* is not installed; run: pip install "edgekit\[release\]"'):
        make_release(bundle, tmp_path / "out", keys)
    assert not list(tmp_path.iterdir())
