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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from edgekit.bundle.embed import embed
from edgekit.bundle.platforms import EMBEDDINGS
from edgekit.devices.browser.program import find_program, start
from edgekit.probes.web.npm import PACKAGES, fetch_packages
from tests.bundle import native_apps
from tests.bundle.faults import FAULTS
from tests.bundle.native_apps import decoder_bundle, writing_bundle
from tests.bundle.pages import Told
from tests.bundle.test_faults import WHOLE, plant_all, slug
from tests.bundle.test_golden import pack_golden
from tests.bundle.test_load import TEXTS, shipped
from tests.conftest import ROOT
from tests.devices.chromium import need_chromium
from tests.devices.devtools import Devtools
from tests.node_packages import need_node

EXAMPLE = ROOT / "examples" / "embed-web"
WEB = EMBEDDINGS["onnxruntime", "text", "logits", "web"]
LONG = [*TEXTS, "turn on the light " * 60_000, "\N{ARABIC LETTER MEEM}\N{ARABIC LETTER REH} light"]
# Opens the bundle twice, asks it, opens those with faults (in the page that is isolated), those that the network spoils and one for
# which there is no room (in the other), and tells a server what came; then the same page elsewhere. The third is not secure.
PAGE = """<!doctype html><meta charset="utf-8"><script type="module">
import { open } from "./app.mjs";
import { createReader } from "./store.mjs";
const { texts, faults, spoilt, tell, pages } = await (await fetch("./asked.json")).json();
const told = [], again = [], said = { isolated: crossOriginIsolated, faults: {}, answers: [] };
const openings = {
  web: (folder, more) => open(folder, more),
  "web-llama": async (folder) => {
    const [{ Wllama }, words] = await Promise.all([import("./words/node_modules/@wllama/wllama/esm/index.min.js"), import("./words/load.mjs")]);
    return words.open(folder, { Wllama, wasm: "./words/node_modules/@wllama/wllama/esm/" });
  },
  "web-decoder": async (folder) => (await import("./decoder/app.mjs")).open(folder),
};
const why = async (loader, folder, more) => {
  try {
    (await openings[loader](folder, more)).close?.();
    return "opened";
  } catch (failed) {
    return failed.message;
  }
};
const full = async () => {
  const notes = [];
  const manifest = await (await fetch("./bundle/bundle.json")).json();
  await createReader((one) => notes.push(one))(new URL("./room/model.onnx", location.href), manifest.files["model.onnx"]);
  return notes.find((one) => one.note)?.note;
};
try {
  if (!isSecureContext) said.insecure = await why("web", "./bundle/");
  else {
    const bundle = await open("./bundle/", { threads: 2, tell: (one) => told.push(one) });
    for (const text of texts) said.answers.push(await bundle(text));
    said.nothing = await bundle(undefined).catch((failed) => failed.message);
    const { notes, times } = bundle;
    bundle.close();
    const second = await open("./bundle/", { threads: 2, tell: (one) => again.push(one) });
    second.close();
    Object.assign(said, { notes, times, told, again, cached: (await (await caches.open("edgekit")).keys()).length });
    if (crossOriginIsolated) {
      for (const [loader, names] of Object.entries(faults)) {
        said.faults[loader] = {};
        for (const name of names) said.faults[loader][name] = await why(loader, `./faults/${loader}/${name}/bundle/`);
      }
    } else {
      said.spoilt = { "no engine": await why("web", "./bundle/", { modules: "./nowhere/" }) };
      for (const name of spoilt) said.spoilt[name] = await why("web", `./spoilt/${name}/`);
      said.before = await why("web", "./spoilt/later/");
      const notes = [];
      said.later = await why("web", "./spoilt/later/", { tell: (one) => notes.push(one.note) });
      said.offline = notes.filter(Boolean);
      await fetch("./quota");
      said.room = await full();
    }
  }
} catch (failed) {
  said.failed = failed.stack;
}
await fetch(tell, { method: "POST", mode: "no-cors", body: JSON.stringify(said) }).catch(() => {});
const next = pages[pages.findIndex((page) => location.href.startsWith(page)) + 1];
if (next) location.href = next;
</script>"""
# What a server or a network makes of files, and what is said: by the folder's name under spoilt/.
SPOILT = {
    "a page for every file": r"bundle\.json: no JSON: cut off, or something else; copy it again",
    "a page for the model": r"model\.onnx: \d+ of \d+ bytes: cut off, or another bundle's; copy it again",
    "a long page for the model": r"/model\.onnx: not the file that was verified; is it another bundle's\? Copy it again",
    "a download that ends early": r"/model\.onnx: cannot be fetched to its end \(.+\): is there a network, and its server\? Try",
    "no server": r"/bundle\.json: cannot be fetched to its end \(.+\): is there a network, and its server\? Try again",
    "no engine": r"(onnxruntime-web|@huggingface/tokenizers): cannot be loaded \(.+\): install it as edgekit embed says, with its part for this machine",
}

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


class Spoiling(Told):
    """Serves an app's folder, and spoils what is asked for under spoilt/."""

    later: ClassVar[set[str]] = set()
    on_quota: ClassVar[Callable[[], object]]

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        way, _, name = self.path.removeprefix("/spoilt/").rpartition("/")
        if self.path == "/quota":
            self.on_quota()
            self.send_error(404)
        elif not self.path.startswith("/spoilt/"):
            super().do_GET()
        elif way == "no-server" or (way == "later" and name in self.later):
            self.close_connection = True  # without a word
        elif way == "a-page-for-every-file" or ("page" in way and name == "model.onnx"):
            self._answer(b"<!doctype html>" * (1000 if way.startswith("a-long") else 1))
        else:
            content = (Path(self.directory) / "bundle" / name).read_bytes()
            short = way == "a-download-that-ends-early" and name == "model.onnx"
            self._answer(content[: len(content) // 2] if short else content, len(content))
            if name == "golden.json":
                self.later |= {"bundle.json", "model.onnx", "tokenizer.json", name}

    def _answer(self, content: bytes, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True


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
def hear(folder: Path, handler: type[Told] = Told) -> Iterator[tuple[queue.Queue[str], str]]:
    """What pages say, and where they say it: a server that has a folder, and sends no headers of isolation."""
    said: queue.Queue[str] = queue.Queue()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, said, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield said, f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def visit(app: Path, page: str, asked: Mapping[str, object], seconds: float = 120) -> Any:
    """What a page of an app says in Chromium, served as `edgekit embed` has it; it finds what it is asked in asked.json."""
    with hear(app) as (said, plain), isolated(app) as address:
        (app / "asked.json").write_text(json.dumps({**asked, "tell": plain}), encoding="utf-8")
        (app / "visit.html").write_text(page, encoding="utf-8")
        opened = start(find_program("chromium"), f"{address}visit.html")
        try:
            return json.loads(said.get(timeout=seconds))
        finally:
            opened.stop()


def lay_app(bundle: Path, app: Path) -> Path:
    """What `edgekit embed --for web` writes, with npm's packages beside it."""
    embed(bundle, "web", app)
    fetched = fetch_packages([*PACKAGES])
    for name in ("onnxruntime-web", "tokenizers"):
        shutil.copytree(fetched / name, app / "node_modules" / PACKAGES[name].package / "dist")
    return app


@pytest.fixture(scope="module")
def pages(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the page says that is isolated, the one that is not, and the one that is not secure."""
    need_chromium()
    app = lay_app(bundle, tmp_path_factory.mktemp("web") / "app")
    made = writing_bundle(tmp_path_factory.mktemp("words") / "made")
    words = native_apps.lay_app(made, app / "words", "web")
    shutil.copytree(fetch_packages([*PACKAGES]) / "wllama", words / "node_modules/@wllama/wllama/esm")
    names = {}
    decoder = native_apps.lay_app(decoder_bundle(tmp_path_factory.mktemp("decoder") / "made"), app / "decoder", "web")
    for loader, laid in (("web", app), ("web-llama", words), ("web-decoder", decoder)):
        names[loader] = [*plant_all(laid, loader, app / "faults" / loader).values()]
    shutil.copytree(bundle, app / "room")
    (app / "try.html").write_text(PAGE, encoding="utf-8")
    with hear(app, Spoiling) as (said, plain), isolated(app) as address:
        places = [address, plain, plain.replace("127.0.0.1", "plain.test")]
        asked = {
            "texts": LONG, "faults": names, "spoilt": [slug(name) for name in SPOILT if name != "no engine"],
            "tell": plain, "pages": [f"{place}try.html" for place in places],
        }  # fmt: skip
        (app / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        resolver = "--host-resolver-rules=MAP plain.test 127.0.0.1"
        opened = Devtools(tmp_path_factory.mktemp("pipes"), f"{address}try.html", resolver)
        Spoiling.on_quota = lambda _: opened.ask("Storage.overrideQuotaForOrigin", origin=plain[:-1], quotaSize=100)
        try:
            return [json.loads(said.get(timeout=240)) for _ in places]
        finally:
            opened.stop()


def test_it_answers_as_the_python_loader_does(bundle: Path, pages: list[dict[str, Any]]) -> None:
    opened = shipped(bundle).Bundle(bundle)
    for page in pages[:2]:
        assert "failed" not in page, page
        assert page["nothing"] == "a text is answered, not undefined"
        assert all(page["times"][key] > 0 for key in ("open", "cold", "warm"))
        for text, said in zip(LONG, page["answers"], strict=True):
            wanted = opened(text)
            assert [label for label, _ in said] == [label for label, _ in wanted], text[:40]
            np.testing.assert_allclose([score for _, score in said], [score for _, score in wanted], atol=1e-6)


def test_files_are_downloaded_once_with_progress(bundle: Path, pages: list[dict[str, Any]]) -> None:
    sizes = {name: (bundle / name).stat().st_size for name in ("model.onnx", "tokenizer.json", "golden.json")}
    for page in pages[:2]:
        assert {one["name"]: one["done"] for one in page["told"]} == sizes
        assert {one["name"]: one["bytes"] for one in page["told"]} == sizes
        assert page["again"] == []
        assert page["cached"] >= len(sizes)


def test_a_page_that_is_not_isolated_has_one_thread_and_says_so(pages: list[dict[str, Any]]) -> None:
    alone, open_, _ = pages
    assert (alone["isolated"], alone["notes"]) == (True, [])
    (note,) = open_["notes"]
    assert not open_["isolated"]
    assert note.startswith(
        "one thread and not 2: this page is not isolated; send the headers Cross-Origin-Opener-Policy: "
    )


def test_a_file_for_which_the_quota_has_no_room_is_not_kept(pages: list[dict[str, Any]]) -> None:
    """The browser's own quota, made small for this, and its own refusal."""
    note = pages[1]["room"]
    assert re.fullmatch(
        r"not kept: it has \d+ bytes and the browser's quota leaves (\d+|less); it is fetched again next time", note
    )


def test_without_a_network_what_was_kept_is_used(pages: list[dict[str, Any]]) -> None:
    assert (pages[1]["before"], pages[1]["later"]) == ("opened", "opened")
    assert pages[1]["offline"] == ["no network: the bundle that was kept is used"]


def test_a_page_that_is_not_secure_answers_nothing(pages: list[dict[str, Any]]) -> None:
    assert pages[2]["insecure"] == "this page cannot check a file: serve it by https, or from localhost"


@pytest.mark.parametrize("fault", SPOILT)
def test_what_servers_and_networks_spoil_is_named(pages: list[dict[str, Any]], fault: str) -> None:
    said = pages[1]["spoilt"]
    found = said[fault if fault in said else slug(fault)]
    assert re.search(SPOILT[fault], found), found


@pytest.mark.parametrize("loader", ["web", "web-llama", "web-decoder"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_one_sentence(pages: list[dict[str, Any]], loader: str, fault: str) -> None:
    """And a bundle without one is opened."""
    said, sentence = pages[0]["faults"][loader], FAULTS[fault].sentence(loader)
    assert said[slug(WHOLE)] == "opened"
    if sentence is None:
        assert slug(fault) not in said
    else:
        assert re.search(sentence, said[slug(fault)]), said[slug(fault)]
        assert "\n" not in said[slug(fault)]


def test_the_example_is_used_as_a_visitor_uses_it(bundle: Path, tmp_path: Path) -> None:
    """examples/embed-web: the download is shown, a form answers as the Python loader does, a damaged bundle is one sentence."""
    need_chromium()
    app = lay_app(bundle, tmp_path / "app")
    for name in ("assistant.html", "assistant.mjs"):
        shutil.copy(EXAMPLE / name, app)
    shutil.copytree(app, app / "damaged")
    FAULTS["a flipped bit"].plant(app / "damaged" / "bundle")
    texts = [text.strip() for text in TEXTS if text.strip() and "\n" not in text]
    page = visit(app, VISITOR, {"texts": texts})
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
