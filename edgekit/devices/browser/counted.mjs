// Holds 16 MiB of WebAssembly and 32 MiB that threads may share, so that `page.mjs` sees which of both this browser counts.
self.held = [{}, { shared: true }].map((more, index) => {
  const pages = 256 << index;
  return new WebAssembly.Memory({ initial: pages, maximum: pages, ...more }).buffer;
});
postMessage("ready");
