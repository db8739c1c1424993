// A window's preload script: gives its page `edgekit.answer(text)`, and nothing else of Electron or Node.
const { contextBridge, ipcRenderer } = require("electron");

contextBridge.exposeInMainWorld("edgekit", {
  /** @param {string} text @param {string} [prompt] */
  answer: (text, prompt) => ipcRenderer.invoke("edgekit", text, prompt),
});
