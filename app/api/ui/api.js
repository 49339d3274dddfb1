// Everything that talks to the router: JSON calls, event streams, the API key.

const KEY = "router.api-key";

export const apiKey = {
  get: () => sessionStorage.getItem(KEY),
  set: (key) => sessionStorage.setItem(KEY, key),
  clear: () => sessionStorage.removeItem(KEY),
};

/** An answer that is not 2xx; `message` is the router's own advice where there is one. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const modelUrl = (alias, action) => `/v1/models/${encodeURIComponent(alias)}/${action}`;

async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  if (apiKey.get()) headers.set("Authorization", `Bearer ${apiKey.get()}`);
  const response = await fetch(path, { cache: "no-store", ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new ApiError(response.status, body?.error?.message ?? `The router answered ${response.status}.`);
}

export const getJson = async (path) => (await request(path)).json();
export const getText = async (path) => (await request(path)).text();
export const postJson = async (path, body = {}) =>
  (await request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })).json();

/** Splits a text stream into server-sent events, following the WHATWG parsing rules. */
export class SseParser {
  #rest = "";
  #event = "";
  #data = [];

  constructor(onEvent) {
    this.onEvent = onEvent;
  }

  feed(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    lines.forEach((line) => this.#line(line));
  }

  #line(line) {
    if (line === "") return this.#dispatch();
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "event") this.#event = value;
    else if (field === "data") this.#data.push(value);
  }

  #dispatch() {
    if (this.#data.length) this.onEvent(this.#event || "message", this.#data.join("\n"));
    this.#event = "";
    this.#data = [];
  }
}

const SILENCE_MS = 70_000; // two missed heartbeats: the connection is half open (sleep, Wi-Fi change)
const BACKOFF_MS = [500, 1000, 2000, 4000, 8000, 15_000];

/** One event stream that reconnects until closed. Native EventSource cannot send a header,
 * so with an API key the stream is read with fetch instead. */
export class EventStream {
  #abort = null;
  #attempt = 0;

  /** `onState` gets {state: "open"} or {state: "closed", error, retryAt}. */
  constructor(path, names, { onEvent, onState = () => {} }) {
    Object.assign(this, { path, names, onEvent, onState });
  }

  async open() {
    this.close();
    const abort = (this.#abort = new AbortController());
    while (!abort.signal.aborted) {
      const error = await this.#connect(abort.signal).catch((reason) => reason);
      if (abort.signal.aborted) return;
      const delay = BACKOFF_MS[Math.min(this.#attempt++, BACKOFF_MS.length - 1)];
      this.onState({ state: "closed", error, retryAt: Date.now() + delay });
      if (error?.status === 401) return; // the caller asks for a key and opens again
      await pause(delay, abort.signal);
    }
  }

  close() {
    this.#abort?.abort();
    this.#attempt = 0;
  }

  /** Ends, always with an error, when the connection is lost or silent for too long. */
  async #connect(signal) {
    const connection = new AbortController();
    signal.addEventListener("abort", () => connection.abort(), { signal: connection.signal });
    let watchdog;
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => connection.abort(), SILENCE_MS);
    };
    alive();
    try {
      await (apiKey.get() ? this.#readFetch(connection.signal, alive) : this.#readNative(connection.signal, alive));
    } finally {
      clearTimeout(watchdog);
      connection.abort();
    }
  }

  #opened() {
    this.#attempt = 0;
    this.onState({ state: "open" });
  }

  #deliver(name, text) {
    this.onEvent(name, JSON.parse(text));
  }

  async #readFetch(signal, alive) {
    const response = await request(this.path, { signal, headers: { Accept: "text/event-stream" } });
    this.#opened();
    const parser = new SseParser((name, text) => this.names.includes(name) && this.#deliver(name, text));
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part; !(part = await reader.read()).done; ) {
      alive();
      parser.feed(part.value);
    }
    throw new Error("the router closed the stream");
  }

  #readNative(signal, alive) {
    const source = new EventSource(this.path);
    return new Promise((_, fail) => {
      signal.addEventListener("abort", () => fail(new Error("no sign of life")), { once: true });
      source.onopen = () => this.#opened();
      source.onerror = () => this.#whyRefused().then(fail);
      for (const name of this.names) {
        source.addEventListener(name, (event) => {
          alive();
          this.#deliver(name, event.data);
        });
      }
    }).finally(() => source.close());
  }

  /** EventSource hides the status of a refusal; one cheap call tells whether a key is missing. */
  async #whyRefused() {
    return getJson("/v1/models/status").then(() => new Error("the stream was cut"), (error) => error);
  }
}

function pause(ms, signal) {
  return new Promise((resume) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resume();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });
}
