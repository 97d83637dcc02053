// The body viewer: a tree for JSON and forms, the raw text as it is, and a hex view.

import { h, button, fill, masked } from "./dom.js";
import { bytes, count } from "./format.js";
import { read } from "./json.js";
import { copy } from "./toast.js";

const CHUNK = 100; // children of a tree node shown at once
const HEX_CHUNK = 4096;
const LONG = 1200; // characters of a string shown at once in the tree

/** A viewer for one body. */
export function bodyView(body, title = "Body", label = title) {
  const place = h("section", { class: "body", "aria-label": label });
  if (!body || body.kind === "none" || !body.size) {
    return fill(place, h("div", { class: "body-head" }, h("h3", { text: title }), h("span", { class: "dim", text: (body && body.note) || "empty" })));
  }
  const tree = treeOf(body);
  const hasText = typeof body.text === "string";
  const view = h("div", { class: "body-view", "data-testid": "body-view" });
  const switches = [
    ["tree", "Tree", tree !== null, () => tree()],
    ["raw", "Raw", hasText, () => scroller("Raw body", h("pre", { class: "raw" }, h("code", {}, masked(body.text))))],
    ["hex", "Hex", hasText || typeof body.base64 === "string", () => hex(body)],
  ].map(([name, text, possible, make]) => {
    const one = button(text, () => show(one, make), { "data-testid": `body-${name}`, "aria-pressed": "false", disabled: !possible });
    one.make = make;
    return one;
  });
  const show = (chosen, make) => {
    for (const one of switches) one.setAttribute("aria-pressed", String(one === chosen));
    fill(view, make());
  };
  fill(place,
    h("div", { class: "body-head" },
      h("h3", { text: title }),
      h("span", { class: "dim" }, [body.type, body.encoding, bytes(body.size)].filter(Boolean).join(" · ")),
      h("div", { class: "segments", role: "group", "aria-label": `${label}: view` }, switches),
      hasText ? button("Copy", () => copy(body.text), { class: "quiet small" }) : null),
    body.note ? h("p", { class: "body-note", text: body.note }) : null,
    view);
  const first = switches.find((one) => !one.disabled);
  if (first) show(first, first.make);
  else fill(view, h("p", { class: "dim", text: "The body was not kept." }));
  return place;
}

function treeOf(body) {
  if (typeof body.text !== "string") return null;
  if (body.kind === "form") {
    return () => h("dl", { class: "form" }, [...new URLSearchParams(body.text)].map(([name, value]) => [
      h("dt", { text: name }), h("dd", {}, h("bdi", {}, masked(value)))]));
  }
  if (body.kind !== "json") return null;
  try {
    const root = read(body.text);
    return () => h("div", { class: "tree" }, treeNode(null, root, 0, root.size < 400 ? 6 : 1));
  } catch {
    return null; // cut off or broken: raw shows it
  }
}

/** A node of the tree; its children are made when it is opened. */
function treeNode(key, node, depth, open) {
  const label = key === null ? null
    : [h("bdi", { class: typeof key === "number" ? "t-index" : "t-key", text: key }), h("span", { class: "colon", text: ": " })];
  if (!node.items) return h("div", { class: "leaf" }, label, leaf(node));
  const [start, end, one] = node.type === "object" ? ["{", "}", "key"] : ["[", "]", "item"];
  if (!node.items.length) return h("div", { class: "leaf" }, label, h("span", { class: "dim", text: start + end }));
  const children = h("div", { class: "children" });
  const details = h("details", { open: depth < open },
    h("summary", {}, label, h("span", { class: "brace", text: start }),
      h("span", { class: "size", text: ` ${count(node.items.length, one)} ` }), h("span", { class: "brace end", text: end })),
    children);
  let made = 0;
  const more = () => {
    const upTo = Math.min(node.items.length, made + CHUNK);
    const part = document.createDocumentFragment();
    for (; made < upTo; made++) part.append(treeNode(node.items[made][0], node.items[made][1], depth + 1, open));
    children.append(part);
    const left = node.items.length - made;
    if (left) {
      const next = button(`Show ${Math.min(CHUNK, left)} more of ${left.toLocaleString("en")}`, () => {
        const last = children.childElementCount;
        next.remove();
        more();
        const after = children.children[last - 1];
        if (after) (after.querySelector("summary, button") || children.lastElementChild).focus?.();
      }, { class: "quiet small" });
      children.append(next);
    }
  };
  if (depth < open) more();
  else details.addEventListener("toggle", () => details.open && made === 0 && more());
  return details;
}

function leaf(node) {
  if (node.type === "number") return h("span", { class: "t-number", text: node.value });
  if (node.type === "word") return h("span", { class: "t-word", text: node.value });
  const text = node.value;
  const value = h("bdi", { class: "t-string" });
  const quoted = (part) => fill(value, '"', masked(part), '"');
  if (text.length <= LONG) return quoted(text);
  quoted(`${text.slice(0, LONG)}…`);
  const all = button(`Show all ${text.length.toLocaleString("en")} characters`, () => {
    quoted(text);
    all.remove();
  }, { class: "quiet small" });
  return h("span", {}, value, " ", all);
}

function scroller(label, ...children) {
  return h("div", { class: "scroller", tabIndex: 0, role: "region", "aria-label": label }, ...children);
}

function bytesOf(body) {
  if (typeof body.base64 === "string") {
    try {
      return Uint8Array.from(atob(body.base64), (letter) => letter.charCodeAt(0));
    } catch {
      return new Uint8Array(0);
    }
  }
  return new TextEncoder().encode(body.text || "");
}

function hex(body) {
  const data = bytesOf(body);
  const pre = h("pre", { class: "hex" });
  const place = h("div", {}, scroller("Hex view", pre));
  let at = 0;
  const more = () => {
    const end = Math.min(data.length, at + HEX_CHUNK);
    const lines = [];
    for (; at < end; at += 16) lines.push(hexLine(data, at, Math.min(end, at + 16)));
    pre.append(`${lines.join("\n")}\n`);
    at = end;
    if (at < data.length) {
      const next = button(`Show more (${bytes(data.length - at)} left)`, () => {
        next.remove();
        more();
      }, { class: "quiet small", "data-testid": "hex-more" });
      place.append(next);
    }
  };
  more();
  return place;
}

function hexLine(data, from, to) {
  let left = "";
  let right = "";
  for (let at = from; at < from + 16; at++) {
    if (at === from + 8) left += " ";
    if (at >= to) left += "   ";
    else {
      const byte = data[at];
      left += `${byte.toString(16).padStart(2, "0")} `;
      right += byte >= 32 && byte < 127 ? String.fromCharCode(byte) : "·";
    }
  }
  return `${from.toString(16).padStart(8, "0")}  ${left} ${right}`;
}
