"""The signature of a release, by OpenSSF's model-signing: made and checked with keys, certificates, or without keys by sigstore.

The library's own command line checks a release: `model_signing verify key DIR --signature DIR/model.sig --public_key KEY`.
A private key is read from its file, or from the environment through a pipe: it is never written, shown, or named in a command.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError, first_line, require
from edgekit.release.contents import SIGNATURE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
    from model_signing import signing, verifying

KEY_VARIABLE = "EDGEKIT_SIGNING_KEY"
PASSWORD_VARIABLE = "EDGEKIT_SIGNING_PASSWORD"  # noqa: S105 - the variable's name
KEYLESS = "keyless"


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Who signs. key: the PEM file of a private key on P-256, P-384 or P-521; "env" for the text in $EDGEKIT_SIGNING_KEY; or
    "keyless". certificate and chain: PEM files of the key's certificate and those that vouch for it."""

    key: str
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Trusted:
    """Who must have signed: the owner of a public key, of a certificate below one of these, or an identity that an issuer
    vouches for."""

    key: Path | None = None
    certificates: tuple[Path, ...] = ()
    identity: str | None = None
    issuer: str | None = None


def sign(folder: Path, signer: Signer) -> None:
    """Write `model.sig` over all else in a folder. Raises EdgekitError for a key that is none, and where nobody vouches."""
    require("model_signing", extra="release")
    from model_signing import hashing, signing

    hashed = hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    config = signing.Config().set_hashing_config(hashed)
    try:
        with _use(config, signer):
            config.sign(folder, folder / SIGNATURE)
    except _refusals() as failed:
        if signer.key == KEYLESS:
            raise EdgekitError(
                "keyless signing needs the network and an identity that sigstore takes (in GitHub Actions: permissions:"
                f" id-token: write): {first_line(failed)}; sign with a key instead: --sign KEY.pem"
            ) from failed
        raise EdgekitError(
            f"{_named(signer)}: cannot sign with it: {_safe(failed)}; name a PEM file of a private key on P-256, P-384 or P-521"
            " (openssl ecparam -name prime256v1 -genkey -noout -out key.pem)"
        ) from failed


def key_id(signer: Signer) -> str | None:
    """sha256 of the public key that belongs to a signer's private one, as the signature names it; None of a keyless one."""
    if signer.key == KEYLESS:
        return None
    serialization = require("cryptography.hazmat.primitives.serialization", extra="release")
    try:
        with _key_file(signer) as path:
            private = serialization.load_pem_private_key(path.read_bytes(), _password())
    except _refusals() as failed:
        raise EdgekitError(f"{_named(signer)}: not a private key in PEM that can be read: {_safe(failed)}") from failed
    return _key_id(private.public_key())


def public_key_id(path: Path) -> str:
    """sha256 of a public key's PEM text, as the signature names it. EdgekitError where the file is none."""
    serialization = require("cryptography.hazmat.primitives.serialization", extra="release")
    try:
        return _key_id(serialization.load_pem_public_key(path.read_bytes()))
    except OSError as failed:
        raise EdgekitError(f"{path}: cannot be read: {failed.strerror or failed}") from failed
    except _refusals() as failed:
        raise EdgekitError(f"{path}: not a public key in PEM: {first_line(failed)}") from failed


def check(folder: Path, trusted: Trusted) -> str | None:
    """What is wrong with a release's signature, in a sentence; None where it is that of who is trusted, over these files.

    Raises EdgekitError where model-signing is not there or the trusted key is no key.
    """
    require("model_signing", extra="release")
    from model_signing import verifying

    path = folder / SIGNATURE
    try:
        text = path.read_text(encoding="utf-8")
        signed = json.loads(text)
        hint = signed["verificationMaterial"].get("publicKey", {}).get("hint")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return f"{SIGNATURE}: not a signature that model-signing wrote"
    if trusted.key is not None:
        wanted = public_key_id(trusted.key)
        if hint != wanted:
            by = f"the key {hint[:16]}..." if isinstance(hint, str) else "no plain key"
            return f"{SIGNATURE}: signed by {by}, not by that of {trusted.key} ({wanted[:16]}...)"
    config = verifying.Config()
    try:
        _trust(config, trusted)
        if not _is_canonical(text):
            return f"{SIGNATURE}: changed after it was written: model-signing does not read all of it"
        config.verify(folder, path)
    except _refusals() as failed:
        return f"{SIGNATURE}: does not hold: {_why(failed)}"
    return None


def signed_files(folder: Path) -> dict[str, str]:
    """sha256 by name of the files that a signature is over; nothing of it is checked. Empty where it cannot be read."""
    try:
        signed = json.loads((folder / SIGNATURE).read_text(encoding="utf-8"))
        statement = json.loads(base64.b64decode(signed["dsseEnvelope"]["payload"]))
        return {entry["name"]: entry["digest"] for entry in statement["predicate"]["resources"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def signing_key(folder: Path) -> str | None:
    """sha256 of the public key that a release's signature names; nothing of it is checked. None where it names none."""
    try:
        signed = json.loads((folder / SIGNATURE).read_text(encoding="utf-8"))
        hint = signed["verificationMaterial"]["publicKey"]["hint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return hint if isinstance(hint, str) else None


def _refusals() -> tuple[type[Exception], ...]:
    """How the libraries below model-signing refuse a key, a certificate, a signature, or to go on without a network."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from OpenSSL.crypto import Error, X509StoreContextError
    from sigstore.errors import Error as SigstoreError

    own = (InvalidSignature, UnsupportedAlgorithm, Error, X509StoreContextError, SigstoreError)
    return (*own, ValueError, TypeError, LookupError, AttributeError, OSError)


@contextmanager
def _use(config: signing.Config, signer: Signer) -> Iterator[None]:
    """Have a configuration sign as `signer` says."""
    if signer.key == KEYLESS:
        config.use_sigstore_signer(use_ambient_credentials=True)
        yield
        return
    with _key_file(signer) as key:
        if signer.certificate is not None:
            config.use_certificate_signer(
                private_key=key, signing_certificate=signer.certificate, certificate_chain=signer.chain
            )
        else:
            # model-signing 1.1 says that a password is str, and passes it on to cryptography, which takes bytes.
            config.use_elliptic_key_signer(private_key=key, password=_password())
        yield


@contextmanager
def _key_file(signer: Signer) -> Iterator[Path]:
    """A path that the private key can be read from, once: its file, or a pipe that holds the text of the environment."""
    if signer.key != "env":
        if not Path(signer.key).is_file():
            raise EdgekitError(f"{signer.key}: no such key file; name a private key in PEM, or env for ${KEY_VARIABLE}")
        yield Path(signer.key)
        return
    text = os.environ.get(KEY_VARIABLE, "")
    if not text.strip():
        raise EdgekitError(
            f"${KEY_VARIABLE} is empty: put the private key's PEM text there, or name its file: --sign KEY.pem"
        )
    if not os.path.isdir("/dev/fd"):
        raise EdgekitError(
            "this system has no pipe by name for a key from the environment; name its file: --sign KEY.pem"
        )
    reading, writing = os.pipe()
    feeder = threading.Thread(target=_feed, args=(writing, text.encode()), daemon=True)
    feeder.start()
    try:
        yield Path(f"/dev/fd/{reading}")
    finally:
        os.close(reading)
        feeder.join(timeout=5)


def _feed(writing: int, text: bytes) -> None:
    try:
        with os.fdopen(writing, "wb") as stream:
            stream.write(text)
    except BrokenPipeError:
        return


def _password() -> bytes | None:
    said = os.environ.get(PASSWORD_VARIABLE)
    return said.encode() if said else None


def _trust(config: verifying.Config, trusted: Trusted) -> None:
    if trusted.key is not None:
        config.use_elliptic_key_verifier(public_key=trusted.key)
    elif trusted.certificates:
        config.use_certificate_verifier(certificate_chain=trusted.certificates)
    else:
        assert trusted.identity is not None
        assert trusted.issuer is not None
        config.use_sigstore_verifier(identity=trusted.identity, oidc_issuer=trusted.issuer)


def _is_canonical(text: str) -> bool:
    """Whether its library reads all of a signature: what it skips (an unknown key, bits at the end of base64) hides a change."""
    from sigstore_models.bundle.v1 import Bundle

    try:
        return bool(json.loads(text) == json.loads(Bundle.from_json(text).to_json()))
    except ValueError:
        return False


def _key_id(key: PublicKeyTypes) -> str:
    from cryptography.hazmat.primitives import serialization

    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(encoding=serialization.Encoding.PEM, format=spki)).hexdigest()


def _named(signer: Signer) -> str:
    return f"${KEY_VARIABLE}" if signer.key == "env" else signer.key


def _safe(failed: Exception) -> str:
    """A library's word on a key, unless it quotes the key."""
    said = first_line(failed)
    return said if "PRIVATE" not in said and len(said) < 200 else type(failed).__name__


def _why(failed: Exception) -> str:
    said = first_line(failed)
    if said.startswith("Signature mismatch"):
        return "other files than these were signed"
    return said if str(failed) else f"it is not of these files and this key ({type(failed).__name__})"
