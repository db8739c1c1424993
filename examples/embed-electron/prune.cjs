// electron-builder's afterPack: of the five platforms that onnxruntime-node carries, the one that is packed stays.
const { readdirSync, rmSync } = require("node:fs");
const path = require("node:path");

// As electron-builder counts them (its enum Arch).
const ARCHITECTURES = new Map([[1, "x64"], [3, "arm64"]]);

/** @param {{ appOutDir: string, electronPlatformName: string, arch: number, packager: { getResourcesDir(folder: string): string } }} packed */
exports.default = ({ appOutDir, electronPlatformName, arch, packager }) => {
  const wanted = ARCHITECTURES.get(arch);
  const libraries = path.join(packager.getResourcesDir(appOutDir), "app.asar.unpacked/node_modules/onnxruntime-node/bin/napi-v6");
  const all = readdirSync(libraries).flatMap((system) => readdirSync(path.join(libraries, system)).map((cpu) => path.join(system, cpu)));
  const kept = path.join(electronPlatformName, String(wanted));
  if (!all.includes(kept)) throw new Error(`onnxruntime-node has no library for ${kept}: it has ${all.join(", ")}`);
  for (const one of all) if (one !== kept) rmSync(path.join(libraries, one), { recursive: true });
};
