// What is going on, as topics for the headline and the title. Pure: the store in, words out; no DOM, no clock.

import { count, duration, percent, present, sentence, speed, took } from "./format.js";
import { blockers, departed, departure, steps } from "./making_room.js";
import { isComing, kept, progressOf, speedNow, stopReason, waiters } from "./status.js";

/** @import { Status } from "./shapes.js" */
/** @import { Step } from "./making_room.js" */
/** @import { Tone } from "./status.js" */
/** @import { Seen, Store } from "./store.js" */

/** @typedef {{ value: string, label: string }} Fact */

/**
 * `verb`, the model's name and `tail` are its title. Without a `progress` there is no bar; null: it is unknown.
 * @typedef {object} Topic
 * @property {string} key
 * @property {Tone} tone
 * @property {string} [verb]
 * @property {string} [alias]
 * @property {string} [tail]
 * @property {string[]} lines
 * @property {Fact[]} facts
 * @property {number | null} [progress]
 * @property {Step[]} [steps]
 * @property {boolean} [broken]
 */

/**
 * What is going on, the current work first; never empty.
 * @param {Store} store
 * @param {number} now
 * @returns {Topic[]}
 */
export function story(store, now) {
  const models = store.list();
  const inState = (/** @type {Status} */ status) => models.filter((model) => model.status === status);
  const coming = models.filter(isComing);
  const waiting = inState("off").filter((model) => model.queue_depth);
  const explained = new Set([...coming, ...waiting].map((model) => model.alias));
  const leaving = inState("stopping").filter((model) => !explained.has(model.stopped_for ?? ""));
  const topics = [
    ...coming.map((model) => comingTopic(store, model, now)),
    ...waiting.map((model) => waitingTopic(store, model, now)),
    ...leaving.map((model) => stoppingTopic(store, model, now)),
    ...models.filter((model) => store.justLoaded(model, now)).map((model) => readyTopic(store, model)),
    ...inState("crashed").map((model) => brokenTopic(store, model, now)),
  ];
  if (!topics.length) topics.push(quietTopic(models));
  return [...topics, ...failedTopics(store, inState("failed"), now)];
}

/**
 * For the tab: the one thing worth knowing when the page is in the background.
 * @param {Store} store
 */
export function title(store) {
  if (!store.connected) return "Disconnected · Router";
  const models = store.list();
  const coming = models.find(isComing);
  const progress = coming && progressOf(coming);
  if (coming) return `${progress == null ? "…" : percent(progress)} ${coming.alias} · Router`;
  const broken = models.filter((model) => model.status === "failed").length;
  const ready = models.filter((model) => model.status === "ready").length;
  return broken ? `⚠ ${broken} failed · Router` : `${ready} ready · Router`;
}

// --- one model ------------------------------------------------------------------------------------

/** @param {Store} store @param {Seen} model @param {number} now @returns {Topic} */
function comingTopic(store, model, now) {
  const view = store.view(model, now);
  const room = departed(store, model, now);
  const waiting = waiters(model, view.oldest);
  const nobody = model.reason ? `Reason: ${model.reason}` : "Nobody is waiting for it yet";
  const progress = progressOf(model);
  return {
    key: model.alias,
    tone: "busy",
    verb: model.status === "starting" ? "Starting" : "Loading",
    alias: model.alias,
    tail: progress == null ? "" : percent(progress),
    lines: [...room.map(departure), sentence(waiting ?? nobody)],
    facts: present([
      { value: duration(now - view.loadStart), label: "so far" },
      view.eta != null && view.eta > 0 && { value: `≈ ${duration(view.eta)}`, label: "left" },
      model.expected_load_sec && { value: took(model.expected_load_sec), label: "last time" },
      model.queue_depth && { value: String(model.queue_depth), label: "waiting" },
    ]),
    progress,
    steps: steps(model, room),
  };
}

/** @param {Store} store @param {Seen} model @param {number} now @returns {Topic} */
function waitingTopic(store, model, now) {
  const { oldest } = store.view(model, now);
  const room = departed(store, model, now);
  return {
    key: model.alias,
    tone: "wait",
    verb: room.length ? "Making room for" : "",
    alias: model.alias,
    tail: room.length ? "" : "waits for room",
    lines: [...blockers(store, model, room, now), sentence(waiters(model, oldest) ?? "")],
    facts: present([
      { value: String(model.queue_depth), label: "waiting" },
      oldest != null && { value: duration(oldest), label: "longest wait" },
      model.expected_load_sec && { value: took(model.expected_load_sec), label: "to load, last time" },
    ]),
    steps: room.length ? steps(model, room) : undefined,
  };
}

/** @param {Store} store @param {Seen} model @param {number} now @returns {Topic} */
function brokenTopic(store, model, now) {
  const failed = model.status === "failed";
  const waiting = waiters(model, store.view(model, now).oldest);
  return {
    key: model.alias,
    tone: "bad",
    alias: model.alias,
    tail: failed ? "has failed" : "crashed, restarting",
    lines: present([
      sentence(model.error || model.reason || "No error text; see the log"),
      failed
        ? "It gets no requests until you reset it, or until its file or configuration changes."
        : "The router starts it again by itself.",
      waiting && sentence(waiting),
    ]),
    facts: [{ value: duration(store.view(model, now).age), label: "ago" }],
    broken: failed,
  };
}

/** @param {Store} store @param {Seen} model @returns {Topic} */
function readyTopic(store, model) {
  const running = model.in_flight && `It is answering ${count(model.in_flight, "request")}.`;
  return {
    key: model.alias,
    tone: "ok",
    alias: model.alias,
    tail: "is ready",
    lines: [running || "It can answer now."],
    facts: [{ value: took(store.lastLoad(model.alias) ?? 0), label: "to load" }],
  };
}

/** @param {Store} store @param {Seen} model @param {number} now @returns {Topic} */
function stoppingTopic(store, model, now) {
  const saved = kept(model) ? "What was said to it is saved, then its memory is given back." : "";
  const running = model.in_flight && `${count(model.in_flight, "running request")} may finish first.`;
  return {
    key: model.alias,
    tone: "wait",
    verb: "Stopping",
    alias: model.alias,
    tail: stopReason(model),
    lines: [running || saved || "Its memory is being given back."],
    facts: [{ value: duration(store.view(model, now).age), label: "so far" }],
  };
}

// --- all of them ----------------------------------------------------------------------------------

/** @param {Seen[]} models @returns {Topic} */
function quietTopic(models) {
  const ready = models.filter((model) => model.status === "ready").length;
  const running = models.reduce((sum, model) => sum + model.in_flight, 0);
  const tokens = speedNow(models);
  const able = `${count(ready, "model")} of ${models.length} can answer at once; nobody has to wait.`;
  return {
    key: "",
    tone: "ok",
    verb: running ? `Answering ${count(running, "request")}` : "All quiet",
    lines: [ready ? able : "No model is in memory. The first request loads the one it asks for."],
    facts: present([
      { value: String(ready), label: "ready" },
      { value: String(running), label: "in flight" },
      tokens > 0 && { value: speed(tokens), label: "tokens/s" },
    ]),
  };
}

/** @param {Store} store @param {Seen[]} failed @param {number} now @returns {Topic[]} */
function failedTopics(store, failed, now) {
  if (failed.length < 3) return failed.map((model) => brokenTopic(store, model, now));
  const lines = failed.map((model) => `${model.alias}: ${model.error || model.reason || "no error text"}`);
  return [
    { key: " failed", tone: "bad", verb: `${failed.length} models`, tail: "have failed", lines, facts: [] },
  ];
}
