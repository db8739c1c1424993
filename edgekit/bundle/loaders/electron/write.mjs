// In Electron's main process: `await answerWindows(ipcMain, "bundle")`; windows with preload.cjs then have `edgekit.answer(said, take)`.
// The bundle is opened by load.mjs in this process; what it needs stays out of an asar archive (asarUnpack), as engines open files.
import { open } from "./load.mjs";

/**
 * Answers one question after the other; a window may ask while the bundle is being opened, and is told where that fails. What a
 * window stops, and what it asked before it was closed or loaded anew, ends.
 * @param {Pick<import("electron").IpcMain, "on">} ipcMain
 * @param {string} folder where the bundle lies
 * @param {Parameters<typeof open>[1]} [options]
 */
export async function answerWindows(ipcMain, folder, options) {
  const opening = open(folder, options);
  let last = opening.then(() => {}, () => {});
  ipcMain.on("edgekit", ({ ports: [port] }, { said, most }) => {
    let stopped = false;
    // A port is closed with its other end: by the window's `stop`, or with its page.
    port.on("close", () => { stopped = true; });
    port.start();
    last = last.then(async () => {
      try {
        const bundle = await opening;
        if (stopped) return;
        for await (const { text } of bundle(said, most)) {
          if (stopped) return;
          if (text) port.postMessage({ text });
        }
        port.postMessage({});
      } catch (failed) {
        port.postMessage({ failed: failed instanceof Error ? failed.message : String(failed) });
      } finally {
        port.close();
      }
    });
  });
  return opening;
}
