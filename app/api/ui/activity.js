// Who waits, which models were in memory, and what happened.

import { h, setAttribute, setChildren, setText, setVars, sync } from "./dom.js";
import { colour } from "./models.js";
import { HISTORY_S } from "./store.js";
import { clock, duration, statusOf } from "./words.js";

const LEVELS = ["high", "normal", "low"];

export class QueueView {
  constructor(root, store) {
    Object.assign(this, { store, list: root.querySelector(".waiting"), sums: root.querySelector(".sums") });
  }

  render(now) {
    const waiting = this.store.list().filter((model) => model.queue_depth);
    const most = Math.max(1, ...waiting.map((model) => model.queue_depth));
    if (waiting.length) sync(this.list, waiting, (model) => model.alias, () => this.#make(), (row, model) => this.#update(row, model, most, now));
    else sync(this.list, [0], () => " none", () => h("p", { class: "muted" }, "Nobody is waiting."), () => {});
    setText(this.sums, this.#summary());
  }

  #make() {
    const row = h("div", { class: "queued" });
    row.parts = { name: h("span", { class: "who" }), since: h("span", { class: "since" }), bar: h("div", { class: "mixbar", role: "img" }) };
    row.append(row.parts.name, row.parts.since, row.parts.bar);
    return row;
  }

  #update(row, model, most, now) {
    const { name, since, bar } = row.parts;
    const { oldest } = this.store.view(model, now);
    const by = model.by_priority ?? { normal: model.queue_depth };
    const levels = LEVELS.filter((level) => by[level]);
    setChildren(name, h("span", { class: "swatch", vars: { "--c": colour(this.store, model.alias) } }), model.alias);
    setText(since, oldest == null ? "" : `longest ${duration(oldest)}`);
    setAttribute(bar, "aria-label", levels.map((level) => `${by[level]} ${level}`).join(", "));
    setChildren(bar, levels.map((level) => h("span", { class: level, vars: { "--share": by[level] / most } }, `${by[level]} ${level}`)));
  }

  #summary() {
    const sum = this.store.queue?.summary;
    if (!sum) return "";
    const parts = [["total_processed", "served"], ["total_rejected", "rejected"], ["total_timeouts", "timed out"], ["total_cancelled", "cancelled"]];
    return `Since the start: ${parts.filter(([key]) => sum[key] != null).map(([key, word]) => `${sum[key].toLocaleString("en")} ${word}`).join(", ")}`;
  }
}

const WINDOWS = [180, 300, 600, HISTORY_S];

/** The shortest window that shows everything this page has seen, so that a first visit is no empty strip. */
function windowFor(trails, now) {
  const earliest = Math.min(now, ...trails.flat().filter((entry) => entry.status).map((entry) => entry.t));
  return WINDOWS.find((seconds) => now - earliest < seconds) ?? HISTORY_S;
}

/** The states of one model inside the window: [{status, from, to}]. */
export function spans(trail, from, now) {
  return trail
    .map((entry, i) => ({ status: entry.status, from: Math.max(from, entry.t), to: trail[i + 1]?.t ?? now }))
    .filter((span) => span.status && span.status !== "off" && span.to > span.from);
}

export class TimelineView {
  constructor(root, store) {
    Object.assign(this, { store, trails: root.querySelector(".trails"), legend: root.querySelector(".legend") });
    const look = (name, word) => [h("span", { class: `sample ${name}` }), word];
    setChildren(this.legend, ...look("starting", "loading"), ...look("ready", "ready"), ...look("stopping", "stopping"), ...look("failed", "crashed or failed"));
    this.axis = h("div", { class: "axis", "aria-hidden": "true" });
    this.trails.after(this.axis);
  }

  render(now) {
    const seconds = windowFor([...this.store.history.values()], now);
    const from = now - seconds;
    const rows = this.store.list()
      .map((model) => ({ alias: model.alias, spans: spans(this.store.history.get(model.alias) ?? [], from, now) }))
      .filter((row) => row.spans.length);
    if (rows.length) sync(this.trails, rows, (row) => row.alias, () => this.#make(), (element, row) => this.#update(element, row, from, now));
    else sync(this.trails, [0], () => " none", () => h("p", { class: "muted" }, "No model was in memory since this page was opened."), () => {});
    const marks = [...Array(4).keys()].map((i) => Math.round((seconds / 3) * (3 - i)));
    setChildren(this.axis, marks.map((ago) => h("span", {}, ago ? `${duration(ago).replace(/ 0 s$/, "")} ago` : "now")));
  }

  #make() {
    const row = h("div", { class: "trail" });
    row.parts = { name: h("span", { class: "who" }), strip: h("div", { class: "strip", role: "img" }) };
    row.append(row.parts.name, row.parts.strip);
    return row;
  }

  #update(element, row, from, now) {
    const { name, strip } = element.parts;
    const label = (span) => `${statusOf(span).label.toLowerCase()} for ${duration(span.to - span.from)}, from ${clock(span.from)}`;
    setText(name, row.alias);
    setVars(element, { "--c": colour(this.store, row.alias) });
    setAttribute(strip, "aria-label", row.spans.map(label).join("; "));
    sync(strip, row.spans, (span) => `${span.to === now ? "now" : span.to} ${span.status}`, () => h("span", {}), (piece, span) => {
      setAttribute(piece, "class", span.status);
      setAttribute(piece, "title", label(span));
      setVars(piece, { "--from": (span.from - from) / (now - from), "--to": (span.to - from) / (now - from) });
    });
  }
}

export class EventsView {
  #spoken = 0;

  constructor(root, store, voice) {
    Object.assign(this, { store, voice, list: root.querySelector("ol") });
  }

  render() {
    const events = this.store.events;
    if (!events.length) return sync(this.list, [0], () => " none", () => h("li", { class: "muted" }, "Nothing yet. Changes appear here as they happen."), () => {});
    sync(this.list, events, (event) => event.id, (event) => this.#make(event), (item, event) => setText(item.text, event.text));
    this.#speak(events[0]);
  }

  #make(event) {
    const item = h("li", { class: event.tone });
    item.text = h("span", { class: "what" });
    item.append(h("time", {}, clock(event.t)), h("span", { class: "dot" }), h("p", {}, event.alias && h("strong", {}, event.alias), " ", item.text));
    return item;
  }

  /** Changes are read out once; the ticking percentage is not. */
  #speak(event) {
    if (event.id <= this.#spoken) return;
    this.#spoken = event.id;
    setText(this.voice, `${event.alias} ${event.live ? "loading" : event.text}`);
  }
}
