// How amounts of time, sizes, clock times and states are put into words.

/** Seconds as a short duration. */
export function span(seconds) {
  const ms = Math.max(0, seconds) * 1000;
  if (ms === 0) return "0 ms";
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (seconds < 59.995) return `${seconds.toFixed(2)} s`;
  return long(seconds);
}

/** Seconds as whole seconds, minutes, hours. */
export function long(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} m ${pad(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${pad(Math.floor((whole % 3600) / 60))} m`;
}

function pad(number, width = 2) {
  return String(number).padStart(width, "0");
}

/** The clock time of an ISO date in the reader's zone: ["15:00:00", ".123"]. */
export function clock(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return [String(iso || "–"), ""];
  return [
    `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`,
    `.${pad(date.getMilliseconds(), 3)}`,
  ];
}

const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/** A text on one line whose invisible characters (such as those that reverse what follows) are made visible. */
export function plain(text) {
  return String(text ?? "").replace(UNSEEN, (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

export function bytes(size) {
  if (size < 1024) return `${size} B`;
  if (size < 1024 * 1024) return `${(size / 1024).toFixed(1)} KB`;
  return `${(size / 1024 / 1024).toFixed(1)} MB`;
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** The width of a duration's bar, 0…1: logarithmic from 1 ms to 60 s, so that it never jumps with its neighbours. */
export function share(seconds) {
  return Math.min(1, Math.max(0.02, Math.log10(Math.max(seconds * 1000, 1)) / Math.log10(60000)));
}

/** The state that decides how a row looks. */
export function stateOf(row) {
  if (row.state) return row.state;
  return row.status === 0 ? "pending" : "ok";
}

/** Is the exchange still going on? */
export function isOpen(row) {
  return stateOf(row) === "pending";
}

/** The status badge: [sign, status, code]. */
export function badge(row) {
  const state = stateOf(row);
  if (state === "pending") return ["", "pending", ""];
  const sign = { failed: "✕", unknown: "?", in_flight: "◔" }[state] || "";
  const status = row.status ? String(row.status) : "no reply";
  const code = row.code && row.code !== status ? row.code : "";
  return [sign, status, code];
}

export const STATES = {
  pending: "Waiting for the reply",
  ok: "Succeeded",
  in_flight: "Accepted, not final: money may still be moving",
  failed: "Failed",
  unknown: "Unknown: nobody knows whether it took effect",
};

const OUTCOMES = {
  answered: "Answered by the upstream",
  not_sent: "Not sent: nothing reached the upstream",
  refused: "Refused: the token was turned down before anything was done",
  unknown: "Unknown: it may have taken effect; find out before it is repeated",
};

/** What became of a request, in words: a read that was lost does no harm. */
export function outcomeOf(row) {
  if (row.outcome === "unknown" && row.kind === "read") return "Unknown: the reply was lost; reading it again does no harm";
  return OUTCOMES[row.outcome] || row.outcome;
}

export const OUTCOME_TAGS = { not_sent: "not sent", refused: "refused", unknown: "unknown" };
