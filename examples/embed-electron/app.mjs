// A voice assistant's ears in the tray: an icon opens a window, a line of text gives an action and its score. See README.md.
import path from "node:path";
import { app, BrowserWindow, dialog, ipcMain, Menu, Tray } from "electron";
import { answerWindows } from "./main.mjs";

const here = import.meta.dirname;
// onnxruntime opens files, and none within an archive.
const folder = path.join(here.replace(/app\.asar$/, "app.asar.unpacked"), "bundle");
/** @type {Tray} kept here, or its icon goes with it */
let tray;
let quits = false;

/** @param {string} outside the label of what the model does not understand */
async function openWindow(outside) {
  const window = new BrowserWindow({
    width: 480,
    height: 160,
    show: false,
    autoHideMenuBar: true,
    webPreferences: { preload: path.join(here, "preload.cjs"), sandbox: true, contextIsolation: true },
  });
  // The window shows its own page and no other.
  window.webContents.setWindowOpenHandler(() => ({ action: "deny" }));
  window.webContents.on("will-navigate", (event) => event.preventDefault());
  window.on("close", (event) => {
    if (quits) return;
    event.preventDefault();
    window.hide();
  });
  await window.loadFile(path.join(here, "window.html"), { query: { outside } });
  return window;
}

async function start() {
  await app.whenReady();
  const { manifest } = await answerWindows(ipcMain, folder);
  const window = await openWindow(String(manifest.out_of_scope ?? ""));
  const toggle = () => window.isVisible() ? window.hide() : window.show();
  tray = new Tray(path.join(here, "icon.png"));
  tray.setToolTip(manifest.name);
  tray.setContextMenu(Menu.buildFromTemplate([{ label: "Ask", click: toggle }, { label: "Quit", click: () => app.quit() }]));
  tray.on("click", toggle);
  app.on("second-instance", () => window.show());
}

app.on("before-quit", () => { quits = true; });
app.on("window-all-closed", () => {}); // it stays in the tray
if (app.requestSingleInstanceLock()) {
  start().catch((failed) => {
    dialog.showErrorBox("Assistant", failed.message);
    app.exit(1);
  });
} else {
  app.quit();
}
