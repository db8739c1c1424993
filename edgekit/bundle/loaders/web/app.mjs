// Answers from an edgekit bundle in a page, computed in a worker: `(await open("./bundle/"))("turn on the light")`; of a model that
// writes, piece by piece: `for await (const { text } of bundle("Once upon a time", 64)) ...`
// Needs onnxruntime-web and @huggingface/tokenizers in `modules`; no other address is asked.

// trust: { atLeast, key }, what the bundle must be (see trust.mjs); its signature is model.sig beside the folder.
// tell: called with { name, done, bytes } while a file is downloaded, and with { name, note } where the browser does not keep one.
// The answer's `times`: milliseconds to open, of the first answer (cold) and of a later one (warm); `notes`: what is otherwise than
// asked; `close()` ends the worker.
export async function open(folder = "./bundle/", { modules = "./node_modules/", threads, trust, tell = () => {} } = {}) {
  const worker = new Worker(new URL("./worker.mjs", import.meta.url), { type: "module" });
  const waiting = new Map();
  let count = 0;
  const end = (id, name, value) => {
    waiting.get(id)?.[name](value);
    waiting.delete(id);
  };
  worker.onmessage = ({ data: { id, progress, failed, answer } }) => {
    if (progress) tell(progress);
    else if (failed === undefined) end(id, "resolve", answer);
    else end(id, "reject", new Error(failed));
  };
  worker.onerror = (event) => {
    const why = event.message ?? "one of its modules cannot be loaded";
    for (const id of [...waiting.keys()]) end(id, "reject", new Error(`the worker ended: ${why}`));
  };
  const ask = (asked) => new Promise((resolve, reject) => {
    waiting.set(++count, { resolve, reject });
    worker.postMessage({ id: count, ...asked });
  });
  const follow = async function* (said, most, { signal, ...choice } = {}) {
    const following = await ask({ begin: [said, most, choice] });
    try {
      for (;;) {
        signal?.throwIfAborted();
        const { done, value } = await ask({ next: following });
        if (done) return;
        yield value;
      }
    } finally {
      worker.postMessage({ end: following });
    }
  };
  const absolute = (address) => new URL(address, document.baseURI).href;
  try {
    const opened = await ask({ opening: { folder: absolute(folder), modules: absolute(modules), threads, trust } });
    const answer = opened.manifest.output === "tokens" ? follow : (text, options) => ask({ text, options });
    return Object.assign(answer, opened, { close: () => worker.terminate() });
  } catch (failed) {
    worker.terminate();
    throw failed;
  }
}
