// The inspector's API: JSON calls and the live stream of rows.

/** An answer that is not a success; `data` is what it said. */
class ApiError extends Error {
  constructor(status, data) {
    super((data && data.error) || (status ? `The inspector answered ${status}.` : "The proxy cannot be reached."));
    this.status = status;
    this.data = data || {};
  }
}

let keyless = () => {};

/** What to do when the page's key is no longer valid. */
export function whenKeyless(then) {
  keyless = then;
}

/** One call: gives the parsed JSON (or the text with `as: "text"`), or throws an ApiError. */
export async function call(path, { method = "GET", body, signal, as = "json" } = {}) {
  const init = { method, signal, credentials: "same-origin", cache: "no-store", headers: {} };
  if (method === "POST") {
    init.headers["Content-Type"] = "application/json";
    init.body = JSON.stringify(body || {});
  }
  let answer;
  try {
    answer = await fetch(path, init);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, null);
  }
  if (answer.status === 401) keyless();
  const text = await answer.text().catch(() => "");
  if (answer.ok && as === "text") return text;
  let data = null;
  try {
    data = text ? JSON.parse(text) : {};
  } catch {
    data = { error: text.trim().slice(0, 300) };
  }
  if (!answer.ok) throw new ApiError(answer.status, data);
  return data;
}

/** The filters as a query string, empty ones left out. */
export function query(filters) {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(filters)) if (value) params.set(name, value);
  const text = params.toString();
  return text ? `?${text}` : "";
}

/**
 * The live rows. `begin` is called once for each new stream, on its first message: the list starts anew then.
 * The browser resumes a broken stream by itself; one that was given up on is opened anew.
 */
export class Stream {
  constructor(handlers) {
    this.handlers = handlers;
    this.source = null;
    this.again = 0;
  }

  open(filters) {
    this.close();
    this.filters = filters;
    const source = new EventSource(`/api/events${query(filters)}`);
    this.source = source;
    let begun = false;
    const begin = () => {
      if (begun || this.source !== source) return;
      begun = true;
      this.handlers.begin();
    };
    const on = (name, then) =>
      source.addEventListener(name, (event) => {
        if (this.source !== source) return;
        begin();
        let data = {};
        try {
          data = JSON.parse(event.data || "{}");
        } catch {
          return;
        }
        then(data);
      });
    on("rows", (data) => this.handlers.rows(data));
    on("reset", () => this.handlers.reset());
    on("facets", (data) => this.handlers.facets(data));
    source.onopen = () => {
      if (this.source !== source) return;
      this.handlers.state("live");
      setTimeout(begin, 500); // nothing matches, and the server has nothing to say: show that
    };
    source.onerror = () => {
      if (this.source !== source) return;
      this.handlers.state("lost");
      this.probe(source);
    };
  }

  async probe(source) {
    try {
      await call("/api/info");
    } catch (error) {
      if (error.status === 401) return this.close();
    }
    if (this.source !== source || source.readyState !== EventSource.CLOSED) return;
    clearTimeout(this.again);
    this.again = setTimeout(() => this.source === source && this.open(this.filters), 2000);
  }

  close() {
    clearTimeout(this.again);
    if (this.source) this.source.close();
    this.source = null;
  }
}
