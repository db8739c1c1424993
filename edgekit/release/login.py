"""Signing in to a registry: whose credentials, and the token that a server which the registry names gives for them.

Basic is RFC 7617, Bearer is https://distribution.github.io/distribution/spec/auth/token/. Credentials go to the registry or to
the server that it names, and with TLS alone unless both are on this machine.
"""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edgekit.errors import EdgekitError, first_line
from edgekit.typed_json import as_table

if TYPE_CHECKING:
    import requests

USER, PASSWORD = "EDGEKIT_REGISTRY_USER", "EDGEKIT_REGISTRY_PASSWORD"
SET_THEM = f"set {USER} and {PASSWORD}, or sign in with docker login"
TIMEOUT = 60
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# What a header can hold (RFC 6750, section 2.1).
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


class Authorization:
    """The header of that name, in each request."""

    def __init__(self, value: str) -> None:
        self._value = value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._value
        return request


def _basic(user: tuple[str, str] | None) -> Authorization | None:
    return Authorization(f"Basic {base64.b64encode(':'.join(user).encode()).decode()}") if user else None


def credentials(host: str) -> tuple[str, str] | None:
    """User and password for a registry: of the environment, else what `docker login` left in its config.json; None: nobody's."""
    user, password = os.environ.get(USER), os.environ.get(PASSWORD)
    if user and password:
        return user, password
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        entry = as_table(as_table(as_table(json.loads((folder / "config.json").read_text())).get("auths")).get(host))
        found = base64.b64decode(str(entry.get("auth", ""))).decode().partition(":")
    except (OSError, ValueError):
        return None
    return (found[0], found[2]) if found[1] else None


def read_challenge(header: str) -> tuple[str, dict[str, str]]:
    """The scheme, in small letters, and the parameters of a WWW-Authenticate header."""
    kind, _, rest = header.partition(" ")
    return kind.lower(), dict(re.findall(r'(\w+)="([^"]*)"', rest))


def sign_in(url: str, host: str, repository: str, challenge: str) -> Authorization | None:
    """What requests to a registry at url are sent with from now on, as its challenge asks; None where credentials are missing.

    Raises EdgekitError, without the registry's name, where the token server must not be asked, does not answer, refuses the user,
    or gives no token.
    """
    user = credentials(host)
    kind, told = read_challenge(challenge)
    if kind == "basic":
        return _basic(user)
    if kind != "bearer":
        return None
    realm = told.get("realm", "")
    if not _is_safe(realm, url):
        raise EdgekitError(
            f'its tokens come from "{realm[:200]}", without TLS: nothing was sent there; its realm must be an https address'
        )
    wanted = {"scope": f"repository:{repository}:pull,push"}
    if "service" in told:
        wanted["service"] = told["service"]
    return _take_token(realm, wanted, user)


def _is_safe(realm: str, url: str) -> bool:
    """Whether a password may be sent to a realm: with TLS, or where realm and registry are on this machine."""
    try:
        parts = urlsplit(realm)
    except ValueError:
        return False
    local = parts.scheme == "http" and parts.hostname in _LOOPBACK and url.startswith("http:")
    return bool(local or (parts.scheme == "https" and parts.hostname))


def _take_token(realm: str, wanted: dict[str, str], user: tuple[str, str] | None) -> Authorization | None:
    """A token of the server, where it gives one to this user, or to anybody."""
    import requests

    server = urlsplit(realm).netloc.rpartition("@")[2]
    with requests.Session() as session:
        session.trust_env = realm.startswith("https")
        try:
            # A redirect to another host goes without the password: requests takes it off.
            answer = session.get(realm, params=wanted, auth=_basic(user), timeout=TIMEOUT)
        except requests.RequestException as failed:
            raise EdgekitError(f"its token server {server} does not answer: {first_line(failed)[:160]}") from failed
    if answer.status_code in {401, 403}:
        if user is None:
            return None
        raise EdgekitError(
            f"its token server {server} does not take {user[0]}'s password ({answer.status_code}): {SET_THEM}"
        )
    try:
        table = as_table(answer.json())
    except ValueError:
        table = {}
    token = table.get("token") or table.get("access_token")
    if not answer.ok or not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise EdgekitError(f"its token server {server} answered {answer.status_code} and no token; tell who runs it")
    return Authorization(f"Bearer {token}")
