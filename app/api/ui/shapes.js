// What the router sends as JSON, as types for `tsc`; the browser never reads this file.
// tests/e2e/test_page_shapes.py holds each of them against real answers.

/** @typedef {"off" | "starting" | "loading" | "ready" | "stopping" | "crashed" | "failed"} Status */
/** @typedef {"memory" | "count" | "idle" | "manual" | "config" | "shutdown"} StopReason */
/** @typedef {"high" | "normal" | "low"} Level */
/** @typedef {Record<Level, number>} ByLevel */

/**
 * What a model holds of one device: a reservation while it loads, then what it was given.
 * @typedef {object} Place
 * @property {number | string} index "host", or the number of a GPU
 * @property {number} used_mb
 */

/**
 * One model. Times are Unix seconds.
 * @typedef {object} Model
 * @property {Status} status
 * @property {"chat" | "embedding" | "rerank"} kind
 * @property {boolean} pinned
 * @property {number | null} estimated_mb
 * @property {number} reserved_mb
 * @property {number | null} measured_mb
 * @property {"off" | "ram" | "disk"} keep_cache
 * @property {number | null} kept_tokens
 * @property {number | null} kept_bytes
 * @property {number | null} load_started
 * @property {number | null} expected_load_sec
 * @property {number | null} load_progress from 0 to 1
 * @property {string | null} load_stage
 * @property {number} queue_depth
 * @property {ByLevel} by_priority
 * @property {number} in_flight
 * @property {number} slots
 * @property {number | null} last_used null: never
 * @property {number | null} status_since
 * @property {string[] | null} waits_for
 * @property {number | null} waits_until
 * @property {StopReason | null} stop_reason
 * @property {string | null} stopped_for
 * @property {string | null} error
 * @property {string | null} warning what is not as it was meant, though it serves
 * @property {string} reason
 */

/**
 * What a model has only while it has a process.
 * @typedef {object} Process
 * @property {number | null} port
 * @property {number | null} pid
 * @property {number | null} vram_mb 0 on the CPU
 * @property {Place[]} devices
 * @property {string | null} health
 */

/**
 * @typedef {object} Server
 * @property {"starting" | "ready" | "stopping"} status
 * @property {number} uptime_seconds
 */

/**
 * The event `full_status`, and the answer of /v1/models/status.
 * @typedef {object} FullStatus
 * @property {Server} server
 * @property {Record<string, Model & Partial<Process>>} models
 */

/**
 * The event `model_update`: the fields of a process are there and null without one.
 * @typedef {Model & Process & { alias: string }} ModelUpdate
 */

/**
 * @typedef {object} Device
 * @property {number | string} index
 * @property {string} name
 * @property {number} total_mb
 * @property {number} used_mb
 * @property {number} free_mb
 * @property {number} others_mb what other programs use
 */

/**
 * @typedef {object} QueueSums
 * @property {number} total_processed
 * @property {number} total_rejected
 * @property {number} total_cancelled
 * @property {number} total_timeouts
 */

/**
 * Tokens are null where nobody knows them.
 * @typedef {object} Tokens
 * @property {number | null} prompt_tokens
 * @property {number | null} prompt_read
 * @property {number | null} generated
 */

/**
 * A request in a slot, since then.
 * @typedef {Tokens & { since: number }} Running
 */

/**
 * @typedef {object} Queue
 * @property {number} oldest_wait_sec
 * @property {Running[]} requests the longest first
 * @property {(Tokens & { seen: number }) | null} progress of all slots together, when they were seen last
 */

/**
 * @typedef {object} Queues
 * @property {QueueSums} summary
 * @property {Record<string, Queue>} per_model
 */

/**
 * What /metrics/stream counts for a model.
 * @typedef {object} Figures
 * @property {number} requests_total
 * @property {number} errors_total
 * @property {number | null} tokens_per_second of the last answer
 */

/**
 * The event `metrics`.
 * @typedef {object} Metrics
 * @property {number} timestamp
 * @property {Device[]} devices the GPUs
 * @property {Device | null} host
 * @property {string | null} reason why there is no GPU
 * @property {Record<string, Figures>} models
 * @property {Queues} queues
 */

/**
 * The answer of /v1/models/{alias}/plan.
 * @typedef {object} Plan
 * @property {Status} status
 * @property {boolean} fits
 * @property {{ index: number | string, need_mb: number, free_mb: number }[]} devices
 * @property {string[]} evicts
 * @property {number | null} estimate_mb
 * @property {number | null} measured_mb
 * @property {string} reason
 */

/**
 * The answer of /session.
 * @typedef {object} Session
 * @property {boolean} key_needed
 * @property {boolean} logged_in
 * @property {string} name
 * @property {boolean} admin
 */

/**
 * What eject and reset answer.
 * @typedef {object} Told
 * @property {string} message
 */

/** @typedef {{ error: { message: string } }} Refusal */

export {};
