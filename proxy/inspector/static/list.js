// The list of exchanges: a store of rows by id, and a window over it of which only the visible rows are elements.

import { h, fill, say, mark } from "./dom.js";
import { badge, clock, count, isOpen, OUTCOME_TAGS, plain, share, span, stateOf, STATES } from "./format.js";

const OVERSCAN = 6;

export class List {
  /** `on.open(id, {enter})` when a row is chosen, `on.move(id)` when the cursor moves, `on.count(n)`, `on.drawn()`. */
  constructor(pane, on) {
    this.on = on;
    this.rows = new Map(); // id -> row
    this.order = []; // ids, ascending
    this.nodes = new Map(); // id -> element
    this.spare = [];
    this.active = null; // the keyboard's row
    this.opened = null; // the row whose detail is open
    this.fresh = 0; // rows that came above what is being looked at
    this.live = true;
    this.waiting = nothing();
    this.frame = 0;
    this.scrolled = -1e9;
    this.window = h("div", { class: "window", role: "presentation" });
    this.sizer = h("div", { class: "sizer", role: "presentation" }, this.window);
    this.box = h("div", { class: "rows", id: "rows", role: "listbox", tabIndex: 0, "aria-label": "Exchanges, newest first" }, this.sizer);
    this.pill = h("button", { type: "button", class: "fresh", hidden: true, onclick: () => this.toTop() });
    this.empty = h("div", { class: "empty" });
    const head = h("div", { class: "row head", "aria-hidden": "true" },
      ["time", "method", "target", "tags", "caller", "status", "took"].map((name) =>
        h("span", { class: name, text: { target: "route", tags: "", took: "duration" }[name] ?? name })));
    fill(pane, head, this.box, this.pill, this.empty);
    this.box.addEventListener("scroll", () => {
      this.scrolled = performance.now();
      this.draw();
    }, { passive: true });
    this.box.addEventListener("pointerdown", (event) => (this.down = { id: idOf(event.target), at: performance.now() }));
    this.box.addEventListener("click", (event) => this.clicked(event));
    this.row = 34;
    new ResizeObserver(() => this.measure()).observe(this.box);
    setInterval(() => this.tick(), matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : 100);
  }

  // ---- what the stream says

  /** The next message belongs to a new stream: forget what is there when it is applied. */
  begin() {
    this.waiting = nothing();
    this.waiting.anew = true;
    clearTimeout(this.ending);
    this.ending = null;
    this.through = true; // also while paused: the reader asked for another list
    this.soon();
  }

  reset() {
    this.waiting = nothing();
    this.waiting.anew = true;
    if (this.clearing && !this.through) this.through = "reset"; // asked for here: shown although paused
    this.clearing = false;
    this.soon();
  }

  receive(data) {
    const waiting = this.waiting;
    for (const row of data.rows || []) {
      if (!row || typeof row.id !== "number") continue;
      waiting.drop.delete(row.id);
      waiting.rows.set(row.id, row);
    }
    for (const id of data.drop || []) {
      waiting.rows.delete(id);
      waiting.drop.add(id);
    }
    if (typeof data.oldest === "number") waiting.oldest = Math.max(waiting.oldest, data.oldest);
    if (waiting.rows.size > 20000) {
      for (const id of waiting.rows.keys()) if (id < waiting.oldest) waiting.rows.delete(id);
    }
    this.soon();
  }

  pause(paused) {
    this.live = !paused;
    if (this.live) this.soon();
    else if (!this.waiting.anew && this.order.length) {
      clearTimeout(this.ending);
      this.through = this.ending = null; // what was asked for is there
    }
  }

  get behind() {
    return this.waiting.rows.size + this.waiting.drop.size;
  }

  soon() {
    if (!this.frame) this.frame = requestAnimationFrame(() => this.flush());
  }

  flush() {
    this.frame = 0;
    if (!this.live && !this.through) {
      this.on.drawn();
      return;
    }
    const away = this.box.scrollTop > 4;
    if (away && !this.waiting.anew && performance.now() - this.scrolled < 120) {
      this.frame = requestAnimationFrame(() => this.flush()); // let the hand finish scrolling
      return;
    }
    this.apply(away);
    this.draw();
    this.on.drawn();
  }

  apply(away) {
    const { anew, rows, drop, oldest } = this.waiting;
    const empty = rows.size === 0 && drop.size === 0;
    this.waiting = nothing();
    this.waiting.oldest = oldest;
    if (this.through === "reset") this.through = false;
    else if (this.through && rows.size && !this.ending) {
      // a new list comes in several messages
      this.ending = setTimeout(() => (this.through = this.ending = null), 400);
    }
    if (anew) {
      this.rows.clear();
      this.order = [];
      this.fresh = 0;
      this.ready = true;
    }
    const anchor = away && !anew ? this.anchor() : null;
    if (drop.size || (this.order.length && this.order[0] < oldest)) {
      for (const id of drop) this.rows.delete(id);
      this.order = this.order.filter((id) => {
        if (id >= oldest && !drop.has(id)) return true;
        this.rows.delete(id);
        return false;
      });
    }
    const added = [];
    for (const [id, row] of rows) {
      if (id < oldest) continue;
      if (!this.rows.has(id)) added.push(id);
      this.rows.set(id, row);
    }
    if (added.length) {
      added.sort((a, b) => a - b);
      const last = this.order.length ? this.order[this.order.length - 1] : -1;
      if (added[0] > last) this.order = this.order.concat(added);
      else this.order = this.order.concat(added).sort((a, b) => a - b);
    }
    if (!this.rows.has(this.active)) this.active = this.rows.has(this.opened) ? this.opened : null;
    if (empty && !anew && !drop.size && this.order.length === this.height) return;
    this.resize(anew);
    if (anew) this.box.scrollTop = 0;
    else if (anchor) {
      this.box.scrollTop = this.indexNear(anchor.id) * this.row + anchor.offset;
      this.scrolled = -1e9;
      this.fresh += added.filter((id) => id > anchor.id).length;
    }
  }

  /** The row at the top of the window and how much of it is scrolled out. */
  anchor() {
    if (!this.order.length) return null;
    const top = this.box.scrollTop;
    const index = Math.min(this.order.length - 1, Math.floor(top / this.row));
    return { id: this.at(index), offset: top - index * this.row };
  }

  at(index) {
    return this.order[this.order.length - 1 - index];
  }

  /** Where an id is, or the next older one, counted from the newest. */
  indexNear(id) {
    let low = 0;
    let high = this.order.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.order[middle] <= id) low = middle + 1;
      else high = middle;
    }
    return Math.min(this.order.length - 1, Math.max(0, this.order.length - low));
  }

  // ---- what is drawn

  measure() {
    const row = parseFloat(getComputedStyle(this.box).getPropertyValue("--row")) || 34;
    const anchor = this.row && this.box.scrollTop > 4 ? this.anchor() : null;
    const changed = row !== this.row;
    this.row = row;
    if (changed) {
      this.resize(true);
      if (anchor) this.box.scrollTop = this.indexNear(anchor.id) * row + Math.min(anchor.offset, row - 1);
    }
    this.draw();
  }

  resize(force = false) {
    if (!force && this.height === this.order.length) return;
    this.height = this.order.length;
    this.sizer.style.height = `${this.height * this.row}px`;
    this.on.count(this.height);
  }

  draw() {
    const top = this.box.scrollTop;
    const length = this.order.length;
    const first = Math.max(0, Math.floor(top / this.row) - OVERSCAN);
    const last = Math.min(length, Math.ceil((top + this.box.clientHeight) / this.row) + OVERSCAN);
    const wanted = new Set();
    for (let index = first; index < last; index++) wanted.add(this.at(index));
    for (const [id, node] of this.nodes) {
      if (wanted.has(id)) continue;
      node.remove();
      this.nodes.delete(id);
      if (this.spare.length < 100) this.spare.push(node);
    }
    let next = this.window.firstChild;
    let index = first;
    for (const id of wanted) {
      let node = this.nodes.get(id);
      if (!node) {
        node = this.spare.pop() || makeRow();
        node.shown = null;
        this.nodes.set(id, node);
      }
      if (node === next) next = node.nextSibling;
      else this.window.insertBefore(node, next);
      const row = this.rows.get(id);
      if (node.shown !== row) dressRow(node, row);
      mark(node, "aria-posinset", ++index);
      mark(node, "aria-setsize", length);
      mark(node, "aria-selected", id === this.active ? "true" : "false");
      mark(node, "data-open", id === this.opened ? "" : null);
    }
    this.window.style.transform = `translateY(${first * this.row}px)`;
    mark(this.box, "aria-activedescendant", this.nodes.has(this.active) ? `row-${this.active}` : null);
    if (top <= 4) this.fresh = 0;
    this.pill.hidden = this.fresh === 0;
    if (this.fresh) say(this.pill, `↑ ${count(this.fresh, "new", "new")}`);
    mark(this.box, "data-empty", length === 0 ? "" : null);
    this.empty.hidden = length !== 0;
  }

  /** Counts the durations of exchanges that still go on. */
  tick() {
    if (!this.live || document.hidden) return;
    for (const node of this.nodes.values()) if (node.shown && isOpen(node.shown)) dressTook(node, node.shown);
  }

  // ---- moving and choosing

  clicked(event) {
    const recent = this.down && performance.now() - this.down.at < 1000;
    const id = recent && this.down.id !== null ? this.down.id : idOf(event.target);
    this.down = null;
    if (id === null) return;
    this.active = id;
    this.draw();
    this.on.open(id, { enter: false });
  }

  /** Moves the keyboard's row by so many; from nowhere it starts at the top of what is seen. */
  move(by) {
    if (!this.order.length) return;
    const seen = Math.ceil(this.box.scrollTop / this.row);
    const from = this.active === null ? seen - Math.sign(by) * (by > 0 ? 1 : 0) : this.indexNear(this.active);
    this.moveTo(from + by);
  }

  moveTo(index) {
    if (!this.order.length) return;
    const to = Math.min(this.order.length - 1, Math.max(0, index));
    this.active = this.at(to);
    this.reveal(to);
    this.draw();
    this.on.move(this.active);
  }

  get page() {
    return Math.max(1, Math.floor(this.box.clientHeight / this.row) - 1);
  }

  reveal(index) {
    const top = index * this.row;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + this.row > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + this.row - this.box.clientHeight;
  }

  enter() {
    if (this.active !== null) this.on.open(this.active, { enter: true });
  }

  /** The row whose detail is shown. */
  open(id) {
    this.opened = id;
    if (id !== null) this.active = this.rows.has(id) ? id : null;
    this.draw();
  }

  toTop() {
    this.box.scrollTop = 0;
    this.fresh = 0;
    this.draw();
    this.focus();
  }

  focus() {
    this.box.focus({ preventScroll: true });
  }
}

function nothing() {
  return { anew: false, rows: new Map(), drop: new Set(), oldest: 0 };
}

function idOf(target) {
  const node = target instanceof Element ? target.closest(".row[data-id]") : null;
  return node ? Number(node.dataset.id) : null;
}

function makeRow() {
  const node = h("div", { class: "row", role: "option", "data-testid": "row" });
  const cell = (name, ...children) => (node[name] = node.appendChild(h("span", { class: name }, ...children)));
  node.clock = h("span");
  node.ms = h("span", { class: "ms" });
  cell("time", node.clock, node.ms);
  cell("method");
  node.route = h("bdi", { class: "route" });
  node.path = h("bdi", { class: "path" });
  cell("target", node.route, node.path);
  cell("tags");
  cell("caller");
  node.badge = h("span", { class: "badge" });
  cell("status", node.badge);
  node.number = h("span", { class: "number" });
  node.bar = h("span", { class: "bar" });
  cell("took", node.number, h("span", { class: "track" }, node.bar));
  return node;
}

function dressRow(node, row) {
  node.shown = row;
  const state = stateOf(row);
  node.id = `row-${row.id}`;
  node.dataset.id = row.id;
  node.dataset.state = state;
  const [seconds, ms] = clock(row.at);
  say(node.clock, seconds);
  say(node.ms, ms);
  say(node.method, row.method || "–");
  node.method.dataset.method = row.method;
  const path = plain(row.path);
  const named = row.route && row.route !== "other" ? plain(row.route) : "";
  say(node.route, named || path);
  say(node.path, named && path !== named ? rest(named, path) : "");
  mark(node.target, "title", path);
  dressTags(node.tags, row);
  say(node.caller, plain(row.caller) || "–");
  mark(node.caller, "title", plain(row.caller) || null);
  dressBadge(node.badge, row);
  dressTook(node, row);
  mark(node, "aria-label", spoken(row));
}

/** What of a path its route does not already say: the query, or all of it where the route has parameters. */
function rest(route, path) {
  return path.startsWith(route) && !/^[\w-]/.test(path.slice(route.length)) ? path.slice(route.length) : path;
}

function dressTags(place, row) {
  const tags = [];
  if (row.kind === "money") tags.push(["money", "money", "this call moves money"]);
  if (row.replay_of) tags.push(["replay", `↻ #${row.replay_of}`, `replay of #${row.replay_of}`]);
  if (row.attempts > 1) tags.push(["tries", `×${row.attempts}`, `${row.attempts} attempts`]);
  if (OUTCOME_TAGS[row.outcome]) tags.push([`outcome ${row.outcome}`, OUTCOME_TAGS[row.outcome], "what became of the request"]);
  const text = tags.map((tag) => tag[1]).join("\n");
  if (place.said === text) return;
  place.said = text;
  fill(place, tags.map(([name, label, title]) => h("span", { class: `tag ${name}`, title, text: label })));
}

/** A status badge: sign, status and code, coloured by the state. */
export function dressBadge(node, row) {
  const [sign, status, code] = badge(row);
  const state = stateOf(row);
  const text = `${state}\n${sign}\n${status}\n${code}`;
  if (node.said === text) return node;
  node.said = text;
  node.className = "badge";
  node.dataset.state = state;
  fill(node,
    state === "pending" ? h("span", { class: "spin", "aria-hidden": "true" }) : null,
    sign ? h("span", { class: "sign", "aria-hidden": "true", text: sign }) : null,
    h("bdi", { text: status }),
    code ? h("span", { class: "dot", text: " · " }) : null,
    code ? h("bdi", { class: "code", text: code }) : null);
  mark(node, "title", [STATES[state], row.description, row.error].filter(Boolean).join(" · "));
  return node;
}

function dressTook(node, row) {
  const seconds = isOpen(row) ? since(row) : row.seconds || 0;
  say(node.number, isOpen(row) ? `${seconds.toFixed(1)} s` : span(seconds));
  node.bar.style.transform = `scaleX(${share(seconds).toFixed(3)})`;
}

/** How long an exchange that goes on has taken so far. */
export function since(row) {
  const from = Date.parse(row.at);
  return Number.isNaN(from) ? row.seconds || 0 : Math.max(0, (Date.now() - from) / 1000);
}

function spoken(row) {
  const [, status, code] = badge(row);
  return [
    `${row.method} ${row.route && row.route !== "other" ? row.route : row.path}`,
    code ? `${status}, code ${code}` : status,
    STATES[stateOf(row)],
    row.kind === "money" ? "money" : "",
    row.caller ? `caller ${row.caller}` : "",
    OUTCOME_TAGS[row.outcome] ? `outcome ${OUTCOME_TAGS[row.outcome]}` : "",
    row.attempts > 1 ? `${row.attempts} attempts` : "",
    isOpen(row) ? "" : span(row.seconds || 0),
  ].filter(Boolean).join(", ");
}
