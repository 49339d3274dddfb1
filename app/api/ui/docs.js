// The page of the API: every operation of openapi.json, with what to send and what comes back.

import { getJson } from "./api.js";
import { h, setText } from "./dom.js";

/** @typedef {Record<string, { example?: unknown, examples?: Record<string, { value: unknown }> }>} Content */
/** @typedef {Record<string, { description?: string, content?: Content }>} Answers */
/** @typedef {{ name: string, example?: string }} Parameter */
/**
 * @typedef {object} Operation
 * @property {string[]} [tags]
 * @property {string} [summary]
 * @property {string} [description]
 * @property {Parameter[]} [parameters]
 * @property {{ content?: Content }} [requestBody]
 * @property {Answers} responses
 */

const SHOWN = 20_000;

/**
 * The first example of a body or an answer: its media type, and text.
 * @param {Content | undefined} content
 * @returns {[string, string] | null}
 */
function exampleOf(content) {
  const [type, { example = undefined, examples = undefined } = {}] = Object.entries(content ?? {})[0] ?? [];
  const value = example ?? Object.values(examples ?? {})[0]?.value;
  if (type === undefined || value === undefined) return null;
  return [type, typeof value === "string" ? value : JSON.stringify(value, null, 2)];
}

/**
 * A path, relative to this page, with the examples of its parameters put in.
 * @param {string} path
 * @param {Parameter[]} parameters
 */
function filled(path, parameters) {
  const example = (/** @type {string} */ name) => parameters.find((p) => p.name === name)?.example;
  return path.slice(1).replace(/\{(\w+)[^}]*\}/g, (whole, name) => example(name) ?? whole);
}

/** @param {Answers} answers */
function answersOf(answers) {
  return Object.entries(answers).map(([status, { description, content }]) => {
    const example = exampleOf(content);
    return h("div", {}, h("h3", {}, `${status} ${description ?? ""}`), example && h("pre", {}, example[1]));
  });
}

/**
 * What an answer is, in words. A stream of events has no end to wait for.
 * @param {Response} answer
 */
async function told(answer) {
  const head = `${answer.status} ${answer.headers.get("content-type") ?? ""}`;
  if (!head.includes("event-stream")) return `${head}\n\n${(await answer.text()).slice(0, SHOWN)}`;
  await answer.body?.cancel();
  return `${head}\n(a stream of events: follow it with curl -N)`;
}

/**
 * Sends with the session of this page, and shows what comes back.
 * @param {string} method
 * @param {string} target
 * @param {string} type
 * @param {string} text
 * @param {HTMLElement} shown
 */
async function send(method, target, type, text, shown) {
  setText(shown, "…");
  try {
    const body = text ? { body: text, headers: { "Content-Type": type } } : {};
    const answer = await fetch(target, { method: method.toUpperCase(), cache: "no-store", ...body });
    setText(shown, await told(answer));
  } catch (error) {
    setText(shown, String(error));
  }
}

/**
 * @param {string} method
 * @param {string} path
 * @param {Operation} operation
 */
function tryOut(method, path, { parameters = [], requestBody }) {
  const [type, text] = exampleOf(requestBody?.content) ?? ["application/json", ""];
  const target = document.createElement("input");
  target.value = filled(path, parameters);
  target.setAttribute("aria-label", "Path");
  const body = document.createElement("textarea");
  body.value = text;
  body.hidden = !requestBody;
  body.setAttribute("aria-label", "Body");
  const shown = h("pre", { role: "status" });
  const click = () => send(method, target.value, type, requestBody ? body.value : "", shown);
  const button = h("button", { type: "button", onclick: click }, "Send");
  return h("div", {}, h("h3", {}, "Try it"), target, body, button, shown);
}

/**
 * @param {string} method
 * @param {string} path
 * @param {Operation} operation
 */
function shownOperation(method, path, operation) {
  return h(
    "details",
    {},
    h("summary", {}, h("code", {}, `${method.toUpperCase()} ${path}`), ` ${operation.summary ?? ""}`),
    operation.description ? h("p", {}, operation.description) : null,
    tryOut(method, path, operation),
    ...answersOf(operation.responses),
  );
}

/** @type {{ info: { description?: string }, paths: Record<string, Record<string, Operation>> }} */
const { info, paths } = await getJson("openapi.json");
/** @type {Map<string, HTMLElement>} */
const sections = new Map();
for (const [path, methods] of Object.entries(paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const tag = operation.tags?.[0] ?? "other";
    const section = sections.get(tag) ?? h("section", { class: "card" }, h("h2", {}, tag));
    sections.set(tag, section);
    section.append(shownOperation(method, path, operation));
  }
}
document.querySelector("#operations")?.append(h("p", {}, info.description ?? ""), ...sections.values());
