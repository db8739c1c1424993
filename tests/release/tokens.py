"""A token server of a registry (distribution, docs/spec/auth/token.md): it signs what the registry trusts, and notes who asked what."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from tests.release.conftest import Keys
from tests.release.registry import PASSWORD, USER

SERVICE, ISSUER = "test registry", "test tokens"
# How long after its end distribution 2.8 takes a token, in seconds.
LEEWAY = 60


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the server answers instead of a token."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Tokens:
    """The server, on loopback. grants: what USER may do, and anybody may pull; lasts: seconds that a token is taken; says: what it
    answers instead. asked: the query and the Authorization header of each request."""

    def __init__(self, keys: Keys) -> None:
        self.grants, self.lasts = ["pull", "push"], 300
        self.says: Said | None = None
        self.asked: list[tuple[dict[str, list[str]], str | None]] = []
        self._trusted = keys.path("root.crt")
        self._key = serialization.load_pem_private_key(keys.path("leaf.pem").read_bytes(), None)
        leaf = x509.load_pem_x509_certificate(keys.path("leaf.crt").read_bytes())
        self._chain = base64.b64encode(leaf.public_bytes(serialization.Encoding.DER)).decode()
        tokens = self

        class Answering(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                said = tokens.answer(urlsplit(self.path).query, self.headers.get("Authorization"))
                self.send_response(said.status)
                for name, value in {**said.headers, "Content-Length": str(len(said.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(said.body)

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self.realm = f"http://127.0.0.1:{self._server.server_port}/token"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def auth(self, realm: str | None = None) -> str:
        """The lines of a registry's configuration."""
        return (
            f"auth: {{token: {{realm: '{realm or self.realm}', service: '{SERVICE}', issuer: '{ISSUER}',"
            f" rootcertbundle: '{self._trusted}'}}}}\n"
        )

    def answer(self, query: str, authorization: str | None) -> Said:
        asked = parse_qs(query)
        self.asked.append((asked, authorization))
        known = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
        if self.says:
            return self.says
        if authorization not in (None, known):
            return Said(status=401, body=b'{"errors": [{"code": "UNAUTHORIZED"}]}')
        kind, name, actions = asked["scope"][0].split(":")
        may = set(self.grants if authorization else ["pull"])
        granted = sorted(may & set(actions.split(",")))
        token = self.sign([{"type": kind, "name": name, "actions": granted}])
        return Said(status=200, body=json.dumps({"token": token, "expires_in": self.lasts}).encode())

    def sign(self, access: object) -> str:
        """A JSON Web Token (RFC 7515, ES256) with its key's certificate."""
        now = int(time.time())
        head = {"typ": "JWT", "alg": "ES256", "x5c": [self._chain]}
        claims = {
            "iss": ISSUER, "sub": USER, "aud": SERVICE, "jti": str(len(self.asked)), "access": access,
            "iat": now - LEEWAY, "nbf": now - LEEWAY, "exp": now - LEEWAY + self.lasts,
        }  # fmt: skip
        text = ".".join(_plain(json.dumps(part).encode()) for part in (head, claims))
        assert isinstance(self._key, ec.EllipticCurvePrivateKey)
        signature = self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
        numbers = b"".join(one.to_bytes(32, "big") for one in utils.decode_dss_signature(signature))
        return f"{text}.{_plain(numbers)}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _plain(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
