// Everything that talks to the router: JSON calls, the login, event streams.

let refused = () => {};

/** `listener` hears of every answer that wants a login. */
export const onRefused = (listener) => (refused = listener);

/** An answer that is not 2xx; `message` is the router's own advice where there is one. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const modelUrl = (alias, action) => `/v1/models/${encodeURIComponent(alias)}/${action}`;

async function request(path, options = {}) {
  const response = await fetch(path, { cache: "no-store", ...options });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  if (response.status === 401) refused();
  throw new ApiError(response.status, body?.error?.message ?? `The router answered ${response.status}.`);
}

export const getJson = async (path) => (await request(path)).json();
export const postJson = async (path, body = {}) =>
  (await request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })).json();

/** Who asks: {key_needed, logged_in, name, admin}. The key itself is exchanged for a cookie that no script can read. */
export const session = {
  get: () => getJson("/session"),
  open: (key) => postJson("/session", { key }),
  close: async () => (await request("/session", { method: "DELETE" })).json(),
};

const SILENCE_MS = 70_000; // two missed heartbeats: the connection is half open (sleep, Wi-Fi change)
const BACKOFF_MS = [500, 1000, 2000, 4000, 8000, 15_000];

/** One event stream that reconnects until closed. EventSource's own way of reconnecting gives up on a
 * refusal, tells no reason, and never notices a half open connection. */
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
      if (error?.status === 401) return; // the caller asks for a login and opens again
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
      await this.#read(connection.signal, alive);
    } finally {
      clearTimeout(watchdog);
      connection.abort();
    }
  }

  #opened() {
    this.#attempt = 0;
    this.onState({ state: "open" });
  }

  #read(signal, alive) {
    const source = new EventSource(this.path);
    return new Promise((_, fail) => {
      signal.addEventListener("abort", () => fail(new Error("no sign of life")), { once: true });
      source.onopen = () => this.#opened();
      source.onerror = () => this.#whyRefused().then(fail);
      for (const name of this.names) {
        source.addEventListener(name, (event) => {
          alive();
          this.onEvent(name, JSON.parse(event.data));
        });
      }
    }).finally(() => source.close());
  }

  /** EventSource hides the status of a refusal; one cheap call tells whether a login is missing. */
  async #whyRefused() {
    const who = await session.get().catch((error) => error);
    if (who instanceof Error) return who;
    return who.key_needed && !who.logged_in ? new ApiError(401, "the login has ended") : new Error("the stream was cut");
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
