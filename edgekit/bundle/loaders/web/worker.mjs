// The worker in which a bundle answers: opened once, then a text at a time. `app.mjs` starts it and talks with it.
import { fetchBytes, needPackage } from "./check.mjs";
import { open } from "./load.mjs";
import { createReader } from "./store.mjs";
import { createTrust } from "./trust.mjs";

let bundle;
// Of a model that writes: the answers that are not at their end, by the number of the message that asked.
const answers = new Map();

async function answer(id, { opening, begin, next, text, options }, tell) {
  if (begin) {
    answers.set(id, bundle(...begin));
    return id;
  }
  if (next) return answers.get(next).next();
  if (!opening) return bundle(text, options);
  const { folder, modules, threads, trust } = opening;
  const need = (name, file) => needPackage(name, () => import(`${modules}${name}/dist/${file}`));
  const [ort, { Tokenizer }] = await Promise.all([
    need("onnxruntime-web", "ort.wasm.min.mjs"),
    need("@huggingface/tokenizers", "tokenizers.min.mjs"),
  ]);
  const signature = trust?.key && await fetchBytes(new URL("../model.sig", folder));
  const accept = trust && createTrust({ ...trust, signature });
  bundle = await open(folder, { ort, Tokenizer, threads, accept, read: createReader(tell) });
  const { manifest, notes, times } = bundle;
  return { manifest, notes, times };
}

self.onmessage = async ({ data: { id, end, ...asked } }) => {
  if (end) return answers.delete(end);
  try {
    self.postMessage({ id, answer: await answer(id, asked, (progress) => self.postMessage({ id, progress })) });
  } catch (failed) {
    self.postMessage({ id, failed: String(failed.message ?? failed) });
  }
};
