// What the page knows: the router's latest picture, and the history that only this page keeps. No DOM.

import { isComing, isResident, loadingText, progressOf, transition } from "./words.js";

export const HISTORY_S = 15 * 60;
const MAX_EVENTS = 200;
const SAVED = "router.history";

export class Store {
  models = new Map(); // alias -> the router's fields, as they came
  server = {};
  devices = [];
  host = null; // its memory, for models that run there
  noGpu = null; // why there is none
  queue = null;
  history = new Map(); // alias -> [{t, status}], status null: not watched
  events = []; // newest first: {id, t, alias, tone, text, live}
  lastLoad = new Map(); // alias -> seconds
  admin = true; // false: may look, not touch
  connection = { state: "connecting", since: null, retryAt: null, error: null };
  #loads = new Map(); // alias -> {start, samples: [{t, p}]}
  #queueAt = 0;
  #offset = 0; // the router's clock minus this browser's
  #eventId = 0;
  #listeners = [];

  onChange(listener) {
    this.#listeners.push(listener);
  }

  #changed(...topics) {
    for (const listener of this.#listeners) listener(topics);
  }

  get connected() {
    return this.connection.state === "open";
  }

  list() {
    return [...this.models.values()];
  }

  /** Seconds on the router's clock; a phone's may be minutes off. */
  now() {
    return Date.now() / 1000 + this.#offset;
  }

  setClock(timestamp) {
    const unix = typeof timestamp === "number" ? timestamp : Date.parse(timestamp) / 1000;
    if (!Number.isFinite(unix)) return;
    const offset = unix - Date.now() / 1000;
    this.#offset = Math.abs(offset) < 2 ? 0 : offset;
  }

  // --- what the router says -------------------------------------------------------------------

  fullStatus(body) {
    this.server = body.server ?? {};
    this.serverSince = this.now() - (this.server.uptime_seconds ?? 0);
    const known = body.models ?? {};
    for (const alias of this.models.keys()) if (!(alias in known)) this.models.delete(alias);
    const ordered = new Map();
    for (const [alias, fields] of Object.entries(known)) {
      this.#apply(alias, fields, true);
      ordered.set(alias, this.models.get(alias));
    }
    this.models = ordered; // the configuration's order
    this.#changed("models");
  }

  modelUpdate({ alias, ...fields }) {
    if (!alias) return;
    this.#apply(alias, fields, false);
    this.#changed("models");
  }

  serverUpdate(body) {
    const before = this.server.status;
    this.server = { ...this.server, ...body };
    if (body.status === "stopping" && before !== "stopping") this.addEvent("", "wait", "the router is shutting down");
    this.#changed("server");
  }

  metrics(body) {
    this.setClock(body.timestamp);
    this.devices = body.devices ?? [];
    this.host = body.host ?? null;
    this.noGpu = body.reason ?? null;
    for (const [alias, fields] of Object.entries(body.models ?? {})) {
      const model = this.models.get(alias);
      // state comes from the status stream; a sample must not overwrite a newer event
      if (model) Object.assign(model, { tokens_per_second: fields.tokens_per_second, requests_total: fields.requests_total, errors_total: fields.errors_total });
    }
    if (body.queues) this.setQueue(body.queues);
    this.#changed("metrics");
  }

  setQueue(body) {
    this.queue = body;
    this.#queueAt = this.now();
    this.#changed("queue");
  }

  setConnection(next) {
    const before = this.connection;
    this.connection = { ...before, ...next, since: next.state === before.state ? before.since : this.now() };
    if (next.state === "closed" && before.state === "open") this.#lost();
    if (next.state === "open" && before.since && before.state === "closed") this.addEvent("", "ok", "connected to the router again");
    this.#changed("connection");
  }

  #lost() {
    this.addEvent("", "bad", "connection to the router lost");
    for (const trail of this.history.values()) trail.push({ t: this.now(), status: null });
  }

  // --- one model's change ---------------------------------------------------------------------

  #apply(alias, fields, full) {
    const old = this.models.get(alias);
    const model = full
      ? { tokens_per_second: old?.tokens_per_second, requests_total: old?.requests_total, errors_total: old?.errors_total, ...fields, alias }
      : { ...old, ...fields, alias };
    const moved = old !== undefined && old.status !== model.status;
    const since = moved && fields.status_since === old.status_since ? null : fields.status_since;
    model.status_since = since ?? (moved ? this.now() : model.status_since);
    this.models.set(alias, model);
    this.#remember(model);
    this.#follow(model);
    if (moved) this.#announce(old.status, model);
    else if (model.status === "loading") this.#progress(model);
  }

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

  #follow(model) {
    const load = this.#loads.get(model.alias);
    if (!isComing(model)) {
      if (load && model.status === "ready") this.lastLoad.set(model.alias, Math.max(0, (model.status_since ?? this.now()) - load.start));
      this.#loads.delete(model.alias);
      return;
    }
    const mine = load ?? { start: model.load_started ?? model.status_since ?? this.now(), samples: [] };
    this.#loads.set(model.alias, mine);
    const p = model.load_progress;
    if (p == null || p === mine.samples.at(-1)?.p) return;
    if (p < mine.samples.at(-1)?.p) mine.samples = []; // the next stage counts from zero again
    mine.samples.push({ t: this.now(), p });
  }

  #announce(before, model) {
    for (const event of this.events) if (event.alias === model.alias) event.live = false;
    const line = transition(before, model, { waiting: model.queue_depth ?? 0, loadSeconds: this.lastLoad.get(model.alias) });
    if (line) this.addEvent(model.alias, line.tone, line.text, line.live);
  }

  #progress(model) {
    const event = this.events.find((candidate) => candidate.live && candidate.alias === model.alias);
    if (event) event.text = loadingText(model);
  }

  addEvent(alias, tone, text, live = false) {
    this.events.unshift({ id: ++this.#eventId, t: this.now(), alias, tone, text, live });
    this.events.length = Math.min(this.events.length, MAX_EVENTS);
  }

  // --- what follows from it -------------------------------------------------------------------

  /** Times of one model, in seconds: how long in this state, how long to go, its longest waiter. */
  view(model, now = this.now()) {
    const since = model.status_since ?? this.history.get(model.alias)?.at(-1)?.t ?? now;
    const stats = this.queue?.per_model?.[model.alias];
    const waited = model.queue_depth ? stats?.oldest_wait_sec : null;
    return {
      now, since, age: now - since, loadStart: this.#loads.get(model.alias)?.start ?? since, eta: this.#eta(model, now),
      oldest: waited == null ? null : waited + Math.max(0, now - this.#queueAt),
    };
  }

  /** Time left at the speed seen so far; until there is a speed to speak of, by the time of the last load. */
  #eta(model, now) {
    const bySpeed = this.#etaBySpeed(model, now);
    if (bySpeed != null || !model.expected_load_sec || !isComing(model)) return bySpeed;
    return Math.max(0, model.expected_load_sec - (now - (this.#loads.get(model.alias)?.start ?? now)));
  }

  #etaBySpeed(model, now) {
    const samples = this.#loads.get(model.alias)?.samples ?? [];
    const [first, last] = [samples[0], samples.at(-1)];
    if (progressOf(model) == null || samples.length < 3 || last.t - first.t < 1.5 || last.p - first.p < 0.03) return null;
    const speed = (last.p - first.p) / (last.t - first.t);
    return Math.max(0, (1 - last.p) / speed - (now - last.t));
  }

  justLoaded(model, now) {
    return model.status === "ready" && this.lastLoad.has(model.alias) && now - (model.status_since ?? 0) < 8;
  }

  residents() {
    return this.list().filter(isResident);
  }

  // --- surviving a reload of the page ---------------------------------------------------------

  save() {
    const kept = { at: this.now(), history: [...this.history], events: this.events.slice(0, 50), lastLoad: [...this.lastLoad] };
    sessionStorage.setItem(SAVED, JSON.stringify(kept));
  }

  restore() {
    const kept = JSON.parse(sessionStorage.getItem(SAVED) ?? "null");
    if (!kept || this.now() - kept.at > HISTORY_S) return;
    this.history = new Map(kept.history.map(([alias, trail]) => [alias, [...trail, { t: kept.at, status: null }]]));
    this.events = kept.events.map((event) => ({ ...event, id: ++this.#eventId, live: false }));
    this.lastLoad = new Map(kept.lastLoad);
  }
}
