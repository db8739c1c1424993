"""Whether a bundle may be used: no older one than an app has seen, signed by who is trusted. A key needs cryptography."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

_TYPE = "application/vnd.in-toto+json"


def trusted(folder: str | Path, *, at_least: str | None = None, key: str | Path | None = None) -> Path:
    """The bundle's folder, to be opened with `Bundle(...)`, which holds its files to bundle.json; else RuntimeError says why not.

    folder: a release, what `edgekit embed RELEASE` wrote, or a bundle. at_least: the oldest version that is taken: "1.2.0".
    key: the PEM file of the public key that must have signed the release (OpenSSF model signing; P-256, P-384, P-521).
    """
    place = Path(folder)
    bundle = place if (place / "bundle.json").is_file() else place / "bundle"
    manifest = (bundle / "bundle.json").read_bytes()
    said = json.loads(manifest)
    if key is not None:
        signed = _signed(place / "model.sig", Path(key))
        wanted = {f"bundle/{name}": entry["sha256"] for name, entry in said["files"].items()}
        wanted["bundle/bundle.json"] = hashlib.sha256(manifest).hexdigest()
        if other := next((name for name, sha256 in wanted.items() if signed.get(name) != sha256), None):
            raise RuntimeError(f"{place}: {other} is not what was signed; fetch the whole release again")
    if at_least is not None:
        found, least = (re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", str(one), re.A) for one in (said.get("version"), at_least))
        if least is None:
            raise ValueError(f"{at_least}: not a version; write three numbers, such as 1.2.0")
        if found is None or [*map(int, found.groups())] < [*map(int, least.groups())]:
            raise RuntimeError(f"{bundle}: version {said.get('version')}, and this app takes {at_least} or newer")
    return bundle


def _signed(path: Path, key: Path) -> dict[str, str]:
    """sha256 by name of the files that the key's owner signed."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if not path.is_file():
        raise RuntimeError(f"{path}: missing: nobody vouches for this bundle; fetch the release with its signature")
    kinds = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}
    pem = key.read_bytes()
    public = serialization.load_pem_public_key(pem) if b"BEGIN PUBLIC KEY" in pem else None
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name not in kinds:
        raise ValueError(f"{key}: not a public key in PEM on P-256, P-384 or P-521")
    try:
        envelope = json.loads(path.read_bytes())["dsseEnvelope"]
        payload, signature = base64.b64decode(envelope["payload"]), base64.b64decode(envelope["signatures"][0]["sig"])
        text = f"DSSEv1 {len(_TYPE)} {_TYPE} {len(payload)} ".encode() + payload
        public.verify(signature, text, ec.ECDSA(kinds[public.curve.name]))
        return {one["name"]: one["digest"] for one in json.loads(payload)["predicate"]["resources"]}
    except (InvalidSignature, ValueError, LookupError, TypeError):
        raise RuntimeError(f"{path}: not signed by the owner of {key}; do not use this bundle") from None
