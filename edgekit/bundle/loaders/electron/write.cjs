// A window's preload script: gives its page `edgekit.answer(said, take)`, and nothing else of Electron or Node.
const { contextBridge, ipcRenderer } = require("electron");

contextBridge.exposeInMainWorld("edgekit", {
  /**
   * `take` is given the answer piece by piece, at most `most` tokens. `done` comes once it has ended or was stopped, and fails with
   * the sentence that says what is wrong: a string, since Electron puts words of its own before an Error's. `stop` ends it.
   * @param {string | { role: string, content: string }[]} said
   * @param {(text: string) => void} take
   * @param {number} [most]
   * @returns {{ done: Promise<void>, stop: () => void }}
   */
  answer(said, take, most) {
    const { port1: port, port2 } = new MessageChannel();
    let stop = () => {};
    /** @type {Promise<void>} */
    const done = new Promise((resolve, reject) => {
      stop = () => {
        port.close();
        resolve();
      };
      port.onmessage = ({ data: { text, failed } }) => {
        if (text !== undefined) return take(text);
        port.close();
        if (failed === undefined) resolve();
        else reject(failed);
      };
    });
    ipcRenderer.postMessage("edgekit", { said, most }, [port2]);
    return { done, stop: () => stop() };
  },
});
