// A tiny element helper: every text becomes a text node, so hostile data stays data.

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "open", "readOnly", "tabIndex", "className"]);

/** Makes an element; `on…` are listeners, `text` its text, the rest attributes or one of the few properties. */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (PROPERTIES.has(name)) node[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  put(node, children);
  return node;
}

/** Appends elements, texts and (nested) lists of them; empty ones are left out. */
export function put(node, children) {
  for (const child of children) {
    if (Array.isArray(child)) put(node, child);
    else if (child instanceof Node) node.append(child);
    else if (child !== null && child !== undefined && child !== false) node.append(String(child));
  }
  return node;
}

/** Replaces what is in an element. */
export function fill(node, ...children) {
  node.replaceChildren();
  return put(node, children);
}

/** Sets a text only where it changed: spares layout when hundreds of rows change a second. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Sets or removes an attribute, only where it changed. */
export function mark(node, name, value) {
  if (value === null || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) {
    node.setAttribute(name, String(value));
  }
}

const MASK = /•{3}[0-9A-Za-z]{0,8}/g;

/** A text as nodes, with the masks of removed secrets set apart. */
export function masked(text) {
  if (!text.includes("•••")) return [text];
  const nodes = [];
  let from = 0;
  for (const hit of text.matchAll(MASK)) {
    if (hit.index > from) nodes.push(text.slice(from, hit.index));
    nodes.push(h("span", { class: "mask", title: "hidden by the proxy", text: hit[0] }));
    from = hit.index + hit[0].length;
    if (nodes.length > 4000) break;
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes;
}

/** A plain button. */
export function button(text, onclick, props = {}) {
  return h("button", { type: "button", onclick, text, ...props });
}
