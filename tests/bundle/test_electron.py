"""Electron: types of today's, the main process in Node.js, windows in a real one of 2020, and what of the example is packed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle.open import Bundle, load_bundle
from edgekit.bundle.platforms import EMBEDDINGS
from tests.architectures.decoders import TEMPLATE
from tests.bundle.electron_apps import PORTS, put_beside
from tests.bundle.faults import flip
from tests.bundle.native_apps import decoder_bundle, writing_bundle, written
from tests.bundle.test_golden import pack_golden
from tests.bundle.test_load import shipped
from tests.bundle.test_node import put
from tests.conftest import ROOT
from tests.devices.electron import need_electron
from tests.node_packages import CHECKERS, need_node, node_modules

EXAMPLE = ROOT / "examples" / "embed-electron"
# In the place of Electron's module: it records what the app makes, and `find` gives the last of a kind.
ELECTRON = """
import { EventEmitter } from "node:events";
const made = [];
export const find = (kind) => made.findLast((one) => one.kind === kind);
class Made extends EventEmitter {
  constructor(kind, ...given) { super(); made.push(Object.assign(this, { kind, given })); }
}
export class BrowserWindow extends Made {
  constructor(options) { super("window", options); this.webContents = new Made("contents"); this.shown = false; }
  loadFile(...file) { this.file = file; return Promise.resolve(); }
  isVisible() { return this.shown; }
  show() { this.shown = true; }
  hide() { this.shown = false; }
}
Made.prototype.setWindowOpenHandler = function (handler) { this.opens = handler; };
export class Tray extends Made {
  constructor(icon) { super("tray", icon); }
  setToolTip(text) { this.tip = text; }
  setContextMenu(menu) { this.menu = menu; }
}
export const Menu = { buildFromTemplate: (items) => items };
export const ipcMain = Object.assign(new Made("ipc"), { handle(name, answer) { this[name] = answer; } });
export const dialog = Object.assign(new Made("dialog"), { showErrorBox(...told) { this.told = told; } });
export const app = Object.assign(new Made("app"), {
  whenReady: () => Promise.resolve(), requestSingleInstanceLock: () => true,
  quit() { this.emit("before-quit"); this.quits = true; }, exit(code) { this.code = code; },
});
"""
# What a person does with it.
DRIVE = """
import { app, dialog, find, ipcMain } from "electron";
import "./app.mjs";
while (!find("tray")?.menu && app.code === undefined) await new Promise((then) => setTimeout(then, 5));
const said = { told: dialog.told, code: app.code };
if (app.code === undefined) {
  const [tray, window] = [find("tray"), find("window")], [ask, quit] = tray.menu;
  const close = () => {
    let prevented = false;
    window.emit("close", { preventDefault: () => { prevented = true; } });
    return prevented;
  };
  said.shown = [window.isVisible()];
  for (const act of [() => tray.emit("click"), close, () => app.emit("second-instance"), ask.click]) {
    act();
    said.shown.push(window.isVisible());
  }
  said.answers = [];
  for (const text of JSON.parse(process.argv[2])) said.answers.push((await ipcMain.edgekit({}, text)).answer[0]);
  let left = false;
  window.webContents.emit("will-navigate", { preventDefault: () => { left = true; } });
  Object.assign(said, { tip: tray.tip, icon: tray.given[0], query: window.file[1].query, file: window.file[0], left });
  said.opens = window.webContents.opens({ url: "https://example.org" }).action;
  said.stays = close();
  quit.click();
  said.ends = [app.quits, close()];
}
console.log(JSON.stringify(said));
process.exit(0);
"""
# What windows ask of a model that writes, one while another is answered, and before it is open.
ASK = """
import { createRequire } from "node:module";
import { ipcMain } from "electron";
import { answerWindows } from "./main.mjs";
createRequire(import.meta.url)("./preload.cjs");
const { edgekit } = globalThis, said = { pieces: [], order: [] };
const ask = async (asked, most, name = 9) => {
  let text = "";
  try {
    await edgekit.answer(asked, (piece) => { text += piece; said.pieces.push(piece.length); said.order.push(name); }, most).done;
    return text;
  } catch (failed) { return `failed: ${failed}`; }
};
const opening = answerWindows(ipcMain, "bundle").then(() => "opened", (failed) => failed.message);
const texts = JSON.parse(process.argv[2]);
said.answers = await Promise.all(texts.map((text, at) => ask(text, 64, at)));
said.opening = await opening;
if (said.opening === "opened") {
  said.stopped = [];
  const first = edgekit.answer(texts[0], (piece) => { if (said.stopped.push(piece) === 2) first.stop(); }, 64);
  const second = edgekit.answer(texts[1], () => { said.stopped.push("of one that was stopped before"); }, 64);
  second.stop();
  await Promise.all([first.done, second.done]);
  said.later = await ask(texts[0], 64);
  said.none = await ask(texts[0], 0);
  said.long = await ask("on ".repeat(3000), 64);
  said.number = await ask(3, 64);
}
console.log(JSON.stringify(said));
process.exit(0);
"""
ASKED = ["turn the kitchen light on", "on \U0001f600", "play"]
TEXTS = ["turn on the light", "play some jazz music", "unknown words only", ""]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_golden(tmp_path_factory.mktemp("electron")).bundle


def lay(bundle: Path, folder: Path) -> Path:
    """The example as its README lays it out, with npm's packages but Electron."""
    app = put(bundle, folder, "electron")
    (app / "node_modules").unlink()
    shutil.copytree(EXAMPLE, app, dirs_exist_ok=True)
    for package in node_modules().iterdir():
        if package.name != "electron":
            (app / "node_modules").mkdir(exist_ok=True)
            (app / "node_modules" / package.name).symlink_to(package)
    stand_in = app / "node_modules" / "electron"
    stand_in.mkdir()
    (stand_in / "package.json").write_text('{"exports": "./index.mjs"}', encoding="utf-8")
    (stand_in / "index.mjs").write_text(ELECTRON, encoding="utf-8")
    (app / "drive.mjs").write_text(DRIVE, encoding="utf-8")
    return app


def drive(app: Path) -> dict[str, Any]:
    command = [need_node(), "drive.mjs", json.dumps(TEXTS)]
    ran = subprocess.run(command, cwd=app, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    said: dict[str, Any] = json.loads(ran.stdout)
    return said


def test_the_main_process_in_node_not_run_in_electron_itself(bundle: Path, tmp_path: Path) -> None:
    """The icon opens and hides the window, closing hides it until the app is quit, and the real bundle answers."""
    app = lay(bundle, tmp_path / "app")
    said = drive(app)
    loaded = shipped(bundle).Bundle(bundle)
    assert [label for label, _ in said["answers"]] == [loaded(text)[0][0] for text in TEXTS]
    assert said["shown"] == [False, True, False, True, False]
    assert (said["stays"], said["ends"], said["left"], said["opens"]) == (True, [True, False], True, "deny")
    assert (said["tip"], said["query"]) == (
        loaded.manifest["name"],
        {"outside": loaded.manifest["out_of_scope"] or ""},
    )
    assert all((app / name).is_file() for name in (Path(said["icon"]).name, Path(said["file"]).name))
    flip(app / "bundle" / "model.onnx")
    said = drive(app)
    assert said["code"] == 1
    assert said["told"][0] == "Assistant"
    assert said["told"][1].startswith("model.onnx: not the file that was verified")


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_windows_are_written_to_in_node_not_run_in_electron_itself(tmp_path: Path, template: str | None) -> None:
    """Piece by piece through message ports: llama.cpp's texts, one question after the other, stopped where one is."""
    bundle = writing_bundle(tmp_path / "model", template)
    loaded = load_bundle(bundle, bundle.folder)
    wanted = [written(loaded.llama, text, template) for text in ASKED]  # type: ignore[attr-defined]
    check_windows(bundle, tmp_path / "app", wanted)


def test_windows_are_written_to_by_onnxruntime_in_node_not_run_in_electron_itself(tmp_path: Path) -> None:
    """The same of a decoder in ONNX, with the Python loader's texts."""
    bundle = decoder_bundle(tmp_path / "model", chats=True)
    loaded: Any = load_bundle(bundle, bundle.folder)
    check_windows(bundle, tmp_path / "app", [loaded(text, max_tokens=64) for text in ASKED])


def check_windows(bundle: Bundle, app: Path, wanted: Sequence[str]) -> None:
    """What windows are told of ASKED, which each has a long answer, and of what is wrong."""
    put(bundle.folder, app, "electron")
    (app / "node_modules").unlink()
    (app / "node_modules" / "electron").mkdir(parents=True)
    for package in node_modules().iterdir():
        if package.name != "electron":
            (app / "node_modules" / package.name).symlink_to(package)
    (app / "node_modules" / "electron" / "index.js").write_text(PORTS, encoding="utf-8")
    (app / "drive.mjs").write_text(ASK, encoding="utf-8")

    def drive() -> dict[str, Any]:
        command = [need_node(), "drive.mjs", json.dumps(ASKED)]
        ran = subprocess.run(command, cwd=app, capture_output=True, text=True, check=False, timeout=300)
        assert ran.returncode == 0, ran.stderr
        said: dict[str, Any] = json.loads(ran.stdout)
        return said

    said = drive()
    assert said["opening"] == "opened"
    assert said["answers"] == wanted
    assert min(map(len, wanted)) > 8
    assert said["order"] == sorted(said["order"])
    assert min(said["pieces"]) > 0
    assert len(said["pieces"]) > 3 * 20
    assert len(said["stopped"]) == 2
    assert (said["later"], said["none"]) == (said["answers"][0], "")
    assert re.fullmatch(r"failed: \d+ tokens do not fit the context of \d+", said["long"])
    takes = (
        "no chat template: give it one text"
        if not bundle.manifest.chats
        else "the chat template does not take this conversation"
    )
    assert takes in said["number"]
    flip(app / "bundle" / bundle.manifest.model)
    said = drive()
    assert said["opening"].startswith(f"{bundle.manifest.model}: not the file that was verified")
    assert said["answers"] == [f"failed: {said['opening']}"] * 3


# Windows of a real Electron: a model that writes in some, one that classifies in another.
REAL = """
const { app, BrowserWindow, ipcMain } = require("electron");
const { join } = require("path");
const [words, rows] = ["words", "rows"].map((name) => require(`./${name}/main.cjs`).answerWindows);
const { texts, long } = JSON.parse(process.env.ASKED), said = {};
const open = async (name) => {
  const webPreferences = { preload: join(__dirname, name, "preload.cjs"), sandbox: true, contextIsolation: true };
  const window = new BrowserWindow({ show: false, webPreferences });
  await window.loadFile("page.html");
  return window;
};
const run = (window, code) => window.webContents.executeJavaScript(`(async () => { ${code} })()`);
const ask = async (window, text, most = 64) => run(window, `
  let said = "";
  try { await edgekit.answer(${JSON.stringify(text)}, (piece) => { said += piece; }, ${most}).done; } catch (failed) { return { failed }; }
  return said;`);
const begin = (window) => run(window, `window.asked = edgekit.answer(${JSON.stringify(texts[0])}, () => {}); return 1`);
(async () => {
  await app.whenReady();
  const opened = words(ipcMain, join(__dirname, "words/bundle"));
  const [first, second] = await Promise.all([open("words"), open("words")]);
  said.world = await run(first, "return [typeof require, typeof process, Object.keys(edgekit)]");
  said.answers = await Promise.all(texts.map((text, at) => ask([first, second][at % 2], text)));
  await opened;
  said.long = await ask(first, long);
  said.stopped = await run(first, `
    const pieces = [], asked = edgekit.answer(${JSON.stringify(texts[0])}, (piece) => { if (pieces.push(piece) === 3) asked.stop(); }, 64);
    await asked.done;
    await new Promise((then) => setTimeout(then, 100));
    return pieces.length;`);
  await begin(first);
  first.reload();
  await new Promise((then) => first.webContents.once("did-finish-load", then));
  await begin(second);
  second.destroy();
  said.later = await ask(first, texts[0]);
  ipcMain.removeAllListeners("edgekit");
  said.opening = await words(ipcMain, join(__dirname, "broken")).catch((failed) => failed.message);
  said.broken = await ask(first, texts[0]);
  await rows(ipcMain, join(__dirname, "rows/bundle"));
  const third = await open("rows");
  said.labels = await run(third, `return (await edgekit.answer("turn on the light"))[0]`);
  said.number = await run(third, "try { return await edgekit.answer(3); } catch (failed) { return { failed }; }");
  console.log(JSON.stringify(said));
  app.exit(0);
})().catch((failed) => { console.log(failed.stack); app.exit(1); });
"""


def test_a_real_electron_of_2020_shows_what_windows_are_told(bundle: Path, tmp_path: Path) -> None:
    """Its windows, preload scripts and ports are real, and so are the models; main.mjs is translated to what it requires."""
    electron = need_electron()
    writes = writing_bundle(tmp_path / "model", TEMPLATE)
    for name, folder in (("words", writes.folder), ("rows", bundle)):
        put_beside(put(folder, tmp_path / "app" / name, "electron"))
    app, texts = tmp_path / "app", ["turn the kitchen light on", "on \U0001f600", "play"]
    shutil.copytree(app / "words" / "bundle", app / "broken")
    flip(app / "broken" / "model.gguf")
    (app / "page.html").write_text('<!doctype html><meta charset="utf-8"><title>page</title>', encoding="utf-8")
    (app / "package.json").write_text('{"main": "real.cjs"}', encoding="utf-8")
    (app / "real.cjs").write_text(REAL, encoding="utf-8")
    asked = {"ASKED": json.dumps({"texts": texts, "long": "on " * 3000}), "NODE": need_node()}
    ran = subprocess.run(
        [*electron, "."], cwd=app, env=os.environ | asked, capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    llama = load_bundle(writes, writes.folder).llama  # type: ignore[attr-defined]
    assert said["world"] == ["undefined", "undefined", ["answer"]]
    assert said["answers"] == [written(llama, text, TEMPLATE) for text in texts]
    assert re.fullmatch(r"\d+ tokens do not fit the context of \d+", said["long"]["failed"])
    assert (said["stopped"], said["later"]) == (3, said["answers"][0])
    assert said["opening"].startswith("model.gguf: not the file that was verified")
    assert said["broken"] == {"failed": said["opening"]}
    assert said["labels"][0] == shipped(bundle).Bundle(bundle)("turn on the light")[0][0]
    assert said["number"] == {"failed": "edgekit answers a text"}


def test_its_types_are_electrons(bundle: Path, tmp_path: Path) -> None:
    app = put(bundle, tmp_path / "app", "electron")
    shutil.copytree(EXAMPLE, app, dirs_exist_ok=True)
    names = ["app.mjs", "window.mjs", "prune.cjs", "preload.cjs"]
    for runtime, output in (("llama-cpp", "tokens"), ("llama-cpp", "embedding"), ("onnxruntime", "tokens")):
        other = app / f"{runtime}-{output}"
        other.mkdir()
        for name, path in EMBEDDINGS[runtime, "text", output, "electron"].files.items():
            shutil.copyfile(path, other / name)
        names += [f"{other.name}/main.mjs", f"{other.name}/preload.cjs"]
    ran = subprocess.run(
        [need_node(), "node_modules/typescript/bin/tsc", "--noEmit", "--strict", "--target", "es2022", "--module", "nodenext",
         "--allowJs", "--checkJs", "--skipLibCheck", "--types", "node", *names],
        cwd=app, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout


def test_one_of_five_platforms_is_packed(tmp_path: Path) -> None:
    """The folders are those of the real onnxruntime-node; versions are those that `edgekit embed` names."""
    table = json.loads((EXAMPLE / "package.json").read_text(encoding="utf-8"))
    needs = {f"{name}@{version}" for name, version in table["dependencies"].items()}
    assert needs == set(EMBEDDINGS["onnxruntime", "text", "logits", "electron"].install[0].split()[3:])
    assert f"electron@{table['devDependencies']['electron']}" in CHECKERS
    inside = Path("node_modules/onnxruntime-node/bin/napi-v6")
    real, packed = node_modules().parent / inside, tmp_path / "resources" / "app.asar.unpacked" / inside
    for path in real.glob("*/*"):
        (packed / path.relative_to(real)).mkdir(parents=True)
    assert len(list(packed.glob("*/*"))) == 5
    prune = (
        f"require({json.dumps(str(EXAMPLE / 'prune.cjs'))}).default({{ appOutDir: {json.dumps(str(tmp_path))}, arch: Number(process.argv[1]),"
        " electronPlatformName: 'darwin', packager: { getResourcesDir: (folder) => `${folder}/resources` } })"
    )

    def run(arch: int) -> subprocess.CompletedProcess[str]:
        command = [need_node(), "-e", prune, str(arch)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    refused = run(1)
    assert "onnxruntime-node has no library for darwin/x64: it has " in refused.stderr
    assert len(list(packed.glob("*/*"))) == 5
    assert run(3).returncode == 0
    assert [path.relative_to(packed).as_posix() for path in packed.glob("*/*")] == ["darwin/arm64"]
