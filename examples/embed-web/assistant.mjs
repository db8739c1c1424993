// A voice assistant's ears in a page: a line of text in, an action and its score out. See README.md.
import { open } from "./app.mjs";

const [form, progress, answer] = ["form", "progress", "answer"].map((id) => document.getElementById(id));
const enable = (on) => { for (const field of form.elements) field.disabled = !on; };
// The model is nearly all of what is downloaded, and the next visit has it in the cache.
const tell = ({ name, done, bytes, note }) => {
  if (note) console.info(`${name}: ${note}`);
  if (!done || !name.startsWith("model.")) return;
  progress.value = done / bytes;
  answer.value = `Downloading: ${(done / 1e6).toFixed(1)} of ${(bytes / 1e6).toFixed(1)} MB`;
};

enable(false);
try {
  const bundle = await open("./bundle/", { tell });
  const { out_of_scope: outside } = bundle.manifest;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    enable(false);
    try {
      const text = form.elements.text.value.trim();
      const [[label, score]] = await bundle(text);
      answer.value = label === outside ? `I did not understand: ${text}` : `${label} (${Math.round(100 * score)}%): ${text}`;
    } catch (failed) {
      answer.value = failed.message;
    }
    enable(true);
    form.elements.text.select();
  });
  enable(true);
  answer.value = "Ready.";
} catch (failed) {
  answer.value = `This page has no assistant: ${failed.message}`;
}
progress.hidden = true;
