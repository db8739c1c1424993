// Whether a bundle may be used: no older one than an app has seen, signed by who is trusted (WebCrypto: Node.js and browsers).
import { sha256 } from "./check.mjs";

const parse = (bytes) => JSON.parse(new TextDecoder().decode(bytes));
const decode = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const TYPE = "application/vnd.in-toto+json";
const CURVES = { "P-256": ["SHA-256", 32], "P-384": ["SHA-384", 48], "P-521": ["SHA-512", 66] };

// For `open(folder, { accept })`, which gives it the bytes of bundle.json: throws where the bundle may not be used.
// atLeast: the oldest version that is taken, such as "1.2.0". key: the text of the public key in PEM that must have signed the
// release (OpenSSF model signing; P-256, P-384, P-521), and signature: the bytes of its model.sig, which lies beside bundle/.
export function createTrust({ atLeast, key, signature }) {
  return async (manifestBytes) => {
    const manifest = parse(manifestBytes);
    if (key !== undefined) {
      const wanted = Object.entries(manifest.files).map(([name, entry]) => [`bundle/${name}`, entry.sha256]);
      wanted.push(["bundle/bundle.json", await sha256(manifestBytes)]);
      const signed = await readSigned(key, signature);
      const other = wanted.find(([name, digest]) => signed.get(name) !== digest);
      if (other) throw new Error(`${other[0]} is not what was signed; fetch the whole release again`);
    }
    if (atLeast !== undefined && !isAtLeast(manifest.version, atLeast)) {
      throw new Error(`${manifest.name}: version ${manifest.version ?? "unknown"}, and this app takes ${atLeast} or newer`);
    }
  };
}

function isAtLeast(version, least) {
  const [found, wanted] = [version, least].map((text) => /^\d+\.\d+\.\d+$/.test(text) ? text.split(".").map(Number) : null);
  if (!wanted) throw new Error(`${least}: not a version; write three numbers, such as 1.2.0`);
  const place = wanted.findIndex((number, index) => number !== found?.[index]);
  return place < 0 || found?.[place] > wanted[place];
}

async function readSigned(pem, bytes) {
  if (!bytes) throw new Error("model.sig: missing: nobody vouches for this bundle; fetch the release with its signature");
  const tried = await Promise.allSettled(Object.keys(CURVES).map(async (namedCurve) =>
    crypto.subtle.importKey("spki", decode(pem.replace(/-----[^-]+-----|\s/g, "")), { name: "ECDSA", namedCurve }, false, ["verify"])));
  const own = tried.find(({ value }) => value)?.value;
  if (!own) throw new Error("the key is not a public key in PEM on P-256, P-384 or P-521");
  const [hash, size] = CURVES[own.algorithm.namedCurve];
  try {
    const { payload, signatures } = parse(bytes).dsseEnvelope;
    const said = decode(payload);
    const message = new Uint8Array([...new TextEncoder().encode(`DSSEv1 ${TYPE.length} ${TYPE} ${said.length} `), ...said]);
    if (await crypto.subtle.verify({ name: "ECDSA", hash }, own, plain(decode(signatures[0].sig), size), message)) {
      return new Map(parse(said).predicate.resources.map(({ name, digest }) => [name, digest]));
    }
  } catch { /* what cannot be read was not signed either */ }
  throw new Error("model.sig: not signed by the owner of the key; do not use this bundle");
}

// WebCrypto takes r and s, of `size` bytes each, behind each other; a signature has them as DER (RFC 3279): two integers.
function plain(der, size) {
  const [first, raw] = [der[1] > 127 ? 3 : 2, new Uint8Array(2 * size)];
  const [r, s] = [der.slice(first + 2, first + 2 + der[first + 1]), der.slice(first + 4 + der[first + 1])];
  [r, s].forEach((number, index) => raw.set(number.slice(Math.max(number.length - size, 0)), size * (index + 1) - Math.min(number.length, size)));
  return raw;
}
