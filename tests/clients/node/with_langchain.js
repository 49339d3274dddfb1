// LangChain's classes for OpenAI's API.

import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import * as told from "./telling.js";

const { ASK, BASE, KEY, MOST_TOKENS, MOST_IN_A_CALL, step } = told;
const configuration = { baseURL: `${BASE}/v1` };
const tools = [{ type: "function", function: { name: "weather", parameters: told.WEATHER } }];

function model(name, maxTokens = MOST_TOKENS, apiKey = KEY) {
  const asked = { model: name, maxTokens, apiKey, temperature: 0, timeout: 600_000, configuration };
  return new ChatOpenAI({ ...asked, maxRetries: 0 }); // it would repeat a 424 six times, whatever it is told
}

async function chat(name, apiKey = KEY) {
  return (await model(name, MOST_TOKENS, apiKey).invoke(ASK)).content;
}

async function stream(name, maxTokens) {
  return told.pieces(name, await model(name, maxTokens).stream(ASK), (piece) => piece.content);
}

async function call() {
  const asked = model(told.CALLER, MOST_IN_A_CALL).bindTools(tools, { tool_choice: "required" });
  const [use] = (await asked.invoke(ASK)).tool_calls;
  return [use.name, use.args];
}

async function embed() {
  const embeddings = new OpenAIEmbeddings({ model: told.EMBED, apiKey: KEY, configuration });
  return (await embeddings.embedDocuments(["a", "b"])).map((vector) => vector.length);
}

await step("chat", () => chat(told.CHAT));
await step("stream", () => stream(told.CHAT, MOST_TOKENS));
await step("tools", call);
await step("swap", () => told.swap(chat));
await step("embed", embed);
await step("unknown", () => chat(told.NOBODY));
await step("wrong_key", () => chat(told.CHAT, told.WRONG_KEY));
await step("broken", () => chat(told.BROKEN));
await step("too_long", () => chat(told.NARROW));
await step("crashing", () => chat(told.CRASHING));
await step("failing", () => stream(told.ENDLESS, 100_000));
