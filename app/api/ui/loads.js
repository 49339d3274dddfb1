// The loads that this page watches: since when, how fast, how long the last ones took. No DOM, no clock.

import { isComing, progressOf } from "./status.js";

/** @import { Seen } from "./store.js" */

/** @typedef {{ t: number, p: number }} Sample progress `p` from 0 to 1 at time `t` */

export class Loads {
  /** @type {Map<string, number>} seconds, by alias */
  lasted = new Map();
  /** @type {Map<string, { start: number, samples: Sample[] }>} those that go on, by alias */
  #current = new Map();

  /** @param {string} alias */
  startOf(alias) {
    return this.#current.get(alias)?.start;
  }

  /**
   * A model's news.
   * @param {Seen} model
   * @param {number} now
   */
  follow(model, now) {
    const { alias, status } = model;
    const since = model.status_since ?? now;
    const load = this.#current.get(alias);
    if (isComing(model)) {
      const { start, samples } = load ?? { start: model.load_started ?? since, samples: [] };
      this.#current.set(alias, { start, samples: sampled(samples, now, model.load_progress) });
      return;
    }
    if (load && status === "ready") this.lasted.set(alias, Math.max(0, since - load.start));
    this.#current.delete(alias);
  }

  /**
   * Seconds left at the speed seen so far; until there is a speed to speak of, by the time of the last load.
   * @param {Seen} model @param {number} now
   */
  eta(model, now) {
    const load = this.#current.get(model.alias);
    if (!load) return null;
    const bySpeed = progressOf(model) == null ? null : bySamples(load.samples, now);
    if (bySpeed != null || !model.expected_load_sec) return bySpeed;
    return Math.max(0, model.expected_load_sec - (now - load.start));
  }
}

/**
 * With the latest progress; the next stage of a load counts from zero again.
 * @param {Sample[]} samples @param {number} t @param {number | null} p
 */
function sampled(samples, t, p) {
  const last = samples.at(-1);
  if (p == null || p === last?.p) return samples;
  return last && p < last.p ? [{ t, p }] : [...samples, { t, p }];
}

/** @param {Sample[]} samples @param {number} now */
function bySamples(samples, now) {
  const [first, last] = [samples[0], samples.at(-1)];
  if (!last || samples.length < 3 || last.t - first.t < 1.5 || last.p - first.p < 0.03) return null;
  const speed = (last.p - first.p) / (last.t - first.t);
  return Math.max(0, (1 - last.p) / speed - (now - last.t));
}
