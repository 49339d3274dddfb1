// What the page knows: the router's latest picture, and the history that only this page keeps. No DOM.

import { Loads } from "./loads.js";
import { isResident, loadingText, transition } from "./status.js";

/** @import { Device, Figures, FullStatus, Metrics, Model, ModelUpdate, Process } from "./shapes.js" */
/** @import { Queue, Queues, Server, Status } from "./shapes.js" */
/** @import { Tone } from "./status.js" */

/**
 * A model as this page knows it: the router's latest fields, and the latest figures.
 * @typedef {Model & Partial<Process> & Partial<Figures> & { alias: string }} Seen
 */

/** @typedef {{ t: number, status: Status | null }} Entry from `t` on; null: not watched */
/** @typedef {{ id: number, t: number, alias: string, tone: Tone, text: string, live: boolean }} Event */

/**
 * @typedef {object} Connection
 * @property {"connecting" | "open" | "closed"} state
 * @property {number | null} since
 * @property {number | null} retryAt in ms, of this browser's clock
 * @property {Error | null} error
 */

/**
 * Of one model, in seconds: how long in this state, how long to go, its longest waiter; its requests.
 * @typedef {object} View
 * @property {number} now
 * @property {number} age
 * @property {number} loadStart
 * @property {number | null} eta
 * @property {number | null} oldest
 * @property {Queue} [queue]
 */

export const HISTORY_S = 15 * 60;
const MAX_EVENTS = 200;
const SAVED = "router.history";

export class Store {
  /** @type {Map<string, Seen>} in the configuration's order */
  models = new Map();
  /** @type {Server | null} */
  server = null;
  serverSince = 0;
  /** @type {Device[]} */
  devices = [];
  /** @type {Device | null} its memory, for models that run there */
  host = null;
  /** @type {string | null} why there is none */
  noGpu = null;
  /** @type {Queues | null} */
  queue = null;
  /** @type {Map<string, Entry[]>} by alias */
  history = new Map();
  /** @type {Event[]} newest first */
  events = [];
  /** False: may look, not touch. */
  admin = true;
  /** @type {Connection} */
  connection = { state: "connecting", since: null, retryAt: null, error: null };

  #loads = new Loads();
  #clock;
  #offset = 0; // the router's clock minus this browser's
  #queueAt = 0;
  #eventId = 0;
  /** @type {(() => void)[]} */
  #listeners = [];

  /** @param {() => number} [clock] Unix seconds */
  constructor(clock = () => Date.now() / 1000) {
    this.#clock = clock;
  }

  /** @param {() => void} listener */
  onChange(listener) {
    this.#listeners.push(listener);
  }

  #changed() {
    for (const listener of this.#listeners) listener();
  }

  get connected() {
    return this.connection.state === "open";
  }

  list() {
    return [...this.models.values()];
  }

  residents() {
    return this.list().filter(isResident);
  }

  /** Seconds on the router's clock; a phone's may be minutes off. */
  now() {
    return this.#clock() + this.#offset;
  }

  /** @param {number} timestamp */
  setClock(timestamp) {
    const offset = timestamp - this.#clock();
    this.#offset = Math.abs(offset) < 2 ? 0 : offset;
  }

  // --- what the router says -----------------------------------------------------------------------

  /** @param {FullStatus} body */
  fullStatus({ server, models }) {
    this.server = server;
    this.serverSince = this.now() - server.uptime_seconds;
    const before = this.models;
    this.models = new Map();
    for (const [alias, fields] of Object.entries(models)) this.#apply(alias, before.get(alias), fields);
    this.#changed();
  }

  /** @param {ModelUpdate} body */
  modelUpdate({ alias, ...fields }) {
    this.#apply(alias, this.models.get(alias), fields);
    this.#changed();
  }

  /** @param {Server} server */
  serverUpdate(server) {
    const stops = server.status === "stopping" && this.server?.status !== "stopping";
    this.server = server;
    if (stops) this.addEvent("", "wait", "the router is shutting down");
    this.#changed();
  }

  /** @param {Metrics} body */
  metrics(body) {
    this.setClock(body.timestamp);
    this.devices = body.devices;
    this.host = body.host;
    this.noGpu = body.reason;
    this.queue = body.queues;
    this.#queueAt = this.now();
    for (const [alias, figures] of Object.entries(body.models)) this.#count(alias, figures);
    this.#changed();
  }

  /**
   * Only what is counted: the state comes from the status stream, and a sample may be older than an event.
   * @param {string} alias
   * @param {Figures} figures
   */
  #count(alias, { requests_total, errors_total, tokens_per_second }) {
    const model = this.models.get(alias);
    if (model) Object.assign(model, { requests_total, errors_total, tokens_per_second });
  }

  /** @param {Partial<Connection> & Pick<Connection, "state">} next */
  setConnection(next) {
    const before = this.connection;
    const since = next.state === before.state ? before.since : this.now();
    this.connection = { ...before, ...next, since };
    if (next.state === "closed" && before.state === "open") this.#lost();
    if (next.state === "open" && before.state === "closed")
      this.addEvent("", "ok", "connected to the router again");
    this.#changed();
  }

  #lost() {
    this.addEvent("", "bad", "connection to the router lost");
    for (const trail of this.history.values()) trail.push({ t: this.now(), status: null });
  }

  // --- one model's change -------------------------------------------------------------------------

  /**
   * @param {string} alias
   * @param {Seen | undefined} old
   * @param {Model & Partial<Process>} fields
   */
  #apply(alias, old, fields) {
    const { requests_total, errors_total, tokens_per_second } = old ?? {};
    /** @type {Seen} */
    const model = { requests_total, errors_total, tokens_per_second, ...fields, alias };
    this.models.set(alias, model);
    this.#remember(model);
    this.#loads.follow(model, this.now());
    if (old && old.status !== model.status) this.#announce(old.status, model);
    else if (model.status === "loading") this.#progress(model);
  }

  /** @param {Seen} model */
  #remember(model) {
    const trail = this.history.get(model.alias) ?? [];
    this.history.set(model.alias, trail);
    const last = trail.at(-1);
    if (last?.status === model.status) return;
    const t = Math.min(model.status_since ?? this.now(), this.now());
    trail.push({ t: Math.max(t, last?.t ?? 0), status: model.status });
    const horizon = this.now() - HISTORY_S;
    while (trail.length > 1 && trail[1].t < horizon) trail.shift();
  }

  /** @param {Status} before @param {Seen} model */
  #announce(before, model) {
    for (const event of this.events) if (event.alias === model.alias) event.live = false;
    const line = transition(before, model, this.lastLoad(model.alias));
    this.addEvent(model.alias, line.tone, line.text, line.live);
  }

  /** @param {Seen} model */
  #progress(model) {
    const event = this.events.find((candidate) => candidate.live && candidate.alias === model.alias);
    if (event) event.text = loadingText(model);
  }

  /** @param {string} alias @param {Tone} tone @param {string} text */
  addEvent(alias, tone, text, live = false) {
    this.events.unshift({ id: ++this.#eventId, t: this.now(), alias, tone, text, live });
    this.events.length = Math.min(this.events.length, MAX_EVENTS);
  }

  // --- what follows from it -----------------------------------------------------------------------

  /** @param {Seen} model @returns {View} */
  view(model, now = this.now()) {
    const since = model.status_since ?? now;
    const queue = this.queue?.per_model[model.alias];
    const waited = model.queue_depth ? queue?.oldest_wait_sec : null;
    return {
      now,
      age: now - since,
      loadStart: this.#loads.startOf(model.alias) ?? since,
      eta: this.#loads.eta(model, now),
      oldest: waited == null ? null : waited + Math.max(0, now - this.#queueAt),
      queue,
    };
  }

  /**
   * Seconds that its last load took, if this page saw it.
   * @param {string} alias
   */
  lastLoad(alias) {
    return this.#loads.lasted.get(alias);
  }

  /** @param {Seen} model @param {number} now */
  justLoaded(model, now) {
    return (
      model.status === "ready" && this.lastLoad(model.alias) != null && now - (model.status_since ?? 0) < 8
    );
  }

  // --- surviving a reload of the page -------------------------------------------------------------

  /** @param {Pick<Storage, "setItem">} storage */
  save(storage) {
    const { history, events } = this;
    const kept = {
      at: this.now(),
      history: [...history],
      events: events.slice(0, 50),
      loads: [...this.#loads.lasted],
    };
    storage.setItem(SAVED, JSON.stringify(kept));
  }

  /** @param {Pick<Storage, "getItem">} storage */
  restore(storage) {
    const kept = JSON.parse(storage.getItem(SAVED) ?? "null");
    if (!kept || this.now() - kept.at > HISTORY_S) return;
    this.history = new Map(kept.history);
    for (const trail of this.history.values()) trail.push({ t: kept.at, status: null });
    this.events = kept.events;
    for (const event of this.events) Object.assign(event, { id: ++this.#eventId, live: false });
    this.#loads.lasted = new Map(kept.loads);
  }
}
