/** Milliseconds to open the bundle, of the first golden answer (cold) and of a later one (warm); null where it has none. */
export interface Times {
  open: number;
  cold: number | null;
  warm: number | null;
}

/** What somebody said in a conversation. */
export interface Message {
  role: string;
  content: string;
  [key: string]: unknown;
}

/**
 * An open bundle: what follows a text, piece by piece, at most `most` of them; a model that talks answers a question or a
 * conversation, as its chat template writes it. `close` frees the model.
 */
export interface Bundle {
  (said: string | readonly Message[], most?: number): AsyncGenerator<{ token: number; text: string }, void>;
  readonly manifest: { name: string; files: Record<string, { bytes: number; sha256: string }>; [key: string]: unknown };
  readonly times: Times;
  close(): Promise<void>;
}

/**
 * Opens a bundle's folder, once every file, the runtime's version and the golden answers are as they were verified. `accept` is given
 * the bytes of bundle.json first, and throws where the bundle may not be used (see trust.d.mts).
 */
export function open(
  folder: string,
  options?: { threads?: number; accept?: (manifest: Uint8Array) => void | Promise<void> },
): Promise<Bundle>;
