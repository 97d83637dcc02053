// The filter bar: what the list shows, and pause, clear, export.

import { h, button, fill, say } from "./dom.js";
import { query } from "./api.js";
import { count } from "./format.js";

const STATUSES = [["", "Any status"], ["2xx", "2xx"], ["3xx", "3xx"], ["4xx", "4xx"], ["5xx", "5xx"], ["pending", "Pending"]];

export class Filters {
  /** `on.change(filters)` is called 150 ms after the last change; `on.pause()` and `on.clear()` at once. */
  constructor(place, on) {
    this.on = on;
    this.timer = 0;
    const changed = () => this.changed();
    this.q = h("input", {
      type: "search", id: "filter-q", "data-testid": "filter-q", placeholder: "Search path, reference, id…", oninput: changed,
      "aria-label": "Search", autocomplete: "off", spellcheck: "false", title: "Focus with /",
    });
    this.method = this.select("method", "Method", [["", "Any method"]]);
    this.status = this.select("status", "Status", STATUSES);
    this.caller = this.select("caller", "Caller", [["", "Any caller"]]);
    this.family = this.select("family", "Family", [["", "Any family"]]);
    this.money = h("input", { type: "checkbox", "data-testid": "filter-money", onchange: changed });
    this.errors = h("input", { type: "checkbox", "data-testid": "filter-errors", onchange: changed });
    this.more = button("Filters", () => this.fold(), { class: "fold", "aria-expanded": "false", "aria-controls": "filter-more" });
    this.pause = button("Pause", on.pause, { "data-testid": "pause", "aria-pressed": "false", title: "Pause the display (p)" });
    this.clear = button("Clear", on.clear, { "data-testid": "clear", title: "Forget all exchanges (Shift+C)" });
    this.har = h("a", { class: "button", href: "/api/har", download: "nomba-proxy.har", "data-testid": "export", text: "Export HAR" });
    this.count = h("span", { class: "count", "data-testid": "count", text: "0 shown" });
    fill(place,
      h("div", { class: "filter-first" }, this.q, this.more),
      h("div", { class: "filter-more", id: "filter-more" },
        this.method, this.status, this.caller, this.family,
        h("label", { class: "check" }, this.money, "Money"),
        h("label", { class: "check" }, this.errors, "Errors")),
      h("div", { class: "filter-end" }, this.count, this.pause, this.clear, this.har));
  }

  select(name, label, options) {
    const select = h("select", { "data-testid": `filter-${name}`, "aria-label": label, onchange: () => this.changed() });
    for (const [value, text] of options) select.append(h("option", { value, text }));
    return select;
  }

  /** The chosen filters; the names are those of the API. */
  get values() {
    return {
      q: this.q.value.trim(),
      method: this.method.value,
      status: this.status.value,
      caller: this.caller.value,
      family: this.family.value,
      money: this.money.checked ? "1" : "",
      errors: this.errors.checked ? "1" : "",
    };
  }

  get active() {
    return Object.values(this.values).filter(Boolean).length;
  }

  changed() {
    this.dress();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.on.change(this.values), 150);
  }

  dress() {
    for (const node of [this.method, this.status, this.caller, this.family]) node.classList.toggle("set", node.value !== "");
    const hidden = this.active - (this.q.value.trim() ? 1 : 0);
    this.more.textContent = hidden ? `Filters · ${hidden}` : "Filters";
    this.har.href = `/api/har${query(this.values)}`;
  }

  /** Forgets every filter. */
  none() {
    this.q.value = "";
    for (const node of [this.method, this.status, this.caller, this.family]) node.value = "";
    this.money.checked = this.errors.checked = false;
    this.changed();
  }

  facets(data) {
    this.options(this.method, data.methods, "Any method");
    this.options(this.caller, data.callers, "Any caller");
    this.options(this.family, data.families, "Any family");
  }

  options(select, names, any) {
    const chosen = select.value;
    const wanted = [...new Set([...(names || []), ...(chosen ? [chosen] : [])])].filter(Boolean).sort();
    const present = [...select.options].slice(1).map((option) => option.value);
    if (wanted.join("\n") === present.join("\n")) return;
    fill(select, h("option", { value: "", text: any }), wanted.map((name) => h("option", { value: name, text: name })));
    select.value = chosen;
  }

  fold() {
    const open = document.getElementById("filters").classList.toggle("unfolded");
    this.more.setAttribute("aria-expanded", String(open));
  }

  shown(number) {
    say(this.count, `${number.toLocaleString("en")} shown`);
  }

  paused(paused, waiting) {
    const text = paused ? "Resume" : "Pause";
    say(this.pause, text);
    this.pause.setAttribute("aria-pressed", String(paused));
    this.pause.title = paused ? `${count(waiting, "change")} waiting (p)` : "Pause the display (p)";
  }
}
