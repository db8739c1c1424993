/** Milliseconds to open the bundle, of the first answer (cold) and of a later one (warm); null where it has no golden answers. */
export interface Times {
  open: number;
  cold: number | null;
  warm: number | null;
}

/** An open bundle. `prompt`: what comes before the text, by its name; "" is nothing, without it the model's own. `close` frees it. */
export interface Bundle {
  (text: string, options?: { prompt?: string }): Promise<Float32Array>;
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
