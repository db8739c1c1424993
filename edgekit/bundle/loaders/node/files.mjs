// Reads a bundle's folder in Node.js, once all of its files are those that were verified.
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readFile } from "node:fs/promises";
import path from "node:path";
import { checkDigest } from "./check.mjs";

// { manifest, golden }: bundle.json, and the bytes of golden.json or null. accept: is given the bytes of bundle.json first.
export async function openFolder(folder, accept) {
  const own = await readFile(path.join(folder, "bundle.json"));
  await accept?.(own);
  const manifest = JSON.parse(own.toString("utf8"));
  for (const name of Object.keys(manifest.files)) {
    const hash = createHash("sha256");
    let size = 0;
    try {
      for await (const piece of createReadStream(path.join(folder, name))) {
        hash.update(piece);
        size += piece.length;
      }
    } catch (failed) {
      throw new Error(`${path.join(folder, name)}: cannot be read (${failed.code}): copy the whole bundle`);
    }
    checkDigest(manifest, name, size, hash.digest("hex"));
  }
  return { manifest, golden: manifest.files["golden.json"] ? await readFile(path.join(folder, "golden.json")) : null };
}
