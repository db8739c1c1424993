// Whether what lies in a bundle is what was verified, and answers here as it did there. Each fault has its own sentence.

const [FORMAT, GOLDEN_FORMAT] = [2, 1];
const OTHER = "not the file that was verified; is it another bundle's? Copy it again";

export async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) throw new Error("this page cannot check a file: serve it by https, or from localhost");
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// The bytes of an address; entry: what the manifest says of them. progress: is told how many there are so far, and what is longer
// than it should be is not read to its end. An error of the network has a `cause`.
export async function fetchBytes(url, entry, progress) {
  const pieces = [];
  try {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(`${url}: status ${answer.status}; is the whole bundle there?`);
    if (!progress) return new Uint8Array(await answer.arrayBuffer());
    let count = 0;
    for (const reader = answer.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      pieces.push(value);
      progress(count += value.length);
      if (count > entry.bytes) throw new Error(`${url}: ${OTHER}`);
    }
  } catch (failed) {
    if (!(failed instanceof TypeError)) throw failed;
    const why = `${url}: cannot be fetched to its end (${failed.message}): is there a network, and its server? Try again`;
    throw new Error(why, { cause: failed });
  }
  return new Uint8Array(await new Blob(pieces).arrayBuffer());
}

// A package of npm, as `load` imports it.
export async function needPackage(name, load) {
  try {
    return await load();
  } catch (failed) {
    throw new Error(`${name}: cannot be loaded (${firstLine(failed)}): install it as edgekit embed says, with its part for this machine`);
  }
}

// What `make` makes of a file.
export async function openFile(where, make) {
  try {
    return await make();
  } catch (failed) {
    throw new Error(`${where}: cannot be opened (${firstLine(failed)}): install a newer runtime, or copy it again`);
  }
}

const firstLine = (failed) => String(failed?.message ?? failed).trim().split("\n")[0];

// An object of JSON, of the format that `key` has in it.
function parseTable(bytes, where, key, format) {
  let table;
  try {
    table = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    throw new Error(`${where}: no JSON: cut off, or something else; copy it again`);
  }
  if (!table || !Object.hasOwn(table, key)) throw new Error(`${where}: not what edgekit writes there; copy it again`);
  if (table[key] === format) return table;
  throw new Error(`${where}: of format ${table[key]}, this loader reads ${format}: use the one that ships with the bundle`);
}

// What bundle.json says, once it is as it was written. where: its path or address; accept: is given its bytes first.
export async function readManifest(bytes, where, accept) {
  await accept?.(bytes);
  const manifest = parseTable(bytes, where, "format_version", FORMAT);
  // The digest is of the same JSON in ASCII without blanks, and without the digest.
  const parts = new TextDecoder().decode(bytes).match(/"(?:[^"\\]|\\.)*"|[^\s"]+/g).join("");
  const ascii = parts.replace(/[^ -~]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
  const said = new TextEncoder().encode(ascii.replace(`"digest":"${manifest.digest}",`, ""));
  if (await sha256(said) !== manifest.digest) {
    throw new Error(`${where}: changed after it was written (its digest is another); copy it again`);
  }
  for (const name of [...Object.keys(manifest.files), manifest.model, manifest.tokenizer ?? manifest.model]) {
    if (/^[/\\]|^[a-z]+:|(^|[/\\])\.\.([/\\]|$)/i.test(name)) {
      throw new Error(`${where}: names a file outside the bundle, ${name}; do not use this bundle`);
    }
    if (!manifest.files[name]) throw new Error(`${where}: tells no sha256 of ${name}; do not use this bundle`);
  }
  return manifest;
}

// A page that is not isolated has one thread: { wanted, notes }.
export function countThreads(asked) {
  if (asked <= 1 || globalThis.crossOriginIsolated) return { wanted: asked, notes: [] };
  const headers = "Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp";
  return { wanted: 1, notes: [`one thread and not ${asked}: this page is not isolated; send the headers ${headers}`] };
}

// name, found: of the runtime; minimum: the oldest version that runs the model.
export function checkVersion(name, found, minimum) {
  const numbers = (version) => version.split(".").slice(0, 2).map((part) => parseInt(part, 10));
  const [[major, minor], [least, fine]] = [numbers(found), numbers(minimum)];
  if (major < least || (major === least && minor < fine)) {
    throw new Error(`${name} ${found} is too old for this bundle: it needs ${minimum}`);
  }
}

export async function checkFile(manifest, name, bytes) {
  checkDigest(manifest, name, bytes.length, await sha256(bytes));
}

export function checkDigest(manifest, name, size, digest) {
  const entry = manifest.files[name];
  if (size < entry.bytes) throw new Error(`${name}: ${size} of ${entry.bytes} bytes: cut off, or another bundle's; copy it again`);
  if (digest !== entry.sha256) {
    throw new Error(`${name}: ${OTHER}`);
  }
}

const near = (one, other) => {
  const dot = (a, b) => a.reduce((sum, value, place) => sum + value * b[place], 0);
  return one.length === other.length ? 1 - dot(one, other) / Math.sqrt(dot(one, one) * dot(other, other)) : Infinity;
};

// Asks the golden inputs, the bytes of golden.json. ask: answers a text; of a decoder (text, count) to { asked, tokens }.
// Milliseconds of the first answer and of a later one: { cold, warm }; null where the bundle has none.
export async function checkGolden(bytes, ask) {
  if (!bytes) return { cold: null, warm: null };
  const { tolerance, rows } = parseTable(bytes, "golden.json", "format", GOLDEN_FORMAT);
  const times = [];
  for (const row of rows) {
    const begun = performance.now();
    const said = await ask(row.text, row.tokens?.length);
    times.push(performance.now() - begun);
    const shown = JSON.stringify(row.text.slice(0, 40));
    const wrong = (found, wanted) => new Error(
      `golden answer to ${shown}: ${found}, and ${wanted} when it was verified: this machine or runtime computes something else`,
    );
    if (row.tokens) {
      if (said.asked.join() !== row.asked.join()) throw wrong(`read as tokens ${said.asked}`, row.asked);
      if (said.tokens.join() !== row.tokens.join()) throw wrong(`tokens ${said.tokens}`, row.tokens);
    } else if (row.embedding) {
      const apart = near(Array.from(said), row.embedding);
      if (!(apart <= tolerance)) throw wrong(`an embedding ${apart.toFixed(4)} away (1 - cosine)`, `at most ${tolerance}`);
    } else if (said[0][0] !== row.label || !(Math.abs(said[0][1] - row.score) <= tolerance)) {
      throw wrong(`${said[0][0]} ${said[0][1].toFixed(4)}`, `${row.label} ${row.score}`);
    }
  }
  return { cold: times[0] ?? null, warm: times.at(-1) ?? null };
}
