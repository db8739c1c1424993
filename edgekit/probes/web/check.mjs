// Whether what lies in a bundle is what was verified, and answers here as it did there. Each fault has its own sentence.

export async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) throw new Error("this page cannot check a file: serve it by https, or from localhost");
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export async function fetchBytes(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: status ${answer.status}; is the whole bundle there?`);
  return new Uint8Array(await answer.arrayBuffer());
}

// A page that is not isolated has one thread: { wanted, notes }.
export function countThreads(asked) {
  if (asked <= 1 || globalThis.crossOriginIsolated) return { wanted: asked, notes: [] };
  const headers = "Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp";
  return { wanted: 1, notes: [`one thread and not ${asked}: this page is not isolated; send the headers ${headers}`] };
}

// name, found: of the runtime; minimum: the oldest version that runs the model.
export function checkVersion(name, found, minimum) {
  const numbers = (version) => version.split(".").slice(0, 2).map(Number);
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
  if (!entry) throw new Error(`${name}: not a file of the bundle ${manifest.name}`);
  if (size < entry.bytes) throw new Error(`${name}: ${size} of ${entry.bytes} bytes: cut off, or another bundle's; copy it again`);
  if (digest !== entry.sha256) {
    throw new Error(`${name}: not the file that was verified; is it another bundle's? Copy it again`);
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
  const { format, tolerance, rows } = JSON.parse(new TextDecoder().decode(bytes));
  if (format !== 1) throw new Error(`golden.json: of format ${format}, which this loader does not read: take a newer edgekit's`);
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
