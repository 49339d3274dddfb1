// Everything that opens on top of the page: the login, confirmations, one model's details, messages.

import { getJson, modelUrl, session } from "./api.js";
import { h, setChildren, setText } from "./dom.js";
import { clock, duration, kept, memory, percent, progressOf, sentence, statusOf, took } from "./words.js";

const LOG_LINES = 200;
const MAX_LOG = 200_000; // characters

/** Show a modal dialog; resolves with the value of the button that closed it ("" for Escape). */
function show(dialog) {
  document.body.append(dialog);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
    dialog.showModal();
  });
}

/** Resolves with the session that a key has opened; until then there is nothing to see. */
export async function askForKey() {
  let who = null;
  const wrong = h("p", { class: "wrong", role: "alert" });
  const input = h("input", { type: "password", name: "key", required: true, autocomplete: "current-password", "aria-labelledby": "key-title", autofocus: true });
  const submit = (event) => {
    event.preventDefault();
    session.open(input.value.trim()).then(
      (opened) => ((who = opened), dialog.close()),
      (error) => (setText(wrong, error.status === 401 ? "The key was not accepted. Try another one." : error.message), input.select()),
    );
  };
  const dialog = h("dialog", { class: "small", "aria-labelledby": "key-title" }, h(
    "form", { onsubmit: submit },
    h("h2", { id: "key-title" }, "This router wants an API key"),
    h("p", {}, "One of api_keys in the router's configuration. You stay logged in until you close the browser or log out."),
    h("input", { name: "username", autocomplete: "username", value: "router", hidden: true }), // for password managers
    input, wrong,
    h("div", { class: "buttons" }, h("button", { class: "primary" }, "Log in")),
  ));
  dialog.addEventListener("keydown", (event) => event.key === "Escape" && event.preventDefault());
  while (!who) await show(dialog);
  return who;
}

/** Ask before doing; `choices` are [{value, label, danger}]. Resolves with the chosen value or "". */
export function confirm(title, lines, choices) {
  const button = (choice) => h("button", { value: choice.value, class: choice.danger ? "danger" : "primary" }, choice.label);
  return show(h("dialog", { class: "small", "aria-labelledby": "confirm-title" }, h(
    "form", { method: "dialog" },
    h("h2", { id: "confirm-title" }, title),
    lines.map((line) => h("p", {}, line)),
    h("div", { class: "buttons" }, h("button", { value: "" }, "Cancel"), choices.map(button)),
  )));
}

export function toast(text, tone = "ok") {
  const box = h("p", { class: `toast ${tone}` }, text);
  document.getElementById("toasts").append(box);
  setTimeout(() => box.remove(), tone === "bad" ? 12_000 : 5000);
}

/** A plan in words, for the preview and before a load that would stop others. */
export function planLines(plan) {
  if (/^it is \w+ already$/.test(plan.reason ?? "")) return [sentence(plan.reason)];
  const place = (device) => (device.index === "host" ? "Host memory" : `GPU ${device.index}`);
  const need = (device) => `${place(device)}: needs ${memory(device.need_mb)}, ${memory(device.free_mb)} free`;
  const lines = [];
  if (plan.fits && !plan.evicts?.length) lines.push("It fits into the free memory; nothing has to stop.");
  else if (plan.evicts?.length) lines.push(`Would stop: ${plan.evicts.map((victim) => victim.model ?? victim.alias ?? victim).join(", ")}.`);
  else lines.push("It does not fit.");
  if (plan.reason && !plan.evicts?.length) lines.push(sentence(plan.reason)); // else it names the same models once more
  lines.push(...(plan.devices ?? []).map(need));
  const sizes = [plan.estimate_mb != null && `estimated ${memory(plan.estimate_mb)}`, plan.measured_mb != null && `measured ${memory(plan.measured_mb)}`].filter(Boolean);
  if (sizes.length) lines.push(`Size: ${sizes.join(", ")}`);
  return lines;
}

function facts(model, view) {
  const rows = {
    Status: `${statusOf(model).label}${progressOf(model) != null ? ` ${percent(progressOf(model))}` : ""} for ${duration(view.age)}`,
    Why: model.reason, Error: model.error,
    Memory: model.vram_mb ? `${memory(model.vram_mb)} measured` : model.vram_mb === 0 ? "CPU only" : null,
    Estimate: model.estimated_mb != null ? memory(model.estimated_mb) : null,
    Port: model.port, Process: model.pid,
    Requests: `${model.in_flight ?? 0} in flight${model.slots ? ` of ${model.slots}` : ""}, ${model.queue_depth ?? 0} waiting`,
    Counted: model.requests_total != null ? `${model.requests_total.toLocaleString("en")} requests, ${(model.errors_total ?? 0).toLocaleString("en")} errors` : null,
    "Last used": model.last_used ? `${clock(model.last_used)} (${duration(view.now - model.last_used)} ago)` : "never",
    "Last load": model.expected_load_sec ? `took ${took(model.expected_load_sec)}` : null,
    Conversations: kept(model) && `kept ${kept(model)}`,
  };
  return Object.entries(rows).filter(([, value]) => value != null && value !== "").map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))));
}

/** One model in full: facts, what a load would do now, its log as it grows. */
export class Details {
  #log = h("pre", { tabindex: "0", role: "log", "aria-label": "Log", "aria-live": "off" });
  #plan = h("ul", {});
  #facts = h("dl", { class: "facts-list" });
  #chat;

  constructor(store, alias) {
    Object.assign(this, { store, alias });
    this.#chat = h("a", { href: `/upstream/${encodeURIComponent(alias)}/`, target: "_blank", rel: "noopener" }, "Open its own chat page ↗");
  }

  async open() {
    const log = this.store.admin && [h("h3", {}, "Log"), this.#log]; // logs are for keys with admin
    const dialog = h("dialog", { class: "details", "aria-labelledby": "details-title" },
      h("form", { method: "dialog", class: "bar" }, h("h2", { id: "details-title" }, this.alias), h("button", { "aria-label": "Close" }, "Close")),
      this.#facts, this.#chat,
      h("h3", {}, "If it were loaded now"), this.#plan, log);
    this.#showPlan();
    const source = this.store.admin ? this.#follow() : null;
    await show(dialog);
    source?.close();
  }

  render(now) {
    const model = this.store.models.get(this.alias);
    if (!model) return;
    this.#chat.hidden = !this.store.admin || (model.kind && model.kind !== "chat");
    setChildren(this.#facts, facts(model, this.store.view(model, now)));
  }

  async #showPlan() {
    const failed = this.store.models.get(this.alias)?.status === "failed"; // the router would only say so again, as an error
    const lines = failed ? ["Nothing, until it is reset or its file changes."] : await getJson(modelUrl(this.alias, "plan")).then(planLines, (error) => [error.message]);
    setChildren(this.#plan, lines.map((line) => h("li", {}, line)));
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
    source.onopen = () => ((text = ""), showText());
    source.addEventListener("log", (event) => {
      text = `${text}${event.data}\n`.slice(-MAX_LOG);
      requestAnimationFrame(showText); // a tail comes as hundreds of events
    });
    return source;
  }
}
