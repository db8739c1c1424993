// Goes on with a text, or answers a conversation, from an edgekit bundle in Node.js, piece by piece:
// `for await (const { text } of (await open("bundle"))("Once upon a time")) ...`
// Needs node-llama-cpp; of a model that talks also @huggingface/jinja, and talk.mjs beside it.
import path from "node:path";
import { checkGolden, checkVersion, needPackage, openFile } from "./check.mjs";
import { openFolder } from "./files.mjs";
import { createPieces } from "./pieces.mjs";

// What follows a text, or the answer to a question or messages of { role, content }: pieces { token, text }, at most `most`, each the
// likeliest. Its `times`: milliseconds to open, of the first golden answer (cold) and of a later one (warm). threads: not the bundle's.
export async function open(folder, { threads, accept } = {}) {
  const begun = performance.now();
  const { manifest, golden } = await openFolder(folder, accept);
  const { getLlama, getModuleVersion } = await needPackage("node-llama-cpp", () => import("node-llama-cpp"));
  // bundle.json's minimum is llama-cpp-python's: this is the oldest that was compared with llama.cpp.
  checkVersion("node-llama-cpp", await getModuleVersion(), "3.21");
  const { runtime, settings } = manifest;
  const talk = settings.chat ? (await needPackage("@huggingface/jinja", () => import("./talk.mjs"))).createTalk(manifest) : null;
  const [modelPath, layers] = [path.resolve(folder, manifest.model), runtime.gpu_layers];
  const llama = await needPackage("node-llama-cpp", () => getLlama({ gpu: layers ? "auto" : false, build: "never", logLevel: "error" }));
  const model = await openFile(modelPath, () => llama.loadModel({ modelPath, gpuLayers: layers < 0 ? "max" : layers }));
  const context = await openFile(modelPath, () => model.createContext({
    contextSize: runtime.context || manifest.max_length,
    batchSize: runtime.batch,
    threads: threads ?? runtime.threads ?? 0,
    flashAttention: runtime.flash_attention !== "off",
    experimentalKvCacheKeyType: runtime.kv_k.toUpperCase(),
    experimentalKvCacheValueType: runtime.kv_v.toUpperCase(),
  }));
  const sequence = context.getSequence();
  const read = (text) => [...(model.tokens.shouldPrependBosToken ? [model.tokens.bos] : []), ...model.tokenize(text, false)];
  async function* follow(ids, most) {
    if (!(most > 0)) return;
    await sequence.clearHistory();
    for await (const token of sequence.evaluate(ids, { temperature: 0, yieldEogToken: true })) {
      if (model.isEogToken(token)) return;
      yield token;
      if (!(--most > 0)) return;
    }
  }
  const answer = async function* (asked, most = Infinity) {
    if (!talk && typeof asked !== "string") throw new TypeError("this model has no chat template: give it one text to continue");
    const ids = talk ? model.tokenize(talk(asked), true) : read(asked);
    if (!ids.length) throw new Error("nothing to go on with: the text has no token");
    if (ids.length >= context.contextSize) throw new Error(`${ids.length} tokens do not fit the context of ${context.contextSize}`);
    const piece = createPieces(model, ids);
    for await (const token of follow(ids, Math.min(most, context.contextSize - ids.length))) yield { token, text: piece(token) };
  };
  const opened = performance.now() - begun;
  const times = await checkGolden(golden, async (text, count) => {
    const [asked, tokens] = [read(text), []];
    for await (const token of follow(asked, count)) tokens.push(token);
    return { asked, tokens };
  });
  return Object.assign(answer, { manifest, times: { open: opened, ...times }, close: () => llama.dispose() });
}
