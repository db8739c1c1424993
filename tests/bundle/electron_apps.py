"""What stands in for Electron where its windows and its main process are one process of Node.js."""

# For a window's preload script: its messages reach the main process through real ports, in one process.
PORTS = """
const { EventEmitter } = require("node:events");
const ipcMain = new EventEmitter();
exports.ipcMain = ipcMain;
exports.contextBridge = { exposeInMainWorld: (name, api) => { globalThis[name] = api; } };
exports.ipcRenderer = { postMessage: (name, message, ports) => ipcMain.emit(name, { ports }, structuredClone(message)) };
"""
