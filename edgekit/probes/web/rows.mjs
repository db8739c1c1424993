// What a model that gives rows is asked with in onnxruntime-web and onnxruntime-node, as it was verified: session options, token
// ids, and what its output means. `load.mjs` beside it opens a bundle with this.

// A session with the options that were verified, as onnxruntime's configuration has them.
// model: its bytes, or its path where the engine reads files; own: options of the engine alone.
export function createSession(ort, model, runtime, own = { executionProviders: ["wasm"] }) {
  const { config_entries = {}, disabled_optimizers = [] } = runtime ?? {};
  const extra = {};
  const entries = { ...config_entries };
  if (disabled_optimizers.length) entries["optimization.disable_specified_optimizers"] = disabled_optimizers.join(";");
  for (const [key, value] of Object.entries(entries)) {
    const parts = key.split(".");
    const last = parts.pop();
    parts.reduce((at, part) => (at[part] ??= {}), extra)[last] = value;
  }
  return ort.InferenceSession.create(model, { graphOptimizationLevel: "all", extra, ...own });
}

// Token ids of a text, cut as tokenizer.json says: what the library leaves out is done here.
export function createEncoder(Tokenizer, table) {
  // Of a list of words it looks for the unknown one where transformers has it.
  const tokenizer = new Tokenizer(table, table.model.type === "WordLevel" ? { unk_token: table.model.unk_token } : {});
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

// What comes before a text: a prompt by its name; "" is nothing, without it the model's own.
export function findPrompt({ settings }, prompt) {
  const { prompt: own = "", prompts = {} } = settings;
  if (prompt && !Object.hasOwn(prompts, prompt)) {
    throw new Error(`no prompt "${prompt}": those of this model are ${Object.keys(prompts).sort().join(", ") || "none"}`);
  }
  return prompt === undefined ? own : prompt && prompts[prompt];
}

// Answers by a session: the embedding, float32; or [[label, score], ...], the answer first. A best score under the threshold gives
// the out-of-scope label with 1 - that score, no letter or digit that label with 1. prompt: see `findPrompt`.
export function createAnswer(ort, session, encode, manifest) {
  return async (text, { prompt } = {}) => {
    if (typeof text !== "string") throw new TypeError(`a text is answered, not ${text === null ? null : typeof text}`);
    const ids = encode(findPrompt(manifest, prompt) + text);
    const found = await output(ort, session, tokens(ids.length ? ids : [manifest.pad_id]));
    if (manifest.output === "embedding") return found;
    if (found.length !== manifest.labels.length) {
      throw new Error(`the model gives ${found.length} scores for ${manifest.labels.length} labels: copy the whole bundle`);
    }
    const most = Math.max(...found);
    const powers = Array.from(found, (value) => Math.exp(value - most));
    const sum = powers.reduce((all, value) => all + value, 0);
    const ranked = powers.map((value, index) => [manifest.labels[index], value / sum]).sort((a, b) => b[1] - a[1]);
    const silent = !/[\p{L}\p{N}]/u.test(text);
    if (manifest.threshold === null || (ranked[0][1] >= manifest.threshold && !silent)) return ranked;
    return [[manifest.out_of_scope, silent ? 1 : 1 - ranked[0][1]], ...ranked];
  };
}
