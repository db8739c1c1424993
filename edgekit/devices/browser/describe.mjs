// What this browser is, as one line of JSON: the keys of edgekit.runtimes.machine.Machine.

// Modules of one function each, which use one instruction that a WebAssembly engine may lack
// (github.com/GoogleChromeLabs/wasm-feature-detect, Apache-2.0).
const MODULES = {
  simd128: [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11],
  "relaxed-simd": [
    0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 15, 1, 13, 0, 65, 1, 253, 15, 65, 2, 253, 15, 253,
    128, 2, 11,
  ],
};

// "Chromium 156 on Linux": a page learns its browser's name, version and system, and not which CPU it runs on.
export function browserName() {
  const agent = navigator.userAgent;
  const found = [/(Firefox)\/(\d+)/, /(Edg)\/(\d+)/, /(Chrome|HeadlessChrome)\/(\d+)/, /Version\/(\d+).*(Safari)/]
    .map((pattern) => agent.match(pattern)).find(Boolean);
  const system = (agent.match(/Android|iPhone|iPad|Mac OS X|Windows|CrOS|Linux/) || ["unknown"])[0];
  if (!found) return `a browser on ${system}`;
  const [name, version] = found[2] === "Safari" ? ["Safari", found[1]] : [found[1].replace("Headless", ""), found[2]];
  return `${{ Chrome: "Chromium", Edg: "Edge" }[name] || name} ${version} on ${system}`;
}

export function describe() {
  const features = Object.keys(MODULES).filter((name) => WebAssembly.validate(new Uint8Array(MODULES[name])));
  if (self.crossOriginIsolated) features.push("threads");
  return {
    arch: "wasm32",
    cpu: browserName(),
    part: null,
    cores: navigator.hardwareConcurrency || 1,
    features: features.sort(),
    // What 32-bit WebAssembly addresses, or less where the browser tells it (GiB; W3C, Device Memory).
    memory_mb: Math.min(Math.round((navigator.deviceMemory || 4) * 1024), 4096),
    clock_ghz: null,
    governor: null,
    system: navigator.userAgent,
    python: "",
  };
}

export const main = (io) => io.out(`${JSON.stringify(describe())}\n`);
