"""An endpoint on this machine that speaks OpenAI's chat completions, and does what a test plants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What a request gets: a status, headers and a body, after some seconds, of which only the first `cut` bytes are sent."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0.0
    cut: int | None = None
    drip: float = 0.0


Answer = Callable[[dict[str, Any]], str]


def completion(answer: object, finish: str = "stop", model: str = "served-1") -> Reply:
    """A reply as OpenAI's reference has it."""
    message = {"role": "assistant", "content": answer}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    said = {"id": "x", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": {}}
    return Reply(json.dumps(said).encode())


class Served:
    """What was asked of a server, and what it replies: `replies` in turn, then completions by `answer`."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.replies: list[Reply] = []
        self.answer: Callable[[dict[str, Any]], Reply] = lambda body: completion(said(body))
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def texts(self) -> list[str]:
        """The last turn of each request."""
        return [body["messages"][-1]["content"] for body in self.asked]


def said(body: dict[str, Any]) -> str:
    """An answer that tells prompt and sample."""
    return f"you asked {body['messages'][-1]['content']} and drew {body['seed']}"


@contextmanager
def serve(port: int = 0) -> Iterator[Served]:
    """A server that listens on a port of the loopback."""
    served, lock = Served(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                served.asked.append(body)
                served.headers.append(dict(self.headers))
                planted = served.replies.pop(0) if served.replies else None
            reply = planted or served.answer(body)
            time.sleep(reply.after)
            try:
                self.send_response(reply.status if self.path == "/v1/chat/completions" else 404)
                for name, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if reply.drip:
                    for byte in reply.body:
                        self.wfile.write(bytes([byte]))
                        time.sleep(reply.drip)
                else:
                    self.wfile.write(reply.body[: reply.cut])
            except (BrokenPipeError, ConnectionResetError):
                pass  # whoever asked did not wait

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", port), Handler) as server:
        served.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
