// One model in words: its state, why it is so, and what its changes mean. Pure; no DOM, no clock.

import { bytes, count, duration, list, memory, number, percent, present } from "./format.js";

/** @import { Level, Running, Status, Tokens } from "./shapes.js" */
/** @import { Seen, View } from "./store.js" */

/** @typedef {"ok" | "busy" | "wait" | "bad" | "off"} Tone */
/** @typedef {{ tone: Tone, text: string, live?: boolean }} Line an entry of the event list */

/** @type {Level[]} */
export const LEVELS = ["high", "normal", "low"];

/** @type {Record<Status, { label: string, tone: Tone }>} */
const STATUS = {
  off: { label: "Off", tone: "off" },
  starting: { label: "Starting", tone: "busy" },
  loading: { label: "Loading", tone: "busy" },
  ready: { label: "Ready", tone: "ok" },
  stopping: { label: "Stopping", tone: "wait" },
  crashed: { label: "Crashed", tone: "bad" },
  failed: { label: "Failed", tone: "bad" },
};

/** @param {Status} status */
export const labelOf = (status) => STATUS[status].label;
/** @param {Status} status */
export const toneOf = (status) => STATUS[status].tone;

/** @type {Status[]} */
const WITH_PROCESS = ["starting", "loading", "ready", "stopping"];

/** @param {{ status: Status }} model */
export const isResident = (model) => WITH_PROCESS.includes(model.status);

/** @param {{ status: Status }} model */
export const isComing = (model) => model.status === "starting" || model.status === "loading";

/**
 * Tokens per second of the models that answer now; a model keeps the figure of its last answer.
 * @param {Seen[]} models
 */
export const speedNow = (models) =>
  models.reduce((sum, model) => sum + (model.in_flight ? (model.tokens_per_second ?? 0) : 0), 0);

/** @param {Seen} model */
export function stopReason(model) {
  if (model.stopped_for) return `to make room for ${model.stopped_for}`;
  if (model.stop_reason === "idle") return "after being idle";
  return model.reason ? `(${model.reason})` : "";
}

/**
 * What is kept of a model's conversations over a swap; null where nothing is.
 * @param {Seen} model
 */
export function kept(model) {
  if (model.keep_cache === "off") return null;
  const place = model.keep_cache === "ram" ? "in memory" : "on disk";
  if (!model.kept_tokens) return `${place}, nothing yet`;
  return `${number(model.kept_tokens)} tokens ${place} (${bytes(model.kept_bytes ?? 0)})`;
}

/**
 * The part of a load that is known; null when nothing is, or when what is known is over and it still loads.
 * @param {Seen} model
 */
export function progressOf({ status, load_progress }) {
  return status === "loading" && load_progress != null && load_progress < 1 ? load_progress : null;
}

/** @type {Record<string, string>} */
const STAGES = {
  text_model: "reading the weights",
  weights: "reading the weights",
  mmproj_model: "reading the image encoder",
  context: "preparing its context",
  "warm-up": "warming up",
};

/** @param {Seen} model */
export function stageText({ load_stage, load_progress }) {
  if (!load_stage) return "";
  const text = STAGES[load_stage] ?? load_stage.replaceAll("_", " ");
  return load_progress === 1 && text === STAGES.weights ? "preparing the weights" : text;
}

/** @param {Seen} model */
export function loadingText(model) {
  const progress = progressOf(model);
  return progress == null ? "loading" : `loading, ${percent(progress)}`;
}

// --- its changes ----------------------------------------------------------------------------------

/** @param {string} text @param {string | null} why */
const because = (text, why) => (why ? `${text} (${why})` : text);
/** @param {string} text @param {Seen} model */
const withError = (text, model) => (model.error ? `${text}: ${model.error}` : text);

/**
 * One line of the event list for a change of status.
 * @param {Status} before
 * @param {Seen} model
 * @param {number} [loadSeconds]
 * @returns {Line}
 */
export function transition(before, model, loadSeconds) {
  switch (model.status) {
    case "starting":
      return { tone: "busy", text: startText(before, model) };
    case "loading":
      return { tone: "busy", text: loadingText(model), live: true };
    case "ready":
      return { tone: "ok", text: readyText(model, loadSeconds) };
    case "stopping":
      return { tone: "wait", text: `stopping ${stopReason(model)}`.trim() };
    case "crashed":
      return { tone: "bad", text: withError("crashed, restarting", model) };
    case "failed":
      return { tone: "bad", text: withError("failed", model) };
    case "off":
      return { tone: "off", text: offText(before, model) };
  }
}

/** @param {Status} before @param {Seen} model */
function startText(before, model) {
  if (before === "crashed") return "starting again after the crash";
  if (model.queue_depth) return `starting, ${count(model.queue_depth, "request")} waiting for it`;
  return because("starting", model.reason);
}

/** @param {Seen} model @param {number} [loadSeconds] */
function readyText(model, loadSeconds) {
  const after = loadSeconds && `after ${duration(loadSeconds)}`;
  return present(["ready", after, model.vram_mb && `using ${memory(model.vram_mb)}`]).join(" ");
}

/** @param {Status} before @param {Seen} model */
function offText(before, model) {
  if (before === "failed") return "reset, it may be loaded again";
  return before === "stopping" ? "stopped, its memory is free" : because("off", model.reason);
}

// --- its state ------------------------------------------------------------------------------------

/**
 * The second line of a model's status: why it is as it is, or for how long.
 * @param {Seen} model
 * @param {View} view
 * @returns {string}
 */
export function statusNote(model, view) {
  switch (model.status) {
    case "starting":
      return "process is starting";
    case "loading":
      return present([stageText(model), view.eta != null && `about ${duration(view.eta)} left`]).join(", ");
    case "ready":
      return readyNote(model, view);
    case "stopping":
      return present([stopReason(model), running(model)]).join(", ");
    case "crashed":
    case "failed":
      return model.error ?? model.reason;
    case "off":
      return offNote(model);
  }
}

/** @param {Seen} model */
const running = (model) => model.in_flight && `${count(model.in_flight, "request")} still running`;

/** @param {Seen} model @param {View} view */
function readyNote(model, view) {
  if (model.warning) return model.warning;
  if (model.in_flight) return `answering ${count(model.in_flight, "request")}${longest(model, view)}`;
  if (model.queue_depth) return `up ${duration(view.age)}`;
  if (model.last_used) return `idle ${duration(view.now - model.last_used)}`;
  return `up ${duration(view.age)}, not used yet`;
}

const WORTH_TELLING_S = 5;

/** @param {Seen} model @param {View} view */
function longest(model, { now, queue }) {
  const first = queue?.requests[0];
  if (!first || now - first.since < WORTH_TELLING_S) return "";
  return `${model.in_flight > 1 ? ", the longest" : ""} ${requestText(first, now)}`;
}

/** @param {Running} request @param {number} now */
function requestText(request, now) {
  const tokens = tokensText(request);
  return `for ${duration(now - request.since)}${tokens && `: ${tokens}`}`;
}

/**
 * How far a generation is, as far as that is known.
 * @param {Tokens} of
 */
export function tokensText({ prompt_tokens, prompt_read, generated }) {
  if (generated) return count(generated, "token");
  if (prompt_tokens && prompt_read != null)
    return `${number(prompt_read)} of ${count(prompt_tokens, "prompt token")} read`;
  return "";
}

/**
 * Each request that is answered; where it is not known which is how far, all of them together.
 * @param {View} view
 */
export function work({ now, queue }) {
  if (!queue?.requests.length) return null;
  const each = queue.requests.map((request) => requestText(request, now)).join("; ");
  const isKnown = queue.requests.some(tokensText);
  const together = !isKnown && queue.progress ? tokensText(queue.progress) : "";
  return together ? `${each}; together ${together}` : each;
}

/** @param {Seen} model */
function offNote(model) {
  if (model.queue_depth) return `waiting for ${model.waits_for?.length ? list(model.waits_for) : "room"}`;
  const reason = stopReason(model);
  return reason && `stopped ${reason}`;
}

/**
 * Who waits for a model, null when nobody does.
 * @param {Seen} model
 * @param {number | null} oldest seconds that the longest has waited
 */
export function waiters(model, oldest) {
  const waiting = model.queue_depth;
  if (!waiting) return null;
  const verb = waiting === 1 ? "is" : "are";
  const since = oldest == null ? "" : `, ${waiting === 1 ? "" : "the longest "}for ${duration(oldest)} now`;
  return `${count(waiting, "request")}${mix(model)} ${verb} waiting for it${since}`;
}

/** @param {Seen} model */
function mix({ by_priority }) {
  const levels = LEVELS.filter((level) => by_priority[level]);
  if (!levels.length || (levels.length === 1 && by_priority.normal)) return "";
  return ` (${levels.map((level) => `${by_priority[level]} ${level}`).join(", ")})`;
}
