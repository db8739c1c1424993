// Answers from an edgekit bundle in Node.js: `(await open("bundle"))("turn on the light")`.
// Needs onnxruntime-node and @huggingface/tokenizers.
import { readFile } from "node:fs/promises";
import path from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";
import { checkGolden, checkVersion } from "./check.mjs";
import { openFolder } from "./files.mjs";
import { createAnswer, createEncoder, createSession } from "./rows.mjs";

// An answer to a text, and its `times`: milliseconds to open, of the first answer (cold) and of a later one (warm).
// threads: in place of the bundle's own; 0 lets the runtime decide. accept: may refuse the bundle (see trust.mjs).
export async function open(folder, { threads, accept } = {}) {
  const begun = performance.now();
  const { manifest, golden } = await openFolder(folder, accept);
  checkVersion("onnxruntime-node", ort.env.versions.node, manifest.runtime.minimum);
  const session = await createSession(ort, path.join(folder, manifest.model), manifest.runtime, {
    executionProviders: ["cpu"],
    intraOpNumThreads: threads ?? manifest.runtime.threads ?? 0,
  });
  const table = JSON.parse(await readFile(path.join(folder, manifest.tokenizer), "utf8"));
  const answer = createAnswer(ort, session, createEncoder(Tokenizer, table), manifest);
  const opened = performance.now() - begun;
  const times = await checkGolden(golden, answer);
  return Object.assign(answer, { manifest, times: { open: opened, ...times } });
}
