// Embeddings from an edgekit bundle in Node.js: `await (await open("bundle"))("turn on the light")`. Needs node-llama-cpp.
import path from "node:path";
import { checkGolden, checkVersion, needPackage, openFile } from "./check.mjs";
import { openFolder } from "./files.mjs";
import { findPrompt } from "./rows.mjs";

// An embedding of a text, float32 [width], of length 1 unless the checkpoint's own is not; prompt: by its name, "" for none. Its
// `times`: milliseconds to open, of the first answer (cold) and of a later one (warm). threads: in place of the bundle's own.
// accept: may refuse the bundle (see trust.mjs).
export async function open(folder, { threads, accept } = {}) {
  const begun = performance.now();
  const { manifest, golden } = await openFolder(folder, accept);
  const { getLlama, getModuleVersion, LlamaVocabularyType } = await needPackage("node-llama-cpp", () => import("node-llama-cpp"));
  // bundle.json's minimum is llama-cpp-python's: this is the oldest that was compared with llama.cpp.
  checkVersion("node-llama-cpp", await getModuleVersion(), "3.21");
  const { runtime, max_length: most } = manifest;
  if (runtime.pooling) throw new Error(`node-llama-cpp pools as the model's file says; this bundle asks for ${runtime.pooling}`);
  const [modelPath, layers] = [path.resolve(folder, manifest.model), runtime.gpu_layers];
  const llama = await needPackage("node-llama-cpp", () => getLlama({ gpu: layers ? "auto" : false, build: "never", logLevel: "error" }));
  const model = await openFile(modelPath, () => llama.loadModel({
    modelPath,
    gpuLayers: layers < 0 ? "max" : layers,
    defaultContextFlashAttention: runtime.flash_attention !== "off",
  }));
  // A text is read in one step, and node-llama-cpp wants room behind it.
  const context = await openFile(modelPath, () => model.createEmbeddingContext({
    contextSize: most + 1, batchSize: most + 1, threads: threads ?? runtime.threads ?? 0,
  }));
  // What llama.cpp puts around a text: a long one is cut before its closing token, as it was when the model was verified.
  const { bos, sep, eos, shouldPrependBosToken, shouldAppendEosToken } = model.tokens;
  const pieces = model.vocabularyType === LlamaVocabularyType.wpm;
  const before = pieces || shouldPrependBosToken ? [bos] : [];
  const behind = pieces ? [sep] : shouldAppendEosToken ? [eos] : [];
  const read = (text) => {
    const own = model.tokenize(text, true);
    return [...before, ...own.slice(0, Math.max(most - before.length - behind.length, 0)), ...behind];
  };
  const answer = async (text, { prompt } = {}) => {
    const ids = read(findPrompt(manifest, prompt) + text);
    if (!ids.length) throw new Error("nothing to embed: the text has no token");
    const { vector } = await context.getEmbeddingFor(ids);
    const length = manifest.settings.normalize ?? true ? Math.max(Math.hypot(...vector), 1e-12) : 1;
    return Float32Array.from(vector, (value) => value / length);
  };
  const opened = performance.now() - begun;
  const times = await checkGolden(golden, answer);
  return Object.assign(answer, { manifest, times: { open: opened, ...times }, close: () => llama.dispose() });
}
