// What a browser is, its engines' versions and how fast it is, as one line of JSON. args: how many rounds. env: as the probe's.
import { engine, measure } from "./probe.mjs";

export async function main(io) {
  const { describe } = await import(new URL("describe.mjs", io.root));
  const ort = await engine(io, 1);
  const { Wllama } = await import(new URL(`${io.env.engine}/wllama/index.min.js`, io.root));
  const engines = { onnxruntime: ort.env.versions.web, "llama-cpp": Wllama.getLibllamaVersion() };
  const rounds = [];
  while (rounds.length < Number(io.args[0])) rounds.push(await measure(ort, io));
  await io.out(JSON.stringify({ machine: describe(), engines, rounds }));
}
