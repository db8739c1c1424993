// NumPy's .npz files, as np.savez writes them: a zip archive of .npy files that are not compressed
// (numpy.org/doc/stable/reference/generated/numpy.lib.format.html; PKWARE APPNOTE 4.3).
const KINDS = {
  "<i8": BigInt64Array, "<i4": Int32Array, "<f4": Float32Array, "<f8": Float64Array, "|u1": Uint8Array, "|i1": Int8Array,
  "|b1": Uint8Array,
};

// { name: { data, shape } } of an archive's bytes.
export function readNpz(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let end = bytes.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end -= 1;
  if (end < 0) throw new Error("inputs: not an .npz file");
  const arrays = {};
  let at = view.getUint32(end + 16, true);
  for (let count = view.getUint16(end + 10, true); count; count -= 1) {
    const [method, size] = [view.getUint16(at + 10, true), view.getUint32(at + 20, true)];
    const [nameLength, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const local = view.getUint32(at + 42, true);
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + nameLength));
    const begin = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    if (method !== 0) throw new Error(`${name}: compressed`);
    arrays[name.replace(/\.npy$/, "")] = readNpy(bytes.slice(begin, begin + size), name);
    at += 46 + nameLength + extra + comment;
  }
  return arrays;
}

function readNpy(bytes, name) {
  const view = new DataView(bytes.buffer);
  const long = bytes[6] > 1;
  const length = long ? view.getUint32(8, true) : view.getUint16(8, true);
  const begin = (long ? 12 : 10) + length;
  const header = new TextDecoder().decode(bytes.subarray(long ? 12 : 10, begin));
  const kind = header.match(/'descr': '([^']+)'/)?.[1];
  const shape = header.match(/'shape': \(([^)]*)\)/)[1].split(",").map((part) => part.trim()).filter(Boolean).map(Number);
  if (!KINDS[kind] || /'fortran_order': True/.test(header)) throw new Error(`${name}: an array of ${kind} is not read here`);
  return { data: new KINDS[kind](bytes.buffer.slice(begin)), shape };
}

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit += 1) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

function crc32(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) sum = CRC[(sum ^ byte) & 0xff] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}

// An archive's bytes of { name: { data, shape } }.
export function writeNpz(arrays) {
  const parts = [];
  const entries = [];
  let at = 0;
  const put = (part) => { parts.push(part); at += part.length; };
  for (const [name, array] of Object.entries(arrays)) {
    const file = writeNpy(array);
    const path = new TextEncoder().encode(`${name}.npy`);
    const facts = new DataView(new ArrayBuffer(26));
    // Version 2.0, no flags, stored; no time; then sum, both sizes, and the name's length.
    facts.setUint16(0, 20, true);
    facts.setUint32(10, crc32(file), true);
    facts.setUint32(14, file.length, true);
    facts.setUint32(18, file.length, true);
    facts.setUint16(22, path.length, true);
    const same = new Uint8Array(facts.buffer);
    entries.push({ same, path, begin: at });
    for (const part of [Uint8Array.of(0x50, 0x4b, 3, 4), same, path, file]) put(part);
  }
  const directory = at;
  for (const { same, path, begin } of entries) {
    const more = new DataView(new ArrayBuffer(14));
    more.setUint32(10, begin, true);
    for (const part of [Uint8Array.of(0x50, 0x4b, 1, 2, 20, 0), same, new Uint8Array(more.buffer), path]) put(part);
  }
  const last = new DataView(new ArrayBuffer(22));
  last.setUint32(0, 0x06054b50, true);
  last.setUint16(8, entries.length, true);
  last.setUint16(10, entries.length, true);
  last.setUint32(12, at - directory, true);
  last.setUint32(16, directory, true);
  put(new Uint8Array(last.buffer));
  const whole = new Uint8Array(at);
  let filled = 0;
  for (const part of parts) { whole.set(part, filled); filled += part.length; }
  return whole;
}

function writeNpy({ data, shape }) {
  const kind = Object.keys(KINDS).find((key) => KINDS[key] === data.constructor);
  const dims = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
  let header = `{'descr': '${kind}', 'fortran_order': False, 'shape': (${dims}), }`;
  header += " ".repeat(63 - ((10 + header.length) % 64)) + "\n";
  const content = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const file = new Uint8Array(10 + header.length + content.length);
  file.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, header.length & 0xff, header.length >> 8]);
  file.set(new TextEncoder().encode(header), 10);
  file.set(content, 10 + header.length);
  return file;
}
