// Making room: who went for a model, who is in its way, and how far it has come. Pure; no DOM, no clock.

import { count, duration, list, present } from "./format.js";
import { isComing, kept, stageText } from "./status.js";

/** @import { Status } from "./shapes.js" */
/** @import { Seen, Store } from "./store.js" */

/** @typedef {{ name: string, detail: string, state: "done" | "current" | "todo" }} Step */

/**
 * Who went for this model since it was last seen without a process; an earlier time is another story.
 * @param {Store} store @param {Seen} model @param {number} now
 */
export function departed(store, model, now) {
  const trail = store.history.get(model.alias) ?? [];
  const idle = trail.findLast((entry) => entry.status && !isComing({ status: entry.status }));
  const before = idle?.t ?? store.view(model, now).loadStart - 30;
  return store
    .list()
    .filter((other) => other.stopped_for === model.alias)
    .filter((other) => ["stopping", "off"].includes(other.status) && (other.status_since ?? 0) > before);
}

/** @type {Status[]} */
const WAY = ["off", "starting", "loading", "ready"];

/** @param {Seen} model @param {Seen[]} room @returns {Step[]} */
export function steps(model, room) {
  const at = WAY.indexOf(model.status);
  const all = [
    { name: "Make room", detail: list(room.map((other) => other.alias)), skip: !room.length && at > 0 },
    { name: "Start", detail: "process" },
    { name: "Load", detail: (at === 2 && stageText(model)) || "into memory" },
    { name: "Answer", detail: model.queue_depth ? count(model.queue_depth, "request") : "ready" },
  ];
  return all
    .map(({ name, detail, skip }, i) => ({ name, detail, skip, state: stateOf(i, at) }))
    .filter((step) => !step.skip);
}

/** @param {number} step @param {number} at @returns {Step["state"]} */
function stateOf(step, at) {
  if (step === at) return "current";
  return step < at ? "done" : "todo";
}

/**
 * Why there was not room for both.
 * @param {Seen} model
 */
const noRoom = (model) =>
  model.stop_reason === "count"
    ? "only so many models may be loaded at once (max_concurrent_models)"
    : "there is not enough free memory for both";

/**
 * Who went, why, and what becomes of what was said to it.
 * @param {Seen} model
 */
export function departure(model) {
  const back = model.kept_tokens && kept(model) ? ` Its conversations are kept: ${kept(model)}.` : "";
  return `${model.alias} had to stop: ${noRoom(model)}.${back}`;
}

/** @param {Seen} model */
function leaving(model) {
  const running = model.in_flight && `; ${count(model.in_flight, "running request")} may finish first`;
  const saved = kept(model) ? "; what was said to it is saved first" : "";
  return `${model.alias} is stopping, because ${noRoom(model)}${running || saved}.`;
}

/**
 * Why a model that will have to go is still there.
 * @param {Seen} other @param {Seen} model @param {number} now
 */
function holding(other, model, now) {
  const left = model.waits_until == null ? 0 : model.waits_until - now;
  const limit = left > 0.5 ? ` for at most ${duration(left)} more` : "";
  const place = `It takes the place of ${other.alias}`;
  const rule = "Running requests are never cut off.";
  if (other.queue_depth) {
    const own = count(other.queue_depth, "waiting request");
    return `${place}, which goes on with its own ${own} first${limit}. ${rule}`;
  }
  if (other.in_flight) {
    const more = limit && ` and takes new ones${limit}`;
    return `${place}, which still answers ${count(other.in_flight, "request")}${more}. ${rule}`;
  }
  return `${place}${isComing(other) ? ", which is loading for a request of its own first" : ""}.`;
}

/**
 * What a waiting model waits for, as far as the picture shows it.
 * @param {Store} store @param {Seen} model @param {Seen[]} room @param {number} now
 * @returns {string[]}
 */
export function blockers(store, model, room, now) {
  const going = room.filter((other) => other.status === "stopping");
  if (going.length) return going.map(leaving);
  const wanted = present((model.waits_for ?? []).map((alias) => store.models.get(alias)));
  if (wanted.length) return wanted.map((other) => holding(other, model, now));
  return othersFirst(store.list(), model);
}

/** @param {Seen[]} models @param {Seen} model @returns {string[]} */
function othersFirst(models, model) {
  const ahead = models.filter((other) => other !== model && other.waits_for?.length);
  if (ahead.length) {
    const first = ahead.length > 1 ? "come first" : "comes first";
    return [`${named(ahead)} ${first}: with requests that are more urgent or have waited longer.`];
  }
  const loading = models.filter(isComing);
  if (loading.length) return [`${named(loading)} ${loading.length > 1 ? "are" : "is"} loading first.`];
  const busy = models.filter((other) => other.status === "ready" && other.in_flight && !other.pinned);
  if (!busy.length) return [];
  const running = count(
    busy.reduce((sum, other) => sum + other.in_flight, 0),
    "request",
  );
  const answer = busy.length > 1 ? "answer" : "answers";
  return [`${named(busy)} still ${answer} ${running}; running requests are never cut off.`];
}

/** @param {Seen[]} models */
const named = (models) => list(models.map((model) => model.alias));
