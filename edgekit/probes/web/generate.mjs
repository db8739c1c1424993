// Goes on with a text, or answers a conversation, from an edgekit bundle in a browser, piece by piece:
// `for await (const { text } of (await open("./bundle/", { Wllama, wasm }))("Once upon a time")) ...`
// Needs @wllama/wllama, see index.html beside it; of a model that talks also @huggingface/jinja, and talk.mjs beside it.
import { checkFile, checkGolden, countThreads, fetchBytes, needPackage, openFile, readManifest } from "./check.mjs";
import { createModel, encode, follow, next } from "./words.mjs";

// accept: is given the bytes of bundle.json, and may refuse the bundle.
// read: gives a file's bytes by its address and its entry in the manifest, when it is not just fetched. An answer's `times` are
// milliseconds to open, of the first golden answer (cold) and of a later one (warm); `notes`: what is otherwise than the app asked.
export async function open(folder, { Wllama, wasm, threads, accept, read = fetchBytes }) {
  const begun = performance.now();
  const base = new URL(folder, location.href);
  const source = new URL("bundle.json", base);
  const manifest = await readManifest(await read(source), source, accept);
  const talking = manifest.settings.chat && await needPackage("@huggingface/jinja", () => import("./talk.mjs"));
  const talk = talking ? talking.createTalk(manifest) : null;
  const files = {};
  for (const name of [manifest.model, "golden.json"]) {
    if (!manifest.files[name]) continue;
    files[name] = await read(new URL(name, base), manifest.files[name]);
    await checkFile(manifest, name, files[name]);
  }
  const { wanted, notes } = countThreads(threads ?? manifest.runtime.threads ?? 1);
  const engine = { Wllama, wasm: new URL(wasm, location.href).href };
  const model = await openFile(manifest.model, () => createModel(engine, files[manifest.model], {
    ...manifest.runtime, threads: wanted, context: manifest.runtime.context || manifest.max_length,
  }));
  const opened = performance.now() - begun;
  const times = await checkGolden(files["golden.json"], (text, count) => follow(model, text, count));
  const room = model.getLoadedContextInfo().n_ctx;
  // What follows a text, in pieces { token, text }, at most `most` of them; a model that talks answers it, or messages of
  // { role, content }.
  const answer = async function* (asked, most = Infinity) {
    if (!talk && typeof asked !== "string") throw new TypeError("this model has no chat template: give it one text to continue");
    let fed = talk ? await model.tokenize(talk(asked), true) : await encode(model, asked);
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
  return Object.assign(answer, { manifest, notes, times: { open: opened, ...times } });
}
