// Goes on with a text, or answers a conversation, from an edgekit bundle in Node.js, piece by piece:
// `for await (const { text } of (await open("bundle"))("Once upon a time")) ...`
// Needs onnxruntime-node and @huggingface/tokenizers; of a model that talks also @huggingface/jinja, and talk.mjs beside it.
import { readFile } from "node:fs/promises";
import path from "node:path";
import { checkGolden, checkVersion, needPackage, openFile } from "./check.mjs";
import { createDecoder, createTokens, createWriter } from "./decoder.mjs";
import { openFolder } from "./files.mjs";

// What follows a text, or the answer to a question or messages of { role, content }: pieces { token, text }, see `createWriter`. Its
// `times`: milliseconds to open, of the first golden answer (cold) and of a later one (warm). threads: in place of the bundle's own; 0
// lets the runtime decide. accept: may refuse the bundle (see trust.mjs).
export async function open(folder, { threads, accept } = {}) {
  const begun = performance.now();
  const { manifest, golden } = await openFolder(folder, accept);
  const ort = await needPackage("onnxruntime-node", () => import("onnxruntime-node"));
  const { Tokenizer } = await needPackage("@huggingface/tokenizers", () => import("@huggingface/tokenizers"));
  checkVersion("onnxruntime-node", ort.env?.versions?.node ?? "1.15 or older", manifest.runtime.minimum);
  const { chat } = manifest.settings;
  const talk = chat ? (await needPackage("@huggingface/jinja", () => import("./talk.mjs"))).createTalk(manifest) : null;
  const [model, words] = [manifest.model, manifest.tokenizer].map((name) => path.join(folder, name));
  const options = { executionProviders: ["cpu"], intraOpNumThreads: threads ?? manifest.runtime.threads ?? 0 };
  const decoder = await openFile(model, async () => createDecoder(ort, await readFile(model), manifest.runtime, options, true));
  const tokens = await openFile(words, async () => createTokens(Tokenizer, JSON.parse(await readFile(words, "utf8")), Boolean(talk)));
  const { answer, follow } = createWriter(decoder, tokens, talk, manifest);
  const opened = performance.now() - begun;
  const times = await checkGolden(golden, follow);
  return Object.assign(answer, { manifest, times: { open: opened, ...times }, close: decoder.close });
}
