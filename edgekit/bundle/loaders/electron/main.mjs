// In Electron's main process: `await answerWindows(ipcMain, "bundle")`; windows with preload.cjs then have `edgekit.answer(text)`.
// The bundle is opened by load.mjs in this process; what it needs stays out of an asar archive (asarUnpack), as engines open files.
import { open } from "./load.mjs";

/**
 * @param {Pick<import("electron").IpcMain, "handle">} ipcMain
 * @param {string} folder where the bundle lies
 * @param {Parameters<typeof open>[1]} [options]
 */
export async function answerWindows(ipcMain, folder, options) {
  const bundle = await open(folder, options);
  ipcMain.handle("edgekit", async (_event, text, prompt) => {
    try {
      if (typeof text !== "string") throw new TypeError("edgekit answers a text");
      return { answer: await bundle(text, { prompt }) };
    } catch (failed) {
      return { failed: failed instanceof Error ? failed.message : String(failed) };
    }
  });
  return bundle;
}
