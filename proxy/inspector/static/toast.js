// Short notices, and putting text on the clipboard (with a dialog where the browser does not allow it).

import { h, button } from "./dom.js";

let timer = 0;

export function toast(text, kind = "") {
  const place = document.getElementById("toast");
  place.textContent = text;
  place.dataset.kind = kind;
  place.classList.add("shown");
  clearTimeout(timer);
  timer = setTimeout(() => {
    place.classList.remove("shown");
    timer = setTimeout(() => (place.textContent = ""), 300);
  }, kind === "bad" ? 5000 : 2400);
}

export async function copy(text, what = "Copied") {
  try {
    await navigator.clipboard.writeText(text);
    toast(what);
  } catch {
    byHand(text);
  }
}

function byHand(text) {
  const area = h("textarea", { rows: 10, readOnly: true, value: text, "aria-label": "Text to copy", class: "mono" });
  const dialog = h("dialog", { class: "dialog", "aria-label": "Copy by hand" },
    h("h2", { text: "Copy this" }),
    h("p", { class: "dim", text: "The browser did not allow the clipboard. The text is selected: copy it with Ctrl+C or ⌘C." }),
    area,
    h("div", { class: "dialog-end" }, button("Close", () => dialog.close())));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  area.focus();
  area.select();
}
