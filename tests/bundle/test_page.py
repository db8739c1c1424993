"""The page of a bundle for browsers, opened in a real Chromium as a user would: served, with npm's packages beside it."""

from __future__ import annotations

import functools
import http.server
import json
import os
import queue
import re
import shutil
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle.package import Packaged
from edgekit.bundle.sidecars import SIDECARS
from edgekit.devices.browser.program import find_program, start
from edgekit.model import load_model
from edgekit.probes import web
from edgekit.probes.web.npm import PACKAGES, fetch_packages
from edgekit.runtimes import llamacpp
from edgekit.runtimes.generation import continuation
from tests.bundle.faults import write_sealed
from tests.bundle.pages import Quiet, Told
from tests.bundle.test_bundle import pack
from tests.bundle.test_chat import RUNTIME, make_manifest
from tests.bundle.test_sidecars import packing
from tests.devices.chromium import need_chromium
from tests.stories import STORIES, write_stories


@pytest.fixture
def packed(tmp_path: Path) -> Packaged:
    return pack(tmp_path / "made", tmp_path / "out")


def test_what_a_bundle_for_browsers_has_beside(packed: Packaged, tmp_path: Path) -> None:
    """The modules that the probe runs, and a page that names what was judged; other targets have neither."""
    given = packing(packed, tmp_path, arch="wasm32")
    assert SIDECARS["load.mjs"](given) == web.LOADER
    assert [SIDECARS[name](given) for name in ("rows.mjs", "words.mjs", "check.mjs")] == [web.ROWS, None, web.CHECKS]
    page = SIDECARS["index.html"](given)
    assert isinstance(page, str)
    assert f"npm install {PACKAGES['onnxruntime-web'].name} {PACKAGES['tokenizers'].name}`" in page
    assert "$" not in page
    card = SIDECARS["README.md"](given)
    assert isinstance(card, str)
    assert f"npm install {PACKAGES['onnxruntime-web'].name} {PACKAGES['tokenizers'].name}\n" in card
    other = packing(packed, tmp_path)
    assert (SIDECARS["load.mjs"](other), SIDECARS["index.html"](other)) == (None, None)
    assert "npm" not in str(SIDECARS["README.md"](other))
    gguf = {"output": "tokens", "tokenizer": None, "model": "model.gguf", "runtime": RUNTIME}
    writes = packing(packed, tmp_path, arch="wasm32", **gguf, settings={})
    assert SIDECARS["load.mjs"](writes) == web.WRITER
    assert [SIDECARS[name](writes) for name in ("rows.mjs", "words.mjs", "check.mjs")] == [None, web.WORDS, web.CHECKS]
    page = SIDECARS["index.html"](writes)
    assert isinstance(page, str)
    assert f"npm install {PACKAGES['wllama'].name}`" in page
    assert "$" not in page
    # Nothing was judged that fills the template of one that talks, and pages write by wllama alone.
    for changes in (gguf | {"settings": {"chat": True}}, {"output": "tokens"}):
        none = packing(packed, tmp_path, arch="wasm32", **changes)
        assert (SIDECARS["load.mjs"](none), SIDECARS["index.html"](none)) == (None, None)


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
    for module in (web.ROWS, web.CHECKS):
        shutil.copyfile(module, site / module.name)
    fetched = fetch_packages([*PACKAGES])
    for name in ("onnxruntime-web", "tokenizers"):
        shutil.copytree(fetched / name, site / "node_modules" / PACKAGES[name].package / "dist")
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
        assert found[1] == "tokenizer.json: not the file that was verified; is it another bundle's? Copy it again"
    else:
        assert re.fullmatch(r"(\w+ \d\.\d{3}\n?)+", found[1]), found[1]


# Types and submits as a person would, and tells what came.
ASKS = """
text.value = "Once upon a time";
form.requestSubmit();
const waiting = setInterval(() => {
  if (!text.disabled && !times.textContent.endsWith(" a token")) return;
  clearInterval(waiting);
  fetch("/", { method: "POST", body: answer.textContent.replaceAll("\\n", " ") + "\\n" + times.textContent });
}, 100);
"""


def test_the_page_of_one_that_writes(packed: Packaged, tmp_path: Path) -> None:
    """Its words are llama.cpp's here, as its golden answers are, and the first, the nine after it and the steady ones are timed apart."""
    pytest.importorskip("llama_cpp")
    need_chromium()
    site = tmp_path / "site"
    site.mkdir()
    write_stories(site / "model.gguf")
    model = load_model(STORIES)
    prompt, exact = (
        model.encode(["Once upon a time"], 100)[0],
        {key: RUNTIME[key] for key in ("threads", "kv_k", "kv_v")},
    )
    with closing(llamacpp.generator(site / "model.gguf", exact)) as generator:
        tokens = [*continuation(generator, np.array(prompt), 40, frozenset())]
    row = {"text": "Once upon a time", "asked": prompt, "tokens": [int(token) for token in tokens[:8]]}
    golden = {"format": 1, "of": "", "tolerance": 0.0, "rows": [row]}
    (site / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    write_sealed(site, make_manifest(settings={}))
    gguf = {"output": "tokens", "tokenizer": None, "model": "model.gguf", "runtime": RUNTIME, "settings": {}}
    page = SIDECARS["index.html"](packing(packed, tmp_path, arch="wasm32", **gguf))
    assert isinstance(page, str)
    (site / "index.html").write_text(page.replace("</script>\n</html>", f"{ASKS}</script>\n</html>"), encoding="utf-8")
    shutil.copyfile(web.WRITER, site / "load.mjs")
    for module in (web.WORDS, web.CHECKS):
        shutil.copyfile(module, site / module.name)
    installed = site / "node_modules/@wllama/wllama/esm"
    shutil.copytree(fetch_packages([*PACKAGES]) / "wllama", installed)
    said: queue.Queue[str] = queue.Queue()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Told, said, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    opened = start(find_program("chromium"), f"http://127.0.0.1:{server.server_port}/")
    try:
        answer, times = said.get(timeout=240).split("\n")
    finally:
        opened.stop()
        server.shutdown()
        server.server_close()
    assert re.fullmatch(r"first token [\d.]+ ms; the nine after it [\d.]+ ms each; then [\d.]+ ms a token", times)
    wanted = model.tokenizer().decode(tokens)
    assert answer.strip().startswith(wanted.strip())
