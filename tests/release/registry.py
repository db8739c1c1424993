"""A real registry on loopback (distribution, Debian's docker-registry), skopeo, a wire between that can be cut; a hub's stand-in."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.devices.sshd import install

TOOLS = {"docker-registry": "docker-registry", "skopeo": "skopeo"}
USER, PASSWORD = "anna", "a password"
# bcrypt of PASSWORD, at the least cost.
HASHED = "$2b$04$M7KvKOL3eVMoiF7onlkpfu7VMiq0rrR7dZztYDqnEHAJeRH/aSsPK"


def need_registry() -> None:
    """Skip where the registry or skopeo is not there and cannot be installed."""
    if lacking := [package for name, package in TOOLS.items() if shutil.which(name) is None]:
        install(*lacking)
    if lacking := [name for name in TOOLS if shutil.which(name) is None]:
        pytest.skip(f"{' and '.join(lacking)} not installed, and only root on Debian can install them here")


@dataclass(frozen=True, kw_only=True)
class Running:
    """A registry: host with its port, and the folder where it keeps blobs."""

    host: str
    folder: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def registry(folder: Path, *, locked: bool = False, auth: str = "", sent_on: str = "") -> Iterator[Running]:
    """The registry while it runs; locked: only for USER with PASSWORD; auth: these lines of its configuration; sent_on: the address
    that it calls itself, to which uploads go on."""
    need_registry()
    folder.mkdir(parents=True)
    port = free_port()
    (folder / "htpasswd").write_text(f"{USER}:{HASHED}\n")
    if locked:
        auth = f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
    own = f", host: '{sent_on}'" if sent_on else ""
    (folder / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'{own}}}\n{auth}"
    )
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and server.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        else:
            pytest.fail(f"the registry does not listen: {(folder / 'log').read_text()[-2000:]}")
        yield Running(host=f"127.0.0.1:{port}", folder=folder / "data")
    finally:
        server.kill()
        server.wait()


class Wire:
    """A way to a registry that is cut after so many bytes, so many times."""

    def __init__(self, to: str, after: int, times: int) -> None:
        host, _, port = to.rpartition(":")
        self._to, self._after, self.left = (host, int(port)), after, times
        self.sent = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self._server.accept()
            except OSError:
                return
            other = socket.create_connection(self._to)
            threading.Thread(target=self._carry, args=(one, other, True), daemon=True).start()
            threading.Thread(target=self._carry, args=(other, one, False), daemon=True).start()

    def _carry(self, source: socket.socket, to: socket.socket, counts: bool) -> None:
        carried = 0
        try:
            while piece := source.recv(1 << 16):
                to.sendall(piece)
                carried += len(piece)
                self.sent += len(piece) if counts else 0
                if counts and self.left > 0 and carried >= self._after:
                    self.left -= 1
                    break
        except OSError:
            pass
        for end in (source, to):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self) -> None:
        self._server.close()


def skopeo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    need_registry()
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.run(
        ["skopeo", *map(str, arguments)], capture_output=True, text=True, timeout=120, env=environment, check=False
    )


class Hub:
    """What huggingface_hub speaks with when it makes a repository and commits files to it: the real client asks, this answers.

    files: what was committed, by name. tokens: what the client named itself with.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        hub = self

        class Answering(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hub.tokens.add(self.headers.get("Authorization"))
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._say(hub.answer(self.path, body))

            def do_GET(self) -> None:
                self._say({"id": "team/demo", "siblings": [], "sha": "0" * 40})

            def _say(self, table: object) -> None:
                content = json.dumps(table).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, path: str, body: bytes) -> object:
        if path.endswith("/repos/create"):
            return {"url": f"{self.url}/team/demo", "id": "team/demo"}
        if "/preupload/" in path:
            return {
                "files": [{**one, "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(body)["files"]]
            }
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {"commitUrl": f"{self.url}/team/demo/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}
        return {"warnings": [], "errors": []}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
