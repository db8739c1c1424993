// What a model that writes is asked with in wllama, as it was verified. `load.mjs` beside it opens a bundle with this.

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

// What golden.json holds: how a text is read, and the likeliest tokens behind it.
export async function follow(model, text, count) {
  const asked = await encode(model, text);
  const tokens = [];
  await model.kvClear();
  for (let fed = asked; tokens.length < count; fed = tokens.slice(-1)) tokens.push((await next(model, fed)).token);
  return { asked, tokens };
}
