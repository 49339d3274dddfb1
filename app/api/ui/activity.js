// Who waits, which models were in memory, and what happened.

import { Children, h, setAttribute, setChildren, setText, setVars, the } from "./dom.js";
import { clock, duration, number } from "./format.js";
import { colour } from "./models.js";
import { LEVELS, labelOf } from "./status.js";
import { HISTORY_S } from "./store.js";

/** @import { Level, Status } from "./shapes.js" */
/** @import { Entry, Event, Seen, Store } from "./store.js" */

export class QueueView {
  /** @param {Element} root @param {Store} store */
  constructor(root, store) {
    this.store = store;
    this.sums = the(root, ".sums");
    const nobody = h("p", { class: "muted" }, "Nobody is waiting.");
    /** @type {Children<Seen, ReturnType<typeof queued>>} */
    this.rows = new Children(the(root, ".waiting"), (model) => model.alias, queued, nobody);
  }

  /** @param {number} now */
  render(now) {
    const waiting = this.store.list().filter((model) => model.queue_depth);
    const most = Math.max(1, ...waiting.map((model) => model.queue_depth));
    this.rows.show(waiting, (row, model) => this.#update(row, model, most, now));
    setText(this.sums, this.#summary());
  }

  /** @param {ReturnType<typeof queued>} row @param {Seen} model @param {number} most @param {number} now */
  #update({ name, since, bar }, model, most, now) {
    const { oldest } = this.store.view(model, now);
    const levels = LEVELS.filter((level) => model.by_priority[level]);
    /** @param {Level} level */
    const text = (level) => `${model.by_priority[level]} ${level}`;
    setChildren(
      name,
      h("span", { class: "swatch", vars: { "--c": colour(this.store, model.alias) } }),
      model.alias,
    );
    setText(since, oldest == null ? "" : `longest ${duration(oldest)}`);
    setAttribute(bar, "aria-label", levels.map(text).join(", "));
    setChildren(
      bar,
      levels.map((level) =>
        h("span", { class: level, vars: { "--share": model.by_priority[level] / most } }, text(level)),
      ),
    );
  }

  #summary() {
    const sums = this.store.queue?.summary;
    if (!sums) return "";
    return [
      `Since the start: ${number(sums.total_processed)}\u00a0served`,
      `${number(sums.total_rejected)}\u00a0rejected`,
      `${number(sums.total_timeouts)}\u00a0timed\u00a0out`,
      `${number(sums.total_cancelled)}\u00a0cancelled`,
    ].join(", ");
  }
}

function queued() {
  const name = h("span", { class: "who" });
  const since = h("span", { class: "since" });
  const bar = h("div", { class: "mixbar", role: "img" });
  return { root: h("div", { class: "queued" }, name, since, bar), name, since, bar };
}

// --- in memory ------------------------------------------------------------------------------------

const WINDOWS = [180, 300, 600, HISTORY_S];

/**
 * The shortest window that shows everything this page has seen, so that a first visit is no empty strip.
 * @param {Entry[][]} trails @param {number} now
 */
export function windowFor(trails, now) {
  const seen = trails.flat().filter((entry) => entry.status);
  const earliest = Math.min(now, ...seen.map((entry) => entry.t));
  return WINDOWS.find((seconds) => now - earliest < seconds) ?? HISTORY_S;
}

/** @typedef {{ status: Status, from: number, to: number }} Span */

/**
 * The states of one model inside the window.
 * @param {Entry[]} trail @param {number} from @param {number} now
 * @returns {Span[]}
 */
export function spans(trail, from, now) {
  return trail.flatMap(({ t, status }, i) => {
    const span = { from: Math.max(from, t), to: trail[i + 1]?.t ?? now };
    return status && status !== "off" && span.to > span.from ? [{ status, ...span }] : [];
  });
}

/** @param {Span} span */
const spanText = (span) =>
  `${labelOf(span.status).toLowerCase()} for ${duration(span.to - span.from)}, from ${clock(span.from)}`;

/** @typedef {{ alias: string, spans: Span[] }} Trail */

export class TimelineView {
  /** @param {Element} root @param {Store} store */
  constructor(root, store) {
    this.store = store;
    const trails = the(root, ".trails");
    const none = h("p", { class: "muted" }, "No model was in memory since this page was opened.");
    /** @type {Children<Trail, ReturnType<typeof strip>>} */
    this.rows = new Children(trails, (row) => row.alias, strip, none);
    this.axis = h("div", { class: "axis", "aria-hidden": "true" });
    trails.after(this.axis);
    /** @param {Status} name @param {string} word */
    const sample = (name, word) => [h("span", { class: `sample ${name}` }), word];
    setChildren(
      the(root, ".legend"),
      sample("starting", "loading"),
      sample("ready", "ready"),
      sample("stopping", "stopping"),
      sample("failed", "crashed or failed"),
    );
  }

  /** @param {number} now */
  render(now) {
    const { history } = this.store;
    const seconds = windowFor([...history.values()], now);
    const from = now - seconds;
    const rows = this.store
      .list()
      .map(({ alias }) => ({ alias, spans: spans(history.get(alias) ?? [], from, now) }))
      .filter((row) => row.spans.length);
    this.rows.show(rows, (parts, row) => this.#update(parts, row, from, now));
    this.axis.hidden = !rows.length;
    const marks = [3, 2, 1, 0].map((thirds) => Math.round((seconds * thirds) / 3));
    setChildren(
      this.axis,
      marks.map((ago) => h("span", {}, ago ? `${duration(ago)} ago` : "now")),
    );
  }

  /** @param {ReturnType<typeof strip>} parts @param {Trail} row @param {number} from @param {number} now */
  #update({ root, name, bar, pieces }, row, from, now) {
    setText(name, row.alias);
    setVars(root, { "--c": colour(this.store, row.alias) });
    setAttribute(bar, "aria-label", row.spans.map(spanText).join("; "));
    const keyed = row.spans.map((span) => ({
      ...span,
      key: `${span.to === now ? "now" : span.to} ${span.status}`,
    }));
    pieces.show(keyed, (piece, span) => {
      setAttribute(piece.root, "class", span.status);
      setAttribute(piece.root, "title", spanText(span));
      setVars(piece.root, {
        "--from": (span.from - from) / (now - from),
        "--to": (span.to - from) / (now - from),
      });
    });
  }
}

function strip() {
  const name = h("span", { class: "who" });
  const bar = h("div", { class: "strip", role: "img" });
  /** @type {Children<Span & { key: string }, { root: HTMLElement }>} */
  const pieces = new Children(
    bar,
    (span) => span.key,
    () => ({ root: h("span") }),
  );
  return { root: h("div", { class: "trail" }, name, bar), name, bar, pieces };
}

// --- what happened --------------------------------------------------------------------------------

export class EventsView {
  #spoken = 0;

  /** @param {Element} root @param {Store} store @param {Element} voice */
  constructor(root, store, voice) {
    this.store = store;
    this.voice = voice;
    const nothing = h("li", { class: "muted" }, "Nothing yet. Changes appear here as they happen.");
    /** @type {Children<Event, ReturnType<typeof item>>} */
    this.items = new Children(the(root, "ol"), (event) => event.id, item, nothing);
  }

  render() {
    const { events } = this.store;
    this.items.show(events, ({ text }, event) => setText(text, event.text));
    if (events.length) this.#speak(events[0]);
  }

  /**
   * Changes are read out once; the ticking percentage is not.
   * @param {Event} event
   */
  #speak(event) {
    if (event.id <= this.#spoken) return;
    this.#spoken = event.id;
    setText(this.voice, `${event.alias} ${event.live ? "loading" : event.text}`);
  }
}

/** @param {Event} event */
function item(event) {
  const text = h("span", { class: "what" });
  const said = h("p", {}, event.alias && h("strong", {}, event.alias), " ", text);
  const time = h("time", {}, clock(event.t));
  return { root: h("li", { class: event.tone }, time, h("span", { class: "dot" }), said), text };
}
