// OpenAI's SDK: chat completions, embeddings and responses.

import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import * as told from "./telling.js";

const { ASK, BASE, KEY, MOST_TOKENS, MOST_IN_A_CALL, step } = told;
const here = new OpenAI({ baseURL: `${BASE}/v1`, apiKey: KEY, timeout: 600_000 });
const stranger = new OpenAI({ baseURL: `${BASE}/v1`, apiKey: told.WRONG_KEY });
const messages = [{ role: "user", content: ASK }];
const tools = [{ type: "function", function: { name: "weather", parameters: told.WEATHER } }];

async function chat(model, client = here) {
  const asked = { model, messages, max_tokens: MOST_TOKENS, temperature: 0 };
  const answer = await client.chat.completions.create(asked);
  return answer.choices[0].message.content;
}

async function stream(model, more) {
  const chunks = await here.chat.completions.create({ model, messages, stream: true, temperature: 0, ...more });
  return told.pieces(model, chunks, (chunk) => chunk.choices[0]?.delta.content);
}

async function call() {
  const asked = { model: told.CALLER, messages, tools, tool_choice: "required", max_tokens: MOST_IN_A_CALL };
  const answer = await here.chat.completions.create(asked);
  const [use] = answer.choices[0].message.tool_calls;
  return [use.function.name, JSON.parse(use.function.arguments)];
}

async function embed() {
  const found = await here.embeddings.create({ model: told.EMBED, input: ["a", "b"] });
  return found.data.map((vector) => vector.embedding.length);
}

async function converse() {
  const asked = { model: told.CHAT, input: ASK, max_output_tokens: MOST_TOKENS, temperature: 0 };
  const first = await here.responses.create(asked);
  const events = here.responses.stream({ ...asked, input: "Again.", previous_response_id: first.id });
  let second = "";
  for await (const event of events) if (event.type === "response.output_text.delta") second += event.delta;
  return [first.output_text, second];
}

const Place = z.object({ city: z.enum(["Paris", "Rome"]) });

async function parse() {
  const asked = { model: told.CHAT, input: ASK, max_output_tokens: MOST_IN_A_CALL };
  const found = await here.responses.parse({ ...asked, text: { format: zodTextFormat(Place, "place") } });
  return found.output_parsed;
}

async function failInAResponse() {
  const events = await here.responses.create({ model: told.ENDLESS, input: ASK, stream: true });
  return told.pieces(told.ENDLESS, events, (event) => {
    if (event.type === "response.failed") throw new Error(event.response.error.message);
    return event.type === "response.output_text.delta" ? event.delta : "";
  });
}

await step("list", async () => (await here.models.list()).data.map((model) => model.id));
await step("chat", () => chat(told.CHAT));
await step("stream", () => stream(told.CHAT, { max_tokens: MOST_TOKENS }));
await step("responses", converse);
await step("parse", parse);
await step("count", async () => {
  return (await here.responses.inputTokens.count({ model: told.CHAT, input: ASK })).input_tokens;
});
await step("tools", call);
await step("swap", () => told.swap(chat));
await step("embed", embed);
await step("unknown", () => chat(told.NOBODY));
await step("wrong_key", () => chat(told.CHAT, stranger));
await step("broken", () => chat(told.BROKEN));
await step("too_long", () => chat(told.NARROW));
await step("crashing", () => chat(told.CRASHING));
await step("failing", () => stream(told.ENDLESS));
await step("failing_response", failInAResponse);
