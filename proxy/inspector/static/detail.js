// The detail of one exchange: summary, hints, timeline and the tabs Exchange, Attempts, Reply, Compared.

import { h, button, fill } from "./dom.js";
import { call } from "./api.js";
import { bodyView } from "./body.js";
import { diffView } from "./diff.js";
import { bytes, clock, isOpen, outcomeOf, plain, span, stateOf, STATES } from "./format.js";
import { headerBlock, sides } from "./headers.js";
import { dressBadge, since } from "./list.js";
import { editReplay, replay } from "./replay.js";
import { timeline } from "./timeline.js";
import { copy, toast } from "./toast.js";

export const TABS = ["exchange", "attempts", "reply", "compare"];
const COPIES = [["curl", "curl"], ["python", "Python"], ["fetch", "fetch"]];

export class Detail {
  /** `on.close()`, `on.tab(name)`, `on.replayed(id)`. */
  constructor(place, on) {
    this.place = place;
    this.on = on;
    this.id = null;
    this.tab = "exchange";
    this.data = null;
    this.timer = 0;
    setInterval(() => this.tick(), 200);
  }

  /** Shows an exchange, first from its row where the list has it. */
  show(id, tab, row) {
    const wanted = TABS.includes(tab) ? tab : "exchange";
    if (id === this.id) {
      if (wanted !== this.tab) {
        this.tab = wanted;
        this.drawPanel();
      }
      return;
    }
    this.stop();
    this.id = id;
    this.tab = wanted;
    this.data = null;
    this.shown = "";
    this.attempt = null;
    this.diff = null;
    this.place.hidden = false;
    this.place.setAttribute("aria-label", `Exchange ${id}`);
    if (row) {
      this.row = row;
      fill(this.place, this.top(row, null), h("p", { class: "loading dim", text: "Loading…" }));
    } else {
      this.row = null;
      fill(this.place, this.bare(`#${id}`), h("p", { class: "loading dim", text: "Loading…" }));
    }
    this.place.scrollTop = 0;
    this.load();
  }

  hide() {
    this.stop();
    this.id = null;
    this.data = null;
    this.place.hidden = true;
    this.place.replaceChildren();
  }

  stop() {
    clearTimeout(this.timer);
    if (this.fetching) this.fetching.abort();
    this.fetching = null;
    this.again = false;
  }

  /** The list heard of a change of a row. */
  changed(row) {
    if (row.id !== this.id) return;
    if (this.fetching) {
      this.again = true; // what is being fetched may be older than this change
      return;
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load(), 60);
  }

  async load() {
    const id = this.id;
    const fetching = new AbortController();
    if (this.fetching) this.fetching.abort();
    this.fetching = fetching;
    try {
      const data = await call(`/api/exchanges/${id}`, { signal: fetching.signal });
      if (this.id !== id) return;
      const text = JSON.stringify(data);
      if (text !== this.shown) {
        this.shown = text;
        this.data = data;
        this.row = data.row;
        this.draw();
      }
      if (isOpen(data.row)) this.timer = setTimeout(() => this.load(), 1000);
    } catch (error) {
      if (error.name === "AbortError" || this.id !== id) return;
      if (error.status === 0) this.timer = setTimeout(() => this.load(), 2000);
      if (error.status === 0 && this.data) return;
      fill(this.place, this.row ? this.top(this.row, null) : this.bare(`#${id}`),
        h("div", { class: "gone" }, h("p", { text: error.message }),
          error.status === 404 ? h("p", { class: "dim", text: "The inspector keeps the newest exchanges only." }) : null));
    } finally {
      if (this.fetching === fetching) {
        this.fetching = null;
        if (this.again) {
          clearTimeout(this.timer);
          this.timer = setTimeout(() => this.load(), 60);
        }
        this.again = false;
      }
    }
  }

  draw() {
    const { data } = this;
    const focus = this.place.contains(document.activeElement) ? document.activeElement.dataset.testid : null;
    const top = this.place.scrollTop;
    this.panel = h("div", { class: "panel", role: "tabpanel", id: "panel" });
    fill(this.place, this.top(data.row, data), this.hints(data.hints), timeline(data.timeline, data.seconds), this.tabs(), this.panel);
    this.drawPanel();
    this.place.scrollTop = top;
    if (focus) (this.place.querySelector(`[data-testid="${CSS.escape(focus)}"]`) || this.place).focus({ preventScroll: true });
  }

  bare(title) {
    return h("header", { class: "d-top" }, h("div", { class: "d-line" }, this.back(), h("h2", { text: title })));
  }

  back() {
    return button("", () => this.on.close(), { class: "quiet back", "aria-label": "Back to the list", title: "Close (Esc)" });
  }

  top(row, data) {
    const state = stateOf(row);
    const status = dressBadge(h("span"), row);
    const [time, ms] = clock(row.at);
    this.took = h("dd", { text: isOpen(row) ? span(since(row)) : span(row.seconds || 0) });
    const fact = (name, value, extra) => (value ? [h("dt", { text: name }), value instanceof Node ? value : h("dd", extra || {}, h("bdi", { text: plain(value) }))] : null);
    const says = [row.description, row.error].filter(Boolean).join(" · ");
    return h("header", { class: "d-top", "data-state": state },
      h("div", { class: "d-line" }, this.back(),
        h("h2", {}, h("span", { class: "method", "data-method": row.method, text: row.method }), " ", h("bdi", { class: "d-path", text: plain(row.path) })),
        h("span", { class: "d-id dim", text: `#${row.id}` })),
      h("div", { class: "d-line" }, status,
        row.kind === "money" ? h("span", { class: "tag money", text: "money" }) : null,
        h("span", { class: "d-state" }, STATES[state] || state, says ? h("span", { class: "dim" }, " — ", h("bdi", { text: plain(says) })) : null)),
      h("dl", { class: "facts" },
        state === "pending" ? null : fact("Outcome", outcomeOf(row), { "data-outcome": row.outcome }),
        fact("Caller", row.caller),
        fact("Upstream", row.upstream),
        h("dt", { text: "Duration" }), this.took,
        row.attempts > 1 ? fact("Attempts", String(row.attempts)) : null,
        row.waited >= 0.001 ? fact("Waited", span(row.waited)) : null,
        fact("Reference", row.reference),
        fact("Started", `${time}${ms}`, { title: row.at }),
        fact("Size", `${bytes(row.request_bytes || 0)} → ${bytes(row.reply_bytes || 0)}`),
        row.replay_of ? fact("Replay of", h("dd", {}, h("a", { href: `#/x/${row.replay_of}`, text: `#${row.replay_of}` }))) : null,
        row.request_id ? fact("Request id", h("dd", {}, h("code", { text: row.request_id }), " ",
          button("Copy", () => copy(row.request_id, "Copied the request id"), { class: "quiet small", "aria-label": "Copy the request id" }))) : null),
      data ? this.actions(row, data) : null);
  }

  actions(row, data) {
    const { possible, why } = data.replay || { possible: false, why: "" };
    const reason = { disabled: !possible, "aria-describedby": possible ? null : "replay-no" };
    return h("div", { class: "actions" },
      h("div", { class: "group" },
        button("Replay", () => this.replay(), { ...reason, class: "primary", "data-testid": "replay", title: "Send it again (r)" }),
        button("Edit & replay", () => this.edit(), { ...reason, "data-testid": "edit-replay", title: "Change it, then send it (e)" })),
      h("div", { class: "group" }, h("span", { class: "dim", text: "Copy as" }),
        h("div", { class: "segments" }, COPIES.map(([as, text]) => button(text, () => this.copyAs(as), { "data-testid": `copy-${as}`, "aria-label": `Copy as ${text}` }))),
        h("a", { class: "button", href: `/api/exchanges/${row.id}/har`, download: `exchange-${row.id}.har`, "data-testid": "har-one", text: "HAR" })),
      possible ? null : h("p", { class: "dim no-replay", id: "replay-no", text: why || "It cannot be replayed." }));
  }

  hints(hints) {
    if (!hints || !hints.length) return null;
    return h("section", { class: "hints", "data-testid": "hints", "aria-label": "Hints" },
      h("span", { class: "hint-sign", "aria-hidden": "true", text: "i" }),
      h("ul", {}, hints.map((hint) => h("li", {}, h("bdi", { text: hint })))));
  }

  // ---- tabs

  get names() {
    return TABS.filter((name) => name !== "compare" || (this.data && this.data.row.replay_of));
  }

  tabs() {
    const { row, attempts } = this.data;
    const texts = { exchange: "Exchange", attempts: `Attempts (${attempts.length})`, reply: "Reply", compare: `Compared with #${row.replay_of}` };
    this.list = h("div", { class: "tabs", role: "tablist", "aria-label": "Exchange", onkeydown: (event) => this.arrows(event) },
      this.names.map((name) => h("button", {
        type: "button", role: "tab", id: `tab-${name}`, "data-testid": `tab-${name}`, "data-tab": name, "aria-controls": "panel",
        title: `Press ${TABS.indexOf(name) + 1}`, onclick: () => this.on.tab(name), text: texts[name],
      })));
    return this.list;
  }

  arrows(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    const names = this.names;
    const to = names[(names.indexOf(this.tab) + by + names.length) % names.length];
    event.preventDefault();
    this.on.tab(to);
    this.show(this.id, to);
    this.list.querySelector(`[data-tab="${to}"]`).focus();
  }

  drawPanel() {
    if (!this.data) return;
    if (!this.names.includes(this.tab)) this.tab = "exchange";
    for (const one of this.list.children) {
      const chosen = one.dataset.tab === this.tab;
      one.setAttribute("aria-selected", String(chosen));
      one.tabIndex = chosen ? 0 : -1;
    }
    this.panel.setAttribute("aria-labelledby", `tab-${this.tab}`);
    fill(this.panel, this[this.tab]());
  }

  exchange() {
    const { request, attempts } = this.data;
    const index = this.attempt === null ? attempts.length - 1 : Math.min(this.attempt, attempts.length - 1);
    return [
      sides(request || { start: "", headers: [] }, attempts[index], attempts, (chosen) => {
        this.attempt = chosen;
        this.drawPanel();
        this.panel.querySelector(".side-title select").focus();
      }),
      bodyView(request && request.body, "Request body"),
    ];
  }

  attempts() {
    const { attempts } = this.data;
    if (!attempts.length) return h("p", { class: "dim", text: "Nothing was sent upstream." });
    return attempts.map((one) => h("section", { class: "attempt", "aria-label": `Attempt ${one.number}` },
      h("div", { class: "attempt-title" },
        h("h3", { text: `Attempt ${one.number}` }),
        h("span", { class: "dim" }, [
          one.why, one.generation ? `token generation ${one.generation}` : "", !one.sent ? "no connection" : one.reused ? "reused connection" : "new connection",
        ].filter(Boolean).join(" · "))),
      one.error ? h("p", { class: "problem" }, h("b", { text: "Error: " }), h("bdi", { text: one.error })) : null,
      h("div", { class: "sides" },
        h("section", { class: "side", "aria-label": `Attempt ${one.number}: request` }, h("div", { class: "side-title" }, h("h4", { text: one.sent ? "We sent" : "Not sent" })), headerBlock(one.start, one.headers)),
        h("section", { class: "side", "aria-label": `Attempt ${one.number}: reply` }, h("div", { class: "side-title" }, h("h4", { text: "The upstream replied" })),
          one.reply ? headerBlock(one.reply.start, one.reply.headers) : h("p", { class: "dim", text: "No reply." }))),
      one.reply ? bodyView(one.reply.body, "Reply body", `Attempt ${one.number}: reply body`) : null));
  }

  reply() {
    const { reply, row } = this.data;
    if (!reply) {
      const none = row.status && row.status !== 499 ? `The caller got ${row.status}; what it was told was not captured.` : "The caller got no reply.";
      return h("p", { class: "dim", text: isOpen(row) ? "No reply yet." : none });
    }
    const title = row.status === 499 ? "Meant for the caller, which has not got all of it" : "The caller got";
    return [
      h("section", { class: "side alone", "aria-label": "What the caller got" },
        h("div", { class: "side-title" }, h("h3", { text: title })), headerBlock(reply.start, reply.headers)),
      bodyView(reply.body, "Reply body"),
    ];
  }

  compare() {
    const { row } = this.data;
    const place = h("div", {}, h("p", { class: "dim", text: "Comparing…" }));
    // the comparison is that of what is shown: asked for anew after each change of the exchange
    const asked = this.shown;
    if (!this.diff || this.diff.of !== asked) this.diff = { of: asked, promise: call(`/api/exchanges/${row.replay_of}/diff/${row.id}`) };
    this.diff.promise.then(
      (data) => fill(place, diffView(data.parts, row.id, row.replay_of)),
      (error) => {
        this.diff = null;
        fill(place, h("p", { class: "problem", text: error.message }));
      });
    return place;
  }

  // ---- actions, also by key

  replay() {
    if (!this.data) return;
    if (!this.data.replay.possible) toast(this.data.replay.why || "It cannot be replayed.", "bad");
    else replay(this.data, (id) => this.on.replayed(id));
  }

  edit() {
    if (!this.data) return;
    if (!this.data.replay.possible) toast(this.data.replay.why || "It cannot be replayed.", "bad");
    else editReplay(this.data, (id) => this.on.replayed(id));
  }

  async copyAs(as) {
    if (this.id === null) return;
    try {
      await copy(await call(`/api/exchanges/${this.id}/copy?as=${as}`, { as: "text" }));
    } catch (error) {
      toast(error.message, "bad");
    }
  }

  tick() {
    if (this.id !== null && this.row && this.took && isOpen(this.row)) this.took.textContent = `${since(this.row).toFixed(1)} s`;
  }
}
