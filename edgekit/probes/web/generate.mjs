// Goes on with a text, from an edgekit bundle in a browser, piece by piece:
// `for await (const { text } of (await open("./bundle/", { Wllama, wasm }))("Once upon a time")) ...`
// Needs @wllama/wllama; see index.html beside it.

async function read(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: status ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// wllama with a model and the options that were verified. wasm: the address of wllama's folder `esm`.
export async function createModel({ Wllama, wasm }, bytes, { threads, context, batch, kv_k, kv_v, flash_attention }) {
  const errors = [];
  const logger = { debug() {}, log() {}, warn() {}, error: (...words) => errors.push(words.map(String).join(" ").trim()) };
  const paths = ["single-thread/wllama.wasm", "multi-thread/wllama.wasm"].map((name) => [name, new URL(name, wasm).href]);
  const model = new Wllama(Object.fromEntries(paths), { logger });
  try {
    await model.loadModel([new Blob([bytes])], {
      n_ctx: context,
      n_batch: batch,
      // A page that is not isolated has one thread.
      n_threads: self.crossOriginIsolated ? threads ?? 1 : 1,
      cache_type_k: kv_k,
      cache_type_v: kv_v,
      flash_attn: flash_attention !== "off",
    });
    // The likeliest token each time.
    await model.samplingInit({ temp: 0, top_k: 1 });
  } catch (failed) {
    throw new Error(`wllama does not load it: ${errors[0] ?? failed?.message ?? failed}`);
  }
  return model;
}

// The likeliest token behind ids, as { token, piece }: they are fed behind what was fed before.
export async function next(model, ids) {
  await model.decode(ids, {});
  return model.samplingSample();
}

// Token ids of a text to go on with, as the verified prompts were read.
export async function encode(model, text) {
  const ids = await model.tokenize(text, false);
  return model.mustAddBosToken() && ids[0] !== model.getBOS() ? [model.getBOS(), ...ids] : ids;
}

export async function open(folder, { Wllama, wasm, threads }) {
  const base = new URL(folder, location.href);
  const manifest = JSON.parse(new TextDecoder().decode(await read(new URL("bundle.json", base))));
  const bytes = await read(new URL(manifest.model, base));
  if (await sha256(bytes) !== manifest.files[manifest.model].sha256) throw new Error(`${manifest.model}: not the file that was verified`);
  const options = { ...manifest.runtime, threads: threads ?? manifest.runtime.threads };
  const model = await createModel({ Wllama, wasm: new URL(wasm, location.href).href }, bytes, {
    ...options, context: options.context || manifest.max_length,
  });
  const room = model.getLoadedContextInfo().n_ctx;
  // What follows a text, in pieces { token, text }, at most `most` of them.
  return async function* (asked, most = Infinity) {
    let fed = await encode(model, asked);
    if (!fed.length) throw new Error("nothing to go on with: the text has no token");
    const last = Math.min(most, room - fed.length);
    // A letter may begin in one token and end in the next.
    const words = new TextDecoder();
    await model.kvClear();
    for (let count = 0; count < last; count += 1) {
      const { token, piece } = await next(model, fed);
      if (model.isTokenEOG(token)) return;
      yield { token, text: words.decode(piece, { stream: true }) };
      fed = [token];
    }
  };
}
