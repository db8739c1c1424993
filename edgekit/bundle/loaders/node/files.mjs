// Reads a bundle's folder in Node.js, once all of its files are those that were verified.
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readFile } from "node:fs/promises";
import path from "node:path";
import { checkDigest, readManifest } from "./check.mjs";

// What `take` reads of a file.
async function readable(file, take) {
  try {
    return await take(file);
  } catch (failed) {
    const why = failed.code === "ENOENT" ? "missing" : `cannot be read (${failed.code})`;
    throw new Error(`${file}: ${why}; copy the whole bundle`);
  }
}

// { manifest, golden }: bundle.json, and the bytes of golden.json or null. accept: is given the bytes of bundle.json first.
export async function openFolder(folder, accept) {
  const source = path.join(folder, "bundle.json");
  const manifest = await readManifest(await readable(source, readFile), source, accept);
  for (const name of Object.keys(manifest.files)) {
    const hash = createHash("sha256");
    let size = 0;
    await readable(path.join(folder, name), async (file) => {
      for await (const piece of createReadStream(file)) {
        hash.update(piece);
        size += piece.length;
      }
    });
    checkDigest(manifest, name, size, hash.digest("hex"));
  }
  return { manifest, golden: manifest.files["golden.json"] ? await readFile(path.join(folder, "golden.json")) : null };
}
