import assert from "node:assert/strict";
import test from "node:test";

import { HISTORY_S, Store } from "../../app/api/ui/store.js";
import { T0, fullStatus, metrics, queue, update } from "./models.js";

/** A store whose clock stands still until it is moved. */
function make() {
  const clock = { now: T0 };
  return { clock, store: new Store(() => clock.now) };
}

/** @param {Store} store @param {string} alias */
function known(store, alias) {
  const model = store.models.get(alias);
  assert.ok(model);
  return model;
}

/** @param {Store} store */
const texts = (store) => store.events.map((event) => event.text);

test("a fresh picture replaces the models, in its order, and keeps what was counted", () => {
  const { store } = make();
  store.fullStatus(fullStatus({ a: {}, b: {} }));
  const figures = { requests_total: 7, errors_total: 1, tokens_per_second: 12 };
  store.metrics(metrics({ models: { b: figures, gone: figures } }));
  store.fullStatus(fullStatus({ c: {}, b: {} }));
  assert.deepEqual([...store.models.keys()], ["c", "b"]);
  assert.equal(known(store, "b").requests_total, 7);
  assert.equal(known(store, "c").requests_total, undefined);
});

test("a sample of the figures changes no state", () => {
  const { store } = make();
  store.fullStatus(fullStatus({ a: {} }));
  store.modelUpdate(update("a", { status: "starting" }));
  const sample = { requests_total: 1, errors_total: 0, tokens_per_second: null, status: "off" };
  store.metrics(metrics({ models: { a: sample } }));
  assert.equal(known(store, "a").status, "starting");
});

test("each change of status is one event, a load's progress is none of its own", () => {
  const { store, clock } = make();
  store.fullStatus(fullStatus({ a: {} }));
  assert.equal(store.events.length, 0, "what is so already did not happen now");
  store.modelUpdate(update("a", { status: "starting", reason: "requested" }));
  store.modelUpdate(update("a", { status: "loading", load_progress: 0.25 }));
  store.modelUpdate(update("a", { status: "loading", load_progress: 0.5 }));
  assert.deepEqual(texts(store), ["loading, 50\u00a0%", "starting (requested)"]);
  clock.now += 4;
  store.modelUpdate(update("a", { status: "ready", status_since: clock.now, vram_mb: 2048 }));
  assert.equal(store.events[0].text, "ready after 4 s using 2.0\u00a0GB");
  assert.deepEqual(
    store.events.map((event) => event.live),
    [false, false, false],
  );
});

test("the time that is left follows the speed, and until there is one the last load", () => {
  const { store, clock } = make();
  store.fullStatus(fullStatus({ a: {} }));
  const load = { load_started: T0, expected_load_sec: 10, status: /** @type {const} */ ("loading") };
  const at = (/** @type {number} */ t, /** @type {number | null} */ p) => {
    clock.now = T0 + t;
    store.modelUpdate(update("a", { ...load, load_progress: p }));
    return store.view(known(store, "a")).eta;
  };
  assert.equal(at(0, null), 10);
  assert.equal(at(1, 0.1), 9);
  assert.equal(at(2, 0.2), 8);
  assert.equal(Math.round(at(3, 0.3) ?? 0), 7);
  assert.equal(Math.round(at(4, 0.6) ?? 0), 2);
  assert.equal(at(5, 0.05), 5, "the next stage counts from zero again");
  at(6, 0.15);
  assert.equal(Math.round(at(7, 0.25) ?? 0), 8);
});

test("the longest wait goes on between two samples", () => {
  const { store, clock } = make();
  store.fullStatus(fullStatus({ a: { queue_depth: 1 } }));
  const { summary } = metrics().queues;
  store.metrics(metrics({ queues: { summary, per_model: { a: queue({ oldest_wait_sec: 3 }) } } }));
  clock.now += 1.5;
  assert.equal(store.view(known(store, "a")).oldest, 4.5);
  store.modelUpdate(update("a", { queue_depth: 0 }));
  assert.equal(store.view(known(store, "a")).oldest, null);
});

test("times are those of the router's clock, if this one is off", () => {
  const { store } = make();
  store.metrics(metrics({ timestamp: T0 + 300 }));
  assert.equal(store.now(), T0 + 300);
  store.metrics(metrics({ timestamp: T0 + 1 }));
  assert.equal(store.now(), T0, "a second is the way here, not the clock");
});

test("a lost connection is a gap in what is known, and told once", () => {
  const { store, clock } = make();
  store.fullStatus(fullStatus({ a: { status: "ready" } }));
  store.setConnection({ state: "open" });
  clock.now += 10;
  store.setConnection({ state: "closed", error: new Error("gone"), retryAt: 0 });
  clock.now += 5;
  store.setConnection({ state: "closed", error: new Error("gone"), retryAt: 0 });
  assert.equal(store.connection.since, T0 + 10);
  assert.deepEqual(store.history.get("a")?.at(-1), { t: T0 + 10, status: null });
  store.setConnection({ state: "open" });
  assert.deepEqual(texts(store), ["connected to the router again", "connection to the router lost"]);
});

test("the end of the router is told once", () => {
  const { store } = make();
  store.fullStatus(fullStatus({}));
  store.serverUpdate({ status: "stopping", uptime_seconds: 6 });
  store.serverUpdate({ status: "stopping", uptime_seconds: 7 });
  assert.deepEqual(texts(store), ["the router is shutting down"]);
});

test("a reload of the page keeps what it saw, for as long as that is shown", () => {
  const { store, clock } = make();
  store.fullStatus(fullStatus({ a: {} }));
  store.modelUpdate(update("a", { status: "starting", load_started: T0 }));
  store.modelUpdate(update("a", { status: "ready", status_since: T0 + 2 }));
  const saved = new Map();
  store.save({ setItem: (key, value) => saved.set(key, value) });
  const again = new Store(() => clock.now);
  again.restore({ getItem: (key) => saved.get(key) ?? null });
  assert.deepEqual(texts(again), texts(store));
  assert.equal(again.lastLoad("a"), 2);
  assert.deepEqual(
    again.history.get("a")?.map((entry) => entry.status),
    ["off", "starting", "ready", null],
  );
  const late = new Store(() => clock.now + HISTORY_S + 1);
  late.restore({ getItem: (key) => saved.get(key) ?? null });
  assert.deepEqual(late.events, []);
});

test("history and events do not grow for ever", () => {
  const { store, clock } = make();
  store.fullStatus(fullStatus({ a: {} }));
  for (let i = 0; i < 400; i++) {
    clock.now += 10;
    store.modelUpdate(update("a", { status: i % 2 ? "off" : "ready", status_since: clock.now }));
  }
  assert.equal(store.events.length, 200);
  assert.ok((store.history.get("a")?.length ?? 0) <= HISTORY_S / 10 + 2);
});
