"""A file's chat template in llama.cpp's own server, where this machine has one: EDGEKIT_LLAMA_SERVER, or llama-server in PATH."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit.chat_template import Table
from edgekit.errors import EdgekitError, first_line

VARIABLE = "EDGEKIT_LLAMA_SERVER"
_STARTS, _ANSWERS = 120.0, 60.0
_SHOWN = 200


@dataclass(frozen=True, kw_only=True)
class Request:
    """A conversation, the tools that it may call, and whether it ends with what opens the assistant's turn."""

    messages: Sequence[Table]
    tools: Sequence[Table] | None
    generation_prompt: bool


class Served:
    """llama-server over a GGUF file; `program` is None where this machine has none."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.program = os.environ.get(VARIABLE) or shutil.which("llama-server")
        self.name: str | None = None

    def check(self, texts: Sequence[tuple[str, Request, str]], begin: str) -> None:
        """Compare what the server makes of each request with the original's text; (title, request, text) each.

        begin: the token that the server takes off a text's beginning, for its tokenizer to add it. Raises EdgekitError that
        shows the first difference, and where the server does not take the template or the file.
        """
        with self._running() as port:
            for title, asked, wanted in texts:
                written = self._apply(port, title, asked)
                if written not in {wanted, wanted.removeprefix(begin)}:
                    raise EdgekitError(
                        f"{self.file}: llama-server writes a conversation otherwise than the original ({title}):"
                        f" {written[:_SHOWN]!r} instead of {wanted[:_SHOWN]!r}; write the template otherwise, or --format onnx"
                    )

    def _apply(self, port: int, title: str, asked: Request) -> str:
        body: dict[str, object] = {"messages": list(asked.messages), "add_generation_prompt": asked.generation_prompt}
        if asked.tools:
            body["tools"] = list(asked.tools)
        try:
            status, answer = _ask(port, "/apply-template", body)
            if status == http.HTTPStatus.OK:
                return str(json.loads(answer)["prompt"])
        except (OSError, http.client.HTTPException, ValueError, KeyError) as failed:
            answer = first_line(failed).encode()
        raise EdgekitError(
            f"{self.file}: llama-server does not write a conversation ({title}): {answer.decode('utf-8', 'replace')[:_SHOWN]};"
            " write the template otherwise, or --format onnx"
        )

    @contextmanager
    def _running(self) -> Iterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        program = str(self.program)
        command = [
            program,
            "-m",
            str(self.file),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "-c",
            "256",
            "--no-warmup",
            "--jinja",
        ]
        with tempfile.TemporaryFile() as log:
            try:
                started = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            except OSError as failed:
                raise EdgekitError(f"{program}: it does not run: {failed.strerror}; see {VARIABLE}") from failed
            try:
                self._wait(started, port)
                self.name = f"llama-server {self._version()}".strip()
                yield port
            finally:
                started.kill()
                started.wait()

    def _wait(self, started: subprocess.Popen[bytes], port: int) -> None:
        until = time.monotonic() + _STARTS
        while time.monotonic() < until and started.poll() is None:
            try:
                if _ask(port, "/health")[0] == http.HTTPStatus.OK:
                    return
            except (OSError, http.client.HTTPException):
                pass  # it is not listening yet
            time.sleep(0.1)
        raise EdgekitError(
            f"{self.file}: llama-server does not start with it (exit code {started.poll()}): its template engine cannot read the"
            " chat template, or it is too old for the file; write the template otherwise, or --format onnx"
        )

    def _version(self) -> str:
        ended = subprocess.run([str(self.program), "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"version: *(\S+)", ended.stdout + ended.stderr)
        return version[1] if version else ""


def _ask(port: int, path: str, body: Table | None = None) -> tuple[int, bytes]:
    """Status and content of an answer to a POST of `body`, or to a GET where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWERS)
    try:
        content = None if body is None else json.dumps(body)
        connection.request("GET" if content is None else "POST", path, content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
