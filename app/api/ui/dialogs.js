// Everything that opens on top of the page: the key prompt, confirmations, one model's details, messages.

import { apiKey, getJson, getText, modelUrl } from "./api.js";
import { h, setChildren, setText } from "./dom.js";
import { clock, duration, memory, percent, sentence, statusOf } from "./words.js";

const LOG_REFRESH_MS = 2000;

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

export async function askForKey(wrong) {
  const input = h("input", { type: "password", name: "key", required: true, autocomplete: "current-password", "aria-label": "API key", autofocus: true });
  const dialog = h("dialog", { class: "small", "aria-labelledby": "key-title" }, h(
    "form", { method: "dialog" },
    h("h2", { id: "key-title" }, "This router wants an API key"),
    h("p", {}, wrong ? "The key was not accepted. Try another one." : "It is one of api_keys in the router's configuration. This tab keeps it until it is closed."),
    input,
    h("div", { class: "buttons" }, h("button", { class: "primary", value: "ok" }, "Continue")),
  ));
  dialog.addEventListener("cancel", (event) => event.preventDefault()); // there is nothing to see without a key
  await show(dialog);
  apiKey.set(input.value.trim());
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
    Status: `${statusOf(model).label}${model.load_progress != null && model.status === "loading" ? ` ${percent(model.load_progress)}` : ""} for ${duration(view.age)}`,
    Why: model.reason, Error: model.error,
    Memory: model.vram_mb ? `${memory(model.vram_mb)} measured` : model.vram_mb === 0 ? "CPU only" : null,
    Estimate: model.estimated_mb != null ? memory(model.estimated_mb) : null,
    Port: model.port, Process: model.pid,
    Requests: `${model.in_flight ?? 0} in flight${model.slots ? ` of ${model.slots}` : ""}, ${model.queue_depth ?? 0} waiting`,
    Counted: model.requests_total != null ? `${model.requests_total.toLocaleString("en")} requests, ${(model.errors_total ?? 0).toLocaleString("en")} errors` : null,
    "Last used": model.last_used ? `${clock(model.last_used)} (${duration(view.now - model.last_used)} ago)` : "never",
    "Last load": view.lastLoad ? `took ${duration(view.lastLoad)}` : null,
  };
  return Object.entries(rows).filter(([, value]) => value != null && value !== "").map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))));
}

/** One model in full: facts, what a load would do now, the tail of its log. Refreshes itself while open. */
export class Details {
  #log = h("pre", { tabindex: "0", "aria-label": "Log tail" });
  #plan = h("ul", {});
  #facts = h("dl", { class: "facts-list" });
  #chat;

  constructor(store, alias) {
    Object.assign(this, { store, alias });
    // a plain link cannot carry the key
    this.#chat = h("a", { href: `/upstream/${encodeURIComponent(alias)}/`, target: "_blank", rel: "noopener", hidden: Boolean(apiKey.get()) }, "Open its own chat page ↗");
  }

  async open() {
    const dialog = h("dialog", { class: "details", "aria-labelledby": "details-title" },
      h("form", { method: "dialog", class: "bar" }, h("h2", { id: "details-title" }, this.alias), h("button", { "aria-label": "Close" }, "Close")),
      this.#facts, this.#chat,
      h("h3", {}, "If it were loaded now"), this.#plan,
      h("h3", {}, "Log"), this.#log);
    this.#showPlan();
    this.#showLog();
    const timer = setInterval(() => this.#showLog(), LOG_REFRESH_MS);
    await show(dialog);
    clearInterval(timer);
  }

  render(now) {
    const model = this.store.models.get(this.alias);
    if (!model) return;
    if (model.kind && model.kind !== "chat") this.#chat.hidden = true;
    setChildren(this.#facts, facts(model, { ...this.store.view(model, now), lastLoad: this.store.lastLoad.get(this.alias) }));
  }

  async #showPlan() {
    const lines = await getJson(modelUrl(this.alias, "plan")).then(planLines, (error) => [error.message]);
    setChildren(this.#plan, lines.map((line) => h("li", {}, line)));
  }

  async #showLog() {
    const text = await getText(`${modelUrl(this.alias, "logs")}?lines=200`).catch((error) => error.message);
    if (text === this.#log.textContent) return;
    const atEnd = this.#log.scrollTop + this.#log.clientHeight >= this.#log.scrollHeight - 8;
    setText(this.#log, text || "The log is empty.");
    if (atEnd) this.#log.scrollTop = this.#log.scrollHeight;
  }
}
