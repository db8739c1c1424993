// Counts the bytes of WebAssembly's memories, in this worker and in those that it starts. The browser's own count may leave them
// out (Chromium 156 does, 150 does not), and has those that threads share once for each thread.
const held = [];
const channel = new BroadcastChannel("edgekit-memory");
// A browser's count that is asked for right behind a worker's end never comes (seen of Chromium 150 and 156).
const PAUSE_MS = 250;

const keep = (memory) => {
  const known = held.some((one) => one.deref() === memory);
  if (memory instanceof WebAssembly.Memory && !known) held.push(new WeakRef(memory));
};
const keepAll = (result) => {
  Object.values((result.instance ?? result).exports ?? {}).forEach(keep);
  return result;
};
// { plain, shared }: of those that one worker has to itself, and of those that threads may share.
const own = () => {
  const bytes = { plain: 0, shared: 0 };
  for (const buffer of held.map((one) => one.deref()?.buffer).filter(Boolean)) {
    bytes[self.SharedArrayBuffer && buffer instanceof SharedArrayBuffer ? "shared" : "plain"] += buffer.byteLength;
  }
  return bytes;
};

// Memories that a page makes, and those that a module makes and exports.
const made = (kind, noted) => new Proxy(kind, {
  construct(target, given) {
    const result = Reflect.construct(target, given);
    noted(result);
    return result;
  },
});
WebAssembly.Memory = made(WebAssembly.Memory, keep);
WebAssembly.Instance = made(WebAssembly.Instance, keepAll);
for (const name of ["instantiate", "instantiateStreaming"]) {
  const original = WebAssembly[name];
  WebAssembly[name] = async (...given) => keepAll(await original.apply(WebAssembly, given));
}

let hear = () => {};
channel.onmessage = ({ data }) => {
  if (data.asked) channel.postMessage({ answered: data.asked, bytes: own() });
  else hear(data);
};

// Has workers that this one starts from a script of its own (a blob) count too: what others start is a thread, whose memory is its
// starter's. Gives a function that asks all of them, and this one, for { plain, shared, addresses } of what counts; null where one
// does not answer for a minute.
export function countAll() {
  const started = new Map();
  let ended = -PAUSE_MS;
  self.Worker = new Proxy(self.Worker, {
    construct(target, [address, options]) {
      let script = address;
      const counts = String(address).startsWith("blob:") && options?.type === "module";
      if (counts) {
        const text = `import ${JSON.stringify(import.meta.url)};\nimport ${JSON.stringify(String(address))};`;
        script = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
      }
      const worker = new target(script, options);
      if (counts) started.set(worker, script);
      const terminate = worker.terminate.bind(worker);
      worker.terminate = () => { started.delete(worker); terminate(); ended = performance.now(); };
      return worker;
    },
  });
  return async () => {
    await new Promise((resolve) => { setTimeout(resolve, Math.max(ended + PAUSE_MS - performance.now(), 0)); });
    return new Promise((resolve) => {
      const asked = crypto.randomUUID();
      const found = { ...own(), addresses: [self.location.href, ...started.values()] };
      let missing = started.size;
      if (!missing) return resolve(found);
      setTimeout(() => resolve(null), 60000);
      hear = (data) => {
        if (data.answered !== asked) return;
        found.plain += data.bytes.plain;
        found.shared += data.bytes.shared;
        missing -= 1;
        if (!missing) resolve(found);
      };
      channel.postMessage({ asked });
    });
  };
}
