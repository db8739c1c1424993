"""Signing in to a registry by tokens: distribution with `auth: token`, a server that signs them, and what each of them may see."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from edgekit.errors import EdgekitError
from edgekit.release import login
from edgekit.release import registry as client
from edgekit.release.oci import Blob
from edgekit.release.publish import publish
from edgekit.release.registry import read_reference
from tests.conftest import Answer
from tests.release.conftest import Keys
from tests.release.registry import PASSWORD, USER, registry, skopeo
from tests.release.test_push import quiet
from tests.release.tokens import SERVICE, Said, Tokens

Command = Callable[..., Answer]
BASIC = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"


@pytest.fixture
def tokens(keys: Keys) -> Iterator[Tokens]:
    server = Tokens(keys)
    yield server
    server.close()


@pytest.fixture
def host(tokens: Tokens, tmp_path: Path) -> Iterator[str]:
    """A registry that takes the tokens of that server alone."""
    with registry(tmp_path / "registry", auth=tokens.auth()) as running:
        yield running.host


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, wherever they may be."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv(login.USER, raising=False)
    monkeypatch.delenv(login.PASSWORD, raising=False)


@pytest.fixture
def user(nobody: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(login.USER, USER)
    monkeypatch.setenv(login.PASSWORD, PASSWORD)


class Listener:
    """Whatever it is asked, it notes the Authorization header, and refuses."""

    def __init__(self, host: str) -> None:
        self.seen: list[str | None] = []
        listener = self

        class Answering(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                listener.seen.append(self.headers.get("Authorization"))
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(401)
                self.send_header("WWW-Authenticate", f'Bearer realm="{listener.url}"')
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_PATCH(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        self._server = http.server.ThreadingHTTPServer((host, 0), Answering)
        self.url = f"http://{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def elsewhere() -> Iterator[Listener]:
    """A host that is neither the registry nor its realm."""
    listener = Listener("127.0.0.2")
    yield listener
    listener.close()


def test_a_token_is_asked_for_what_is_done(
    tmp_path: Path,
    signed: Path,
    tokens: Tokens,
    host: str,
    command: Command,
    nobody: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody may pull alone, and is told; the user pushes, and skopeo, which knows nothing of edgekit, pulls what came."""
    refused = command("push", signed, f"{host}/team/demo:1.0")
    assert (refused.code, tokens.asked[0][1]) == (1, None)
    assert f"{host}/team/demo:1.0: the registry wants other credentials (401): set EDGEKIT_REGISTRY_USER" in refused.err
    tokens.asked.clear()
    monkeypatch.setenv(login.USER, USER)
    monkeypatch.setenv(login.PASSWORD, PASSWORD)
    pushed = command("push", signed, f"{host}/team/demo:1.0", "--json")
    assert pushed.code == 0, pushed.err
    assert tokens.asked == [({"scope": ["repository:team/demo:pull,push"], "service": [SERVICE]}, BASIC)]
    assert PASSWORD not in pushed.out + pushed.err
    who = ("--src-tls-verify=false", f"--src-creds={USER}:{PASSWORD}")
    copied = skopeo("copy", "--quiet", *who, f"docker://{host}/team/demo:1.0", f"oci:{tmp_path}/copy:1.0")
    assert copied.returncode == 0, copied.stderr
    (pulled,) = json.loads((tmp_path / "copy" / "index.json").read_text())["manifests"]
    assert pulled["digest"] == json.loads(pushed.out)["name"]
    tokens.grants = ["pull"]
    refused = command("push", signed, f"{host}/team/other:1.0")
    assert refused.code == 1
    assert "anna may not push to team/other (401); ask who runs the registry" in refused.err


def test_a_token_that_ends_meanwhile_is_asked_for_again(
    tmp_path: Path, tokens: Tokens, host: str, user: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the third of six pieces, which the registry keeps: each goes up once."""
    path = tmp_path / "more.bin"
    path.write_bytes(hashlib.shake_256(b"seed").digest(3 << 20))
    blob = Blob(media_type="x/y", sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size=3 << 20, path=path)
    monkeypatch.setattr(client, "PIECE", 1 << 19)
    answers: list[tuple[str, int]] = []
    send = requests.Session.request

    def note(self: requests.Session, method: str, url: str, **given: object) -> requests.Response:
        if [one for one in answers if one[0] == "PATCH"] == [("PATCH", 202)] * 3:
            while time.time() <= ends[0]:
                time.sleep(0.05)
        answer: requests.Response = send(self, method, url, **given)  # type: ignore[arg-type]
        if url.startswith(f"http://{host}"):
            answers.append((method, answer.status_code))
        return answer

    monkeypatch.setattr(requests.Session, "request", note)
    tokens.lasts = 2
    ends = [time.time() + 2]
    registry_ = client._Registry(read_reference(f"{host}/team/demo:1.0"))
    assert registry_.lacks(blob)
    tokens.lasts = 300
    registry_.upload(blob)
    assert not registry_.lacks(blob)
    sent = [status for method, status in answers if method == "PATCH"]
    assert sent == [202, 202, 202, 401, 202, 202, 202]
    assert [authorization for _, authorization in tokens.asked] == [BASIC] * 2


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (Said(status=503, body=b"busy"), "answered 503 and no token; tell who runs it"),
        (Said(status=200, body=b"<html>hello</html>"), "answered 200 and no token"),
        (Said(status=200, body=b'["a token"]'), "answered 200 and no token"),
        (Said(status=200, body=b'{"access": 1}'), "answered 200 and no token"),
        (Said(status=200, body=b'{"token": "a\\r\\nHost: b"}'), "answered 200 and no token"),
        (Said(status=200, body='{"token": "\N{SNOWMAN}"}'.encode()), "answered 200 and no token"),
        (Said(status=200, body=b'{"access_token": "a.b.c"}'), r"the registry wants other credentials \(401\)"),
        (Said(status=302, body=b"", headers={"Location": "http://127.0.0.1:9/"}), "does not answer: "),
    ],
)
def test_what_is_no_token_is_told(
    signed: Path, tokens: Tokens, host: str, user: None, says: Said, message: str
) -> None:
    tokens.says = says
    with pytest.raises(EdgekitError, match=message):
        publish(signed, f"{host}/team/demo:1.0", quiet)


def test_a_wrong_password_and_a_server_that_is_gone(
    signed: Path, tokens: Tokens, host: str, user: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = tokens.realm.removeprefix("http://").removesuffix("/token")
    monkeypatch.setenv(login.PASSWORD, "пароль")
    with pytest.raises(
        EdgekitError, match=rf"its token server {server} does not take anna's password \(401\): set EDGEKIT"
    ):
        publish(signed, f"{host}/team/demo:1.0", quiet)
    tokens.close()
    with pytest.raises(EdgekitError, match=f"its token server {server} does not answer: "):
        publish(signed, f"{host}/team/demo:1.0", quiet)


def test_a_password_goes_to_the_realm_alone(
    signed: Path, tmp_path: Path, tokens: Tokens, host: str, user: None, elsewhere: Listener
) -> None:
    """Not to where the realm, or an upload, is sent on, and to no realm without TLS on another host."""
    tokens.says = Said(status=302, body=b"", headers={"Location": f"{elsewhere.url}/token"})
    with pytest.raises(EdgekitError, match="does not take anna's password"):
        publish(signed, f"{host}/team/demo:1.0", quiet)
    assert elsewhere.seen == [None]
    tokens.says = None
    with (
        registry(tmp_path / "sent on", auth=tokens.auth(), sent_on=elsewhere.url) as running,
        pytest.raises(
            EdgekitError, match=r"sends uploads on to 127\.0\.0\.2:\d+, which refuses them \(401\); credentials"
        ),
    ):
        publish(signed, f"{running.host}/team/demo:1.0", quiet)
    assert elsewhere.seen == [None, None]
    with (
        registry(tmp_path / "plain", auth=tokens.auth(f"{elsewhere.url}/token")) as running,
        pytest.raises(
            EdgekitError, match=r'tokens come from "http://127\.0\.0\.2:\d+/token", without TLS: nothing was sent'
        ),
    ):
        publish(signed, f"{running.host}/team/demo:1.0", quiet)
    assert elsewhere.seen == [None, None]


@pytest.mark.parametrize("realm", ["", "http://[", "https://", "ftp://127.0.0.1/", "http://127.0.0.1:9/token"])
def test_a_registry_elsewhere_names_no_realm_here(realm: str, user: None) -> None:
    with pytest.raises(EdgekitError, match="without TLS: nothing was sent there"):
        login.sign_in("https://registry.example/v2/demo/", "registry.example", "demo", f'Bearer realm="{realm}"')


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("https://registry.example:443/v2/demo/blobs/uploads/1", True),
        ("https://Registry.example/v2/", True),
        ("http://registry.example/v2/", False),
        ("https://registry.example:8443/v2/", False),
        ("https://registry.example.evil/v2/", False),
        ("https://registry.example@evil/v2/", False),
    ],
)
def test_whose_address_is_the_registrys(url: str, own: bool) -> None:
    assert client._Registry(read_reference("registry.example/demo:1.0"))._is_own(url) is own
