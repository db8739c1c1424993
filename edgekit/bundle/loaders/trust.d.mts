/**
 * For `open(folder, { accept })`: throws where the bundle may not be used. `atLeast`: the oldest version that is taken, such as
 * "1.2.0". `key`: the text of the public key (PEM) that must have signed the release, and `signature`: the bytes of its model.sig.
 */
export function createTrust(options: {
  atLeast?: string;
  key?: string;
  signature?: Uint8Array;
}): (manifest: Uint8Array) => Promise<void>;
