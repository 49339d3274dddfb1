// The page of the API: every operation of /openapi.json, with what to send and what comes back.

import { getJson } from "./api.js";
import { h, setText } from "./dom.js";

const SHOWN = 20_000;

const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

/** The first example of a body or an answer: [media type, text]. */
function exampleOf(content) {
  const [type, { example, examples } = {}] = Object.entries(content ?? {})[0] ?? [];
  const value = example ?? Object.values(examples ?? {})[0]?.value;
  return value === undefined ? null : [type, pretty(value)];
}

/** A path with the examples of its parameters put in. */
function filled(path, parameters) {
  return path.replace(/\{(\w+)[^}]*\}/g, (whole, name) => parameters.find((p) => p.name === name)?.example ?? whole);
}

function answersOf(responses) {
  return Object.entries(responses).map(([status, { description, content }]) => {
    const example = exampleOf(content);
    return h("div", {}, h("h3", {}, `${status} ${description ?? ""}`), example && h("pre", {}, example[1]));
  });
}

/** Sends what stands in the fields, with the session of this page, and shows what comes back. */
async function send(method, target, type, text, shown) {
  setText(shown, "…");
  try {
    const body = text ? { body: text, headers: { "Content-Type": type } } : {};
    const answer = await fetch(target, { method: method.toUpperCase(), cache: "no-store", ...body });
    const head = `${answer.status} ${answer.headers.get("content-type") ?? ""}`;
    const isStream = head.includes("event-stream");
    setText(shown, isStream ? `${head}\n(a stream of events: use curl -N)` : `${head}\n\n${(await answer.text()).slice(0, SHOWN)}`);
    if (isStream) answer.body?.cancel();
  } catch (error) {
    setText(shown, String(error));
  }
}

function tryOut(method, path, { parameters = [], requestBody }) {
  const [type, text] = exampleOf(requestBody?.content) ?? ["application/json", ""];
  const target = h("input", { value: filled(path, parameters), "aria-label": "Path" });
  const body = requestBody && h("textarea", { "aria-label": "Body", spellcheck: "false" }, text);
  const shown = h("pre", { role: "status" });
  const click = () => send(method, target.value, type, body?.value, shown);
  return h("div", {}, h("h3", {}, "Try it"), target, body, h("button", { type: "button", onclick: click }, "Send"), shown);
}

function operation(method, path, found) {
  return h(
    "details", {},
    h("summary", {}, h("code", {}, `${method.toUpperCase()} ${path}`), ` ${found.summary ?? ""}`),
    found.description && h("p", {}, found.description),
    tryOut(method, path, found),
    ...answersOf(found.responses),
  );
}

const { info, paths } = await getJson("/openapi.json");
const sections = new Map();
for (const [path, methods] of Object.entries(paths)) {
  for (const [method, found] of Object.entries(methods)) {
    const tag = found.tags?.[0] ?? "other";
    if (!sections.has(tag)) sections.set(tag, h("section", { class: "card" }, h("h2", {}, tag)));
    sections.get(tag).append(operation(method, path, found));
  }
}
document.getElementById("operations").append(h("p", {}, info.description ?? ""), ...sections.values());
