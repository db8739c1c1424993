// Writes a conversation as the bundle's chat template does, for a model that talks. `template.mjs` beside it is made of the bundle:
// the template, what it writes where it was verified, and the engine that runs it here, which makes no code of it.
import { Template, verified } from "./template.mjs";

// What strftime of Python writes in English; of what is rarer, nothing is guessed.
function tell(form) {
  const now = new Date();
  const word = (options) => new Intl.DateTimeFormat("en-US", options).format(now);
  const two = (number) => String(number).padStart(2, "0");
  const written = {
    Y: now.getFullYear(), m: two(now.getMonth() + 1), d: two(now.getDate()), H: two(now.getHours()), M: two(now.getMinutes()),
    S: two(now.getSeconds()), B: word({ month: "long" }), b: word({ month: "short" }), A: word({ weekday: "long" }),
    a: word({ weekday: "short" }), "%": "%",
  };
  return form.replace(/%(.?)/g, (_, letter) => {
    if (!Object.hasOwn(written, letter)) throw new Error(`it tells the date as "%${letter}"`);
    return written[letter];
  });
}

// Gives the text that the model reads of what is said: a question, or messages of { role, content }. An error where the template
// writes something else here than where it was verified.
export function createTalk(manifest) {
  const { model, source, special, parts, talks } = verified;
  if (manifest.files[manifest.model].sha256 !== model) {
    throw new Error("template.mjs: of another model than the bundle's: run `edgekit embed` again");
  }
  let template;
  const write = (said, edgekit_date) => {
    // The engine's own date follows the locale; ours comes by another name, since a name is given once.
    template ??= new Template(`{% set strftime_now = edgekit_date %}\n${source}`);
    const messages = (typeof said === "string" ? [{ role: "user", content: said }] : said).map((message) => {
      const plain = Object.fromEntries(Object.entries(message).filter(([, value]) => value != null));
      if (parts && typeof plain.content === "string") plain.content = [{ type: "text", text: plain.content }];
      // As transformers does: a message's reasoning goes by these names.
      const thought = plain.reasoning_content ?? plain.thinking ?? plain.reasoning;
      return thought === undefined ? plain : { thinking: thought, ...plain, reasoning_content: thought };
    });
    if (!messages.length) throw new Error("it has no message");
    return template.render({ messages, tools: null, documents: null, add_generation_prompt: true, edgekit_date, ...special });
  };
  for (const { messages, text } of talks) {
    let found = null, why = "";
    try {
      found = write(messages, (form) => form);
    } catch (failed) {
      why = `: ${failed.message}`;
    }
    if (found === text) continue;
    const shown = (written) => written === null ? "nothing" : JSON.stringify(written);
    throw new Error(`the chat template writes ${shown(found)}${why}, and ${shown(text)} when it was verified: it cannot be used`);
  }
  return (said) => {
    try {
      return write(said, tell);
    } catch (failed) {
      throw new Error(`the chat template does not take this conversation: ${failed.message}`);
    }
  };
}
