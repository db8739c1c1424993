// The probe's requests of kind "tokens" in a browser: what edgekit.runtimes.generation answers, by wllama.
// wllama tells the probabilities behind the last token that it was fed, so that each scored token is a call of its own.
import { createModel, next } from "./words.mjs";

const CPU = "CPU";
// The context of a model that is only opened, as edgekit.runtimes.llamacpp.generation has it.
const ROOM = 512;
// What wllama gives as 0 is below the least of float32.
const LEAST = 2 ** -149;
// See edgekit.runtimes.scores.
const RESOLUTION = 1e-6;

const since = (begun) => Math.round((performance.now() - begun) * 1e6) / 1e6;
const numbers = (array) => Array.from(array.data, Number);
const MB = 2 ** 20;

export async function tokens({ io, request, file, arrays, device, say, speed }) {
  const { timing, options } = request;
  if (timing.sustained || timing.tune) {
    throw new Error("a page is not timed without a pause, nor with other threads: leave out --sustained and --sweep");
  }
  const inputs = readInputs(arrays);
  const threads = device.features.includes("threads") ? Math.min(options.threads ?? 1, device.cores) : 1;
  // wllama asks the document for its address, and a worker has none.
  globalThis.document ??= { baseURI: io.root };
  const wasm = new URL(`${io.env.engine}/wllama/`, io.root).href;
  const megabytes = async () => { const bytes = await io.memory(); return bytes === null ? null : bytes / MB; };
  const baseline = await megabytes();
  // The file's bytes are here; what is timed is what an app does with them, the engine's own start included.
  const begun = performance.now();
  const { Wllama } = await import(new URL("index.min.js", wasm));
  const open = (context) => createModel({ Wllama, wasm }, file, { ...options, threads, context });
  let model = await open(options.context || ROOM);
  await say("load", { ms: since(begun), runtime: "llama-cpp", version: Wllama.getLibllamaVersion(), available: [CPU] });
  const facts = model.getLoadedContextInfo();
  const limit = options.context || facts.n_ctx_train;
  if (inputs.context > limit) {
    throw new Error(
      `the sequences take ${inputs.context} tokens of context, the model has ${limit}; shorten the prompts (data.max_length)` +
      " or their answers",
    );
  }
  const asked = fit(timing, inputs.ids, limit);
  const first = performance.now();
  await next(model, asked.ids.slice(0, asked.prompts[0]));
  await say("first", { ms: since(first), alive_ms: Math.round(performance.timeOrigin + performance.now() - io.born) });
  const loaded = await megabytes();

  const context = options.context || Math.min(limit, Math.max(inputs.context, asked.prompts.at(-1) + asked.count));
  const reopen = async () => { await model.exit(); model = await open(context); };
  const { peak, ...times } = await timeCalls({ reopen, current: () => model, megabytes }, asked);
  const shared = { threads, threads_batch: threads };
  await say("prefill", { lengths: asked.prompts, ms: times.prefill, cold: true, ...shared });
  const spell = { calls: times.decode.length, ended: times.ended };
  await say("decode", {
    depth: asked.prompts.at(-1), new: asked.count, ms: times.decode, spell, neighbours: {}, ...shared,
  });
  if (timing.only) return null;
  await say("memory", { peak_mb: peak, baseline_mb: baseline, loaded_mb: loaded });

  const found = { ...(await score(model, inputs, facts.n_vocab)), ...(await answers(model, inputs)) };
  await say("outputs", {
    file: request.outputs, scored: found.nll.data.length, answers: found.answer_offsets.data.length - 1,
  });
  const layers = facts.n_layer + 1;
  const kv = [options.kv_k ?? "f16", options.kv_v ?? "f16"];
  // The one backend of this build: nothing can fall back from it.
  await say("work", {
    asked: options.provider ?? "", provider: CPU, layers, offloaded: 0, devices: [], threads: { decode: threads, prefill: threads }, kv,
  });
  const reading = io.env.texts ? await compareTokens(io, model) : null;
  await model.exit();
  const measured = await speed();
  await say("machine", { speed: { ...measured, copy_gbs: measured.bandwidth_gbs }, neighbours: {} });
  if (reading) await say("tokenizer", reading);
  return found;
}

// What a request's .npz holds; sequences: [{ ids, start }].
function readInputs(arrays) {
  const [ids, offsets, starts] = ["ids", "offsets", "starts"].map((name) => numbers(arrays[name]));
  const [referenced, generate, most] = ["referenced", "generate", "max_new"].map((name) => Number(arrays[name].data[0]));
  const sequences = starts.map((start, index) => ({ ids: ids.slice(offsets[index], offsets[index + 1]), start }));
  const references = Object.fromEntries(["student", "teacher"].filter((name) => arrays[`${name}_ids`]).map((name) => {
    const known = arrays[`${name}_ids`];
    return [name, { width: known.shape[1], ids: known.data, logprobs: arrays[`${name}_logprobs`].data }];
  }));
  const lengths = [...sequences.map((one) => one.ids.length), ...starts.slice(0, generate).map((start) => start + most)];
  const context = lengths.reduce((longest, length) => Math.max(longest, length), 1);
  return { ids, sequences, references, referenced, generate, most, stop: new Set(numbers(arrays.stop)), context };
}

// The timing that a request asks for, as far as the model's context reaches: prompts that are too long are left out.
function fit(timing, ids, limit) {
  const lengths = timing.prompts.filter((length) => length < limit).sort((a, b) => a - b);
  const prompts = lengths.length ? lengths : [Math.floor(limit / 2)];
  const repeated = Array.from({ length: prompts.at(-1) }, (_, index) => (ids.length ? ids[index % ids.length] : 0));
  return { ids: repeated, prompts, count: Math.min(timing.new, limit - prompts.at(-1)), repeats: timing.repeats, seconds: timing.seconds };
}

// Milliseconds to the first token by prompt length, in a fresh engine each, and of each token behind the longest; `ended`: what
// ended the rounds; peak: MiB at the end.
async function timeCalls({ reopen, current, megabytes }, asked) {
  const [prefill, decode] = [[], []];
  let ended = "calls";
  for (const length of asked.prompts) {
    await reopen();
    const times = [];
    const end = performance.now() + (1000 * asked.seconds) / asked.prompts.length;
    while (times.length < 2 || (times.length <= asked.repeats && performance.now() < end)) {
      await current().kvClear();
      const begun = performance.now();
      await next(current(), asked.ids.slice(0, length));
      times.push(since(begun));
    }
    prefill.push(times);
  }
  const end = performance.now() + 1000 * asked.seconds;
  for (let round = 0; round < Math.max(asked.repeats, 1); round += 1) {
    if (round && performance.now() > end) { ended = "time"; break; }
    await current().kvClear();
    let { token } = await next(current(), asked.ids);
    for (let count = 0; count < asked.count; count += 1) {
      const begun = performance.now();
      ({ token } = await next(current(), [token]));
      decode.push(since(begun));
    }
  }
  return { prefill, decode, ended, peak: await megabytes() };
}

// nll, top1 and of each reference r_kl and r_top1 of every scored token.
async function score(model, { sequences, references, referenced }, vocabulary) {
  const [nll, top1] = [[], []];
  const divergence = Object.fromEntries(Object.keys(references).map((name) => [name, []]));
  let row = 0;
  for (const [index, { ids, start }] of sequences.entries()) {
    if (start >= ids.length) continue;
    await model.kvClear();
    await model.decode(ids.slice(0, start), {});
    for (let at = start; at < ids.length; at += 1) {
      if (at > start) await model.decode([ids[at - 1]], {});
      const { best, logs } = await distribution(model, vocabulary);
      nll.push(-logs[ids[at]]);
      top1.push(best);
      if (index >= referenced) continue;
      for (const [name, known] of Object.entries(references)) divergence[name].push(sparseKl(known, row, logs));
      row += 1;
    }
  }
  const flat = (data) => ({ data, shape: [data.length] });
  const found = { nll: flat(Float32Array.from(nll)), top1: flat(Int32Array.from(top1)) };
  for (const [name, { ids, width }] of Object.entries(references)) {
    found[`${name}_kl`] = flat(Float32Array.from(divergence[name]));
    found[`${name}_top1`] = flat(Uint8Array.from(divergence[name], (_, index) => Number(top1[index] === ids[index * width])));
  }
  return found;
}

// The likeliest token, and the natural logarithms of all tokens' probabilities, behind what was fed.
async function distribution(model, vocabulary) {
  const found = await model.getLogits(-1);
  if (found.length !== vocabulary) throw new Error(`wllama tells ${found.length} probabilities of ${vocabulary} tokens`);
  // wllama adds float32 exponentials: added again, in float64.
  const sum = found.reduce((all, { p }) => all + p, 0);
  if (Number.isNaN(sum) && found.some(({ p }) => !Number.isNaN(p))) {
    throw new Error("wllama's probabilities overflow: this model has logits over 88; judge it without --device");
  }
  const logs = new Float64Array(vocabulary);
  for (const { token, p } of found) logs[token] = Math.log(Math.max(p, LEAST) / sum);
  return { best: found[0].token, logs };
}

// KL(reference || these) of a row of which `width` classes are known: see edgekit.runtimes.scores.sparse_kl.
function sparseKl({ width, ids, logprobs }, row, logs) {
  let p = Array.from(logprobs.subarray(row * width, (row + 1) * width));
  const q = Array.from(ids.subarray(row * width, (row + 1) * width), (id) => logs[id]);
  const sum = (values) => values.reduce((all, value) => all + Math.exp(value), 0);
  const left = 1 - sum(p);
  const isAll = left <= RESOLUTION || width === logs.length;
  if (isAll) {
    const shift = Math.log(sum(p));
    p = p.map((value) => value - shift);
  }
  const rest = Math.max(1 - sum(q), Number.EPSILON);
  const tail = isAll ? 0 : left * (Math.log(left) - Math.log(rest));
  return Math.max(p.reduce((all, value, index) => all + Math.exp(value) * (value - q[index]), 0) + tail, 0);
}

// answers and answer_offsets: what the model says to the first sequences' prompts.
async function answers(model, { sequences, generate, most, stop }) {
  const [said, offsets] = [[], [0]];
  for (const { ids, start } of sequences.slice(0, generate)) {
    await model.kvClear();
    let fed = ids.slice(0, start);
    for (let count = 0; count < most; count += 1) {
      const { token } = await next(model, fed);
      if (stop.has(token)) break;
      said.push(token);
      fed = [token];
    }
    offsets.push(said.length);
  }
  const ends = BigInt64Array.from(offsets, BigInt);
  return {
    answers: { data: Int32Array.from(said), shape: [said.length] }, answer_offsets: { data: ends, shape: [ends.length] },
  };
}

// The ids that wllama reads of each text, beside those of this machine's tokenizer.
async function compareTokens(io, model) {
  const told = JSON.parse(new TextDecoder().decode(await io.read(io.env.texts)));
  const differ = [];
  for (const [index, text] of told.texts.entries()) {
    const ids = await model.tokenize(told.before + text, true);
    const wanted = told.ids[index];
    if (ids.length !== wanted.length || ids.some((id, at) => id !== wanted[at])) differ.push(index);
  }
  return { texts: told.texts.length, differ };
}
