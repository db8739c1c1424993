// Counts the bytes of WebAssembly's memories, in this worker and in those that it starts: the browser's own count leaves them out.
const held = [];
const channel = new BroadcastChannel("edgekit-memory");

const keep = (memory) => {
  const known = held.some((one) => one.deref() === memory);
  if (memory instanceof WebAssembly.Memory && !known) held.push(new WeakRef(memory));
};
const keepAll = (result) => {
  Object.values((result.instance ?? result).exports ?? {}).forEach(keep);
  return result;
};
const own = () => held.reduce((all, one) => all + (one.deref()?.buffer.byteLength ?? 0), 0);

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
// starter's. Gives a function that asks all of them, and this one; null where one does not answer for a minute.
export function countAll() {
  const started = new Set();
  self.Worker = new Proxy(self.Worker, {
    construct(target, [address, options]) {
      if (!String(address).startsWith("blob:") || options?.type !== "module") return new target(address, options);
      const text = `import ${JSON.stringify(import.meta.url)};\nimport ${JSON.stringify(String(address))};`;
      const worker = new target(URL.createObjectURL(new Blob([text], { type: "text/javascript" })), options);
      started.add(worker);
      const terminate = worker.terminate.bind(worker);
      worker.terminate = () => { started.delete(worker); terminate(); };
      return worker;
    },
  });
  return () => new Promise((resolve) => {
    const asked = crypto.randomUUID();
    let [bytes, missing] = [own(), started.size];
    if (!missing) return resolve(bytes);
    setTimeout(() => resolve(null), 60000);
    hear = (data) => {
      if (data.answered !== asked) return;
      bytes += data.bytes;
      missing -= 1;
      if (!missing) resolve(bytes);
    };
    channel.postMessage({ asked });
  });
}
