// The probe in a browser: the protocol of edgekit.runtimes.probe, spoken by JavaScript over onnxruntime-web and wllama.
// args: the request's address. env: the addresses of the `engine`, of the models that measure the `speed`, and where a tokenizer is
// checked, of its `texts`.
import { sha256 } from "./check.mjs";
import { readNpz, writeNpz } from "./npz.mjs";
import { createEncoder, createSession, output } from "./rows.mjs";
import { tokens } from "./tokens.mjs";

const PROTOCOL = 1;
const CPU = "CPUExecutionProvider";
const WARM_MS = 1000;

const round = (ms) => Math.round(ms * 1e6) / 1e6;
const since = (begun) => round(performance.now() - begun);
const parse = (bytes) => JSON.parse(new TextDecoder().decode(bytes));

export async function main(io) {
  let number = 0;
  const say = (event, facts) => io.out(`${JSON.stringify({ event, seq: number++, ...facts })}\n`);
  const requested = await io.read(io.args[0]);
  const request = parse(requested);
  const { describe } = await import(new URL("describe.mjs", io.root));
  const device = describe();
  await say("device", device);
  const file = await io.read(request.file);
  const folder = io.args[0].slice(0, io.args[0].lastIndexOf("/") + 1);
  const arrays = readNpz(await io.read(folder + request.inputs));
  const kind = KINDS[request.kind ?? "rows"];
  if (!kind) throw new Error(`the probe of browsers does not answer requests of kind ${request.kind}`);
  const speed = async () => measure(await engine(io, 1), io);
  const answered = await kind({ io, request, file, arrays, device, say, speed });
  const outputs = answered && writeNpz(answered);
  if (outputs) await io.write(request.outputs, outputs);
  const hashes = { file: await sha256(file), request: await sha256(requested), outputs: outputs ? await sha256(outputs) : null };
  await say("done", { protocol: PROTOCOL, ...hashes });
}

async function rows({ io, request, file, arrays, device, say }) {
  const { timing, options } = request;
  if (timing.sustained || timing.tune) {
    throw new Error("a page is not timed without a pause, nor with other threads: leave out --sustained and --sweep");
  }
  const prompts = unpack(arrays, "");
  const [timed] = unpack(arrays, "timed.");
  const threads = device.features.includes("threads") ? Math.min(options.threads ?? device.cores, device.cores) : 1;
  // The file's bytes are here; what is timed is what an app does with them, the engine's own start included.
  const begun = performance.now();
  const ort = await engine(io, threads);
  const session = await createSession(ort, file, options);
  await say("load", { ms: since(begun), runtime: "onnxruntime", version: ort.env.versions.web, available: [CPU] });
  const first = performance.now();
  await output(ort, session, timed);
  const alive = performance.timeOrigin + performance.now() - io.born;
  await say("first", { ms: since(first), alive_ms: round(alive) });
  const shape = { batch: 1, sequence: timing.sequence, threads };
  await say("latency", { shape, ...(await timeCalls(() => output(ort, session, timed), timing)), neighbours: {} });
  if (timing.only) return null;

  const [found, real] = [[], []];
  for (const prompt of prompts) {
    const begun = performance.now();
    const row = await output(ort, session, prompt);
    real.push(since(begun));
    found.push(Float32Array.from(row));
  }
  await say("latency_real", { lengths: numbers(arrays.sizes), ms: real });
  const width = found.length ? found[0].length : 0;
  const joined = new Float32Array(found.length * width);
  found.forEach((row, index) => joined.set(row, index * width));
  await say("outputs", { file: request.outputs, rows: found.length });
  const bytes = await io.memory();
  await say("memory", { peak_mb: bytes === null ? null : bytes / 2 ** 20 });
  await session.release();
  // The one provider of this build: nothing can fall back from it.
  await say("work", { asked: options.provider ?? "", provider: CPU });
  await say("machine", { speed: await measure(ort, io), neighbours: {} });
  if (io.env.texts) await say("tokenizer", await compareTokens(io, prompts));
  return { outputs: { data: joined, shape: [found.length, width] } };
}

export async function engine(io, threads) {
  const base = new URL(`${io.env.engine}/onnxruntime-web/`, io.root);
  const ort = await import(new URL("ort.wasm.min.mjs", base));
  ort.env.wasm.wasmPaths = base.href;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "fatal";
  return ort;
}

// What `pack` of edgekit.runtimes.request wrote: each prompt's inputs by name, as a batch of one.
function unpack(arrays, prefix) {
  const prompts = [];
  for (const [key, values] of Object.entries(arrays)) {
    if (!key.startsWith(`${prefix}values.`)) continue;
    const name = key.slice(`${prefix}values.`.length);
    const shapes = arrays[`${prefix}shapes.${name}`];
    const axes = shapes.shape[1];
    const extents = numbers(shapes);
    let begin = 0;
    for (let index = 0; index < shapes.shape[0]; index += 1) {
      const dims = extents.slice(index * axes, (index + 1) * axes);
      const end = begin + dims.reduce((all, extent) => all * extent, 1);
      (prompts[index] ??= {})[name] = { data: values.data.slice(begin, end), dims: [1, ...dims] };
      begin = end;
    }
  }
  return prompts;
}

const numbers = (array) => Array.from(array.data, Number);

async function timeCalls(call, { warmup, repeats, least, seconds }) {
  const [first, ms] = [[], []];
  const time = async (times) => {
    const begun = performance.now();
    await call();
    times.push(since(begun));
  };
  const warm = performance.now() + WARM_MS;
  while (first.length < warmup && (!first.length || performance.now() <= warm)) await time(first);
  const end = performance.now() + 1000 * seconds;
  while (ms.length < repeats && (ms.length < least || performance.now() <= end)) await time(ms);
  return { warmup: first, ms, spell: { calls: ms.length, ended: ms.length >= repeats ? "calls" : "time" } };
}

// As edgekit.runtimes.machine and edgekit.runtimes.onnxruntime.throughput measure it: the best of several.
export async function measure(ort, io) {
  const source = new Uint8Array(2 ** 26).fill(1);
  const sink = new Uint8Array(source.length);
  const copy = await fastest(async () => sink.set(source));
  const speed = { bandwidth_gbs: (2 * source.length) / copy / 1e6 };
  for (const [name, model] of Object.entries({ fp32_gflops: "fp32", int8_gops: "int8" })) {
    const session = await createSession(ort, await io.read(`${io.env.speed}/${model}.onnx`));
    const inputs = readNpz(await io.read(`${io.env.speed}/${model}.npz`));
    const a = { data: inputs.a.data, dims: inputs.a.shape };
    const [side] = inputs.a.shape;
    speed[name] = (2 * side ** 3) / (await fastest(() => output(ort, session, { a }))) / 1e6;
    await session.release();
  }
  return speed;
}

async function fastest(call) {
  await call();
  let best = Infinity;
  const end = performance.now() + 200;
  while (performance.now() < end) {
    const begun = performance.now();
    await call();
    best = Math.min(best, performance.now() - begun);
  }
  return best;
}

// The ids that the library for browsers reads of each text, beside those that edgekit sent.
async function compareTokens(io, prompts) {
  const { Tokenizer } = await import(new URL(`${io.env.engine}/tokenizers/tokenizers.min.mjs`, io.root));
  const told = parse(await io.read(io.env.texts));
  const encode = createEncoder(Tokenizer, parse(await io.read(told.tokenizer)));
  const differ = [];
  told.texts.forEach((text, index) => {
    const ids = encode(told.before + text);
    const wanted = prompts[index].input_ids.data;
    const read = ids.length ? ids : [told.pad_id];
    if (read.length !== wanted.length || read.some((id, at) => BigInt(id) !== wanted[at])) differ.push(index);
  });
  return { texts: told.texts.length, differ };
}

const KINDS = { rows, tokens };
