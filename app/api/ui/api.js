// Everything that talks to the router: JSON calls, the login, event streams. Paths are relative to the page,
// which may stand behind a prefix such as /llm/.

/** @import { Refusal, Session } from "./shapes.js" */

let refused = () => {};

/**
 * `listener` hears of every answer that wants a login.
 * @param {() => void} listener
 */
export const onRefused = (listener) => void (refused = listener);

/** An answer that is not 2xx; `message` is the router's own advice where there is one. */
export class ApiError extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** @param {string} alias @param {string} action */
export const modelUrl = (alias, action) => `v1/models/${encodeURIComponent(alias)}/${action}`;

/** @param {unknown} error */
export const wantsLogin = (error) => error instanceof ApiError && error.status === 401;

/** @param {string} path @param {RequestInit} [options] */
async function request(path, options = {}) {
  const response = await fetch(path, { cache: "no-store", ...options });
  if (response.ok) return response;
  /** @type {Refusal | null} */
  const body = await response.json().catch(() => null); // a proxy's own page
  if (response.status === 401) refused();
  throw new ApiError(response.status, body?.error?.message ?? `The router answered ${response.status}.`);
}

/** @param {string} path */
export const getJson = async (path) => (await request(path)).json();

/** @param {string} path @param {object} [body] */
export async function postJson(path, body = {}) {
  const headers = { "Content-Type": "application/json" };
  return (await request(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

/** Who asks. The key itself is exchanged for a cookie that no script can read. */
export const session = {
  /** @returns {Promise<Session>} */
  get: () => getJson("session"),
  /** @param {string} key @returns {Promise<Session>} */
  open: (key) => postJson("session", { key }),
  /** @returns {Promise<Session>} */
  close: async () => (await request("session", { method: "DELETE" })).json(),
};

const SILENCE_MS = 70_000; // two missed heartbeats: the connection is half open (sleep, Wi-Fi change)
const BACKOFF_MS = [500, 1000, 2000, 4000, 8000, 15_000];

/** @typedef {{ state: "open" } | { state: "closed", error: Error, retryAt: number }} StreamState */

/**
 * One event stream that reconnects until closed. EventSource's own way of reconnecting gives up on a
 * refusal, tells no reason, and never notices a half open connection.
 */
export class EventStream {
  /** @type {AbortController | null} */
  #abort = null;
  #attempt = 0;

  /**
   * @param {string} path
   * @param {Record<string, ((body: any) => void) | null>} events what to do with each; null: a sign of life
   * @param {(state: StreamState) => void} [onState]
   */
  constructor(path, events, onState = () => {}) {
    this.path = path;
    this.events = events;
    this.onState = onState;
  }

  async open() {
    this.close();
    const abort = (this.#abort = new AbortController());
    while (!abort.signal.aborted) {
      const error = await this.#connect(abort.signal).catch((reason) => reason);
      if (abort.signal.aborted) return;
      const delay = BACKOFF_MS[Math.min(this.#attempt++, BACKOFF_MS.length - 1)];
      this.onState({ state: "closed", error, retryAt: Date.now() + delay });
      if (wantsLogin(error)) return; // the caller asks for a login and opens again
      await pause(delay, abort.signal);
    }
  }

  close() {
    this.#abort?.abort();
    this.#attempt = 0;
  }

  /**
   * Ends, always with an error, when the connection is lost or silent for too long.
   * @param {AbortSignal} signal
   */
  async #connect(signal) {
    const connection = new AbortController();
    signal.addEventListener("abort", () => connection.abort(), { signal: connection.signal });
    /** @type {ReturnType<typeof setTimeout> | undefined} */
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

  /** @param {AbortSignal} signal @param {() => void} alive @returns {Promise<never>} */
  #read(signal, alive) {
    const source = new EventSource(this.path);
    /** @type {Promise<never>} */
    const ended = new Promise((_, fail) => {
      signal.addEventListener("abort", () => fail(new Error("no sign of life")), { once: true });
      source.onopen = () => this.#opened();
      source.onerror = () => this.#whyRefused().then(fail);
      for (const [name, handle] of Object.entries(this.events)) {
        source.addEventListener(name, (event) => {
          alive();
          handle?.(JSON.parse(event.data));
        });
      }
    });
    return ended.finally(() => source.close());
  }

  /** EventSource hides the status of a refusal; one cheap call tells whether a login is missing. */
  async #whyRefused() {
    const who = await session.get().catch((/** @type {Error} */ error) => error);
    if (who instanceof Error) return who;
    const ended = who.key_needed && !who.logged_in;
    return ended ? new ApiError(401, "the login has ended") : new Error("the stream was cut");
  }
}

/** @param {number} ms @param {AbortSignal} signal @returns {Promise<void>} */
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
