"""What a page and edgekit say to each other: a server on loopback that only who knows its token reaches.

`/TOKEN/`: the page. `job`: the next command, or status 204 after a while. `folder/N/PATH`: files of pushed folders. A page
answers for command N with `out/N`, `error/N` (lines), `alive/N`, `work/N/PATH` (a file), `cannot/N` (why it did not start) or
`end/N` (its exit code); status 410 where that command is no longer waited for.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

_OWN = Path(__file__).parent
_MODULES = ("page.mjs", "worker.mjs", "memory.mjs", "counted.mjs", "describe.mjs")
_PAGE = {"": "page.html", **{name: name for name in _MODULES}}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".json": "application/json",
    ".wasm": "application/wasm",
}
# The page is isolated, so that it may have threads and exact clocks; nothing else is reached from it, and no text becomes code.
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'self' blob:; script-src 'self' blob: 'wasm-unsafe-eval'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_POLL_S = 20.0
# A probe says some hundred kB; outputs are files.
_MOST_TEXT = 64 << 20
_MOST_FILE = 4 << 30


@dataclass(kw_only=True)
class Job:
    """A command, and what its page has said so far; heard: when it last said anything (`time.monotonic`)."""

    number: int
    command: Sequence[str]
    env: Mapping[str, str]
    taken: bool = False
    heard: float = field(default_factory=time.monotonic)
    out: list[bytes] = field(default_factory=list)
    error: list[bytes] = field(default_factory=list)
    code: int | None = None
    cannot: str | None = None
    loud: bool = False

    def is_over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.code is not None or self.cannot is not None or self.loud


class Exchange:
    """The server, from when it is made until `close`. work: where files go that a page writes."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.folders: list[Path] = []
        self.token = secrets.token_urlsafe(32)
        self.changed = threading.Condition()
        self.job: Job | None = None
        self.closed = False
        self._count = 0
        self._server = _Server(("127.0.0.1", 0), partial(_Conversation, self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()

    @property
    def authority(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{self.authority}/{self.token}/"

    def begin(self, command: Sequence[str], env: Mapping[str, str]) -> Job:
        """Offer a command to the next page that asks for one."""
        with self.changed:
            self._count += 1
            self.job = Job(number=self._count, command=command, env=env)
            self.changed.notify_all()
            return self.job

    def wait(self, job: Job, seconds: float) -> None:
        """Wait until a command is over, but no longer than so many seconds."""
        with self.changed:
            self.changed.wait_for(job.is_over, timeout=seconds)

    def take(self) -> Job | None:
        """The command that waits for a page, for one page only; None where there is none for a while."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or (self.job is not None and not self.job.taken), timeout=_POLL_S)
            if self.closed or self.job is None or self.job.taken:
                return None
            self.job.taken = True
            self.job.heard = time.monotonic()
            return self.job

    def end(self) -> None:
        """Wait for no command any more: what a page still says of one is refused."""
        with self.changed:
            self.job = None

    def close(self) -> None:
        """Stop serving."""
        with self.changed:
            self.closed, self.job = True, None
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a browser that was ended amid a request."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Conversation(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 120

    def __init__(self, exchange: Exchange, *connection: object) -> None:
        self._exchange = exchange
        super().__init__(*connection)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """A page's file, a pushed file, or the next command."""
        parts = self._admitted()
        if parts is None:
            return
        if parts == ["job"]:
            job = self._exchange.take()
            if job is None:
                self._answer(HTTPStatus.GONE if self._exchange.closed else HTTPStatus.NO_CONTENT)
                return
            told = {"number": job.number, "command": [*job.command], "env": dict(job.env)}
            self._answer(HTTPStatus.OK, json.dumps(told).encode())
            return
        path = self._file(parts)
        if path is None or not path.is_file():
            self._answer(HTTPStatus.NOT_FOUND)
            return
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            self._head(HTTPStatus.OK, size, _TYPES.get(path.suffix, "application/octet-stream"))
            shutil.copyfileobj(stream, self.wfile, 1 << 20)

    def do_POST(self) -> None:
        """What a page says of its command."""
        parts = self._admitted()
        if parts is None:
            return
        job = self._job(parts[1:2])
        said = SAID.get(parts[0])
        if job is None or said is None or len(parts) != 2:
            self._refuse()
            return
        length = self._length()
        if length > _MOST_TEXT:
            job.loud = True
            self._refuse()
            return
        content = self.rfile.read(length)
        with self._exchange.changed:
            job.heard = time.monotonic()
            said(job, content)
            job.loud = job.loud or sum(map(len, job.out)) + sum(map(len, job.error)) > _MOST_TEXT
            self._exchange.changed.notify_all()
        self._answer(HTTPStatus.OK)

    def do_PUT(self) -> None:
        """A file that a command writes."""
        parts = self._admitted()
        if parts is None:
            return
        job, inside = self._job(parts[1:2]), _inside(parts[2:])
        if job is None or parts[0] != "work" or inside is None or self._length() > _MOST_FILE:
            self._refuse()
            return
        target = self._exchange.work / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        left = self._length()
        with target.open("wb") as stream:
            while left and (part := self.rfile.read(min(left, 1 << 20))):
                stream.write(part)
                left -= len(part)
                job.heard = time.monotonic()
        self._answer(HTTPStatus.OK)

    def _admitted(self) -> list[str] | None:
        """The path's parts behind the token; None where this is nobody who knows it: then nothing is told."""
        path, _, _ = self.path.partition("?")
        first, *parts = [unquote(part) for part in path.removeprefix("/").split("/")]
        known = hmac.compare_digest(first.encode(), self._exchange.token.encode())
        # A name that another site points at this address is not ours.
        own = self.headers.get("Host") == self._exchange.authority
        origin = self.headers.get("Origin")
        if known and own and origin in {None, f"http://{self._exchange.authority}"} and parts:
            return parts
        self._refuse(HTTPStatus.NOT_FOUND)
        return None

    def _file(self, parts: Sequence[str]) -> Path | None:
        if len(parts) == 1:
            return _OWN / _PAGE[parts[0]] if parts[0] in _PAGE else None
        inside = _inside(parts[2:])
        if parts[0] != "folder" or inside is None or not parts[1].isdecimal():
            return None
        number = int(parts[1])
        return self._exchange.folders[number] / inside if number < len(self._exchange.folders) else None

    def _job(self, number: Sequence[str]) -> Job | None:
        """The command of this number, where it is the one that is waited for."""
        job = self._exchange.job
        return job if job is not None and job.taken and [str(job.number)] == list(number) else None

    def _length(self) -> int:
        told = self.headers.get("Content-Length", "")
        return int(told) if told.isdecimal() else 0

    def _refuse(self, status: HTTPStatus = HTTPStatus.GONE) -> None:
        """Answer without having read what came: so this connection ends."""
        self.close_connection = True
        self._answer(status)

    def _answer(self, status: HTTPStatus, content: bytes = b"") -> None:
        self._head(status, len(content), "application/json")
        self.wfile.write(content)

    def _head(self, status: HTTPStatus, length: int, kind: str) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def version_string(self) -> str:
        """Nothing that names a version."""
        return "edgekit"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
        """Say nothing: the addresses have the token."""


def _inside(parts: Sequence[str]) -> PurePosixPath | None:
    """The path of a file below a folder; None of what would leave it."""
    good = parts and all(part not in {"", ".", ".."} and not {"/", "\\", "\0"} & {*part} for part in parts)
    return PurePosixPath(*parts) if good else None


def _say_end(job: Job, content: bytes) -> None:
    job.code = int(content) if content.isdigit() else 1


def _say_cannot(job: Job, content: bytes) -> None:
    job.cannot = content.decode("utf-8", errors="replace")[:500]


SAID: Mapping[str, Callable[[Job, bytes], None]] = {
    "out": lambda job, content: job.out.append(content),
    "error": lambda job, content: job.error.append(content),
    "alive": lambda _job, _content: None,
    "cannot": _say_cannot,
    "end": _say_end,
}
