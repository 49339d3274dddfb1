// The table of models: one row each, in the configuration's order, never re-ordered under the reader's hand.

import { h, setAttribute, setChildren, setText, setVars, sync } from "./dom.js";
import { count, duration, isComing, isResident, kept, memory, percent, progressOf, speed, statusNote, statusOf } from "./words.js";

const FILTER_FROM = 12;
const LEVELS = ["high", "normal", "low"];

/** A model's colour, the same in the table, the memory bar and the timeline. */
export const colour = (store, alias) => `var(--m${[...store.models.keys()].indexOf(alias) % 8})`;

/** The one thing that can be done with a model in this state. */
function actionFor(model) {
  if (model.status === "failed") return { name: "Reset", call: "reset" };
  if (model.status === "off" || model.status === "crashed") return { name: "Load", call: "load" };
  return { name: "Eject", call: "eject", disabled: model.status === "stopping" };
}

export class ModelsView {
  constructor(root, store, actions) {
    Object.assign(this, { store, actions, rows: root.querySelector(".rows"), filter: root.querySelector("#filter") });
    this.filter.addEventListener("input", () => this.render(store.now()));
  }

  render(now) {
    const models = this.store.list();
    this.filter.hidden = models.length < FILTER_FROM;
    const wanted = this.filter.value.trim().toLowerCase();
    const shown = models.filter((model) => model.alias.toLowerCase().includes(wanted));
    sync(this.rows, shown, (model) => model.alias, (model) => this.#make(model), (row, model) => this.#update(row, model, now));
  }

  #make({ alias }) {
    const cell = (name, label, ...children) => h("div", { role: "cell", class: name, "data-label": label }, ...children);
    const part = (tag, name) => h(tag, { class: name });
    const row = h("div", { role: "row", class: "row" });
    const p = (row.parts = {
      swatch: part("span", "swatch"), tags: part("span", "tags"), pill: part("span", "pill"), note: part("span", "note"), bar: part("span", "progress small"),
      memory: part("span", "value"), estimate: part("span", "sub"), queue: part("span", "value"), mix: part("span", "mix"),
      flight: part("span", "value"), slots: part("span", "sub"), speed: part("span", "value"),
      act: h("button", { type: "button", class: "act", onclick: () => this.actions[p.act.dataset.call](alias) }),
    });
    p.bar.append(part("span", "fill"));
    row.append(
      cell("name", null, p.swatch, h("span", { class: "label" }, h("button", { type: "button", class: "open", onclick: () => this.actions.details(alias), "aria-haspopup": "dialog", title: `${alias}: details, plan and log` }, h("span", {}, alias)), p.tags)),
      cell("status", null, p.pill, p.note, p.bar),
      cell("num", "Memory", p.memory, p.estimate),
      cell("num", "Waiting", p.queue, p.mix),
      cell("num", "In flight", p.flight, p.slots),
      cell("num", "Tokens/s", p.speed),
      cell("acts", null, p.act),
    );
    return row;
  }

  #update(row, model, now) {
    const p = row.parts;
    const status = statusOf(model);
    const view = this.store.view(model, now);
    const note = statusNote(model, view);
    setAttribute(row, "class", `row ${status.tone} is-${model.status}`);
    setVars(p.swatch, { "--c": colour(this.store, model.alias) });
    setChildren(p.tags, model.kind && model.kind !== "chat" && h("i", {}, model.kind), model.pinned && h("i", { title: "Never evicted, never unloaded when idle" }, "pinned"),
      kept(model) && h("i", { title: `Conversations are kept over swaps: ${kept(model)}` }, model.kept_tokens ? `keeps ${model.kept_tokens.toLocaleString("en")} tokens` : "keeps chats"));
    setText(p.pill, progressOf(model) != null ? `${status.label} ${percent(progressOf(model))}` : status.label);
    setAttribute(p.pill, "class", `pill ${status.tone}`);
    setText(p.note, note || "");
    setAttribute(p.note, "title", note);
    p.bar.hidden = !isComing(model);
    p.bar.classList.toggle("unknown", progressOf(model) == null);
    setVars(p.bar, { "--done": progressOf(model) ?? 0 });
    this.#numbers(p, model, view);
    this.#action(p.act, model);
  }

  #numbers(p, model, view) {
    const blank = "–";
    const estimate = model.estimated_mb ? `≈ ${memory(model.estimated_mb)}` : null;
    setText(p.memory, model.vram_mb ? memory(model.vram_mb) : model.vram_mb === 0 ? "CPU" : estimate ?? blank);
    p.memory.classList.toggle("guess", !model.vram_mb && Boolean(estimate));
    setText(p.estimate, model.vram_mb && estimate ? estimate : "");
    setAttribute(p.memory.parentElement, "title", estimate && `estimated need ${estimate}`);
    setText(p.queue, model.queue_depth ? String(model.queue_depth) : blank);
    const mix = LEVELS.filter((level) => model.by_priority?.[level]);
    setChildren(p.mix, mix.map((level) => h("i", { class: level, title: `${model.by_priority[level]} of ${level} priority` }, `${model.by_priority[level]} ${level}`)));
    setAttribute(p.queue.parentElement, "title", view.oldest != null && `${count(model.queue_depth, "request")}, the longest for ${duration(view.oldest)}`);
    setText(p.flight, model.in_flight ? String(model.in_flight) : blank);
    setText(p.slots, model.slots && model.in_flight ? `of ${model.slots}` : "");
    setText(p.speed, model.tokens_per_second && isResident(model) ? speed(model.tokens_per_second) : blank);
    setAttribute(p.speed, "title", model.in_flight ? null : "of its last answer");
    for (const value of [p.memory, p.queue, p.flight, p.speed]) value.classList.toggle("blank", value.textContent === blank);
  }

  #action(button, model) {
    const action = actionFor(model);
    button.dataset.call = action.call;
    button.disabled = Boolean(action.disabled) || !this.store.admin;
    setAttribute(button, "title", !this.store.admin && "Needs a key with admin");
    setText(button, action.name);
    setAttribute(button, "aria-label", `${action.name} ${model.alias}`);
  }
}
