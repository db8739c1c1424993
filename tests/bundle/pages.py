"""What serves a page, for tests and benchmarks."""

from __future__ import annotations

import http.server
import queue
from typing import Any, ClassVar


class Quiet(http.server.SimpleHTTPRequestHandler):
    """What `python3 -m http.server` runs; a module is JavaScript for it, too."""

    extensions_map: ClassVar[dict[str, str]] = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
    }

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class Told(Quiet):
    """The same, and hears what a page says."""

    def __init__(self, said: queue.Queue[str], *connection: Any, **options: Any) -> None:
        self._said = said
        super().__init__(*connection, **options)

    def do_POST(self) -> None:
        self._said.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()
