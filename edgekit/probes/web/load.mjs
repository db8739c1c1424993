// Answers from an edgekit bundle in a browser: `(await open("./bundle/", { ort, Tokenizer }))("turn on the light")`.
// Needs onnxruntime-web and @huggingface/tokenizers; see index.html beside it.
import { checkFile, checkGolden, checkVersion, countThreads, fetchBytes, openFile, readManifest } from "./check.mjs";
import { createAnswer, createEncoder, createSession } from "./rows.mjs";

// An answer to a text, and its `times`: milliseconds to open, of the first answer (cold) and of a later one (warm).
// read: gives a file's bytes by its address and its entry in the manifest, when it is not just fetched; `notes`: what is otherwise
// than the app asked. accept: is given the bytes of bundle.json, and may refuse the bundle.
export async function open(folder, { ort, Tokenizer, threads, accept, read = fetchBytes }) {
  const begun = performance.now();
  const base = new URL(folder, location.href);
  const source = new URL("bundle.json", base);
  const manifest = await readManifest(await read(source), source, accept);
  checkVersion("onnxruntime-web", ort.env.versions.web, manifest.runtime.minimum);
  const files = {};
  for (const name of [manifest.model, manifest.tokenizer, "golden.json"]) {
    if (!manifest.files[name]) continue;
    files[name] = await read(new URL(name, base), manifest.files[name]);
    await checkFile(manifest, name, files[name]);
  }
  const { wanted, notes } = countThreads(threads ?? manifest.runtime.threads ?? 1);
  ort.env.wasm.numThreads = wanted;
  const session = await openFile(manifest.model, () => createSession(ort, files[manifest.model], manifest.runtime));
  const table = () => JSON.parse(new TextDecoder().decode(files[manifest.tokenizer]));
  const encode = await openFile(manifest.tokenizer, () => createEncoder(Tokenizer, table()));
  const answer = createAnswer(ort, session, encode, manifest);
  const opened = performance.now() - begun;
  const times = await checkGolden(files["golden.json"], answer);
  return Object.assign(answer, { manifest, notes, times: { open: opened, ...times } });
}
