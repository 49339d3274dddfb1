// What the router sends, made up: a model in each state, and the events around it.

/** @import { FullStatus, Metrics, Model, ModelUpdate, Process, Queue } from "../../app/api/ui/shapes.js" */
/** @import { Seen } from "../../app/api/ui/store.js" */

export const T0 = 1_700_000_000;

/** @param {Partial<Model & Process>} fields @returns {Model & Process} */
export function model(fields = {}) {
  return {
    status: "off",
    kind: "chat",
    pinned: false,
    estimated_mb: null,
    reserved_mb: 0,
    measured_mb: null,
    keep_cache: "off",
    kept_tokens: null,
    kept_bytes: null,
    load_started: null,
    expected_load_sec: null,
    load_progress: null,
    load_stage: null,
    queue_depth: 0,
    by_priority: { high: 0, normal: 0, low: 0 },
    in_flight: 0,
    slots: 1,
    last_used: null,
    status_since: T0,
    waits_for: null,
    waits_until: null,
    stop_reason: null,
    stopped_for: null,
    error: null,
    warning: null,
    reason: "",
    port: null,
    pid: null,
    vram_mb: null,
    devices: [],
    health: null,
    ...fields,
  };
}

/** @param {string} alias @param {Partial<Model & Process>} fields @returns {ModelUpdate & Seen} */
export const update = (alias, fields) => ({ ...model(fields), alias });

/** @param {Record<string, Partial<Model & Process>>} models @returns {FullStatus} */
export function fullStatus(models) {
  const filled = Object.entries(models).map(([alias, fields]) => [alias, model(fields)]);
  return { server: { status: "ready", uptime_seconds: 5 }, models: Object.fromEntries(filled) };
}

/** @param {Partial<Queue>} fields @returns {Queue} */
export const queue = (fields = {}) => ({ oldest_wait_sec: 0, requests: [], progress: null, ...fields });

/** @param {Partial<Metrics>} fields @returns {Metrics} */
export function metrics(fields = {}) {
  const summary = { total_processed: 0, total_rejected: 0, total_cancelled: 0, total_timeouts: 0 };
  return {
    timestamp: T0,
    devices: [],
    host: null,
    reason: null,
    models: {},
    queues: { summary, per_model: {} },
    ...fields,
  };
}
