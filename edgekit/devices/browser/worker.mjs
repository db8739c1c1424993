// Runs one command: the first word is a module's address below this page's, and its `main(io)` gets the rest.
import { countAll } from "./memory.mjs";

const countWasm = countAll();

self.onmessage = async ({ data }) => {
  const { job, root, born } = data;
  const send = async (path, body, method = "POST") => {
    const answer = await fetch(new URL(path, root), { method, body });
    if (!answer.ok) throw new Error(`${path}: edgekit answers with status ${answer.status}`);
  };
  // The bytes that the page and its workers hold, WebAssembly's with them, once each; null where the browser does not tell. Of a
  // thread, which shares its starter's memory, nothing counts: its own script is small.
  const memory = async () => {
    const wasm = await countWasm();
    const known = await new Promise((resolve) => {
      self.onmessage = (event) => resolve(event.data.memory);
      self.postMessage("memory");
    });
    if (known === null || wasm === null) return null;
    const own = [root, ...wasm.addresses];
    const parts = known.parts.filter((part) => part.addresses.every((address) => own.includes(address)));
    const left = ["plain", "shared"].map((kind) => (known.counts[kind] ? 0 : wasm[kind]));
    return [...parts.map((part) => part.bytes), ...left].reduce((all, bytes) => all + bytes, 0);
  };
  const io = {
    args: job.command.slice(1),
    env: job.env,
    root,
    born,
    memory,
    // Lines of standard output and of standard error, and a file in the command's folder.
    out: (text) => send(`out/${job.number}`, text),
    error: (text) => send(`error/${job.number}`, text),
    write: (path, bytes) => send(`work/${job.number}/${path.split("/").map(encodeURIComponent).join("/")}`, bytes, "PUT"),
    // A file that edgekit serves, by its address below this page's.
    read: async (path) => {
      const answer = await fetch(new URL(path, root));
      if (!answer.ok) throw new Error(`${path}: edgekit answers with status ${answer.status}`);
      return new Uint8Array(await answer.arrayBuffer());
    },
  };
  let module;
  try {
    module = await import(new URL(job.command[0], root));
  } catch (failed) {
    await send(`cannot/${job.number}`, String(failed.message || failed));
    return self.postMessage("end");
  }
  let code = 0;
  try {
    code = (await module.main(io)) ?? 0;
  } catch (failed) {
    // An engine written in C++ may throw a number.
    await io.error(`${failed?.stack || ""}\n${failed?.name || "Error"}: ${failed?.message || failed}`);
    code = 1;
  }
  await send(`end/${job.number}`, String(code));
  self.postMessage("end");
};
