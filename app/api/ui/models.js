// The table of models: one row each, in the configuration's order, never re-ordered under the reader's hand.

import { Children, h, setAttribute, setChildren, setText, setVars, the } from "./dom.js";
import { count, duration, memory, number, percent, speed } from "./format.js";
import { LEVELS, isComing, isResident, kept, labelOf, progressOf, statusNote, toneOf } from "./status.js";

/** @import { Child } from "./dom.js" */
/** @import { Seen, Store, View } from "./store.js" */

/**
 * What can be done with a model.
 * @typedef {Record<"load" | "eject" | "reset" | "details", (alias: string) => Promise<void>>} Actions
 */

/** @typedef {ReturnType<ModelsView["make"]>} Row */

const FILTER_FROM = 12;
const BLANK = "–";

/**
 * A model's colour, the same in the table, the memory bar and the timeline.
 * @param {Store} store
 * @param {string} alias
 */
export const colour = (store, alias) => `var(--m${[...store.models.keys()].indexOf(alias) % 8})`;

/**
 * The one thing that can be done with a model in this state.
 * @param {Seen} model
 * @returns {{ name: string, call: "load" | "eject" | "reset", disabled?: boolean }}
 */
function actionFor({ status }) {
  if (status === "failed") return { name: "Reset", call: "reset" };
  if (status === "off" || status === "crashed") return { name: "Load", call: "load" };
  return { name: "Eject", call: "eject", disabled: status === "stopping" };
}

export class ModelsView {
  /** @param {Element} root @param {Store} store @param {Actions} actions */
  constructor(root, store, actions) {
    this.store = store;
    this.actions = actions;
    /** @type {HTMLInputElement} */
    this.filter = the(root, "#filter");
    this.filter.addEventListener("input", () => this.render(store.now()));
    /** @type {Children<Seen, Row>} */
    this.rows = new Children(
      the(root, ".rows"),
      (model) => model.alias,
      (model) => this.make(model),
    );
  }

  /** @param {number} now */
  render(now) {
    const models = this.store.list();
    this.filter.hidden = models.length < FILTER_FROM;
    const wanted = this.filter.value.trim().toLowerCase();
    const shown = models.filter((model) => model.alias.toLowerCase().includes(wanted));
    this.rows.show(shown, (row, model) => this.#update(row, model, now));
  }

  /** @param {Seen} model */
  make({ alias }) {
    const part = (/** @type {string} */ name) => h("span", { class: name });
    const [swatch, tags, pill, note, bar] = ["swatch", "tags", "pill", "note", "progress small"].map(part);
    const [memory, queue, flight, speed] = Array.from({ length: 4 }, () => part("value"));
    const [estimate, slots, mix] = ["sub", "sub", "mix"].map(part);
    bar.append(part("fill"));
    const act = h("button", { type: "button", class: "act" });
    const name = h("span", { class: "label" }, this.#opener(alias), tags);
    const root = h(
      "div",
      { role: "row", class: "row" },
      cell("name", null, swatch, name),
      cell("status", null, pill, note, bar),
      cell("num", "Memory", memory, estimate),
      cell("num", "Waiting", queue, mix),
      cell("num", "In flight", flight, slots),
      cell("num", "Tokens/s", speed),
      cell("acts", null, act),
    );
    return { root, swatch, tags, pill, note, bar, memory, estimate, queue, mix, flight, slots, speed, act };
  }

  /** @param {string} alias */
  #opener(alias) {
    const onclick = () => this.actions.details(alias);
    const title = `${alias}: details, plan and log`;
    const props = { type: "button", class: "open", onclick, "aria-haspopup": "dialog", title };
    return h("button", props, h("span", {}, alias));
  }

  /** @param {Row} row @param {Seen} model @param {number} now */
  #update(row, model, now) {
    const tone = toneOf(model.status);
    const label = labelOf(model.status);
    const progress = progressOf(model);
    const view = this.store.view(model, now);
    const note = statusNote(model, view);
    setAttribute(row.root, "class", `row ${tone} is-${model.status}`);
    setVars(row.swatch, { "--c": colour(this.store, model.alias) });
    setChildren(row.tags, tags(model));
    setText(row.pill, progress == null ? label : `${label} ${percent(progress)}`);
    setAttribute(row.pill, "class", `pill ${tone}`);
    setText(row.note, note);
    setAttribute(row.note, "title", note);
    row.bar.hidden = !isComing(model);
    row.bar.classList.toggle("unknown", progress == null);
    setVars(row.bar, { "--done": progress ?? 0 });
    this.#memory(row, model);
    this.#waiting(row, model, view);
    this.#serving(row, model);
    this.#action(row.act, model);
    for (const value of [row.memory, row.queue, row.flight, row.speed]) {
      value.classList.toggle("blank", value.textContent === BLANK);
    }
  }

  /** @param {Row} row @param {Seen} model */
  #memory(row, model) {
    const estimate = model.estimated_mb ? `≈ ${memory(model.estimated_mb)}` : null;
    const used = model.vram_mb ? memory(model.vram_mb) : null;
    setText(row.memory, used ?? (model.vram_mb === 0 ? "CPU" : (estimate ?? BLANK)));
    row.memory.classList.toggle("guess", !used && Boolean(estimate));
    setText(row.estimate, (used && estimate) ?? "");
    setAttribute(row.memory.parentElement, "title", estimate && `estimated need ${estimate}`);
  }

  /** @param {Row} row @param {Seen} model @param {View} view */
  #waiting(row, { queue_depth, by_priority }, view) {
    const longest = view.oldest != null && `, the longest for ${duration(view.oldest)}`;
    setText(row.queue, queue_depth ? String(queue_depth) : BLANK);
    setAttribute(row.queue.parentElement, "title", longest && count(queue_depth, "request") + longest);
    setChildren(
      row.mix,
      LEVELS.filter((level) => by_priority[level]).map((level) => {
        const title = `${by_priority[level]} of ${level} priority`;
        return h("i", { class: level, title }, `${by_priority[level]} ${level}`);
      }),
    );
  }

  /** @param {Row} row @param {Seen} model */
  #serving(row, model) {
    const { in_flight, slots, tokens_per_second } = model;
    setText(row.flight, in_flight ? String(in_flight) : BLANK);
    setText(row.slots, in_flight ? `of ${slots}` : "");
    setText(row.speed, tokens_per_second && isResident(model) ? speed(tokens_per_second) : BLANK);
    setAttribute(row.speed, "title", in_flight ? null : "of its last answer");
  }

  /** @param {HTMLButtonElement} button @param {Seen} model */
  #action(button, model) {
    const { name, call, disabled } = actionFor(model);
    button.onclick = () => this.actions[call](model.alias);
    button.disabled = Boolean(disabled) || !this.store.admin;
    setAttribute(button, "title", !this.store.admin && "Needs a key with admin");
    setText(button, name);
    setAttribute(button, "aria-label", `${name} ${model.alias}`);
  }
}

/** @param {string} name @param {string | null} label @param {HTMLElement[]} children */
function cell(name, label, ...children) {
  return h("div", { role: "cell", class: name, "data-label": label }, ...children);
}

/** @param {Seen} model @returns {Child[]} */
function tags(model) {
  const conversations = kept(model);
  const keeps = model.kept_tokens ? `keeps ${number(model.kept_tokens)} tokens` : "keeps chats";
  return [
    model.kind !== "chat" && h("i", {}, model.kind),
    model.pinned && h("i", { title: "Never evicted, never unloaded when idle" }, "pinned"),
    conversations && h("i", { title: `Conversations are kept over swaps: ${conversations}` }, keeps),
  ];
}
