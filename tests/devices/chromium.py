"""A real Chromium and npm for tests, from Debian's packages where they are not installed; commands that a page runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

# What the tests of devices have a page run: the same as their Python does on other kinds of devices.
MODULES = {
    "double": """
export async function main(io) {
  const text = new TextDecoder().decode(await io.read(io.args[0]));
  await io.write("out/y", new TextEncoder().encode(text + text));
}""",
    "show": """
export async function main(io) {
  await io.out(`${io.args[0]} ${io.env.EDGEKIT_X}\\n`);
  await io.error("said");
  return 7;
}""",
    "copy": """
export async function main(io) {
  const [folder, ...names] = io.args;
  for (const name of names) {
    await io.write(`back/${name}`, await io.read(`${folder}/${name.split("/").map(encodeURIComponent).join("/")}`));
  }
}""",
    "sleep": "export const main = () => new Promise(() => {});",
    # Memory of a page, of a worker's own WebAssembly, and of what a worker's worker opens from a script.
    "hold": """
const small = [0, 97, 115, 109, 1, 0, 0, 0, 5, 4, 1, 0, 128, 5, 7, 5, 1, 1, 109, 2, 0];
export async function main(io) {
  const before = await io.memory();
  const memory = new WebAssembly.Memory({ initial: 1600, maximum: 1600 });
  const own = await io.memory();
  const script = `const bytes = Uint8Array.from([${small}]);
    WebAssembly.instantiate(bytes).then(({ instance }) => { self.held = instance; postMessage("ready"); });`;
  const worker = new Worker(URL.createObjectURL(new Blob([script], { type: "text/javascript" })), { type: "module" });
  await new Promise((resolve) => { worker.onmessage = resolve; });
  const both = await io.memory();
  worker.terminate();
  const after = await io.memory();
  const shared = new WebAssembly.Memory({ initial: 800, maximum: 800, shared: true });
  // Two threads, each with its view, as engines have them.
  const views = `onmessage = ({ data }) => { self.view = new Uint8Array(data.buffer); postMessage("ready"); };`;
  const threads = [0, 1].map(() => new Worker(URL.createObjectURL(new Blob([views]))));
  for (const thread of threads) {
    await new Promise((resolve) => { thread.onmessage = resolve; thread.postMessage(shared); });
  }
  const threaded = await io.memory();
  await io.out(JSON.stringify([before, own, both, after, threaded, memory.buffer.byteLength].map((bytes) => bytes / 65536)));
}""",
    "throw": 'export const main = () => { throw new RangeError("too far"); };',
    "shout": "export async function main(io) { for (;;) await io.out('x'.repeat(1 << 24)); }",
}


def need_chromium() -> None:
    """Install what a browser as a device needs; skip where that cannot be done."""
    lacking = [
        package for name, package in {"chromium": "chromium", "npm": "npm"}.items() if shutil.which(name) is None
    ]
    if lacking:
        install(*lacking)


def install(*packages: str) -> None:
    """Debian's packages; skips where that cannot be done."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"{' and '.join(packages)} not installed, and only root on Debian can install them here")
    from filelock import FileLock

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit-tests"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "apt.lock"):
        for command in (["update", "-qq"], ["install", "-qq", "--yes", "--no-install-recommends", *packages]):
            done = subprocess.run(
                ["apt-get", *command],
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
            assert done.returncode == 0, done.stderr


def write_modules(folder: Path) -> Path:
    """A folder with MODULES."""
    folder.mkdir(exist_ok=True)
    for name, text in MODULES.items():
        (folder / f"{name}.mjs").write_text(text, encoding="utf-8")
    return folder


def descendants(process: int) -> dict[int, str]:
    """All that a process has started, and what that has: command lines by process id."""
    parents, lines = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            # "pid (name) state parent ...", proc(5)
            parents[int(path.name)] = int((path / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            lines[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    found = {process}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: lines[pid] for pid in found - {process} if lines.get(pid)}
