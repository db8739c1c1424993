// What a model's tokens are as text, byte by byte: node-llama-cpp's own `detokenize` takes blanks before full stops away.

// GPT-2's letters of bytes: those that can be shown are themselves, all others follow behind Latin's 256.
const letters = new Map();
for (let byte = 0, more = 256; byte < 256; byte += 1) {
  const shown = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  letters.set(String.fromCharCode(shown ? byte : more++), byte);
}
// ggml's kinds of tokens that have a text: one of letters of bytes, and one that is there as it is.
const [NORMAL, OWN] = [1, 4];

// Gives the text that each further token adds to an answer behind ids; "" where bytes of a character are missing.
export function createPieces(model, ids) {
  const { model: kind, tokens, token_type: types } = model.fileInfo.metadata.tokenizer.ggml;
  const said = [];
  let shown = "";
  if (kind !== "gpt2") {
    return (token) => {
      said.push(token);
      const text = model.detokenize(said, false, ids);
      if (text.endsWith("\ufffd")) return "";
      const piece = text.slice(shown.length);
      shown = text;
      return piece;
    };
  }
  const words = new TextDecoder();
  return (token) => {
    const [text, type] = [tokens[token], types?.[token] ?? NORMAL];
    if (type === OWN) return words.decode(new TextEncoder().encode(text), { stream: true });
    return type === NORMAL ? words.decode(Uint8Array.from(text, (letter) => letters.get(letter)), { stream: true }) : "";
  };
}
