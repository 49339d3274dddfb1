// One model in full: facts, what a load would do now, its log as it grows.

import { getJson, modelUrl } from "./api.js";
import { show } from "./dialogs.js";
import { h, setChildren, setText } from "./dom.js";
import { clock, count, duration, memory, percent, present, took } from "./format.js";
import { planLines } from "./plan.js";
import { kept, labelOf, progressOf, work } from "./status.js";

/** @import { Seen, Store, View } from "./store.js" */

const LOG_LINES = 200;
const MAX_LOG = 200_000; // characters

export class Details {
  #log = h("pre", { tabindex: "0", role: "log", "aria-label": "Log", "aria-live": "off" });
  #plan = h("ul");
  #facts = h("dl", { class: "facts-list" });
  #chat;

  /** @param {Store} store @param {string} alias */
  constructor(store, alias) {
    this.store = store;
    this.alias = alias;
    const href = `upstream/${encodeURIComponent(alias)}/`;
    this.#chat = h("a", { href, target: "_blank", rel: "noopener" }, "Open its own chat page ↗");
  }

  /** Resolves when it is closed. */
  async open() {
    const { admin } = this.store; // logs are for keys with admin
    const close = h("button", { "aria-label": "Close" }, "Close");
    const dialog = h(
      "dialog",
      { class: "details", "aria-labelledby": "details-title" },
      h("form", { method: "dialog", class: "bar" }, h("h2", { id: "details-title" }, this.alias), close),
      this.#facts,
      this.#chat,
      h("h3", {}, "If it were loaded now"),
      this.#plan,
      admin && [h("h3", {}, "Log"), this.#log],
    );
    this.#showPlan();
    const source = admin ? this.#follow() : null;
    await show(dialog);
    source?.close();
  }

  /** @param {number} now */
  render(now) {
    const model = this.store.models.get(this.alias);
    if (!model) return;
    this.#chat.hidden = !this.store.admin || model.kind !== "chat";
    const rows = Object.entries(facts(model, this.store.view(model, now))).filter(([, value]) => value);
    setChildren(
      this.#facts,
      rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value)))),
    );
  }

  async #showPlan() {
    const lines = await this.#planLines();
    setChildren(
      this.#plan,
      lines.map((line) => h("li", {}, line)),
    );
  }

  async #planLines() {
    const failed = this.store.models.get(this.alias)?.status === "failed";
    if (failed) return ["Nothing, until it is reset or its file changes."]; // the plan would be an error
    return getJson(modelUrl(this.alias, "plan")).then(planLines, (error) => [error.message]);
  }

  /** Each time that it connects the router sends the tail anew. */
  #follow() {
    const source = new EventSource(`${modelUrl(this.alias, "logs")}?follow=true&lines=${LOG_LINES}`);
    let text = "";
    const showText = () => {
      const atEnd = this.#log.scrollTop + this.#log.clientHeight >= this.#log.scrollHeight - 8;
      setText(this.#log, text || "The log is empty.");
      if (atEnd) this.#log.scrollTop = this.#log.scrollHeight;
    };
    source.onopen = () => {
      text = "";
      showText();
    };
    source.addEventListener("log", (event) => {
      text = `${text}${event.data}\n`.slice(-MAX_LOG);
      requestAnimationFrame(showText); // a tail comes as hundreds of events
    });
    return source;
  }
}

/**
 * What is known of a model; what is empty is not shown.
 * @param {Seen} model
 * @param {View} view
 * @returns {Record<string, string | number | null | undefined | false>}
 */
function facts(model, view) {
  const progress = progressOf(model);
  const label = present([labelOf(model.status), progress != null && percent(progress)]).join(" ");
  const flight = `${model.in_flight} in flight of ${model.slots}, ${model.queue_depth} waiting`;
  const used = model.vram_mb && `${memory(model.vram_mb)} measured`;
  const conversations = kept(model);
  return {
    Status: `${label} for ${duration(view.age)}`,
    Why: model.reason,
    Error: model.error,
    Warning: model.warning,
    Memory: model.vram_mb === 0 ? "CPU only" : used,
    Estimate: model.estimated_mb != null && memory(model.estimated_mb),
    Port: model.port,
    Process: model.pid,
    Requests: flight,
    Answering: work(view),
    Counted: counted(model),
    "Last used": lastUsed(model, view.now),
    "Last load": model.expected_load_sec != null && `took ${took(model.expected_load_sec)}`,
    Conversations: conversations && `kept ${conversations}`,
  };
}

/** @param {Seen} model */
function counted({ requests_total, errors_total }) {
  if (requests_total == null || errors_total == null) return null;
  return `${count(requests_total, "request")}, ${count(errors_total, "error")}`;
}

/** @param {Seen} model @param {number} now */
const lastUsed = ({ last_used }, now) =>
  last_used ? `${clock(last_used)} (${duration(now - last_used)} ago)` : "never";
