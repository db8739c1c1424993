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
  ipcMain.handle("edgekit", (_event, text, prompt) => {
    if (typeof text !== "string") throw new TypeError("edgekit answers a text");
    return bundle(text, { prompt });
  });
  return bundle;
}
