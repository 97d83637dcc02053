// The waterfall of one exchange: where its time went, over all attempts.

import { h } from "./dom.js";
import { count, span } from "./format.js";

const ORDER = ["read request", "wait for token", "renewal", "queue", "connect", "TLS", "first byte", "body"];

/** A labelled row for each part, on one common scale. */
export function timeline(parts, seconds) {
  const rows = (parts || []).filter((part) => Number.isFinite(part.start) && Number.isFinite(part.seconds));
  if (!rows.length) return h("section", { class: "timeline", "data-testid": "timeline", "aria-label": "Timeline" },
    h("h3", { text: "Timeline" }), h("p", { class: "dim", text: "No timings were taken." }));
  rows.sort((a, b) => a.start - b.start || ORDER.indexOf(a.name) - ORDER.indexOf(b.name));
  const total = Math.max(seconds || 0, ...rows.map((part) => part.start + part.seconds), 0.0001);
  const attempts = new Set(rows.map((part) => part.attempt).filter(Boolean)).size;
  return h("section", { class: "timeline", "data-testid": "timeline", "aria-label": "Timeline" },
    h("h3", {}, "Timeline ", h("span", { class: "dim", text: span(total) + (attempts > 1 ? ` over ${count(attempts, "attempt")}` : "") })),
    h("ol", {}, rows.map((part) => row(part, total, attempts > 1))));
}

function row(part, total, numbered) {
  const bar = h("span", { class: "piece", "data-part": ORDER.indexOf(part.name) < 0 ? "other" : part.name });
  bar.style.left = `min(${(100 * part.start) / total}%, 100% - 3px)`;
  bar.style.width = `${(100 * part.seconds) / total}%`;
  return h("li", { title: `${part.name}: from ${span(part.start)} to ${span(part.start + part.seconds)}` },
    h("span", { class: "part" }, h("bdi", { text: part.name }),
      numbered && part.attempt ? h("span", { class: "try", text: `#${part.attempt}`, title: `attempt ${part.attempt}` }) : null),
    h("span", { class: "lane", "aria-hidden": "true" }, bar),
    h("span", { class: "time", text: span(part.seconds) }));
}
