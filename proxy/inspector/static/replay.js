// Replaying an exchange, as it was or edited; asks for the reference anew where money would move.

import { h, button } from "./dom.js";
import { call } from "./api.js";
import { toast } from "./toast.js";

// The connection's and the proxy's own: a replay gets its own.
const OWN = new Set([
  "host", "connection", "keep-alive", "te", "trailer", "upgrade", "expect", "content-length", "transfer-encoding", "x-request-id", "via",
]);
const METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];

/** Replays at once where nothing has to be asked; otherwise in a dialog. `done(id)` gets the new exchange's id. */
export async function replay(exchange, done) {
  if (!exchange.replay.possible) return;
  if (exchange.replay.confirm) {
    new Dialog(exchange, false, done).show(exchange.replay.confirm);
    return;
  }
  try {
    const answer = await send(exchange.row.id, {});
    const { id } = answer;
    toast(told(answer));
    done(id);
  } catch (error) {
    const dialog = new Dialog(exchange, false, done);
    dialog.show(error.status === 409 ? error.data.confirm : "");
    if (!(error.status === 409 && error.data.confirm)) dialog.fail(error);
  }
}

export function editReplay(exchange, done) {
  if (!exchange.replay.possible) return;
  new Dialog(exchange, true, done).show(exchange.replay.confirm);
}

function told(answer) {
  const without = (answer.left_out || []).join(", ");
  return `Replayed as #${answer.id}${without ? `, without ${without}: secret headers are not kept` : ""}`;
}

function send(id, edited) {
  return call(`/api/exchanges/${id}/replay`, { method: "POST", body: edited });
}

/** "Name: value" lines as pairs; throws with the line that is none. */
function parseHeaders(text) {
  const pairs = [];
  for (const line of text.split(/\r?\n/)) {
    if (!line.trim()) continue;
    const colon = line.indexOf(":");
    if (colon < 1) throw new Error(`“${line.slice(0, 60)}” is not a header: write “Name: value”.`);
    pairs.push([line.slice(0, colon).trim(), line.slice(colon + 1).trim()]);
  }
  return pairs;
}

class Dialog {
  constructor(exchange, edits, done) {
    this.exchange = exchange;
    this.edits = edits;
    this.done = done;
    this.confirmName = "";
  }

  show(confirm) {
    const { row } = this.exchange;
    this.error = h("div", { class: "problem", "data-testid": "replay-error", role: "alert", hidden: true });
    this.go = button(this.edits ? "Send edited replay" : "Replay", () => this.send(), { class: "primary", "data-testid": "replay-send" });
    this.confirm = h("input", {
      type: "text", "data-testid": "replay-confirm", id: "replay-confirm", class: "mono", autocomplete: "off", spellcheck: "false",
      "aria-describedby": "replay-why", onkeydown: (event) => event.key === "Enter" && !event.isComposing && this.send(),
    });
    this.confirmLabel = h("label", { for: "replay-confirm" });
    this.confirmBox = h("div", { class: "confirm" }, this.confirmLabel,
      h("p", { id: "replay-why", class: "dim", text: "This call may move money a second time. Type the reference of the request that will be sent: only then is it sent." }),
      this.confirm);
    this.dialog = h("dialog", { class: "dialog wide", "data-testid": "replay-dialog", "aria-labelledby": "replay-title" },
      h("h2", { id: "replay-title", text: this.edits ? `Edit & replay #${row.id}` : `Replay #${row.id}` }),
      this.edits ? this.editor() : h("p", { class: "target-line" }, h("b", { text: row.method }), " ", h("bdi", { text: row.path })),
      this.confirmBox,
      h("div", { class: "dialog-end" }, this.error, button("Cancel", () => this.dialog.close()), this.go));
    this.dialog.addEventListener("close", () => this.dialog.remove());
    this.ask(confirm);
    document.body.append(this.dialog);
    this.dialog.showModal();
    (this.edits ? this.target : confirm ? this.confirm : this.go).focus();
  }

  editor() {
    const { request, row } = this.exchange;
    const headers = (request.headers || []).filter(([name, value]) => !String(value).includes("•••") && !OWN.has(name.toLowerCase()));
    const left = (request.headers || []).filter(([, value]) => String(value).includes("•••")).map(([name]) => name);
    const body = request.body || {};
    const text = typeof body.text === "string" ? body.text : "";
    this.before = {
      method: row.method,
      target: targetOf(request.start) || row.path,
      headers: headers.map(([name, value]) => `${name}: ${value}`).join("\n"),
      body: text,
    };
    this.method = h("select", { id: "replay-method", "data-testid": "replay-method" },
      [...new Set([row.method, ...METHODS])].map((name) => h("option", { value: name, text: name })));
    this.method.value = row.method;
    const area = (name, rows, value) => h("textarea", { id: `replay-${name}`, "data-testid": `replay-${name}`, class: "mono", rows, value, spellcheck: "false", autocomplete: "off" });
    this.target = h("input", { type: "text", id: "replay-target", "data-testid": "replay-target", class: "mono", value: this.before.target, spellcheck: "false", autocomplete: "off" });
    this.headers = area("headers", Math.min(8, Math.max(3, headers.length + 1)), this.before.headers);
    this.body = area("body", 9, text);
    const kept = body.size ? typeof body.text !== "string" : false;
    this.body.disabled = kept;
    this.startBody = this.body.value; // the browser normalises line ends
    this.startHeaders = this.headers.value;
    const ours = left.filter((name) => /^(proxy-)?authorization$|proxy-key$|^cookie$/i.test(name));
    const lost = left.filter((name) => !ours.includes(name));
    const added = `The token, Host and the framing are added by the proxy${ours.length ? ` (left out here: ${ours.join(", ")})` : ""}.`
      + (lost.length ? ` Hidden here: ${lost.join(", ")}. Secret ones were never kept and are not sent; others only while the headers are untouched.` : "");
    return h("div", { class: "editor" },
      h("div", { class: "pair" },
        h("div", {}, h("label", { for: "replay-method", text: "Method" }), this.method),
        h("div", { class: "grow" }, h("label", { for: "replay-target", text: "Target" }), this.target)),
      h("label", { for: "replay-headers", text: "Headers" }), this.headers,
      h("p", { class: "dim", text: added }),
      h("label", { for: "replay-body", text: "Body" }), this.body,
      kept ? h("p", { class: "dim", text: "The body is binary: it is sent as it was." })
        : text.includes("•••") ? h("p", { class: "warn", text: "Parts of this body are hidden (•••). Leave it untouched to send what was sent, or replace every mask: the proxy refuses a body with masks." })
          : body.note ? h("p", { class: "warn", text: `${body.note}. Leave it untouched to send what was sent.` }) : null);
  }

  ask(name) {
    this.confirmName = name || "";
    this.confirmBox.hidden = !name;
    if (name) this.confirmLabel.textContent = `Type the ${name}`;
  }

  /** Only what was edited. */
  edited() {
    const edited = {};
    if (this.edits) {
      if (this.method.value !== this.before.method) edited.method = this.method.value;
      if (this.target.value !== this.before.target) edited.target = this.target.value;
      if (this.headers.value !== this.startHeaders) edited.headers = parseHeaders(this.headers.value);
      if (!this.body.disabled && this.body.value !== this.startBody) edited.body = this.body.value;
    }
    if (this.confirmName) edited.confirm = this.confirm.value.trim();
    return edited;
  }

  async send() {
    if (this.go.disabled) return;
    this.error.hidden = true;
    let edited;
    try {
      edited = this.edited();
    } catch (error) {
      return this.fail(error);
    }
    this.go.disabled = true;
    try {
      const answer = await send(this.exchange.row.id, edited);
      this.dialog.close();
      toast(told(answer));
      this.done(answer.id);
    } catch (error) {
      if (error.status === 409 && error.data.confirm) {
        const asked = Boolean(this.confirmName);
        this.ask(error.data.confirm);
        this.fail(error);
        if (!asked) this.confirm.value = "";
        this.confirm.focus();
      } else this.fail(error);
    } finally {
      this.go.disabled = false;
    }
  }

  fail(error) {
    const hint = error.data && error.data.hint;
    this.error.replaceChildren(h("p", {}, h("b", { text: error.message })), hint ? h("p", { text: hint }) : "");
    this.error.hidden = false;
  }
}

function targetOf(start) {
  const parts = String(start || "").split(" ");
  return parts.length >= 3 ? parts.slice(1, -1).join(" ") : "";
}
