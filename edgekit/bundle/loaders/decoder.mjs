// A decoder in onnxruntime-node and onnxruntime-web: its session with a cache of keys and values, its tokens, and what it says.
// `load.mjs` beside it opens a bundle with this.
import { createSession } from "./rows.mjs";

// Of protobuf (protobuf.dev, "Encoding") and onnx.proto: the numbers of the fields that are read.
const [GRAPH, METADATA, INITIALIZER, NAME, RAW_DATA] = [7, 14, 5, 8, 9];
// A text is read in pieces of so many tokens, as it was when the model was verified: attention's scores take heads * piece * context.
const PIECE = 512;
// The caches have room for a multiple of so many tokens.
const ROOM = 256;

// [number, begin, end] of each field of a message that has a length.
function* fields(bytes, at, end) {
  const varint = () => {
    for (let value = 0, scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (!(byte > 127)) return value;
    }
  };
  while (at < end) {
    const key = varint();
    const [number, kind] = [Math.floor(key / 8), key % 8];
    if (kind === 0) varint();
    else if (kind !== 2) at += kind === 1 ? 8 : 4;
    else {
      const length = varint();
      yield [number, at, at + length];
      at += length;
    }
  }
}

// What an ONNX file's metadata says, by name. onnxruntime gives no input in JavaScript that has a default: that of num_logits_to_keep
// (0, all) becomes 1 in these bytes, which other loaders give.
function prepare(bytes) {
  const facts = {};
  const inside = (begin, end) => new Map(Array.from(fields(bytes, begin, end), ([number, ...where]) => [number, where]));
  const text = (where) => new TextDecoder().decode(bytes.subarray(...where));
  for (const [number, ...where] of fields(bytes, 0, bytes.length)) {
    if (number === METADATA) {
      const entry = inside(...where);
      facts[text(entry.get(1))] = text(entry.get(2));
    }
    if (number !== GRAPH) continue;
    for (const [part, ...place] of fields(bytes, ...where)) {
      const tensor = part === INITIALIZER ? inside(...place) : new Map();
      if (!tensor.has(NAME) || text(tensor.get(NAME)) !== "num_logits_to_keep") continue;
      bytes[tensor.get(RAW_DATA)[0]] = 1;
      facts.keeps = true;
    }
  }
  if (!facts.keeps || !facts["edgekit.context"]) throw new Error("it is no decoder that edgekit wrote");
  return facts;
}

// { context, read, close } of an ONNX file's bytes, which it changes. own: options of the engine alone. inPlace: the engine writes an
// output into the memory that it is given, so that what was read before is never copied.
// read(ids, signal) gives the logits behind the last of these tokens, float32 [vocabulary]; those that were read before and are still
// in the caches are not read again.
export async function createDecoder(ort, bytes, runtime, own = { executionProviders: ["wasm"] }, inPlace = false) {
  const facts = prepare(bytes);
  // It warns of the input that has a default.
  const session = await createSession(ort, bytes, runtime, { logSeverityLevel: 3, ...own });
  if (!session.inputMetadata) throw new Error("this onnxruntime tells no shapes of a model");
  const pasts = session.inputMetadata.filter(({ shape }) => shape?.length === 4);
  const [logits, ...presents] = session.outputNames;
  const context = Number(facts["edgekit.context"]);
  // A longer text rotates all of its keys otherwise.
  const switches = Number(facts["edgekit.rope_switch"] ?? context);
  let [fed, room, caches, last] = [[], 0, {}, Promise.resolve()];

  const resize = (wanted) => {
    for (const { name, type, shape: [, heads, , width] } of pasts) {
      // 16-bit floats are moved as what they are in memory.
      const kind = type === "float16" ? Uint16Array : Float32Array;
      const made = new kind(heads * wanted * width);
      if (caches[name]) {
        const { buffer, byteOffset, length } = caches[name].data;
        const old = new kind(buffer, byteOffset, length);
        for (let head = 0; head < heads; head += 1) {
          const from = head * room * width;
          made.set(old.subarray(from, from + Math.min(room, wanted) * width), head * wanted * width);
        }
      }
      // A Tensor makes a Float16Array of it where there is that, which onnxruntime-node does not take.
      const value = new ort.Tensor(type, made, [1, heads, wanted, width]);
      caches[name] = Object.defineProperty(value, "data", { value: made });
    }
    room = wanted;
  };
  const feed = async (ids, total) => {
    const feeds = {
      ...caches,
      input_ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      attention_mask: new ort.Tensor("int64", new BigInt64Array(total).fill(1n), [1, total]),
    };
    const into = Object.fromEntries(presents.map((name, place) => [name, caches[pasts[place].name]]));
    const found = await (inPlace ? session.run(feeds, { [logits]: null, ...into }) : session.run(feeds));
    if (!inPlace) pasts.forEach(({ name }, place) => { caches[name] = found[presents[place]]; });
    return found[logits].data;
  };
  const readNow = async (ids, signal) => {
    let kept = 0;
    while (kept < Math.min(fed.length, ids.length - 1) && fed[kept] === ids[kept]) kept += 1;
    if ((fed.length > switches) !== (ids.length > switches)) kept = 0;
    fed = fed.slice(0, kept);
    const wanted = Math.min(context, ROOM * Math.ceil(ids.length / ROOM));
    if (wanted !== room) resize(wanted);
    const step = ids.length > switches ? ids.length : PIECE;
    let found;
    for (let begin = kept; begin < ids.length; begin += step) {
      signal?.throwIfAborted();
      const end = Math.min(begin + step, ids.length);
      found = await feed(ids.slice(begin, end), end);
      fed = ids.slice(0, end);
    }
    return found;
  };
  // One after the other: two answers at once share the caches.
  const read = (ids, signal) => {
    const now = last.then(() => readNow([...ids], signal));
    last = now.catch(() => {});
    return now;
  };
  return { context, read, close: () => session.release() };
}

// { encode, decode, find } of a tokenizer.json. chats: of a model that talks, whose template writes its special tokens; what a person
// types for another is text, also where it looks like one.
export function createTokens(Tokenizer, table, chats) {
  const special = table.added_tokens.filter((token) => token.special);
  const read = chats ? table : { ...table, added_tokens: table.added_tokens.filter((token) => !token.special) };
  const tokenizer = new Tokenizer(read, {});
  // Those that are put around a text are known all the same.
  for (const { content, id } of special) tokenizer.model.tokens_to_ids.set(content, id);
  const silent = new Set(special.map(({ id }) => id));
  return {
    encode: (text, around = true) => tokenizer.encode(text, { add_special_tokens: around }).ids,
    decode(ids) {
      const shown = ids.filter((id) => !silent.has(id) && tokenizer.id_to_token(id) !== undefined);
      return shown.length ? tokenizer.decode(shown, { clean_up_tokenization_spaces: false }) : "";
    },
    find: (text) => tokenizer.token_to_id(text),
  };
}

// Numbers from 0 to 1; of a seed the same each time (mulberry32).
function createRandom(seed) {
  if (seed === undefined) return Math.random;
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

// The likeliest of logits; with a temperature a sample of their softmax, of those at least minP times as likely as the likeliest.
export function pick(logits, { temperature = 0, minP = 0.05, random } = {}) {
  let best = 0;
  for (let token = 1; token < logits.length; token += 1) if (logits[token] > logits[best]) best = token;
  if (!(temperature > 0)) return best;
  const least = logits[best] + Math.log(minP);
  // The largest is a sample of the softmax, with noise of Gumbel's distribution added to each.
  for (let token = 0, top = -Infinity; token < logits.length; token += 1) {
    if (logits[token] < least) continue;
    const value = logits[token] / temperature - Math.log(-Math.log(random()));
    if (value > top) [best, top] = [token, value];
  }
  return best;
}

// { answer, follow }: what an app asks, and what golden answers do.
// answer(said, most, options) gives what follows a text, or the answer to a question or messages of { role, content }: pieces { token, text },
// at most `most`. options: temperature (0: the likeliest each time), minP, seed, signal.
export function createWriter({ context, read }, { encode, decode, find }, talk, { settings }) {
  const stops = new Set(settings.stop.map(find));
  const answer = async function* (said, most = Infinity, { temperature, minP, seed, signal } = {}) {
    if (!talk && typeof said !== "string") throw new TypeError("this model has no chat template: give it one text to continue");
    const ids = talk ? encode(talk(said), false) : encode(said);
    if (!ids.length) throw new Error("nothing to go on with: the text has no token");
    if (ids.length >= context) throw new Error(`${ids.length} tokens do not fit the context of ${context}`);
    const choice = { temperature, minP, random: createRandom(seed) };
    const last = Math.min(context, ids.length + most);
    // What was shown last: a token's text may depend on the one before.
    let [begin, end] = [ids.length - 1, ids.length];
    while (ids.length < last) {
      const token = pick(await read(ids, signal), choice);
      if (stops.has(token)) return;
      ids.push(token);
      const [before, text] = [decode(ids.slice(begin, end)), decode(ids.slice(begin))];
      // Else bytes of a character are missing.
      const whole = !text.endsWith("\ufffd");
      if (whole) [begin, end] = [end, ids.length];
      yield { token, text: whole ? text.slice(before.length) : "" };
    }
  };
  const follow = async (text, count) => {
    const [asked, tokens] = [encode(text), []];
    while (tokens.length < count) tokens.push(pick(await read([...asked, ...tokens])));
    return { asked, tokens };
  };
  return { answer, follow };
}
