// Anthropic's SDK.

import Anthropic from "@anthropic-ai/sdk";
import * as told from "./telling.js";

const { ASK, BASE, KEY, MOST_TOKENS, step } = told;
const here = new Anthropic({ baseURL: BASE, apiKey: KEY, timeout: 600_000 });
const stranger = new Anthropic({ baseURL: BASE, apiKey: told.WRONG_KEY });
const messages = [{ role: "user", content: ASK }];
const tools = [{ name: "weather", input_schema: told.WEATHER }];

async function chat(model, client = here) {
  const answer = await client.messages.create({ model, messages, max_tokens: MOST_TOKENS });
  return answer.content[0].text;
}

async function stream(model, max_tokens) {
  const events = here.messages.stream({ model, messages, max_tokens });
  return told.pieces(model, events, (event) => event.delta?.text);
}

async function call() {
  const asked = { model: told.CALLER, messages, tools, tool_choice: { type: "any" } };
  const answer = await here.messages.create({ ...asked, max_tokens: told.MOST_IN_A_CALL });
  const use = answer.content.find((block) => block.type === "tool_use");
  return [use.name, use.input];
}

async function list() {
  const found = [];
  for await (const model of here.models.list()) found.push(model.display_name);
  return found;
}

await step("list", list);
await step("chat", () => chat(told.CHAT));
await step("stream", () => stream(told.CHAT, MOST_TOKENS));
await step("count", async () => (await here.messages.countTokens({ model: told.CHAT, messages })).input_tokens);
await step("tools", call);
await step("swap", () => told.swap(chat));
await step("unknown", () => chat(told.NOBODY));
await step("wrong_key", () => chat(told.CHAT, stranger));
await step("broken", () => chat(told.BROKEN));
await step("too_long", () => chat(told.NARROW));
await step("crashing", () => chat(told.CRASHING));
await step("failing", () => stream(told.ENDLESS, 100_000));
