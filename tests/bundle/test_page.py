"""The page of a bundle for browsers, opened in a real Chromium as a user would: served, with npm's packages beside it."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from edgekit.bundle.package import Packaged
from edgekit.bundle.sidecars import SIDECARS
from edgekit.devices.browser.program import find_program
from edgekit.probes import web
from edgekit.probes.web.npm import PACKAGES, fetch_packages
from tests.bundle.test_bundle import pack
from tests.bundle.test_sidecars import packing
from tests.devices.chromium import need_chromium


@pytest.fixture
def packed(tmp_path: Path) -> Packaged:
    return pack(tmp_path / "made", tmp_path / "out")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """What `python3 -m http.server` runs; a module is JavaScript for it, too."""

    extensions_map: ClassVar[dict[str, str]] = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
    }

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def test_what_a_bundle_for_browsers_has_beside(packed: Packaged, tmp_path: Path) -> None:
    """The module that the probe runs, and a page that names what was judged; other targets have neither."""
    given = packing(packed, tmp_path, arch="wasm32")
    assert SIDECARS["load.mjs"](given) == web.LOADER
    page = SIDECARS["index.html"](given)
    assert isinstance(page, str)
    assert f"npm install {' '.join(package.name for package in PACKAGES.values())}" in page
    assert "$" not in page
    other = packing(packed, tmp_path)
    assert (SIDECARS["load.mjs"](other), SIDECARS["index.html"](other)) == (None, None)
    talks = packing(packed, tmp_path, arch="wasm32", output="tokens")
    assert SIDECARS["index.html"](talks) is None


@pytest.mark.parametrize("damage", [False, True], ids=["whole", "damaged"])
def test_the_page_opens_the_bundle(packed: Packaged, tmp_path: Path, damage: bool) -> None:
    need_chromium()
    site = tmp_path / "site"
    shutil.copytree(packed.bundle, site)
    given = packing(packed, tmp_path, arch="wasm32")
    page = SIDECARS["index.html"](given)
    assert isinstance(page, str)
    # Asks as soon as it may, where a person would type.
    ask = 'answer.textContent = "ready";'
    assert ask in page
    (site / "index.html").write_text(page.replace(ask, 'answer.textContent = show(await bundle("turn on the light"));'))
    shutil.copyfile(web.LOADER, site / "load.mjs")
    fetched = fetch_packages([*PACKAGES])
    for name, package in PACKAGES.items():
        shutil.copytree(fetched / name, site / "node_modules" / package.package / "dist")
    if damage:
        (site / "tokenizer.json").write_text(
            (site / "tokenizer.json").read_text(encoding="utf-8") + " ", encoding="utf-8"
        )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = subprocess.run(
            [
                find_program("chromium"), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=60000", "--dump-dom",
                f"http://127.0.0.1:{server.server_port}/",
            ],
            env=os.environ | {"HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    found = re.search(r'<pre id="answer">([^<]*)</pre>', done.stdout)
    assert found is not None, done.stderr
    if damage:
        assert found[1] == "tokenizer.json: not the file that was verified"
    else:
        assert re.fullmatch(r"(\w+ \d\.\d{3}\n?)+", found[1]), found[1]
