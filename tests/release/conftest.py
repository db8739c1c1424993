"""Keys, a small bundle with its evidence, and a release of it that is signed once for all tests."""

from __future__ import annotations

import datetime
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgekit.bundle.manifest import FileEntry
from edgekit.release.contents import RELEASE, SIGNATURE, Release, names_in, read_release
from edgekit.release.signature import Signer, sign
from edgekit.release.write import ReleaseInputs, gather, release
from edgekit.workspace import file_sha256
from tests.artifacts import make_artifact, make_report
from tests.bundle.test_bundle import LINEAGE, pack_as


@dataclass(frozen=True, kw_only=True)
class Keys:
    """A private key with its public one, a second pair, and a chain: a root's certificate, and one below it with its key."""

    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def signer(self) -> Signer:
        return Signer(key=str(self.path("key.pem")))


def make_keys(folder: Path) -> Keys:
    folder.mkdir()
    private = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("key", "other", "root", "leaf")}
    for name, key in private.items():
        pem, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        (folder / f"{name}.pem").write_bytes(key.private_bytes(pem, plain, serialization.NoEncryption()))
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(pem, spki))
    locked = serialization.BestAvailableEncryption(b"a password")
    (folder / "locked.pem").write_bytes(private["key"].private_bytes(pem, plain, locked))
    root = _certificate("root", private["root"], "root", private["root"], authority=True)
    leaf = _certificate("leaf", private["leaf"], "root", private["root"], authority=False)
    for name, certificate in (("root", root), ("leaf", leaf)):
        (folder / f"{name}.crt").write_bytes(certificate.public_bytes(pem))
    return Keys(folder=folder)


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey, *, authority: bool
) -> x509.Certificate:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    begin = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    usage = x509.KeyUsage(True, False, False, False, False, authority, authority, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(by, hashes.SHA256())
    )


def make_bundle(folder: Path, *, scale: float = 1.0, verdict: str = "pass") -> Path:
    """A bundle's folder, with its report beside it."""
    folder.mkdir(parents=True)
    artifact = make_artifact(folder / "artifact", scale=scale)
    report = make_report(folder / "report", artifact, verdict)
    return pack_as(folder, artifact, report, folder / "dist", lineage=LINEAGE).bundle


def make_release(bundle: Path, out: Path, keys: Keys | None) -> Release:
    inputs = ReleaseInputs(
        bundle=bundle,
        evidence=gather(bundle, []),
        cache=out.parent / "no cache",
        signer=keys.signer if keys else None,
    )
    return release(inputs, out)


def relist(folder: Path, keys: Keys | None = None) -> None:
    """List a release's files as they are now, and sign them: what somebody with the key could do, or an honest mistake."""
    (folder / SIGNATURE).unlink(missing_ok=True)
    listed = json.loads((folder / RELEASE).read_text())
    old = Release(**{**listed, "files": {}, "digest": None})
    files = {
        name: FileEntry(bytes=(folder / name).stat().st_size, sha256=file_sha256(folder / name))
        for name in names_in(folder)
        if name != RELEASE
    }
    (folder / RELEASE).write_text(replace(old, files=files).whole().to_json())
    read_release(folder)
    if keys is not None:
        sign(folder, keys.signer)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys") / "k")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "made")


@pytest.fixture(scope="session")
def signed(tmp_path_factory: pytest.TempPathFactory, bundle: Path, keys: Keys) -> Path:
    out = tmp_path_factory.mktemp("release") / "demo.release"
    make_release(bundle, out, keys)
    return out


@pytest.fixture
def copied(tmp_path: Path, signed: Path) -> Path:
    """A release that a test may harm."""
    return Path(shutil.copytree(signed, tmp_path / "demo.release"))
