// A voice assistant's ears in Node.js: one line of text in, one action and its score out. See README.md.
//
// node app.mjs path/to/bundle < commands.txt
import { createInterface } from "node:readline";
import { open } from "./load.mjs";

if (process.argv.length !== 3) {
  console.error("usage: node app.mjs BUNDLE < commands.txt");
  process.exit(2);
}
let bundle;
try {
  bundle = await open(process.argv[2]);
} catch (failed) {
  console.error(failed.message);
  process.exit(1);
}
const { open: opened, warm } = bundle.times;
console.error(`opened in ${opened.toFixed(0)} ms${warm === null ? "" : `, ${warm.toFixed(2)} ms an answer`}`);
for await (const line of createInterface({ input: process.stdin })) {
  const [[label, score]] = await bundle(line.trim());
  const understood = label !== bundle.manifest.out_of_scope;
  console.log(understood ? `${label} (${Math.round(100 * score)}%): ${line.trim()}` : `did not understand: ${line.trim()}`);
}
