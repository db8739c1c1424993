"""Signing without a key, by sigstore's own client: an identity of GitHub Actions, a certificate of minutes, an entry in a log.

Fulcio and Rekor are sigstore's mock of them on loopback; that edgekit trusts them, and not sigstore's own, is the test's doing.
"""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_signing import signing, verifying

from edgekit.release.contents import NOTICE, SIGNATURE
from edgekit.release.signature import Signer, Trusted
from edgekit.release.verify import find_faults
from edgekit.release.write import ReleaseInputs, gather, release
from tests.node_packages import installed, need_node
from tests.release.conftest import make_bundle

ISSUER = "https://token.actions.githubusercontent.com"
IDENTITY = "https://github.com/team/demo/.github/workflows/release.yml@refs/tags/v1"
TOLD = Trusted(identity=IDENTITY, issuer=ISSUER)


@pytest.fixture
def sigstore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It answers, and this process runs as a job of GitHub Actions does."""
    packages = installed(["@sigstore/mock@0.12.1"])
    command = [need_node(), Path(__file__).with_name("sigstore.cjs"), packages, ISSUER, IDENTITY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        told = json.loads(server.stdout.readline())
        trust = tmp_path / "trust.json"
        trust.write_text(json.dumps(told["trust"]))
        for kind, name in ((signing.Config, "use_sigstore_signer"), (verifying.Config, "use_sigstore_verifier")):
            monkeypatch.setattr(kind, name, functools.partialmethod(getattr(kind, name), trust_config=trust))
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
        monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "a token of the job")
        monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"{told['url']}/identity?version=1")
        for variable in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(variable, "127.0.0.1")
        yield
        server.kill()


def test_a_release_is_signed_by_who_built_it(sigstore: None, tmp_path: Path) -> None:
    bundle, out = make_bundle(tmp_path / "bundle"), tmp_path / "release"
    release(
        ReleaseInputs(
            bundle=bundle, evidence=gather(bundle, []), cache=tmp_path / "none", signer=Signer(key="keyless")
        ),
        out,
    )
    assert "a token of the job" not in (out / SIGNATURE).read_text()
    assert find_faults(out, TOLD) == []
    (other,) = find_faults(out, Trusted(identity="https://github.com/somebody/else", issuer=ISSUER))
    assert other.startswith(
        "model.sig: does not hold: Certificate's SANs do not match https://github.com/somebody/else"
    )
    (issuer,) = find_faults(out, Trusted(identity=IDENTITY, issuer="https://accounts.example"))
    assert issuer.startswith("model.sig: does not hold: ")
    (out / NOTICE).write_text("of somebody else")
    assert "model.sig: does not hold: other files than these were signed" in find_faults(out, TOLD)
