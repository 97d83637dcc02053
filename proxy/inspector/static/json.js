// A JSON reader that keeps numbers as they are written, the order of keys and double keys: money is not rounded here.

const SPACE = /[ \t\n\r]*/y;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const STRING = /"(?:[^"\\\u0000-\u001f]|\\.)*"/y;
const DEPTH = 200;

/** Reads a text: {type, value | items, size}; items are [key, node]. Throws where it is not JSON (or too deep). */
export function read(text) {
  let at = 0;
  const match = (pattern) => {
    pattern.lastIndex = at;
    const hit = pattern.exec(text);
    if (!hit) return null;
    at = pattern.lastIndex;
    return hit[0];
  };
  const fail = () => {
    throw new SyntaxError(`not JSON at ${at}`);
  };
  const string = () => {
    const raw = match(STRING);
    if (raw === null) fail();
    return JSON.parse(raw);
  };
  const take = (letter) => {
    match(SPACE);
    if (text[at] !== letter) return false;
    at += 1;
    return true;
  };
  const value = (depth) => {
    if (depth > DEPTH) throw new RangeError("nested too deep");
    match(SPACE);
    const letter = text[at];
    if (letter === "{" || letter === "[") return block(letter, depth);
    if (letter === '"') return { type: "string", value: string() };
    for (const word of ["true", "false", "null"]) {
      if (text.startsWith(word, at)) {
        at += word.length;
        return { type: "word", value: word };
      }
    }
    const number = match(NUMBER);
    return number === null ? fail() : { type: "number", value: number };
  };
  const block = (letter, depth) => {
    at += 1;
    const type = letter === "{" ? "object" : "array";
    const end = letter === "{" ? "}" : "]";
    const items = [];
    let size = 1;
    if (take(end)) return { type, items, size };
    do {
      let key = items.length;
      if (type === "object") {
        match(SPACE);
        key = string();
        if (!take(":")) fail();
      }
      const node = value(depth + 1);
      size += node.size || 1;
      items.push([key, node]);
    } while (take(","));
    if (!take(end)) fail();
    return { type, items, size };
  };
  const root = value(0);
  match(SPACE);
  if (at !== text.length) fail();
  return root;
}
