"""Faults planted in real bundles, met by the loaders themselves: Python, Node.js, Electron's part in it, C and Kotlin.

Each is one sentence, and nothing is answered. Pages meet the same ones in `test_web.py`.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.bundle.embed import embed
from edgekit.bundle.open import Bundle, open_bundle
from edgekit.devices.native import llama as llama_cpp
from tests.bundle import phone_apps
from tests.bundle.electron_apps import PORTS
from tests.bundle.faults import FAULTS, change_text
from tests.bundle.native_apps import (
    FLAGS,
    compile_app,
    compile_writer,
    decoder_bundle,
    lay_app,
    pack_words,
    run_app,
    writing_bundle,
)
from tests.devices.native import HERE, need_compiler
from tests.devices.ort_headers import header_folder, library_folder
from tests.llama_programs import made_once
from tests.node_packages import need_node, node_modules

WHOLE, ROWS = "nothing", "rows"
# Opens each bundle that is named, and says why it does not.
PYTHON = """
import json
from load import Bundle
said = {}
for name in json.load(open("asked.json")):
    try:
        Bundle(f"faults/{name}/bundle")
        said[name] = "opened"
    except RuntimeError as failed:
        said[name] = str(failed)
print(json.dumps(said))
"""
NODE = """
import { readFileSync } from "node:fs";
import { open } from "./load.mjs";
const said = {};
for (const name of JSON.parse(readFileSync("asked.json", "utf8"))) {
  try {
    await open(`faults/${name}/bundle`);
    said[name] = "opened";
  } catch (failed) {
    said[name] = failed.constructor === Error ? failed.message : failed.stack;
  }
}
console.log(JSON.stringify(said));
process.exit(0);
"""
# The same of windows, each with a main process of its own.
WINDOWS = """
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { answerWindows } from "./main.mjs";
const electron = createRequire(import.meta.url)("electron"), said = {};
createRequire(import.meta.url)("./preload.cjs");
for (const name of JSON.parse(readFileSync("asked.json", "utf8"))) {
  electron.ipcMain.removeAllListeners();
  const opened = answerWindows(electron.ipcMain, `faults/${name}/bundle`).then(() => "opened", (failed) => failed.message);
  try {
    await globalThis.edgekit.answer("play", () => {}, 1).done;
    said[name] = "opened";
  } catch (failed) {
    said[name] = typeof failed === "string" ? failed : failed.stack;
  }
  if (await opened !== said[name]) throw new Error(`the app is told ${await opened}`);
}
console.log(JSON.stringify(said));
process.exit(0);
"""
C = """
#include <stdio.h>
#include "{header}.h"
int main(int count, char **words) {{
  ek_error error;
  {type} *model = count == 2 ? {open}(ek_verified(), words[1], &error) : NULL;
  if (!model) return fprintf(stderr, "%s\\n", error.text), 1;
  {close}(model);
  return fprintf(stderr, "opened\\n"), 0;
}}
"""
C_ROWS = C.format(header="load", type="ek_model", open="ek_open", close="ek_close")
C_WORDS = C.format(header="generate", type="ek_writer", open="ek_open_writer", close="ek_close_writer")


def slug(fault: str) -> str:
    """A fault's name as a folder's."""
    return re.sub(r"\W+", "-", fault)


def unprivileged() -> list[str]:
    """What a command begins with so that it may not read every file: root may."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return []
    rights = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]


def plant_all(app: Path, loader: str, into: Path | None = None) -> dict[str, str]:
    """An app's bundle with each fault in a folder of its own (`into`, or the app's `faults`), and one with none; names by fault."""
    names = {WHOLE: slug(WHOLE)}
    names |= {fault: slug(fault) for fault, found in FAULTS.items() if found.sentence(loader) is not None}
    for fault, name in names.items():
        made = (into or app / "faults") / name
        shutil.copytree(app / "bundle", made / "bundle")
        if (app / "bundle.c").exists():
            shutil.copyfile(app / "bundle.c", made / "bundle.c")
        if fault in FAULTS:
            FAULTS[fault].plant(made / "bundle")
    (app / "asked.json").write_text(json.dumps([*names.values()]), encoding="utf-8")
    return names


def ask(app: Path, *flags: str) -> dict[str, str]:
    """What the app's script says of each bundle, by its folder's name."""
    command = [need_node(), *flags, "ask.mjs"] if (app / "ask.mjs").exists() else [sys.executable, "ask.py"]
    ran = subprocess.run([*unprivileged(), *command], cwd=app, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, str] = json.loads(ran.stdout.splitlines()[-1])
    return found


def run_script(bundle: Bundle, app: Path, loader: str) -> dict[str, str]:
    """What a loader in Python or Node.js says of each fault, in one process."""
    platform = loader.split("-", maxsplit=1)[0]
    lay_app(bundle, app, platform)
    names = plant_all(app, loader)
    if platform == "node":
        (app / "node_modules").symlink_to(node_modules())
        (app / "ask.mjs").write_text(NODE, encoding="utf-8")
    else:
        (app / "ask.py").write_text(PYTHON, encoding="utf-8")
    found = ask(app)
    return {fault: found[name] for fault, name in names.items()}


def run_programs(bundle: Bundle, app: Path, loader: str) -> dict[str, str]:
    """What a program in C says of each fault, linked anew where what was verified is another."""
    need_compiler(HERE)
    lay_app(bundle, app)
    writes = loader == "c-llama"
    (app / "main.c").write_text(C_ROWS if loader == "c" else C_WORDS, encoding="ascii")
    sources = [path.name for path in app.glob("*.c") if path.name != "bundle.c"]
    headers = llama_cpp.headers() if writes else header_folder()
    subprocess.run(["gcc", *FLAGS, "-c", f"-I{headers}", *sources], cwd=app, check=True, timeout=100)
    parts = [f"-I{app}", *map(str, app.glob("*.o"))]
    library = None if writes else library_folder(app / "lib")

    def link(folder: Path) -> Path:
        return compile_writer(folder, *parts) if writes else compile_app(folder, *parts, library=library)

    names = plant_all(app, loader)
    said, whole = {}, link(app / "faults" / names[WHOLE])
    for fault, name in names.items():
        made = app / "faults" / name
        changed = (made / "bundle.c").read_bytes() != (app / "bundle.c").read_bytes()
        code, out, last = run_app(link(made) if changed else whole, made / "bundle", before=unprivileged())
        assert (code, out) == (int(fault != WHOLE), ""), last
        said[fault] = last
    return said


def run_kotlin(bundle: Bundle, app: Path, loader: str) -> dict[str, str]:
    """What an Android app's Kotlin says of each fault, on a JVM."""
    need_compiler(HERE)
    embed(bundle.folder, "android", app)
    shutil.copyfile(app / "cpp" / "bundle.c", app / "bundle.c")
    names = plant_all(app, loader)
    folders: dict[str, list[str]] = {}  # by what was verified
    for fault, name in names.items():
        verified = (app / "faults" / name / "bundle.c").read_text(encoding="ascii")
        folders.setdefault(verified, []).append(fault)
    said = {}
    for faults in folders.values():
        asked = [f"{names[fault]}/bundle" for fault in faults]
        made = app / "faults" / names[faults[0]]
        out = phone_apps.ask(
            phone_apps.link(app, made / "bundle.c", made / "built"),
            app / "faults",
            "each",
            *asked,
            before=unprivileged(),
        )
        said |= dict(zip(faults, out.splitlines(), strict=True))
    return said


def run_windows(bundle: Bundle, app: Path, loader: str) -> dict[str, str]:
    """What windows of Electron are told of each fault, by its main process's code in Node.js."""
    embed(bundle.folder, "electron", app)
    put_packages(app, "electron")
    (app / "node_modules" / "electron").mkdir()
    (app / "node_modules" / "electron" / "index.js").write_text(PORTS, encoding="utf-8")
    names = plant_all(app, loader)
    (app / "ask.mjs").write_text(WINDOWS, encoding="utf-8")
    found = ask(app)
    return {fault: found[name] for fault, name in names.items()}


RUN: dict[str, Callable[[Bundle, Path, str], dict[str, str]]] = {
    "python": run_script,
    "python-llama": run_script,
    "python-decoder": run_script,
    "node": run_script,
    "node-llama": run_script,
    "node-decoder": run_script,
    "c": run_programs,
    "c-llama": run_programs,
    "c-decoder": run_programs,
    "c-kotlin-llama": run_kotlin,
    "electron-llama": run_windows,
}
"""The loaders that are run here."""
MET = [(loader, fault) for loader in RUN for fault in FAULTS if FAULTS[fault].sentence(loader) is not None]
Said = Callable[[str], dict[str, str]]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """By what loaders are called that open them: of rows, "llama" and "decoder"."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        ROWS: open_bundle(pack_words(folder / "rows").bundle),
        "llama": writing_bundle(folder / "words"),
        "decoder": decoder_bundle(folder / "decoder"),
    }


@pytest.fixture(scope="module")
def said(bundles: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Said:
    """What a loader says of each fault, by its name; each is run once."""
    folder = tmp_path_factory.mktemp("faults")

    @functools.cache
    def run(loader: str) -> dict[str, str]:
        kind = loader.rpartition("-")[2]
        return RUN[loader](bundles.get(kind, bundles[ROWS]), folder / loader, loader)

    return run


@pytest.mark.parametrize(("loader", "fault"), MET)
def test_a_fault_is_one_sentence(said: Said, loader: str, fault: str) -> None:
    """And a bundle without one is opened."""
    sentences, wanted = said(loader), FAULTS[fault].sentence(loader)
    assert sentences[WHOLE] == "opened"
    assert wanted is not None
    assert re.search(wanted, sentences[fault]), sentences[fault]
    assert "\n" not in sentences[fault]


def test_the_table_has_twenty_faults_for_each_loader() -> None:
    """That each can meet; and says why it cannot meet the others."""
    assert len(FAULTS) >= 20
    assert min(sum(name == loader for name, _ in MET) for loader in RUN) >= 12


OLD = "onnxruntime-node@1.10.0"  # with a libonnxruntime.so of its own, of 2021


def old_packages() -> Path:
    """A folder node_modules with a real onnxruntime of long ago."""

    def install(folder: Path) -> None:
        folder.mkdir()
        (folder / "package.json").write_text("{}", encoding="utf-8")
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", OLD]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)

    need_node()
    return made_once(OLD, install) / "node_modules"


def put_packages(app: Path, *without: str) -> Path:
    """The app's node_modules without some packages."""
    folder = app / "node_modules"
    folder.mkdir()
    for path in node_modules().iterdir():
        if path.name not in without:
            (folder / path.name).symlink_to(path)
    return folder


def lay_script(bundle: Bundle, app: Path) -> Path:
    """An app in Node.js that opens its bundle once."""
    lay_app(bundle, app, "node")
    (app / "faults" / WHOLE).mkdir(parents=True)
    (app / "faults" / WHOLE / "bundle").symlink_to(app / "bundle")
    (app / "asked.json").write_text(json.dumps([WHOLE]), encoding="utf-8")
    (app / "ask.mjs").write_text(NODE, encoding="utf-8")
    return app


INSTALL = r"install it as edgekit embed says, with its part for this machine"


def drop_binary(app: Path) -> None:
    """What is left of onnxruntime-node where what downloads its binary had no host to ask."""
    without = shutil.ignore_patterns("*.node", "*.so*", "*.dll", "*.dylib")
    made = put_packages(app, "onnxruntime-node") / "onnxruntime-node"
    shutil.copytree(node_modules() / "onnxruntime-node", made, ignore=without)


def put_old(app: Path) -> None:
    """An onnxruntime-node of 2021."""
    packages = put_packages(app, "onnxruntime-node", "onnxruntime-common")
    for name in ("onnxruntime-node", "onnxruntime-common"):
        (packages / name).symlink_to(old_packages() / name)


def put_old_llama(app: Path) -> None:
    """A node-llama-cpp that says it is an older one."""
    made = put_packages(app, "node-llama-cpp") / "node-llama-cpp"
    shutil.copytree(node_modules() / "node-llama-cpp", made, copy_function=os.symlink)
    told = json.loads((made / "package.json").read_text(encoding="utf-8"))
    (made / "package.json").unlink()
    (made / "package.json").write_text(json.dumps(told | {"version": "3.14.0"}), encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "spoil", "sentence"),
    [
        (ROWS, lambda app: put_packages(app, "onnxruntime-node"), rf"onnxruntime-node: cannot be loaded \(.+\): {INSTALL}"),
        (ROWS, lambda app: put_packages(app, "@huggingface"), rf"@huggingface/tokenizers: cannot be loaded \(.+\): {INSTALL}"),
        (ROWS, drop_binary, rf"onnxruntime-node: cannot be loaded \(.*onnxruntime_binding\.node.*\): {INSTALL}"),
        (ROWS, put_old, r"onnxruntime-node 1\.15 or older is too old for this bundle: it needs 1\.18"),
        ("llama", lambda app: put_packages(app, "node-llama-cpp"), rf"node-llama-cpp: cannot be loaded \(.+\): {INSTALL}"),
        ("llama", lambda app: put_packages(app, "@node-llama-cpp"), rf"node-llama-cpp: cannot be loaded \(.+\): {INSTALL}"),
        ("llama", put_old_llama, r"node-llama-cpp 3\.14\.0 is too old for this bundle: it needs 3\.21"),
        ("decoder", lambda app: put_packages(app, "onnxruntime-node"), rf"onnxruntime-node: cannot be loaded \(.+\): {INSTALL}"),
        ("decoder", put_old, r"onnxruntime-node 1\.15 or older is too old for this bundle: it needs 1\.20"),
    ],
    ids=["no package", "no tokenizer's", "no binary", "an old one", "no llama", "no binary of llama", "an old llama", "no engine of a decoder",
         "an old one of a decoder"],
)  # fmt: skip
def test_packages_that_node_lacks_are_named(
    bundles: dict[str, Bundle], tmp_path: Path, kind: str, spoil: Callable[[Path], object], sentence: str
) -> None:
    app = lay_script(bundles[kind], tmp_path / "app")
    spoil(app)
    said = ask(app, "--preserve-symlinks")[WHOLE]
    assert re.fullmatch(sentence, said), said


def test_an_old_library_in_c(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    """A program that is linked with libonnxruntime 1.10; with none, the system says so; with little memory, onnxruntime does."""
    need_compiler(HERE)
    app = lay_app(bundles[ROWS], tmp_path / "app")
    (app / "main.c").write_text(C_ROWS, encoding="ascii")
    old = tmp_path / "old"
    old.mkdir()
    (found,) = old_packages().glob("onnxruntime-node/bin/napi-v3/linux/x64/libonnxruntime.so*")
    for name in ("libonnxruntime.so", found.name):
        (old / name).symlink_to(found)
    said = run_app(compile_app(app, library=old), app / "bundle")
    assert said == (1, "", "onnxruntime 1.10.0 is too old for this bundle: it needs 1.18")
    change_text(app / "bundle.c", {'.minimum = "1.18"': '.minimum = "1.9"'})
    assert run_app(compile_app(app, library=old), app / "bundle")[2].endswith(
        "onnxruntime 1.10.0 has not the functions of 1.11: link a newer one"
    )
    program = compile_app(app, library=library_folder(tmp_path / "lib"))
    said = run_app(program, app / "bundle", before=["prlimit", "--data=3000000"])
    assert said == (1, "", "onnxruntime: Exception caught: std::bad_alloc")
    (tmp_path / "lib" / "libonnxruntime.so.1").unlink()
    code, out, last = run_app(program, app / "bundle")
    assert (code, out, len(last.splitlines())) == (127, "", 1)
    assert "libonnxruntime.so.1: cannot open shared object file" in last
