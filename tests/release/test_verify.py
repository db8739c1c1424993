"""Verify a release: every fault in its own sentence, every changed bit found, by model_signing itself too."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_signing import verifying

from edgekit.errors import EdgekitError
from edgekit.release import contents
from edgekit.release.contents import BOM, NOTICE, PROVENANCE, RELEASE, SIGNATURE, names_in
from edgekit.release.signature import Trusted, sign
from edgekit.release.verify import find_faults
from tests.conftest import Answer
from tests.release.conftest import Keys, make_bundle, make_release, relist

Command = Callable[..., Answer]
MEASUREMENT, REPORT = contents.measurement_name(1), contents.report_name(1)


def faults_of(folder: Path, keys: Keys) -> list[str]:
    return find_faults(folder, Trusted(key=keys.path("key.pub")))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def test_a_whole_release_has_no_fault(signed: Path, keys: Keys) -> None:
    assert faults_of(signed, keys) == []
    assert find_faults(signed, None) == []


# --- what happens to files on their way: the list and the signature are the ones that were made


def change_a_file(folder: Path) -> None:
    (folder / NOTICE).write_text("nothing to see")


def remove_a_file(folder: Path) -> None:
    (folder / "bundle" / "tokenizer.json").unlink()


def add_a_file(folder: Path) -> None:
    (folder / "bundle" / "more.py").write_text("")


def add_a_git_file(folder: Path) -> None:
    """Which model_signing leaves out by default."""
    (folder / ".gitattributes").write_text("")


def add_a_folder(folder: Path) -> None:
    (folder / "more").mkdir()


def link_a_file(folder: Path) -> None:
    (folder / "aside").write_bytes((folder / NOTICE).read_bytes())
    (folder / NOTICE).unlink()
    (folder / NOTICE).symlink_to("aside")


def swap_two_files(folder: Path) -> None:
    os.rename(folder / MEASUREMENT, folder / "aside")
    os.rename(folder / PROVENANCE, folder / MEASUREMENT)
    os.rename(folder / "aside", folder / PROVENANCE)


def edit_the_list(folder: Path) -> None:
    edit(folder / RELEASE, lambda table: table.update(verdict="pass", target="another"))


def remove_the_signature(folder: Path) -> None:
    (folder / SIGNATURE).unlink()


def spoil_the_signature(folder: Path) -> None:
    (folder / SIGNATURE).write_text("{}")


def hide_something_in_the_signature(folder: Path) -> None:
    edit(folder / SIGNATURE, lambda table: table["dsseEnvelope"]["signatures"][0].update(more=1))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (change_a_file, "NOTICE: changed: its sha256 is another"),
        (remove_a_file, "bundle/tokenizer.json: missing"),
        (add_a_file, "bundle/more.py: added: release.json does not list it"),
        (add_a_git_file, ".gitattributes: added: release.json does not list it"),
        (add_a_folder, "more: added: release.json does not list it"),
        (link_a_file, "NOTICE: a link or a folder in the place of a file"),
        (swap_two_files, f"{MEASUREMENT}: swapped: it is the file that release.json lists as {PROVENANCE}"),
        (edit_the_list, "changed after it was written (its digest does not match)"),
        (remove_the_signature, "model.sig: missing: the release is unsigned"),
        (spoil_the_signature, "model.sig: not a signature that model-signing wrote"),
        (
            hide_something_in_the_signature,
            "model.sig: changed after it was written: model-signing does not read all of it",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_harm_on_the_way_is_named(copied: Path, keys: Keys, harm: Callable[[Path], None], said: str) -> None:
    harm(copied)
    found = faults_of(copied, keys)
    assert any(said in fault for fault in found), found
    ours = harm in {remove_the_signature, spoil_the_signature, hide_something_in_the_signature}
    assert (find_faults(copied, None) == []) == ours


# --- what was wrong before it was signed: list and signature fit the files, and what they say does not fit


def other_model_in_the_bill(folder: Path) -> None:
    edit(folder / BOM, lambda bill: bill["components"][0]["hashes"][0].update(content="0" * 64))


def other_file_in_the_bill(folder: Path) -> None:
    def change(bill: Any) -> None:
        card = next(one for one in bill["components"] if one["bom-ref"] == "bundle/README.md")
        card["hashes"][0].update(content="0" * 64)

    edit(folder / BOM, change)


def better_figures_in_the_bill(folder: Path) -> None:
    def change(bill: Any) -> None:
        bill["components"][0]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][1]["value"] = "0.5"

    edit(folder / BOM, change)


def other_licence_in_the_bill(folder: Path) -> None:
    edit(folder / BOM, lambda bill: bill["components"][0].update(licenses=[{"license": {"id": "MIT"}}]))


def no_licence_in_the_bill(folder: Path) -> None:
    edit(folder / BOM, lambda bill: bill["components"][0].pop("licenses"))


def better_times_than_the_report(folder: Path) -> None:
    edit(folder / MEASUREMENT, lambda table: table["predicate"]["times_ms"].update(raw=[0.1]))


def no_report(folder: Path) -> None:
    (folder / REPORT).write_text("{}")


def a_list_for_a_bill(folder: Path) -> None:
    (folder / BOM).write_text('{"components": [[]]}')


def no_bill(folder: Path) -> None:
    (folder / BOM).write_text("{}")


def evidence_of_another_file(folder: Path) -> None:
    edit(folder / MEASUREMENT, lambda table: table["subject"][0]["digest"].update(sha256="0" * 64))


def report_of_another_file(folder: Path) -> None:
    edit(folder / REPORT, lambda table: table["artifact"].update(sha256="0" * 64))


def better_evidence_than_the_report(folder: Path) -> None:
    edit(folder / MEASUREMENT, lambda table: table["predicate"]["device"].update(cpu="Cortex-A76"))


def provenance_of_another_file(folder: Path) -> None:
    edit(folder / PROVENANCE, lambda table: table["subject"][0]["digest"].update(sha256="0" * 64))


def other_statement(folder: Path) -> None:
    edit(folder / PROVENANCE, lambda table: table.update(predicateType="https://example.org/v1"))


def edited_bundle(folder: Path) -> None:
    edit(folder / "bundle" / "bundle.json", lambda table: table.update(threshold=0.1))


def other_verdict(folder: Path) -> None:
    edit(folder / RELEASE, lambda table: table.update(verdict="not proven"))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (other_model_in_the_bill, "bom.cdx.json: does not match: its model is another file than the bundle's"),
        (other_file_in_the_bill, "bom.cdx.json: does not match: bundle/README.md is another file"),
        (better_figures_in_the_bill, "bom.cdx.json: does not match: its metrics are not what the reports measured"),
        (other_licence_in_the_bill, "bom.cdx.json: does not match: its licence is not the bundle's, Apache-2.0"),
        (no_licence_in_the_bill, "bom.cdx.json: does not match: its licence is not the bundle's, Apache-2.0"),
        (better_times_than_the_report, f"{MEASUREMENT}: does not say what {REPORT} says"),
        (no_report, f"{REPORT}: not a report that this edgekit reads"),
        (a_list_for_a_bill, "bom.cdx.json: not a bill that edgekit wrote"),
        (no_bill, "bom.cdx.json: not a bill that edgekit wrote"),
        (evidence_of_another_file, f"{MEASUREMENT}: evidence of another file: its subject is not this release's model"),
        (report_of_another_file, f"{REPORT}: evidence of another file: it judged another model"),
        (better_evidence_than_the_report, f"{MEASUREMENT}: does not say what {REPORT} says"),
        (provenance_of_another_file, f"{PROVENANCE}: provenance of another file"),
        (other_statement, f"{PROVENANCE}: another statement than https://slsa.dev/provenance/v1"),
        (edited_bundle, "bundle: bundle.json: changed after it was written (its digest does not match)"),
        (other_verdict, "release.json: its verdict, not proven, is that of no report"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_was_signed_and_does_not_fit_is_named(
    copied: Path, keys: Keys, harm: Callable[[Path], None], said: str
) -> None:
    harm(copied)
    relist(copied, keys)
    found = faults_of(copied, keys)
    assert any(said in fault for fault in found), found
    assert not any(fault.startswith(SIGNATURE) for fault in found)


def test_a_signature_of_another_key_or_folder_is_named(copied: Path, keys: Keys, tmp_path: Path) -> None:
    (fault,) = find_faults(copied, Trusted(key=keys.path("other.pub")))
    assert "model.sig: signed by the key" in fault
    assert "not by that of" in fault
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("")
    sign(tmp_path / "elsewhere", keys.signer)
    shutil.copy(tmp_path / "elsewhere" / SIGNATURE, copied)
    found = faults_of(copied, keys)
    assert "model.sig: does not hold: other files than these were signed" in found
    assert any("it is of another folder" in fault for fault in found)


def test_files_of_two_releases_do_not_mix(copied: Path, keys: Keys, tmp_path: Path) -> None:
    other = tmp_path / "other.release"
    make_release(make_bundle(tmp_path / "other", scale=2.0), other, keys)
    shutil.copy(other / "bundle" / "model.onnx", copied / "bundle" / "model.onnx")
    assert "bundle/model.onnx: changed: its sha256 is another" in faults_of(copied, keys)
    shutil.copytree(other / "bundle", copied / "bundle", dirs_exist_ok=True)
    relist(copied, keys)
    found = faults_of(copied, keys)
    assert "bundle: another bundle than the one that release.json names" in found


def test_what_is_no_release_is_an_error(tmp_path: Path, keys: Keys) -> None:
    for place, said in ((tmp_path / "nothing", "no such folder"), (tmp_path, "not a release that edgekit made")):
        with pytest.raises(EdgekitError, match=said):
            faults_of(place, keys)
    (tmp_path / RELEASE).write_text("{}")
    (tmp_path / SIGNATURE).write_text('{"verificationMaterial": {}}')
    with pytest.raises(EdgekitError, match="not a public key in PEM"):
        find_faults(tmp_path, Trusted(key=keys.path("key.pem")))


# --- any bit


def flipped(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def holds_by_model_signing(folder: Path, keys: Keys) -> bool:
    """What its command line does: `model_signing verify key`."""
    config = verifying.Config().use_elliptic_key_verifier(public_key=keys.path("key.pub"))
    try:
        config.verify(folder, folder / SIGNATURE)
    except Exception:
        return False
    return True


def test_a_flipped_bit_is_found(copied: Path, keys: Keys) -> None:
    """In places drawn over all bytes of all files, one at least in each file; the signature's own bits by edgekit alone:
    model_signing skips what it does not know of that file."""
    names = names_in(copied)
    sizes = [(copied / name).stat().st_size for name in names]
    drawn = random.Random(7)
    assert holds_by_model_signing(copied, keys)
    for name in (*names, *drawn.choices(names, sizes, k=20), *[SIGNATURE] * 20):
        before = (copied / name).read_bytes()
        bit = drawn.randrange(8 * len(before))
        flipped(copied / name, bit)
        assert faults_of(copied, keys), (name, bit)
        assert name == SIGNATURE or not holds_by_model_signing(copied, keys), (name, bit)
        (copied / name).write_bytes(before)
    assert faults_of(copied, keys) == []


# --- the commands


def test_the_commands_make_and_verify_a_release(command: Command, bundle: Path, keys: Keys, tmp_path: Path) -> None:
    out = tmp_path / "demo.release"
    made = command("release", bundle, "--sign", keys.path("key.pem"), "--out", out)
    assert (made.code, made.out) == (0, f"{out}: {len(names_in(out)) - 2} files, verdict: pass, signed\n"), made.err
    whole = command("verify-release", out, "--key", keys.path("key.pub"))
    assert (whole.code, whole.out) == (0, f"{out}: whole, and signed by who was named\n")
    (out / NOTICE).unlink()
    broken = command("verify-release", out, "--key", keys.path("key.pub"), "--json")
    told = json.loads(broken.out)
    assert (broken.code, told["exit_code"], told["faults"][0]) == (3, 3, "NOTICE: missing")
    shown = command("verify-release", out, "--key", keys.path("key.pub"))
    assert (shown.code, shown.out.splitlines()[0]) == (3, "NOTICE: missing")
    assert "2 faults: do not use it" in shown.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("verify-release", "OUT"), "name who must have signed"),
        (("verify-release", "OUT", "--identity", "anna@example.org"), "--identity and --issuer go together"),
        (("verify-release", "OUT", "--key", "a.pub", "--unsigned"), "name who must have signed"),
        (("release", "OUT", "--certificate", "a.crt"), "--sign KEY.pem"),
        (("release", "OUT", "--sign", "a.pem", "--chain", "a.crt"), "--certificate CERT.pem"),
        (("release", "nothing"), "nothing: no such bundle"),
    ],
)
def test_what_does_not_go_together_is_said(
    command: Command, signed: Path, arguments: tuple[str, ...], said: str
) -> None:
    answer = command(*(str(signed) if one == "OUT" else one for one in arguments))
    assert answer.code == 1
    assert said in answer.err
