"""A real Chromium with its DevTools on a pipe: what a test changes in a browser that no page can."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, BinaryIO

from edgekit.devices.browser.program import Running, find_program, start


class Devtools:
    """A browser at an address, and the session of its first page."""

    def __init__(self, folder: Path, address: str, *flags: str) -> None:
        asks, answers, program = (folder / name for name in ("asks", "answers", "chromium.sh"))
        for pipe in (asks, answers):
            os.mkfifo(pipe)
        more = " ".join(f"'{flag}'" for flag in ("--remote-debugging-pipe", *flags))
        program.write_text(f"#!/bin/bash\nexec '{find_program('chromium')}' {more} \"$@\" 3<'{asks}' 4>'{answers}'\n")
        program.chmod(0o755)
        self.browser: Running = start(str(program), address)
        # Opened in the order in which the shell opens its ends.
        self._out: BinaryIO = asks.open("wb", buffering=0)
        self._in: BinaryIO = answers.open("rb")
        self._count, self._page = 0, ""
        self._lock = threading.Lock()

    def ask(self, method: str, **values: Any) -> Any:
        """The answer to a command for the page."""
        with self._lock:
            if not self._page:
                found = self._send("Target.getTargets", {}, {})["targetInfos"]
                page = next(one["targetId"] for one in found if one["type"] == "page")
                self._page = self._send("Target.attachToTarget", {"targetId": page, "flatten": True}, {})["sessionId"]
            return self._send(method, values, {"sessionId": self._page})

    def stop(self) -> None:
        """End the browser."""
        self.browser.stop()
        self._out.close()
        self._in.close()

    def _send(self, method: str, values: dict[str, Any], more: dict[str, str]) -> Any:
        self._count += 1
        asked = {"id": self._count, "method": method, "params": values, **more}
        self._out.write(json.dumps(asked).encode() + b"\0")
        while (answer := json.loads(self._read())).get("id") != self._count:
            continue  # what it tells unasked
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _read(self) -> bytes:
        found = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "the browser ended"
            found += byte
        return bytes(found)
