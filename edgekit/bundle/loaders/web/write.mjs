// Goes on with a text, or answers a conversation, from an edgekit bundle in a browser, piece by piece:
// `for await (const { text } of (await open("./bundle/", { ort, Tokenizer }))("Once upon a time")) ...`
// Needs onnxruntime-web and @huggingface/tokenizers; of a model that talks also @huggingface/jinja, and talk.mjs beside it.
import { checkFile, checkGolden, checkVersion, countThreads, fetchBytes, needPackage, openFile, readManifest } from "./check.mjs";
import { createDecoder, createTokens, createWriter } from "./decoder.mjs";

// What follows a text, or the answer to a question or messages of { role, content }: pieces { token, text }, see `createWriter`. Its
// `times`: milliseconds to open, of the first golden answer (cold) and of a later one (warm); `notes`: what is otherwise than the app
// asked. read: gives a file's bytes by its address and its entry in the manifest, when it is not just fetched. accept: is given the
// bytes of bundle.json, and may refuse the bundle.
export async function open(folder, { ort, Tokenizer, threads, accept, read = fetchBytes }) {
  const begun = performance.now();
  const base = new URL(folder, location.href);
  const source = new URL("bundle.json", base);
  const manifest = await readManifest(await read(source), source, accept);
  checkVersion("onnxruntime-web", ort.env.versions.web, manifest.runtime.minimum);
  const { chat } = manifest.settings;
  const talk = chat ? (await needPackage("@huggingface/jinja", () => import("./talk.mjs"))).createTalk(manifest) : null;
  const files = {};
  for (const name of [manifest.model, manifest.tokenizer, "golden.json"]) {
    if (!manifest.files[name]) continue;
    files[name] = await read(new URL(name, base), manifest.files[name]);
    await checkFile(manifest, name, files[name]);
  }
  const { wanted, notes } = countThreads(threads ?? manifest.runtime.threads ?? 1);
  ort.env.wasm.numThreads = wanted;
  const decoder = await openFile(manifest.model, () => createDecoder(ort, files[manifest.model], manifest.runtime));
  const table = () => JSON.parse(new TextDecoder().decode(files[manifest.tokenizer]));
  const tokens = await openFile(manifest.tokenizer, async () => createTokens(Tokenizer, table(), Boolean(talk)));
  const { answer, follow } = createWriter(decoder, tokens, talk, manifest);
  const opened = performance.now() - begun;
  const times = await checkGolden(files["golden.json"], follow);
  return Object.assign(answer, { manifest, notes, times: { open: opened, ...times }, close: decoder.close });
}
