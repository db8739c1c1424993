// Takes commands from edgekit, one after the other, and runs each in a worker of its own.
const root = new URL("./", location.href);
const state = document.getElementById("state");

const post = (path, body = "") => fetch(new URL(path, root), { method: "POST", body });

// A worker with memories of both kinds of WebAssembly's, as long as the page: see PAUSE_MS of memory.mjs.
let trial = null;

// { parts, counts }: the bytes that this page and its workers hold, each part with the addresses of those that hold it, and whether
// this browser counts WebAssembly's memories of either kind, 1 or 0; null where it does not tell.
async function memory() {
  if (!crossOriginIsolated || !performance.measureUserAgentSpecificMemory) return null;
  const address = new URL("counted.mjs", root).href;
  if (!trial) {
    trial = new Worker(address, { type: "module" });
    await new Promise((resolve) => { trial.onmessage = resolve; });
  }
  const late = new Promise((resolve) => { setTimeout(resolve, 60000); });
  const told = await Promise.race([performance.measureUserAgentSpecificMemory(), late]);
  if (!told) return null;
  const parts = told.breakdown.map(({ bytes, attribution }) => ({ bytes, addresses: attribution.map(({ url }) => url) }));
  const seen = parts.reduce((all, part) => all + (part.addresses.includes(address) ? part.bytes : 0), 0);
  return { parts, counts: { plain: (seen >> 24) & 1, shared: (seen >> 25) & 1 } };
}

async function next() {
  for (;;) {
    const answer = await fetch(new URL("job", root));
    if (answer.status === 200) return answer.json();
    if (answer.status !== 204) throw new Error(`edgekit answers with status ${answer.status}`);
  }
}

function run(job) {
  state.textContent = `Running ${job.command[0]} ...`;
  return new Promise((resolve) => {
    const worker = new Worker(new URL("worker.mjs", root), { type: "module" });
    const beat = setInterval(async () => {
      // Another status: this command is no longer waited for.
      if ((await post(`alive/${job.number}`)).status !== 200) resolve();
    }, 2000);
    const stop = () => { clearInterval(beat); worker.terminate(); };
    worker.onmessage = async ({ data }) => {
      if (data === "memory") worker.postMessage({ memory: await memory() });
      if (data === "end") { stop(); resolve(); }
    };
    worker.onerror = async (event) => {
      stop();
      await post(`cannot/${job.number}`, event.message || "the worker does not start");
      resolve();
    };
    // When this page began, in milliseconds since 1970.
    worker.postMessage({ job, root: root.href, born: performance.timeOrigin });
  });
}

try {
  await run(await next());
  // A fresh document for the next command.
  location.reload();
} catch (failed) {
  state.textContent = `edgekit has ended (${failed.message}); close this tab.`;
}
