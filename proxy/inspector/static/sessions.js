// The upstream sessions: the age of each token, when it will be renewed, what became of the last renewals.

import { h, button, fill, mark, say } from "./dom.js";
import { call } from "./api.js";
import { clock, long } from "./format.js";
import { toast } from "./toast.js";

const WORDS = { living: "living", empty: "no token", stopped: "stopped" };
const REASONS = {
  start: "first token", due: "it was due", refused: "the token was refused", wanted: "a request wanted one",
  thin: "too little life was left", operator: "an operator asked for it",
  revoke: "revoked by an operator",
};

export class Sessions {
  constructor(place) {
    this.place = place;
    this.cards = new Map();
    this.timer = 0;
    this.list = h("div", { class: "cards" });
    this.note = h("p", { class: "dim", role: "status" });
    fill(place, h("h2", { text: "Sessions" }),
      h("p", { class: "dim", text: "One token for each upstream, kept alive by the proxy. Tokens are named by a digest; nothing here is secret." }),
      this.note, this.list);
  }

  show() {
    this.shown = true;
    this.place.hidden = false;
    this.poll();
    clearInterval(this.clock);
    this.clock = setInterval(() => this.tick(), 250);
  }

  hide() {
    this.shown = false;
    this.place.hidden = true;
    clearTimeout(this.timer);
    clearInterval(this.clock);
  }

  async poll() {
    clearTimeout(this.timer);
    try {
      const { sessions } = await call("/api/sessions");
      say(this.note, sessions.length ? "" : "There are no sessions.");
      this.update(sessions);
    } catch (error) {
      if (error.status !== 401) say(this.note, error.status ? error.message : "Reconnecting…");
    }
    clearTimeout(this.timer);
    if (this.shown) this.timer = setTimeout(() => this.poll(), 2000);
  }

  update(sessions) {
    const names = new Set(sessions.map((session) => session.name));
    for (const [name, card] of this.cards) {
      if (names.has(name)) continue;
      card.node.remove();
      this.cards.delete(name);
    }
    for (const session of sessions) {
      let card = this.cards.get(session.name);
      if (!card) {
        card = makeCard(session.name, () => this.renew(card));
        this.cards.set(session.name, card);
        this.list.append(card.node);
      }
      card.session = session;
      card.since = performance.now();
      dressCard(card);
    }
  }

  async renew(card) {
    if (card.busy) return;
    card.busy = true;
    dressCard(card);
    try {
      await call(`/api/sessions/${encodeURIComponent(card.session.name)}/renew`, { method: "POST" });
      toast(`Renewed ${card.session.name}`);
    } catch (error) {
      if (error.status !== 401) toast(error.message, "bad");
    }
    card.busy = false;
    dressCard(card);
    this.poll();
  }

  tick() {
    for (const card of this.cards.values()) age(card);
  }
}

function makeCard(name, renew) {
  const card = {};
  const part = (key, tag, props) => (card[key] = h(tag, props));
  card.facts = {};
  const fact = (key, text) => h("div", {}, h("dt", { text }), (card.facts[key] = h("dd")));
  card.node = h("article", { class: "card", "data-testid": "session", "data-name": name },
    h("div", { class: "card-top" },
      h("h3", {}, h("bdi", { text: name })), part("environment", "span", { class: "env" }), part("state", "span", { class: "life" }),
      part("renew", "button", { type: "button", "data-testid": "renew", onclick: renew, text: "Renew now", "aria-label": `Renew ${name} now` })),
    h("div", { class: "age", "data-testid": "age-bar", role: "meter", "aria-label": "Age of the token", "aria-valuemin": "0" },
      part("bar", "span", { class: "age-bar" }), part("due", "span", { class: "age-due" })),
    h("div", { class: "age-legend" }, part("ageText", "span"), part("dueText", "span", { class: "dim" }), part("lifeText", "span", { class: "dim" })),
    part("warn", "p", { class: "warn", hidden: true }),
    h("dl", { class: "facts" }, fact("generation", "Generation"), fact("next", "Next renewal"), fact("token", "Token"), fact("skew", "Clock skew"), fact("failures", "Failures")),
    h("h4", { text: "Last renewals" }),
    part("renewals", "ol", { class: "renewals" }));
  card.meter = card.node.querySelector(".age");
  return card;
}

function dressCard(card) {
  const { session, facts } = card;
  say(card.environment, session.environment || "");
  mark(card.environment, "data-environment", session.environment);
  say(card.state, session.renewing ? "renewing…" : WORDS[session.state] || session.state);
  mark(card.state, "data-state", session.state);
  card.renew.disabled = Boolean(card.busy || session.renewing);
  say(card.renew, card.busy || session.renewing ? "Renewing…" : "Renew now");
  say(facts.generation, String(session.generation));
  say(facts.token, session.token || "none");
  const skewed = session.skew !== null && session.skew !== undefined && Math.abs(session.skew) > 60;
  say(facts.skew, session.skew === null || session.skew === undefined ? "not known yet" : `${session.skew > 0 ? "+" : ""}${session.skew.toFixed(1)} s`);
  mark(facts.skew, "class", skewed ? "bad" : null);
  say(facts.failures, session.failures ? `${session.failures} in a row${session.retry_in > 0 ? `, again in ${long(session.retry_in)}` : ""}` : "none");
  mark(facts.failures, "class", session.failures ? "bad" : null);
  const warns = [
    session.last_error ? `Last error: ${session.last_error}` : "",
    skewed ? `This machine's clock and the upstream's are ${long(Math.abs(session.skew))} apart: set the clock.` : "",
  ].filter(Boolean).join("\n");
  say(card.warn, warns);
  card.warn.hidden = !warns;
  const text = JSON.stringify(session.renewals || []);
  if (card.said !== text) {
    card.said = text;
    const newest = [...(session.renewals || [])].sort((a, b) => String(b.at).localeCompare(String(a.at)));
    fill(card.renewals, newest.length ? newest.map(renewal) : h("li", { class: "dim", text: "none yet" }));
  }
  age(card, true);
}

function renewal(one) {
  const failed = one.result !== "success";
  return h("li", { "data-result": one.result },
    h("time", { datetime: one.at, title: one.at, text: clock(one.at)[0] }),
    h("span", { class: failed ? "bad" : "good", text: failed ? "✕ failed" : "✓ renewed" }),
    h("span", { class: "why" }, `${one.grant === "refresh" ? "refreshed" : "issued"}: ${REASONS[one.reason] || one.reason}`,
      one.detail ? h("span", { class: "dim" }, " — ", h("bdi", { text: one.detail })) : null),
    h("span", { class: "dim", text: one.generation ? `gen. ${one.generation}` : "" }));
}

/** Moves the age by the clock between two polls. */
function age(card, polled = false) {
  const { session } = card;
  const passed = session.state === "living" ? (performance.now() - card.since) / 1000 : 0;
  const life = session.life || 0;
  const now = session.state === "empty" ? 0 : (session.age || 0) + passed;
  const renews = (session.renews_in || 0) - passed;
  const share = life > 0 ? Math.min(1, now / life) : 0;
  card.bar.style.transform = `scaleX(${share.toFixed(4)})`;
  const due = life > 0 && session.state !== "empty" && session.renews_in !== null ? ((session.age || 0) + (session.renews_in || 0)) / life : null;
  card.due.hidden = due === null || due <= 0 || due > 1;
  if (due !== null) card.due.style.left = `${Math.min(100, 100 * due)}%`;
  mark(card.bar, "data-old", life > 0 && now >= life ? "" : null);
  say(card.ageText, session.state === "empty" ? "no token" : `${long(now)} old`);
  say(card.dueText, session.state !== "living" ? "" : renews > 0 ? `renews in ${long(renews)}` : "renewal is due");
  say(card.lifeText, life > 0 && session.state !== "empty" ? (now < life ? `expires in ${long(life - now)}` : "expired") : "");
  say(card.facts.next, session.renewing ? "now" : session.state === "stopped" ? "stopped" : renews > 0 ? `in ${long(renews)}` : "due");
  if (!polled) return;
  mark(card.meter, "aria-valuemax", Math.max(1, Math.round(life)));
  mark(card.meter, "aria-valuenow", Math.round(Math.min(now, life)));
  mark(card.meter, "aria-valuetext", `${long(now)} of ${long(life)}`);
}
