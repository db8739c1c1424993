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

/** How tokens are chosen: a temperature of 0, as it is unless told, takes the likeliest each time. */
export interface Choice {
  temperature?: number;
  /** Tokens less likely than this share of the likeliest one's probability are never taken; 0.05 unless told. */
  minP?: number;
  /** The same seed takes the same tokens. */
  seed?: number;
  /** Ends the answer with its reason, before the next token. */
  signal?: AbortSignal;
}

/**
 * An open bundle: what follows a text, piece by piece, at most `most` of them; a model that talks answers a question or a
 * conversation, as its chat template writes it. `close` frees the model.
 */
export interface Bundle {
  (said: string | readonly Message[], most?: number, choice?: Choice): AsyncGenerator<{ token: number; text: string }, void>;
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
