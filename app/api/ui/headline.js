// The headline: what is happening, why, and for how long.

import { Children, h, setAttribute, setChildren, setText, setVars, the } from "./dom.js";
import { percent } from "./format.js";
import { story } from "./headline_topics.js";

/** @import { Actions } from "./models.js" */
/** @import { Connection, Store } from "./store.js" */
/** @import { Step } from "./making_room.js" */
/** @import { Topic } from "./headline_topics.js" */

/** @typedef {ReturnType<NowView["make"]>} Card */

export class NowView {
  /** @param {Element} root @param {Store} store @param {Actions} actions */
  constructor(root, store, actions) {
    this.store = store;
    this.actions = actions;
    /** @type {Children<Topic, Card>} */
    this.cards = new Children(
      root,
      (topic) => topic.key,
      (topic) => this.make(topic),
    );
  }

  /** @param {number} now */
  render(now) {
    this.cards.show(story(this.store, now), (card, topic) => this.#update(card, topic));
  }

  /** @param {Topic} topic */
  make({ alias = "" }) {
    const title = h("h2", { class: "title" });
    const facts = h("dl", { class: "facts" });
    const steps = h("ol", { class: "steps" });
    const bar = progressBar(`Loading ${alias}`);
    const lines = h("div", { class: "lines" });
    const reset = { type: "button", class: "primary", onclick: () => this.actions.reset(alias) };
    const details = { type: "button", onclick: () => this.actions.details(alias) };
    const offers = [h("button", reset, "Reset"), h("button", details, "Show log")];
    const buttons = h("div", { class: "buttons" }, offers);
    const root = h("article", {}, title, facts, steps, bar, lines, buttons);
    return { root, title, facts, steps, bar, lines, buttons };
  }

  /** @param {Card} card @param {Topic} topic */
  #update({ root, title, facts, steps, bar, lines, buttons }, topic) {
    const { verb, alias, tail, progress } = topic;
    setAttribute(root, "class", `now ${topic.tone}`);
    setChildren(title, verb && `${verb} `, alias && h("strong", {}, alias), tail && ` ${tail}`);
    setChildren(
      facts,
      topic.facts.map((fact) => h("div", {}, h("dd", {}, fact.value), h("dt", {}, fact.label))),
    );
    steps.hidden = !topic.steps;
    setChildren(steps, topic.steps?.map(stepItem));
    setChildren(
      lines,
      topic.lines.map((line) => h("p", {}, line)),
    );
    buttons.hidden = !topic.broken || !this.store.admin;
    bar.hidden = progress === undefined;
    bar.classList.toggle("unknown", progress === null);
    setAttribute(bar, "aria-valuenow", progress == null ? null : Math.round(progress * 100));
    setAttribute(bar, "aria-valuetext", progress == null ? null : percent(progress));
    setVars(bar, { "--done": progress ?? 0 });
  }
}

/** @param {string} label */
function progressBar(label) {
  const role = { role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": label };
  return h("div", { class: "progress", ...role }, h("div", { class: "fill" }));
}

/** @param {Step} step */
function stepItem({ name, detail, state }) {
  const props = { class: state, "aria-current": state === "current" && "step" };
  return h("li", props, h("b", {}, name), " ", h("span", {}, detail));
}

// --- the line in the page's head: is the picture live, and is the router well ----------------------

/** @param {HTMLElement} root @param {Store} store */
export function renderConnection(root, store) {
  const { connection } = store;
  const stopping = store.server?.status === "stopping";
  const tones = { connecting: "", open: stopping ? "wait" : "ok", closed: "bad" };
  const words = {
    connecting: () => "Connecting…",
    open: () => (stopping ? "Router is shutting down" : "Live"),
    closed: () => lost(connection),
  };
  setAttribute(root, "class", `link ${tones[connection.state]}`);
  setAttribute(root, "title", connection.state === "closed" && (connection.error?.message ?? ""));
  setText(the(root, ".text"), words[connection.state]());
}

/** @param {Connection} connection */
function lost({ since, retryAt }) {
  const at = new Date((since ?? 0) * 1000).toLocaleTimeString([], { hour12: false });
  const wait = Math.max(0, Math.ceil(((retryAt ?? 0) - Date.now()) / 1000));
  return `Disconnected since ${at}, ${wait ? `next try in ${wait} s` : "trying now"}`;
}
