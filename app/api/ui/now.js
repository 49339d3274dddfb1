// The headline: what is happening, why, and for how long.

import { h, setAttribute, setChildren, setText, setVars, sync } from "./dom.js";
import { percent, story } from "./words.js";

export class NowView {
  constructor(root, store, actions) {
    Object.assign(this, { root, store, actions });
  }

  render(now) {
    sync(this.root, story(this.store, now), (topic) => topic.key, (topic) => this.#make(topic), (card, topic) => this.#update(card, topic));
  }

  #make(topic) {
    const part = (name, tag = "div") => h(tag, { class: name });
    const card = h("article", {});
    card.parts = {
      title: part("title", "h2"), facts: part("facts", "dl"), steps: part("steps", "ol"),
      bar: h("div", { class: "progress", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": `Loading ${topic.alias}` }, part("fill")),
      lines: part("lines"), buttons: part("buttons"),
    };
    card.parts.buttons.append(
      h("button", { type: "button", class: "primary", onclick: () => this.actions.reset(topic.alias) }, "Reset"),
      h("button", { type: "button", onclick: () => this.actions.details(topic.alias) }, "Show log"),
    );
    card.append(...Object.values(card.parts));
    return card;
  }

  #update(card, topic) {
    const { title, facts, steps, bar, lines, buttons } = card.parts;
    setAttribute(card, "class", `now ${topic.tone}`);
    setChildren(title, `${topic.verb} `, topic.alias && h("strong", {}, topic.alias), topic.tail && ` ${topic.tail}`);
    setChildren(facts, topic.facts.map((fact) => h("div", {}, h("dd", {}, fact.value), h("dt", {}, fact.label))));
    this.#bar(bar, topic.progress);
    steps.hidden = !topic.steps;
    setChildren(steps, (topic.steps ?? []).map((step) => h(
      "li", { class: step.state, "aria-current": step.state === "current" && "step" }, h("b", {}, step.name), " ", h("span", {}, step.detail),
    )));
    setChildren(lines, topic.lines.map((line) => h("p", {}, line)));
    buttons.hidden = !topic.broken || !this.store.admin;
  }

  #bar(bar, progress) {
    bar.hidden = progress === undefined;
    bar.classList.toggle("unknown", progress === null);
    setAttribute(bar, "aria-valuenow", progress == null ? null : Math.round(progress * 100));
    setAttribute(bar, "aria-valuetext", progress == null ? null : percent(progress));
    setVars(bar, { "--done": progress ?? 0 });
  }
}

/** The line in the page's head: is the picture live, and is the router well. */
export function renderConnection(root, store) {
  const { state, since, retryAt, error } = store.connection;
  const text = root.querySelector(".text");
  const stopping = store.server.status === "stopping";
  setAttribute(root, "class", `link ${state === "open" ? (stopping ? "wait" : "ok") : state === "closed" ? "bad" : ""}`);
  if (state === "open") return setText(text, stopping ? "Router is shutting down" : "Live");
  if (state !== "closed") return setText(text, "Connecting…");
  const at = new Date(since * 1000).toLocaleTimeString([], { hour12: false });
  const wait = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
  root.title = error?.message ?? "";
  setText(text, `Disconnected since ${at}, ${wait ? `next try in ${wait} s` : "trying now"}`);
}
