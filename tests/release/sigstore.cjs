// A sigstore of this machine alone: sigstore's own mock of Fulcio and Rekor (npm: @sigstore/mock) behind one address, beside what
// GitHub Actions answer who asks for an identity. Its address and how it is trusted come as a line of JSON.
const crypto = require("node:crypto");
const http = require("node:http");
const { createRequire } = require("node:module");
const load = createRequire(`${process.argv[2]}/`);
const mock = load("@sigstore/mock");
const { Pkcs10CertificateRequest } = load("@peculiar/x509");

const [ISSUER, IDENTITY] = process.argv.slice(3);
const sha256 = (data) => crypto.createHash("sha256").update(data);
const base64 = (data) => Buffer.from(data).toString("base64");

// A token's signature is nobody's: this Fulcio believes what it says.
function identityToken() {
  const now = Math.floor(Date.now() / 1000);
  const claims = { iss: ISSUER, aud: "sigstore", sub: IDENTITY, job_workflow_ref: IDENTITY, iat: now, nbf: now, exp: now + 600 };
  const parts = [{ alg: "RS256", typ: "JWT" }, claims].map((part) => Buffer.from(JSON.stringify(part)).toString("base64url"));
  return [...parts, "c2ln"].join(".");
}

// The mock takes the token and the key where sigstore's client for JavaScript has them, the one for Python sends a header and a request.
function asked(request, body) {
  const table = JSON.parse(body);
  const pem = Buffer.from(table.certificateSigningRequest, "base64").toString().replace(/-----[^-]+-----|\s/g, "");
  const content = new Pkcs10CertificateRequest(pem).publicKey.toString("pem");
  const oidcIdentityToken = request.headers.authorization.replace("Bearer ", "");
  return JSON.stringify({ credentials: { oidcIdentityToken }, publicKeyRequest: { publicKey: { content } } });
}

// What Rekor makes of an envelope that it is given (its type dsse 0.0.1); the mock keeps what it is sent.
function entry(body) {
  const { apiVersion, kind, spec } = JSON.parse(body);
  const { envelope, verifiers } = spec.proposedContent;
  const { payload, signatures } = JSON.parse(envelope);
  const hash = (data) => ({ algorithm: "sha256", value: sha256(data).digest("hex") });
  const signed = signatures.map(({ sig }, index) => ({ signature: sig, verifier: verifiers[index] }));
  return JSON.stringify({ apiVersion, kind, spec: { envelopeHash: hash(envelope), payloadHash: hash(Buffer.from(payload, "base64")), signatures: signed } });
}

function trust(url, { ca, ctlog, tlog }) {
  const validFor = { start: new Date(Date.now() - 86400e3).toISOString() };
  const log = (key, id) => ({
    baseUrl: url, hashAlgorithm: "SHA2_256", logId: { keyId: base64(id) },
    publicKey: { rawBytes: base64(key), keyDetails: "PKIX_ECDSA_P256_SHA_256", validFor },
  });
  const service = (address) => ({ url: address, majorApiVersion: 1, validFor, operator: "test" });
  const certificates = [{ rawBytes: base64(ca.rootCertificate.rawData ?? ca.rootCertificate) }];
  return {
    mediaType: "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
    trustedRoot: {
      mediaType: "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
      tlogs: [log(tlog.publicKey, sha256(tlog.publicKey).digest())],
      ctlogs: [log(ctlog.publicKey, ctlog.logID)],
      certificateAuthorities: [{ subject: { organization: "test", commonName: "sigstore" }, uri: url, certChain: { certificates }, validFor }],
      timestampAuthorities: [],
    },
    signingConfig: {
      mediaType: "application/vnd.dev.sigstore.signingconfig.v0.2+json",
      caUrls: [service(url)], oidcUrls: [service(`${url}/auth`)], rekorTlogUrls: [service(url)], tsaUrls: [],
      rekorTlogConfig: { selector: "ANY" }, tsaConfig: { selector: "ANY" },
    },
  };
}

async function main() {
  const pair = () => crypto.generateKeyPairSync("ec", { namedCurve: "P-256" });
  const ctlog = await mock.initializeCTLog(pair());
  const ca = await mock.initializeCA(pair(), ctlog);
  const tlog = await mock.initializeTLog("http://127.0.0.1", pair());
  const [fulcio, rekor] = [mock.fulcioHandler(ca), mock.rekorHandler(tlog)];
  const ends = { authorization_endpoint: "http://127.0.0.1:9/", token_endpoint: "http://127.0.0.1:9/" };
  const plain = { "/auth/.well-known/openid-configuration": () => ends, "/identity": () => ({ value: identityToken() }) };
  const server = http.createServer(async (request, response) => {
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    const body = Buffer.concat(pieces).toString();
    const { pathname } = new URL(request.url, "http://127.0.0.1");
    let said = { statusCode: 404, response: "" };
    if (plain[pathname]) said = { statusCode: 200, response: JSON.stringify(plain[pathname]()) };
    if (pathname === fulcio.path) said = await fulcio.fn(asked(request, body));
    if (pathname === rekor.path) said = await rekor.fn(entry(body));
    response.writeHead(said.statusCode, { "Content-Type": "application/json" }).end(said.response);
  });
  server.listen(0, "127.0.0.1", () => {
    const url = `http://127.0.0.1:${server.address().port}`;
    console.log(JSON.stringify({ url, trust: trust(url, { ca, ctlog, tlog }) }));
  });
}

main();
