// A bundle's files from the network once, then from the browser's cache, each by its hash.
import { fetchBytes, readManifest, sha256 } from "./check.mjs";

const NAME = "edgekit";

// Reads a file by its address and its entry in the manifest. tell: called with { name, done, bytes } as a download goes on, and
// with { name, note } where the browser does not keep a file. bundle.json has no entry: it is always asked for, and the kept one
// is taken where there is no network, which is told.
export function createReader(tell = () => {}) {
  return async (url, entry) => {
    const name = url.pathname.split("/").pop();
    // Private windows of some browsers have none.
    const cache = await globalThis.caches?.open(NAME).catch(() => null);
    if (!entry) return newest(cache, url, (note) => tell({ name, note }));
    const key = `${url.href}?sha256=${entry.sha256}`;
    const kept = await cache?.match(key);
    if (kept) {
      const bytes = new Uint8Array(await kept.arrayBuffer());
      if (await sha256(bytes) === entry.sha256) return bytes;
      await cache.delete(key);
    }
    const bytes = await fetchBytes(url, entry, (done) => tell({ name, done, bytes: entry.bytes }));
    // What is not as the manifest says is refused by who reads it, and kept by nobody.
    if (cache && await sha256(bytes) === entry.sha256) await keep(cache, key, bytes, (note) => tell({ name, note }));
    return bytes;
  };
}

// bundle.json as the server has it now; the one that was kept where no server can be reached.
async function newest(cache, url, tell) {
  try {
    const bytes = await fetchBytes(url);
    await readManifest(bytes, url);
    if (cache) await keep(cache, url.href, bytes, tell);
    return bytes;
  } catch (failed) {
    const kept = failed.cause && await cache?.match(url.href);
    if (!kept) throw failed;
    tell("no network: the bundle that was kept is used");
    return new Uint8Array(await kept.arrayBuffer());
  }
}

// Older files of the same address go first; where there is still no room, the file is not kept, and that is told.
async function keep(cache, key, bytes, tell) {
  const address = key.split("?")[0];
  for (const old of await cache.keys()) {
    if (old.url.split("?")[0] === address && old.url !== key) await cache.delete(old);
  }
  const { quota = Infinity, usage = 0 } = await navigator.storage?.estimate?.() ?? {};
  const full = (left) => tell(`not kept: it has ${bytes.length} bytes and the browser's quota leaves ${left}; it is fetched again next time`);
  if (quota - usage < bytes.length) return full(Math.max(quota - usage, 0));
  try {
    await cache.put(key, new Response(bytes));
  } catch (failed) {
    if (failed.name !== "QuotaExceededError") throw failed;
    full("less");
  }
}
