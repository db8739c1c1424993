"""A small client of OCI registries: what `push` needs, by https://github.com/opencontainers/distribution-spec (1.1).

Blobs go up in pieces. Where one is cut off, the registry is asked how much it has, and the rest follows; a killed push left the
upload's address in the user's state, and the next one goes on there.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import urlencode, urljoin, urlsplit

from edgekit.errors import EdgekitError, first_line
from edgekit.release.oci import INDEX, Blob, Packed, check_tag, referrers_index, referrers_tag
from edgekit.schema import dump_json, read_json
from edgekit.state import state_folder
from edgekit.typed_json import as_table
from edgekit.workspace import fingerprint, make_folder, write_atomically

if TYPE_CHECKING:
    import requests

PIECE = 8 << 20
TRIES = 5
_TIMEOUT = 60
USER, PASSWORD = "EDGEKIT_REGISTRY_USER", "EDGEKIT_REGISTRY_PASSWORD"
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_REFERENCE = re.compile(r"(?P<host>[^/\s]+)/(?P<repository>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?::(?P<tag>[^/:]+))?")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A place in a registry: host with its port, repository and tag."""

    host: str
    repository: str
    tag: str

    @property
    def url(self) -> str:
        """Where its API begins; without TLS on this machine alone."""
        plain = self.host.rpartition(":")[0] in _LOOPBACK or self.host in _LOOPBACK
        return f"{'http' if plain else 'https'}://{self.host}/v2/{self.repository}/"

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}:{self.tag}"


def read_reference(text: str) -> Reference:
    """HOST[:PORT]/REPOSITORY[:TAG]; the tag is "latest" where none is named. EdgekitError for anything else."""
    found = _REFERENCE.fullmatch(text.removeprefix("docker://"))
    if found is None:
        raise EdgekitError(f"{text}: not a place in a registry: HOST/REPOSITORY:TAG, the repository in small letters")
    tag = check_tag(found["tag"] or "latest", text)
    return Reference(host=found["host"], repository=found["repository"], tag=tag)


def push(packed: Packed, to: Reference, tell: Callable[[str], None]) -> str:
    """Push an artifact and what refers to it; the model's digest. tell: is given a line for each blob that goes up.

    Raises EdgekitError where the registry does not answer, wants other credentials, or finds another digest.
    """
    registry = _Registry(to)
    for one in packed.packs:
        for blob in one.blobs:
            if registry.lacks(blob):
                tell(f"{blob.name or blob.media_type}: {blob.size} bytes")
                registry.upload(blob)
    registry.put_manifest(packed.model.manifest, packed.model.manifest.digest)
    knows = [registry.put_manifest(one.manifest, one.manifest.digest) for one in packed.referrers]
    if not all(knows):
        registry.put_manifest(referrers_index(packed), referrers_tag(packed))
    # The tag last: who pulls it finds all that belongs to it.
    registry.put_manifest(packed.model.manifest, to.tag)
    return packed.model.manifest.digest


class _Registry:
    """One repository of a registry, and the session that speaks with it."""

    def __init__(self, to: Reference) -> None:
        import requests

        self._to = to
        self._session = requests.Session()
        self._session.headers["User-Agent"] = "edgekit"
        self._session.trust_env = to.url.startswith("https")

    def lacks(self, blob: Blob) -> bool:
        """Whether the registry has not this blob."""
        answer = self._ask("HEAD", f"blobs/{blob.digest}")
        return answer.status_code == 404 or self._refuse_unless(answer, 200)

    def upload(self, blob: Blob) -> None:
        """Send a blob, from where an earlier push of it was cut off."""
        kept = _Kept(self._to, blob)
        place, offset = self._continue(kept.read())
        with blob.path.open("rb") if blob.path else io.BytesIO(blob.content) as stream:
            for attempt in range(TRIES):
                try:
                    if not place:
                        place, offset = self._begin(), 0
                    kept.write(place)
                    self._send(stream, place, offset, blob, kept)
                    break
                except _Cut as cut:
                    if attempt == TRIES - 1:
                        raise EdgekitError(
                            f"{self._to}: cut off while {blob.name or blob.digest} was sent: {cut}; push again: it goes on there"
                        ) from cut
                    time.sleep(min(2**attempt, 8) / 4)
                    place, offset = self._continue(kept.read())
        kept.drop()

    def put_manifest(self, manifest: Blob, name: str) -> bool:
        """Put a manifest under a digest or a tag; whether the registry keeps what refers to what itself (OCI-Subject)."""
        headers = {"Content-Type": manifest.media_type}
        answer = self._ask("PUT", f"manifests/{name}", data=manifest.content, headers=headers)
        self._refuse_unless(answer, 201)
        said = answer.headers.get("Docker-Content-Digest", manifest.digest)
        if said != manifest.digest:
            raise EdgekitError(
                f"{self._to}: wrong digest: the registry says {said} of what is {manifest.digest}; do not use it"
            )
        return "OCI-Subject" in answer.headers or manifest.media_type == INDEX

    def _begin(self) -> str:
        answer = self._ask("POST", "blobs/uploads/", data=b"")
        self._refuse_unless(answer, 202)
        return self._next(answer)

    def _continue(self, place: str | None) -> tuple[str | None, int]:
        """Where an upload goes on, and how many bytes the registry has of it; None where it has forgotten it."""
        if not place:
            return None, 0
        answer = self._ask("GET", place)
        if answer.status_code != 204:
            return None, 0
        last = answer.headers.get("Range", "0-0").rpartition("-")[2]
        # The specification has no way to say "nothing": "0-0" is that, or one byte; none is ever sent alone.
        return self._next(answer), int(last) + 1 if last.isdecimal() and last != "0" else 0

    def _send(self, stream: IO[bytes], place: str, offset: int, blob: Blob, kept: _Kept) -> None:
        stream.seek(offset)
        while piece := stream.read(PIECE):
            span = f"{offset}-{offset + len(piece) - 1}"
            headers = {"Content-Type": "application/octet-stream", "Content-Range": span}
            answer = self._ask("PATCH", place, data=piece, headers=headers)
            if answer.status_code >= 500 or answer.status_code == 416:
                raise _Cut(f"the registry answered {answer.status_code}")
            self._refuse_unless(answer, 202)
            place, offset = self._next(answer), offset + len(piece)
            kept.write(place)
        answer = self._ask(
            "PUT", f"{place}{'&' if '?' in place else '?'}{urlencode({'digest': blob.digest})}", data=b""
        )
        if answer.status_code == 400:
            kept.drop()
            raise EdgekitError(
                f"{blob.name or blob.digest}: wrong digest: what was sent is not {blob.digest} to the registry; the file was"
                " changed while it was pushed: verify the release and push again"
            )
        self._refuse_unless(answer, 201)

    def _next(self, answer: requests.Response) -> str:
        return urljoin(answer.url, answer.headers["Location"])

    def _refuse_unless(self, answer: requests.Response, wanted: int) -> bool:
        """False where a registry answered what was wanted; EdgekitError with its reason where not."""
        if answer.status_code == wanted:
            return False
        if answer.status_code in {401, 403}:
            raise EdgekitError(
                f"{self._to}: the registry wants other credentials ({answer.status_code}): set {USER} and {PASSWORD}, or sign in"
                " with docker login"
            )
        try:
            errors = as_table(answer.json()).get("errors")
            reason = as_table(errors[0] if isinstance(errors, list) and errors else None).get("code", "")
        except ValueError:
            reason = ""
        raise EdgekitError(f"{self._to}: the registry answered {answer.status_code} {reason}".rstrip())

    def _ask(
        self, method: str, place: str, data: bytes | None = None, headers: dict[str, str] | None = None
    ) -> requests.Response:
        """One request, asked again with credentials where the registry wants them. Raises _Cut where the connection breaks."""
        import requests

        url = urljoin(self._to.url, place)
        try:
            answer = self._session.request(method, url, data=data, headers=headers, timeout=_TIMEOUT)
            if answer.status_code == 401 and self._sign_in(answer.headers.get("WWW-Authenticate", "")):
                answer = self._session.request(method, url, data=data, headers=headers, timeout=_TIMEOUT)
        except requests.RequestException as failed:
            if method == "PATCH" or (method in {"PUT", "POST"} and "uploads" in place):
                raise _Cut(first_line(failed)[:120]) from failed
            raise EdgekitError(f"{self._to}: the registry does not answer: {first_line(failed)[:160]}") from failed
        return answer

    def _sign_in(self, challenge: str) -> bool:
        """Take the credentials that a registry asks for, Basic or Bearer (RFC 7617; distribution, docs/spec/auth/token.md);
        False where there are none."""
        user = credentials(self._to.host)
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic" and user:
            self._session.auth = user
            return True
        if kind.lower() != "bearer":
            return False
        told = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        realm = told.pop("realm", "")
        if not _is_safe(realm):
            return False
        told["scope"] = f"repository:{self._to.repository}:pull,push"
        import requests

        answer = requests.get(realm, params=told, auth=user, timeout=_TIMEOUT)
        table = as_table(answer.json()) if answer.ok else {}
        token = table.get("token") or table.get("access_token")
        if not isinstance(token, str):
            return False
        self._session.auth = _Bearer(token)
        return True


class _Cut(Exception):
    """An upload that was cut off, and can go on."""


class _Bearer:
    """A token in the header of each request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Kept:
    """Where an upload that was begun goes on, in the user's state."""

    def __init__(self, to: Reference, blob: Blob) -> None:
        self._path = state_folder() / "uploads" / f"{fingerprint([to.host, to.repository, blob.digest])[:24]}.json"

    def read(self) -> str | None:
        place = read_json(self._path) if self._path.is_file() else None
        return place if isinstance(place, str) else None

    def write(self, place: str) -> None:
        make_folder(self._path.parent)
        write_atomically(self._path, dump_json(place))

    def drop(self) -> None:
        self._path.unlink(missing_ok=True)


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


def _is_safe(realm: str) -> bool:
    """Whether credentials may be sent there: with TLS, or on this machine."""
    parts = urlsplit(realm)
    return parts.scheme == "https" or (
        parts.scheme == "http" and (parts.hostname or "") in {"localhost", "127.0.0.1", "::1"}
    )
