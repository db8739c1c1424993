"""What `edgekit embed --for web` writes, in a real Chromium: the session's answers, the cache, threads, and each planted fault."""

from __future__ import annotations

import functools
import http.server
import json
import queue
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle.embed import embed
from edgekit.bundle.platforms import EMBEDDINGS
from edgekit.devices.browser.program import find_program, start
from edgekit.probes.web.npm import PACKAGES, fetch_packages
from tests.bundle.test_check import FAULTS
from tests.bundle.test_golden import pack_golden
from tests.bundle.test_load import TEXTS, shipped
from tests.bundle.test_page import Told
from tests.conftest import ROOT
from tests.devices.chromium import need_chromium
from tests.node_packages import need_node

EXAMPLE = ROOT / "examples" / "embed-web"
WEB = EMBEDDINGS["onnxruntime", "text", "logits", "web"]
LONG = [*TEXTS, "turn on the light " * 60_000, "\N{ARABIC LETTER MEEM}\N{ARABIC LETTER REH} light"]
# Opens the bundle twice, asks it, opens those with faults, and tells a server what came; then the same page elsewhere, once.
PAGE = """<!doctype html><meta charset="utf-8"><script type="module">
import { open } from "./app.mjs";
import { createReader } from "./store.mjs";
const { texts, faults, tell, then } = await (await fetch("./asked.json")).json();
const told = [], again = [], said = { isolated: crossOriginIsolated, faults: {}, answers: [] };
try {
  const bundle = await open("./bundle/", { threads: 2, tell: (one) => told.push(one) });
  for (const text of texts) said.answers.push(await bundle(text));
  const { notes, times } = bundle;
  bundle.close();
  const second = await open("./bundle/", { threads: 2, tell: (one) => again.push(one) });
  second.close();
  for (const name of faults) {
    try { (await open(`./${name}/`)).close(); said.faults[name] = "none"; } catch (failed) { said.faults[name] = failed.message; }
  }
  navigator.storage.estimate = async () => ({ quota: 9, usage: 2 });
  const full = [];
  const manifest = await (await fetch("./bundle/bundle.json")).json();
  await createReader((one) => full.push(one))(new URL("./full/model.onnx", location.href), manifest.files["model.onnx"]);
  Object.assign(said, { notes, times, told, again, full, cached: (await (await caches.open("edgekit")).keys()).length });
} catch (failed) {
  said.failed = failed.message;
}
await fetch(tell, { method: "POST", mode: "no-cors", body: JSON.stringify(said) }).catch(() => {});
if (!location.href.startsWith(then)) location.href = then;
</script>"""

# Opens the example in frames as it lies, types, submits, and tells what a person would see; then one whose bundle is damaged.
VISITOR = """<!doctype html><meta charset="utf-8"><iframe id="page"></iframe><script type="module">
const page = document.getElementById("page"), said = { answers: [], saw: [] };
const until = async (true_) => { while (!true_()) await new Promise((then) => setTimeout(then, 5)); };
const find = (id) => page.contentDocument?.getElementById(id);
const visit = async (address) => {
  page.src = address;
  await until(() => find("answer") && page.contentWindow.location.href.endsWith(address));
  await until(() => { said.saw.push(find("answer").value); return find("progress").hidden; });
  return find("answer").value;
};
const { texts, tell } = await (await fetch("./asked.json")).json();
said.ready = await visit("assistant.html");
said.progress = find("progress").value;
for (const text of texts) {
  const { text: field } = find("form").elements;
  field.value = text;
  find("form").requestSubmit();
  await until(() => !field.disabled);
  said.answers.push(find("answer").value);
}
said.damaged = await visit("damaged/assistant.html");
said.open = [...find("form").elements].filter((field) => !field.disabled).length;
await fetch(tell, { method: "POST", mode: "no-cors", body: JSON.stringify(said) });
</script>"""


@contextmanager
def isolated(app: Path) -> Iterator[str]:
    """The address at which the app's own server has it, with the headers of isolation."""
    with subprocess.Popen([need_node(), "serve.mjs", "0"], cwd=app, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_golden(tmp_path_factory.mktemp("web")).bundle


@contextmanager
def hear(folder: Path) -> Iterator[tuple[queue.Queue[str], str]]:
    """What pages say, and where they say it: a server that has a folder, and sends no headers of isolation."""
    said: queue.Queue[str] = queue.Queue()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Told, said, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield said, f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def lay_app(bundle: Path, app: Path) -> Path:
    """What `edgekit embed --for web` writes, with npm's packages beside it."""
    embed(bundle, "web", app)
    fetched = fetch_packages([*PACKAGES])
    for name in ("onnxruntime-web", "tokenizers"):
        shutil.copytree(fetched / name, app / "node_modules" / PACKAGES[name].package / "dist")
    return app


@pytest.fixture(scope="module")
def pages(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the page says that is isolated, and the one that is not."""
    need_chromium()
    app = lay_app(bundle, tmp_path_factory.mktemp("web") / "app")
    names = {fault: re.sub(r"\W+", "-", fault) for fault in FAULTS} | {"older": "older"}
    for fault, name in names.items():
        shutil.copytree(bundle, app / name)
        if fault in FAULTS:
            FAULTS[fault][0](app / name)
    path = app / "older" / "bundle.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"minimum": "1.18"', '"minimum": "1.99"'), encoding="utf-8"
    )
    shutil.copytree(bundle, app / "full")
    (app / "try.html").write_text(PAGE, encoding="utf-8")
    with hear(app) as (said, plain), isolated(app) as address:
        asked = {"texts": LONG, "faults": [*names.values()], "tell": plain, "then": f"{plain}try.html"}
        (app / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        opened = start(find_program("chromium"), f"{address}try.html")
        try:
            return [json.loads(said.get(timeout=240)) for _ in range(2)]
        finally:
            opened.stop()


def test_it_answers_as_the_python_loader_does(bundle: Path, pages: list[dict[str, Any]]) -> None:
    opened = shipped(bundle).Bundle(bundle)
    for page in pages:
        assert "failed" not in page, page
        assert all(page["times"][key] > 0 for key in ("open", "cold", "warm"))
        for text, said in zip(LONG, page["answers"], strict=True):
            wanted = opened(text)
            assert [label for label, _ in said] == [label for label, _ in wanted], text[:40]
            np.testing.assert_allclose([score for _, score in said], [score for _, score in wanted], atol=1e-6)


def test_files_are_downloaded_once_with_progress(bundle: Path, pages: list[dict[str, Any]]) -> None:
    sizes = {name: (bundle / name).stat().st_size for name in ("model.onnx", "tokenizer.json", "golden.json")}
    for page in pages:
        assert {one["name"]: one["done"] for one in page["told"]} == sizes
        assert {one["name"]: one["bytes"] for one in page["told"]} == sizes
        assert page["again"] == []
        assert page["cached"] >= len(sizes)


def test_a_page_that_is_not_isolated_has_one_thread_and_says_so(pages: list[dict[str, Any]]) -> None:
    alone, open_ = pages
    assert (alone["isolated"], alone["notes"]) == (True, [])
    (note,) = open_["notes"]
    assert not open_["isolated"]
    assert note.startswith(
        "one thread and not 2: this page is not isolated; send the headers Cross-Origin-Opener-Policy: "
    )


def test_a_file_for_which_the_quota_has_no_room_is_not_kept(pages: list[dict[str, Any]]) -> None:
    """The browser's answer of how much it has left is made small for this; all else is the browser's own."""
    (note,) = [one["note"] for one in pages[0]["full"] if "note" in one]
    assert re.fullmatch(
        r"not kept: it has \d+ bytes and the browser's quota leaves 7; it is fetched again next time", note
    )


@pytest.mark.parametrize("fault", [*FAULTS, "older"])
def test_a_fault_is_named(pages: list[dict[str, Any]], fault: str) -> None:
    said = (
        FAULTS[fault][1] if fault in FAULTS else r"onnxruntime-web 1\.30\.0 is too old for this bundle: it needs 1\.99"
    )
    if fault == "missing":
        said = r"/missing/tokenizer\.json: status 404; is the whole bundle there\?"
    for page in pages:
        failed = page["faults"][re.sub(r"\W+", "-", fault)]
        assert re.search(said.replace("'.*'", '".*"'), failed), failed


def test_the_example_is_used_as_a_visitor_uses_it(bundle: Path, tmp_path: Path) -> None:
    """examples/embed-web: the download is shown, a form answers as the Python loader does, a damaged bundle is one sentence."""
    need_chromium()
    app = lay_app(bundle, tmp_path / "app")
    for name in ("assistant.html", "assistant.mjs"):
        shutil.copy(EXAMPLE / name, app)
    shutil.copytree(app, app / "damaged")
    FAULTS["a flipped bit"][0](app / "damaged" / "bundle")
    texts = [text.strip() for text in TEXTS if text.strip() and "\n" not in text]
    with hear(tmp_path) as (said, plain), isolated(app) as address:
        (app / "asked.json").write_text(json.dumps({"texts": texts, "tell": plain}), encoding="utf-8")
        (app / "visit.html").write_text(VISITOR, encoding="utf-8")
        opened = start(find_program("chromium"), f"{address}visit.html")
        try:
            page = json.loads(said.get(timeout=120))
        finally:
            opened.stop()
    assert (page["ready"], page["progress"]) == ("Ready.", 1.0)
    assert "One moment ..." in page["saw"]
    loaded, wanted = shipped(bundle).Bundle(bundle), []
    for text in texts:
        label, score = loaded(text)[0]
        understood = label != loaded.manifest["out_of_scope"]
        wanted.append(f"{label} ({100 * score:.0f}%): {text}" if understood else f"I did not understand: {text}")
    assert page["answers"] == wanted
    assert re.fullmatch(r"This page has no assistant: \S+: not the file that was verified; .*", page["damaged"])
    assert page["open"] == 0
    assert (EXAMPLE / "README.md").read_text(encoding="utf-8").count(WEB.install[0]) == 1
