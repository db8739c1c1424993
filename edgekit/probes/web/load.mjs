// Answers from an edgekit bundle in a browser: `(await open("./bundle/", { ort, Tokenizer }))("turn on the light")`.
// Needs onnxruntime-web and @huggingface/tokenizers; see index.html beside it.

async function read(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: status ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

export async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// A session with the options that were verified, as onnxruntime's configuration has them.
export function createSession(ort, bytes, { config_entries = {}, disabled_optimizers = [] } = {}) {
  const extra = {};
  const entries = { ...config_entries };
  if (disabled_optimizers.length) entries["optimization.disable_specified_optimizers"] = disabled_optimizers.join(";");
  for (const [key, value] of Object.entries(entries)) {
    const parts = key.split(".");
    const last = parts.pop();
    parts.reduce((at, part) => (at[part] ??= {}), extra)[last] = value;
  }
  return ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], graphOptimizationLevel: "all", extra });
}

// Token ids of a text, cut as tokenizer.json says: what the library leaves out is done here.
export function createEncoder(Tokenizer, table) {
  const tokenizer = new Tokenizer(table, {});
  const cut = table.truncation;
  return (text) => {
    const whole = tokenizer.encode(text).ids;
    if (!cut || whole.length <= cut.max_length) return whole;
    // What is put around a text stays whole.
    const own = tokenizer.encode(text, { add_special_tokens: false }).ids;
    const around = whole.length - own.length;
    let before = 0;
    while (before < around && !own.every((id, index) => whole[before + index] === id)) before += 1;
    const left = Math.max(cut.max_length - around, 0);
    const kept = cut.direction === "Left" ? own.slice(own.length - left) : own.slice(0, left);
    return [...whole.slice(0, before), ...kept, ...whole.slice(before + own.length)];
  };
}

// The output of a session for one prompt: inputs by name, each { data, dims } of a batch of one.
export async function output(ort, session, inputs) {
  const types = { BigInt64Array: "int64", Int32Array: "int32", Float32Array: "float32", Uint8Array: "uint8" };
  const feeds = {};
  for (const name of session.inputNames) {
    let given = inputs[name];
    // Files that something else exported may want segment ids: all of one text.
    if (!given && name === "token_type_ids") given = { ...inputs.input_ids, data: new BigInt64Array(inputs.input_ids.data.length) };
    if (!given) throw new Error(`the model wants the input ${name}; edgekit gives ${Object.keys(inputs).join(", ")}`);
    feeds[name] = new ort.Tensor(types[given.data.constructor.name], given.data, given.dims);
  }
  return (await session.run(feeds))[session.outputNames[0]].data;
}

export function tokens(ids) {
  const data = BigInt64Array.from(ids, BigInt);
  const dims = [1, ids.length];
  return { input_ids: { data, dims }, attention_mask: { data: new BigInt64Array(ids.length).fill(1n), dims } };
}

export async function open(folder, { ort, Tokenizer, threads }) {
  const base = new URL(folder, location.href);
  const text = (bytes) => JSON.parse(new TextDecoder().decode(bytes));
  const manifest = text(await read(new URL("bundle.json", base)));
  const files = {};
  for (const name of [manifest.model, manifest.tokenizer]) {
    files[name] = await read(new URL(name, base));
    if (await sha256(files[name]) !== manifest.files[name].sha256) throw new Error(`${name}: not the file that was verified`);
  }
  // A page that is not isolated has one thread.
  ort.env.wasm.numThreads = crossOriginIsolated ? threads ?? manifest.runtime.threads ?? 1 : 1;
  const session = await createSession(ort, files[manifest.model], manifest.runtime);
  const encode = createEncoder(Tokenizer, text(files[manifest.tokenizer]));
  const before = manifest.settings.prompt ?? "";
  // The embedding, float32; or [[label, score], ...], the answer first. A best score under the threshold gives the out-of-scope
  // label with 1 - that score, no letter or digit that label with 1.
  return async (asked) => {
    const ids = encode(before + asked);
    const found = await output(ort, session, tokens(ids.length ? ids : [manifest.pad_id]));
    if (manifest.output === "embedding") return found;
    const most = Math.max(...found);
    const powers = Array.from(found, (value) => Math.exp(value - most));
    const sum = powers.reduce((all, value) => all + value, 0);
    const ranked = powers.map((value, index) => [manifest.labels[index], value / sum]).sort((a, b) => b[1] - a[1]);
    const silent = !/[\p{L}\p{N}]/u.test(asked);
    if (manifest.threshold === null || (ranked[0][1] >= manifest.threshold && !silent)) return ranked;
    return [[manifest.out_of_scope, silent ? 1 : 1 - ranked[0][1]], ...ranked];
  };
}
