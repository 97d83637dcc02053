// The comparison of a replay with its original, line by line; long equal stretches are folded.

import { h, button, masked } from "./dom.js";
import { count } from "./format.js";

const KEEP = 3; // equal lines left around a change

/** The parts of a diff, each line with its sign. */
export function diffView(parts, mine, other) {
  return h("div", { class: "diff", "data-testid": "diff" },
    h("p", { class: "legend" },
      h("span", { class: "minus", text: `− only in #${other}` }), h("span", { class: "plus", text: `+ only in #${mine}` })),
    (parts || []).map((part) => {
      const changes = part.lines.filter(([sign]) => sign !== " ").length;
      return h("section", { "aria-label": part.name },
        h("h3", {}, title(part.name), " ", h("span", { class: "dim", text: changes ? count(changes, "changed line") : "no differences" })),
        h("div", { class: "lines" }, fold(part.lines)));
    }));
}

function title(name) {
  return name ? name[0].toUpperCase() + name.slice(1) : "";
}

function fold(lines) {
  const near = new Uint8Array(lines.length);
  lines.forEach(([sign], at) => {
    if (sign === " ") return;
    for (let i = Math.max(0, at - KEEP); i <= Math.min(lines.length - 1, at + KEEP); i++) near[i] = 1;
  });
  const nodes = [];
  for (let at = 0; at < lines.length; ) {
    let end = at;
    while (end < lines.length && !near[end]) end += 1;
    if (end - at > 12) {
      nodes.push(folded(lines.slice(at, end)));
      at = end;
    } else if (end > at) {
      while (at < end) nodes.push(line(lines[at++]));
    } else nodes.push(line(lines[at++]));
  }
  return nodes;
}

function folded(lines) {
  const open = button(`⋯ ${count(lines.length, "equal line")}`, () => open.replaceWith(...lines.map(line)), { class: "folded" });
  return open;
}

function line([sign, text]) {
  const kind = sign === "+" ? "plus" : sign === "-" ? "minus" : "same";
  return h("div", { class: `line ${kind}` },
    h("span", { class: "gutter" }, kind === "minus" ? "−" : kind === "plus" ? "+" : " "),
    h("bdi", { class: "text" }, masked(String(text))));
}
