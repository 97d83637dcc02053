// Wiring: takes the key out of the address, routes by location.hash, joins the stream, the list and the detail.

import { call, Stream, whenKeyless } from "./api.js";
import { Detail, TABS } from "./detail.js";
import { h, button, fill, mark, say } from "./dom.js";
import { Filters } from "./filters.js";
import { bindKeys, showHelp } from "./keys.js";
import { List } from "./list.js";
import { Sessions } from "./sessions.js";
import { toast } from "./toast.js";

if (location.search) history.replaceState(null, "", location.pathname + location.hash);

const $ = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 899px)");
let paused = false;
let connection = "connecting";
let dead = false;
let info = { proxy: "", environments: {} };
let following = 0;

whenKeyless(() => {
  if (dead) return;
  dead = true;
  stream.close();
  sessions.hide();
  for (const dialog of document.querySelectorAll("dialog")) dialog.remove();
  // What can be seen stays: somebody may be reading it.
  document.body.prepend(h("div", { class: "keyless", role: "alert" },
    h("b", { text: "This page's key is no longer valid." }),
    " The proxy was started anew, most likely. Open the address that it printed."));
  say($("conn"), "Closed");
  $("conn").dataset.state = "lost";
});

const filters = new Filters($("filters"), { change: (values) => stream.open(values), pause: () => pause(!paused), clear });
const list = new List($("list-pane"), {
  open: (id, { enter }) => {
    go(`#/x/${id}${tabPart()}`);
    if (enter || narrow.matches) $("detail").focus({ preventScroll: true });
  },
  move: (id) => {
    if (detail.id === null || narrow.matches) return;
    clearTimeout(following);
    following = setTimeout(() => go(`#/x/${id}${tabPart()}`, true), 90);
  },
  count: (number) => {
    filters.shown(number);
    dressEmpty();
  },
  drawn: () => paused && filters.paused(true, list.behind),
});
const detail = new Detail($("detail"), {
  close,
  tab: (name) => go(`#/x/${detail.id}${name === "exchange" ? "" : `/${name}`}`, true),
  replayed: (id) => go(`#/x/${id}/compare`),
});
const sessions = new Sessions($("sessions"));
const stream = new Stream({
  begin: () => list.begin(),
  rows: (data) => {
    list.receive(data);
    for (const row of data.rows || []) if (row.id === detail.id) detail.changed(row);
  },
  reset: () => list.reset(),
  facets: (data) => filters.facets(data),
  state: (state) => {
    connection = state;
    dressConnection();
  },
});

function dressConnection() {
  const state = connection === "lost" ? "lost" : paused ? "paused" : connection;
  $("conn").dataset.state = state;
  say($("conn"), { live: "Live", paused: "Paused", lost: "Reconnecting…", connecting: "Connecting…" }[state]);
}

function dressEmpty() {
  if (list.order.length) return;
  if (!list.ready) fill(list.empty, h("p", { class: "dim", text: "Waiting for the first exchanges…" }));
  else if (filters.active) {
    fill(list.empty, h("p", { text: "Nothing matches these filters." }), button("Show everything", () => filters.none()));
  } else {
    fill(list.empty, h("p", { text: "No exchanges yet." }),
      h("p", { class: "dim" }, "Send a request through ", h("code", { text: info.proxy || "the proxy" }), " and it appears here at once."));
  }
}

function pause(to) {
  paused = to;
  list.pause(paused);
  filters.paused(paused, list.behind);
  dressConnection();
}

async function clear() {
  list.clearing = true; // the stream says when to forget: rows that begin meanwhile are not lost
  try {
    await call("/api/clear", { method: "POST" });
    toast("Cleared");
  } catch (error) {
    list.clearing = false;
    if (error.status !== 401) toast(error.message, "bad");
  }
}

function close() {
  clearTimeout(following);
  go("#/");
  list.focus();
}

// ---- routing

function tabPart() {
  return detail.id !== null && detail.tab !== "exchange" && detail.tab !== "compare" ? `/${detail.tab}` : "";
}

function go(hash, replace = false) {
  if (location.hash === hash) return;
  if (replace) history.replaceState(null, "", hash);
  else history.pushState(null, "", hash);
  route();
}

function route() {
  if (dead) return;
  const [, view, id, tab] = location.hash.split("/");
  const inSessions = view === "sessions";
  const open = view === "x" && /^\d{1,15}$/.test(id || "") ? Number(id) : null;
  $("exchanges").hidden = inSessions;
  mark($("nav-list"), "aria-current", inSessions ? null : "page");
  mark($("nav-sessions"), "aria-current", inSessions ? "page" : null);
  if (inSessions) {
    detail.hide();
    sessions.show();
  } else {
    sessions.hide();
    if (open === null) detail.hide();
    else detail.show(open, tab, list.rows.get(open));
  }
  $("split").classList.toggle("opened", open !== null);
  list.open(open);
  cover();
  document.title = inSessions ? "Sessions · nomba-proxy inspector" : open === null ? "nomba-proxy inspector" : `#${open} · nomba-proxy inspector`;
}

/** On a narrow screen the detail covers the list: what is under it cannot be reached. */
function cover() {
  const covered = narrow.matches && detail.id !== null;
  for (const node of [$("filters"), $("list-pane"), document.querySelector(".top"), $("skip")]) if (node) node.inert = covered;
  document.body.classList.toggle("covered", covered);
}

// ---- keys

const inList = () => document.activeElement === document.body || document.activeElement === list.box;
const listed = (then) => (event) => {
  if ($("exchanges").hidden) return false;
  if (!(narrow.matches && detail.id !== null)) list.focus();
  then(event);
  return true;
};
const atList = (then) => (event) => (inList() && !$("exchanges").hidden ? (then(event), true) : false);
const opened = (then) => () => (detail.id === null ? false : (then(), true));
/** r, e and y also act on the row under the cursor: it is opened first. */
const chosen = (then) => () => {
  if (detail.id === null && list.active !== null && !$("exchanges").hidden) list.enter();
  if (detail.id === null) return false;
  whenLoaded(then);
  return true;
};

function whenLoaded(then, tries = 40) {
  if (detail.data) then();
  else if (tries && detail.id !== null) setTimeout(() => whenLoaded(then, tries - 1), 50);
}

const keys = {
  j: listed(() => list.move(1)),
  k: listed(() => list.move(-1)),
  ArrowDown: atList(() => list.move(1)),
  ArrowUp: atList(() => list.move(-1)),
  PageDown: atList(() => list.move(list.page)),
  PageUp: atList(() => list.move(-list.page)),
  Home: atList(() => list.moveTo(0)),
  End: atList(() => list.moveTo(list.order.length - 1)),
  Enter: (event) => (inList() && list.active !== null && !$("exchanges").hidden && event.target.tagName !== "A" ? (list.enter(), true) : false),
  Escape: opened(close),
  "/": () => {
    if (!$("exchanges").hidden && narrow.matches && detail.id !== null) close();
    if ($("exchanges").hidden) go("#/");
    filters.q.focus();
    filters.q.select();
  },
  p: () => pause(!paused),
  C: () => clear(),
  r: chosen(() => detail.replay()),
  e: chosen(() => detail.edit()),
  y: chosen(() => detail.copyAs("curl")),
  "?": () => showHelp(),
  "g s": () => go("#/sessions"),
  "g l": () => go("#/"),
  leave: (event) => {
    if (event.target === filters.q && !filters.q.value) list.focus();
    else if (event.target === filters.q) return; // the first Escape empties the search
    else event.target.blur();
  },
};
TABS.forEach((name, index) => (keys[String(index + 1)] = opened(() => {
  if (detail.names.includes(name)) {
    go(`#/x/${detail.id}${name === "exchange" ? "" : `/${name}`}`, true);
  }
})));
bindKeys(keys);

$("show-help").addEventListener("click", showHelp);
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  list.focus();
});
addEventListener("hashchange", route);
addEventListener("popstate", route);
narrow.addEventListener("change", cover);

async function start() {
  dressEmpty();
  route();
  try {
    info = await call("/api/info");
  } catch (error) {
    if (error.status === 401) return;
  }
  fill($("environments"), Object.entries(info.environments || {}).map(([name, environment]) =>
    h("li", { class: "env", "data-environment": environment, title: `upstream ${name}: ${environment}` }, h("bdi", { text: name }), " ", h("b", { text: environment }))));
  mark($("show-help"), "title", info.version ? `Keyboard shortcuts (?) · version ${info.version}` : null);
  if (info.reveal) $("environments").append(h("li", { class: "env", "data-environment": "production", title: "secrets are not masked" }, h("b", { text: "secrets revealed" })));
  dressEmpty();
  stream.open(filters.values);
}

start();
