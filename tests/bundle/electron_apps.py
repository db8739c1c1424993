"""Electron's windows and main process for tests: in one process of Node.js, and in a real Electron that is older than the engines."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.node_packages import need_node

# For a window's preload script: its messages reach the main process through real ports, in one process.
PORTS = """
const { EventEmitter } = require("node:events");
const ipcMain = new EventEmitter();
exports.ipcMain = ipcMain;
exports.contextBridge = { exposeInMainWorld: (name, api) => { globalThis[name] = api; } };
exports.ipcRenderer = { postMessage: (name, message, ports) => ipcMain.emit(name, { ports }, structuredClone(message)) };
"""

# An app's load.mjs, where Electron's own Node.js is older than what the engines need: another one beside it opens the bundle.
_REQUIRED = """
const { spawn } = require("child_process");
const { createInterface } = require("readline");
exports.open = async (folder) => {
  const child = spawn(process.env.NODE, ["beside.mjs", folder], { stdio: ["pipe", "pipe", "inherit"], cwd: __dirname });
  const lines = [], waiting = [];
  createInterface({ input: child.stdout }).on("line", (line) => {
    const said = JSON.parse(line);
    if (waiting.length) waiting.shift()(said);
    else lines.push(said);
  });
  const next = () => lines.length ? Promise.resolve(lines.shift()) : new Promise((take) => { waiting.push(take); });
  async function* ask(said, most) {
    child.stdin.write(`${JSON.stringify({ said, most })}\\n`);
    let ended = false;
    try {
      for (;;) {
        const found = await next();
        ended = found.ended || found.failed !== undefined;
        if (found.failed) throw new Error(found.failed);
        if (ended) return;
        yield found;
      }
    } finally {
      while (!ended) ended = (await next()).ended;
    }
  }
  const first = await next();
  if (first.failed) throw new Error(first.failed);
  return first.writes ? ask : async (text, options) => {
    for await (const { row } of ask(text, options)) return row;
  };
};
"""
_IMPORTED = """
import { createInterface } from "node:readline";
import { open } from "./load.mjs";
const say = (what) => console.log(JSON.stringify(what));
const told = (failed) => say({ failed: failed.message });
const answer = await open(process.argv[2]).catch((failed) => { told(failed); process.exit(0); });
const writes = answer.manifest.output === "tokens";
say({ writes });
for await (const line of createInterface({ input: process.stdin })) {
  const { said, most } = JSON.parse(line);
  try {
    if (writes) for await (const piece of answer(said, most)) say(piece);
    else say({ row: await answer(said, most) });
    say({ ended: true });
  } catch (failed) { told(failed); }
}
process.exit(0);
"""
_TRANSLATE = """
import { readFileSync, writeFileSync } from "node:fs";
import ts from "typescript";
const asked = { compilerOptions: { module: "commonjs", target: "es2019" } };
const { outputText } = ts.transpileModule(readFileSync("main.mjs", "utf8"), asked);
writeFileSync("main.cjs", outputText.replace("./load.mjs", "./beside.cjs"));
"""


def put_beside(app: Path) -> None:
    """Have an app's main.mjs be main.cjs too, which an Electron of 2020 runs."""
    (app / "beside.cjs").write_text(_REQUIRED, encoding="utf-8")
    (app / "beside.mjs").write_text(_IMPORTED, encoding="utf-8")
    (app / "translate.mjs").write_text(_TRANSLATE, encoding="utf-8")
    subprocess.run([need_node(), "translate.mjs"], cwd=app, check=True, timeout=100)
