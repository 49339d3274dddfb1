// Ollama's own library.

import { Ollama } from "ollama";
import * as told from "./telling.js";

const { ASK, BASE, CHAT, KEY, MOST_TOKENS, step } = told;
const messages = [{ role: "user", content: ASK }];
const short = { num_predict: MOST_TOKENS, temperature: 0 };
const here = client(KEY);

function client(key) {
  return new Ollama({ host: BASE, headers: { Authorization: `Bearer ${key}` } });
}

async function chat(model, asked = here) {
  return (await asked.chat({ model, messages, options: short })).message.content;
}

async function stream(model, options) {
  const lines = await here.chat({ model, messages, options, stream: true });
  return told.pieces(model, lines, (line) => line.message.content);
}

async function keepAndLetGo() {
  const kept = await here.generate({ model: CHAT, prompt: "", keep_alive: -1 });
  const gone = await here.generate({ model: CHAT, prompt: "", keep_alive: 0 });
  return [kept.done_reason, gone.done_reason];
}

async function embed() {
  const found = await here.embed({ model: told.EMBED, input: ["a", "b"] });
  return found.embeddings.map((vector) => vector.length);
}

const names = (found) => found.models.map((model) => model.name);

await step("list", async () => names(await here.list()).map((name) => name.replace(":latest", "")));
await step("show", async () => (await here.show({ model: CHAT })).capabilities);
await step("chat", () => chat(CHAT));
await step("stream", () => stream(CHAT, short));
await step("swap", () => told.swap(chat));
await step("ps", async () => names(await here.ps()));
await step("keep_alive", keepAndLetGo);
await step("embed", embed);
await step("unknown", () => chat(told.NOBODY));
await step("wrong_key", () => chat(CHAT, client(told.WRONG_KEY)));
await step("broken", () => chat(told.BROKEN));
await step("too_long", () => chat(told.NARROW));
await step("crashing", () => chat(told.CRASHING));
await step("failing", () => stream(told.ENDLESS, {}));
