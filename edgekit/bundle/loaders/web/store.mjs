// A bundle's files from the network once, then from the browser's cache, each by its hash.
import { fetchBytes, sha256 } from "./check.mjs";

const NAME = "edgekit";

// Reads a file by its address and its entry in the manifest. tell: called with { name, done, bytes } as a download goes on, and
// with { name, note } where the browser does not keep a file. bundle.json has no entry: it is always asked for, and decides.
export function createReader(tell = () => {}) {
  return async (url, entry) => {
    if (!entry) return fetchBytes(url);
    const name = url.pathname.split("/").pop();
    const key = `${url.href}?sha256=${entry.sha256}`;
    // Private windows of some browsers have none.
    const cache = await globalThis.caches?.open(NAME).catch(() => null);
    const kept = await cache?.match(key);
    if (kept) {
      const bytes = new Uint8Array(await kept.arrayBuffer());
      if (await sha256(bytes) === entry.sha256) return bytes;
      await cache.delete(key);
    }
    const bytes = await download(url, entry.bytes, (done) => tell({ name, done, bytes: entry.bytes }));
    // What is not as the manifest says is refused by who reads it, and kept by nobody.
    if (cache && await sha256(bytes) === entry.sha256) await keep(cache, key, bytes, (note) => tell({ name, note }));
    return bytes;
  };
}

async function download(url, size, progress) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: status ${answer.status}; is the whole bundle there?`);
  const pieces = [];
  let done = 0;
  for (const reader = answer.body.getReader(); ;) {
    const { done: ended, value } = await reader.read();
    if (ended) break;
    pieces.push(value);
    progress(done += value.length);
    if (done > size) throw new Error(`${url}: not the file that was verified; is it another bundle's? Copy it again`);
  }
  return new Uint8Array(await new Blob(pieces).arrayBuffer());
}

// Older files of the same address go first; where there is still no room, the file is not kept, and that is told.
async function keep(cache, key, bytes, tell) {
  const address = key.split("?")[0];
  for (const old of await cache.keys()) {
    if (old.url.split("?")[0] === address && old.url !== key) await cache.delete(old);
  }
  const { quota = Infinity, usage = 0 } = await navigator.storage?.estimate?.() ?? {};
  const full = (left) => tell(`not kept: it has ${bytes.length} bytes and the browser's quota leaves ${left}; it is fetched again next time`);
  if (quota - usage < bytes.length) return full(quota - usage);
  try {
    await cache.put(key, new Response(bytes));
  } catch (failed) {
    if (failed.name !== "QuotaExceededError") throw failed;
    full("less");
  }
}
