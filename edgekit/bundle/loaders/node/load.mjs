// Answers from an edgekit bundle in Node.js: `(await open("bundle"))("turn on the light")`.
// Needs onnxruntime-node and @huggingface/tokenizers.
import { readFile } from "node:fs/promises";
import path from "node:path";
import { checkGolden, checkVersion, needPackage, openFile } from "./check.mjs";
import { openFolder } from "./files.mjs";
import { createAnswer, createEncoder, createSession } from "./rows.mjs";

// An answer to a text, and its `times`: milliseconds to open, of the first answer (cold) and of a later one (warm).
// threads: in place of the bundle's own; 0 lets the runtime decide. accept: may refuse the bundle (see trust.mjs).
export async function open(folder, { threads, accept } = {}) {
  const begun = performance.now();
  const { manifest, golden } = await openFolder(folder, accept);
  const ort = await needPackage("onnxruntime-node", () => import("onnxruntime-node"));
  const { Tokenizer } = await needPackage("@huggingface/tokenizers", () => import("@huggingface/tokenizers"));
  // Those of before 1.16 do not say which they are.
  checkVersion("onnxruntime-node", ort.env?.versions?.node ?? "1.15 or older", manifest.runtime.minimum);
  const [model, words] = [manifest.model, manifest.tokenizer].map((name) => path.join(folder, name));
  const session = await openFile(model, () => createSession(ort, model, manifest.runtime, {
    executionProviders: ["cpu"],
    intraOpNumThreads: threads ?? manifest.runtime.threads ?? 0,
  }));
  const encode = await openFile(words, async () => createEncoder(Tokenizer, JSON.parse(await readFile(words, "utf8"))));
  const answer = createAnswer(ort, session, encode, manifest);
  const opened = performance.now() - begun;
  const times = await checkGolden(golden, answer);
  return Object.assign(answer, { manifest, times: { open: opened, ...times } });
}
