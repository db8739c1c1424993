// The window's page: asks the main process through preload.cjs, and shows what it answers.
const form = /** @type {HTMLFormElement} */ (document.getElementById("form"));
const answer = /** @type {HTMLOutputElement} */ (document.getElementById("answer"));
const field = /** @type {HTMLInputElement} */ (form.elements.namedItem("text"));
const outside = new URLSearchParams(location.search).get("outside");
/** @type {{ answer: (text: string) => Promise<[string, number][]> }} */
const { answer: ask } = /** @type {any} */ (window).edgekit;

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = field.value.trim();
  try {
    const [[label, score]] = await ask(text);
    answer.value = label === outside ? `I did not understand: ${text}` : `${label} (${Math.round(100 * score)}%): ${text}`;
  } catch (failed) {
    answer.value = failed instanceof Error ? failed.message : String(failed);
  }
  field.select();
});
