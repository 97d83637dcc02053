// Header blocks, alone or as the two sides "the caller sent | we sent", with what was added, changed, removed.

import { h, masked } from "./dom.js";
import { plain } from "./format.js";

const MARKS = { added: ["+", "added"], changed: ["~", "changed"], removed: ["−", "removed"] };

/** A start line and its headers as a list; each mark is a sign, a colour and a word. */
export function headerBlock(start, headers) {
  return h("div", { class: "headers" },
    h("p", { class: "start" }, h("bdi", {}, masked(plain(start)))),
    headers && headers.length
      ? h("ul", {}, headers.map(([name, value, change]) => line(plain(name), plain(value), change)))
      : h("p", { class: "dim", text: "No headers." }));
}

function line(name, value, change) {
  const [sign, word] = MARKS[change] || [" ", ""];
  return h("li", { "data-mark": change || null },
    h("span", { class: "gutter", "aria-hidden": "true", text: sign }),
    h("span", { class: "field" },
      h("span", { class: "name", text: name }), h("span", { class: "colon", text: ": " }),
      h("bdi", { class: "value" }, masked(value)),
      word ? h("span", { class: "word", text: word }) : null));
}

/** What the caller sent beside what one attempt sent upstream. */
export function sides(caller, attempt, attempts, choose) {
  const title = (text, extra) => h("div", { class: "side-title" }, h("h3", { text }), extra);
  let pick = null;
  if (attempts.length > 1) {
    pick = h("select", { "aria-label": "Attempt", onchange: (event) => choose(Number(event.target.value)) },
      attempts.map((one, index) => h("option", { value: index, text: `attempt ${one.number}: ${one.why || "sent"}` })));
    pick.value = String(attempts.indexOf(attempt));
  }
  return h("div", { class: "sides" },
    h("section", { class: "side", "data-testid": "side-caller", "aria-label": "What the caller sent" },
      title("The caller sent"), caller.start ? headerBlock(caller.start, caller.headers)
        : h("p", { class: "dim", text: "The request could not be read." })),
    h("section", { class: "side", "data-testid": "side-sent", "aria-label": "What we sent" },
      title("We sent", pick),
      attempt ? headerBlock(attempt.start, attempt.headers)
        : h("p", { class: "dim", text: "Nothing was sent upstream." })));
}
