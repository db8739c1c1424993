// Takes commands from edgekit, one after the other, and runs each in a worker of its own.
const root = new URL("./", location.href);
const state = document.getElementById("state");

const post = (path, body = "") => fetch(new URL(path, root), { method: "POST", body });

// The bytes that this page and its workers hold, but for WebAssembly's memories; null where the browser does not tell.
async function memory() {
  if (!crossOriginIsolated || !performance.measureUserAgentSpecificMemory) return null;
  return (await performance.measureUserAgentSpecificMemory()).bytes;
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
