// The keyboard: one place that says what each key does, and the help dialog made from it.

import { h, button } from "./dom.js";

const HELP = [
  ["Moving", [
    [["j", "↓"], "next exchange"], [["k", "↑"], "previous exchange"], [["Enter"], "open it"], [["Esc"], "close it"],
    [["/"], "search"], [["g l"], "exchanges"], [["g s"], "sessions"],
  ]],
  ["The list", [[["p"], "pause or resume"], [["Shift+C"], "clear"]]],
  ["The open exchange", [
    [["1", "2", "3", "4"], "its tabs"], [["r"], "replay"], [["e"], "edit & replay"], [["y"], "copy as curl"],
  ]],
  ["Help", [[["?"], "this list"]]],
];

/** Is the reader typing, so that letters are no commands? */
function typing(target) {
  return target instanceof Element && target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]") !== null;
}

/** `keys` maps a key to what it does; it gets the event and returns false to leave the key to the browser. */
export function bindKeys(keys) {
  let going = 0;
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (document.querySelector("dialog[open]")) return;
    if (typing(event.target)) {
      if (event.key === "Escape") keys.leave(event);
      return;
    }
    let name = event.key;
    if (going && performance.now() - going < 1500 && /^[a-z]$/.test(name)) name = `g ${name}`;
    going = 0;
    if (name === "g") {
      going = performance.now();
      return;
    }
    const act = Object.hasOwn(keys, name) ? keys[name] : null;
    if (act && act(event) !== false) event.preventDefault();
  });
}

export function showHelp() {
  if (document.querySelector("dialog[open]")) return;
  const dialog = h("dialog", { class: "dialog", "data-testid": "help", "aria-labelledby": "help-title" },
    h("h2", { id: "help-title", text: "Keyboard" }),
    h("div", { class: "help" }, HELP.map(([title, keys]) => h("section", {}, h("h3", { text: title }),
      h("dl", {}, keys.map(([names, text]) => [
        h("dt", {}, names.map((name) => h("kbd", { text: name }))), h("dd", { text })]))))),
    h("p", { class: "dim", text: "Keys are left alone while you type in a field." }),
    h("div", { class: "dialog-end" }, button("Close", () => dialog.close())));
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("keydown", (event) => {
    if (event.key !== "?") return;
    event.preventDefault();
    dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
}
