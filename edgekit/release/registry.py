"""A small client of OCI registries: what `push` needs, by https://github.com/opencontainers/distribution-spec (1.1).

Blobs go up in pieces. Where one is cut off, the registry is asked how much it has, and the rest follows; a killed push left the
upload's address in the user's state, and the next one goes on there.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING
from urllib.parse import urlencode, urljoin, urlsplit

from edgekit.errors import EdgekitError, first_line
from edgekit.release.login import SET_THEM, TIMEOUT, Authorization, credentials, read_challenge, sign_in
from edgekit.release.oci import INDEX, Blob, Packed, check_tag, referrers_index, referrers_tag
from edgekit.schema import dump_json, read_json
from edgekit.state import state_folder
from edgekit.typed_json import as_table
from edgekit.workspace import fingerprint, make_folder, write_atomically

if TYPE_CHECKING:
    import requests

PIECE = 8 << 20
TRIES = 5
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
        self._signed: Authorization | None = None

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
            _cut_where_lost(answer)
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
        _cut_where_lost(answer)
        self._refuse_unless(answer, 201)

    def _next(self, answer: requests.Response) -> str:
        try:
            place = urljoin(answer.url, answer.headers["Location"])
            _origin(place)
        except (KeyError, ValueError):
            raise EdgekitError(f"{self._to}: the registry does not say where an upload goes on") from None
        return place

    def _refuse_unless(self, answer: requests.Response, wanted: int) -> bool:
        """False where a registry answered what was wanted; EdgekitError with its reason where not."""
        if answer.status_code == wanted:
            return False
        if answer.status_code in {401, 403}:
            raise EdgekitError(f"{self._to}: {self._why_refused(answer)}")
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
            answer = self._send_signed(method, url, data, headers)
            challenge = answer.headers.get("WWW-Authenticate")
            if answer.status_code == 401 and challenge and self._is_own(answer.url) and self._sign_in(challenge):
                answer = self._send_signed(method, url, data, headers)
        except requests.RequestException as failed:
            if method == "PATCH" or (method in {"PUT", "POST"} and "uploads" in place):
                raise _Cut(first_line(failed)[:120]) from failed
            raise EdgekitError(f"{self._to}: the registry does not answer: {first_line(failed)[:160]}") from failed
        return answer

    def _send_signed(
        self, method: str, url: str, data: bytes | None, headers: dict[str, str] | None
    ) -> requests.Response:
        # An upload may go on at another host, which is not to see what was given to this one.
        signed = self._signed if self._is_own(url) else None
        return self._session.request(method, url, data=data, headers=headers, auth=signed, timeout=TIMEOUT)

    def _is_own(self, url: str) -> bool:
        return _origin(url) == _origin(self._to.url)

    def _sign_in(self, challenge: str) -> bool:
        try:
            self._signed = sign_in(self._to.url, self._to.host, self._to.repository, challenge)
        except EdgekitError as failed:
            raise EdgekitError(f"{self._to}: {failed.message}") from failed
        return self._signed is not None

    def _why_refused(self, answer: requests.Response) -> str:
        code = answer.status_code
        if not self._is_own(answer.url):
            return (
                f"the registry sends uploads on to {urlsplit(answer.url).netloc}, which refuses them ({code}); credentials go to"
                f" {self._to.host} alone"
            )
        error = read_challenge(answer.headers.get("WWW-Authenticate", ""))[1].get("error")
        user = credentials(self._to.host)
        if user and error == "insufficient_scope":
            return f"{user[0]} may not push to {self._to.repository} ({code}); ask who runs the registry"
        return f"the registry wants other credentials ({code}): {SET_THEM}"


class _Cut(Exception):
    """An upload that was cut off, and can go on."""


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


def _cut_where_lost(answer: requests.Response) -> None:
    """404: an upload that was cut within a piece a registry may forget even after it said that it has it. 416: it has less."""
    if answer.status_code >= 500 or answer.status_code in {404, 416}:
        raise _Cut(f"the registry answered {answer.status_code}")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port, which need not be written (RFC 6454); ValueError for an address that has none."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
