// A window's preload script: gives its page `edgekit.answer(text)`, and nothing else of Electron or Node.
const { contextBridge, ipcRenderer } = require("electron");

contextBridge.exposeInMainWorld("edgekit", {
  /**
   * Fails with the sentence that says what is wrong: a string, since Electron puts words of its own before an Error's.
   * @param {string} text
   * @param {string} [prompt]
   */
  answer: async (text, prompt) => {
    const { answer, failed } = await ipcRenderer.invoke("edgekit", text, prompt);
    if (failed !== undefined) throw failed;
    return answer;
  },
});
