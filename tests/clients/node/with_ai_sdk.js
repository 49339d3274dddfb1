// Vercel's AI SDK with one of its providers: openai-compatible, openai (responses) or anthropic.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateObject, generateText, jsonSchema, streamText, tool } from "ai";
import * as told from "./telling.js";

const { ASK, BASE, KEY, MOST_TOKENS, MOST_IN_A_CALL, step } = told;
const PROVIDERS = { anthropic: createAnthropic, openai: createOpenAI, "openai-compatible": createOpenAICompatible };
const name = process.argv[3];
const common = { name: "here", baseURL: `${BASE}/v1`, supportsStructuredOutputs: true };
const provider = (apiKey) => PROVIDERS[name]({ ...common, apiKey });
const here = provider(KEY);
const stranger = provider(told.WRONG_KEY);
const tools = { weather: tool({ description: "The weather.", inputSchema: jsonSchema(told.WEATHER) }) };

const user = (content) => ({ role: "user", content });

async function chat(model, client = here) {
  const { text } = await generateText({ model: client(model), prompt: ASK, maxOutputTokens: MOST_TOKENS });
  return text;
}

// Its text stream leaves errors out; they are told by its parts.
async function stream(model, maxOutputTokens, messages = [user(ASK)]) {
  const { fullStream } = streamText({ model: here(model), messages, maxOutputTokens, onError: () => undefined });
  return told.pieces(model, fullStream, (part) => {
    if (part.type === "error") throw part.error;
    return part.type === "text-delta" ? part.text : "";
  });
}

async function call() {
  const asked = { model: here(told.CALLER), prompt: ASK, tools, toolChoice: "required" };
  const { toolCalls } = await generateText({ ...asked, maxOutputTokens: MOST_IN_A_CALL });
  return [toolCalls[0].toolName, toolCalls[0].input];
}

// The second turn refers to what the first one gave.
async function converse() {
  const messages = [user(ASK)];
  const first = await generateText({ model: here(told.CHAT), maxOutputTokens: MOST_TOKENS, messages });
  const again = [...messages, ...first.response.messages, user("Again.")];
  return [first.text, (await stream(told.CHAT, MOST_TOKENS, again)).join("")];
}

async function place(messages) {
  const asked = { model: here(told.CHAT), messages, maxOutputTokens: MOST_IN_A_CALL };
  return (await generateObject({ ...asked, schema: jsonSchema(told.WEATHER) })).object;
}

async function places() {
  const first = await place([user(ASK)]);
  const said = { role: "assistant", content: JSON.stringify(first) };
  return [first, await place([user(ASK), said, user("Again.")])];
}

async function embed() {
  const model = here.textEmbeddingModel(told.EMBED);
  const { embeddings } = await embedMany({ model, values: ["a", "b"] });
  return embeddings.map((vector) => vector.length);
}

await step("chat", () => chat(told.CHAT));
await step("stream", () => stream(told.CHAT, MOST_TOKENS));
await step("two_turns", converse);
await step("objects", places);
await step("tools", call);
await step("swap", () => told.swap(chat));
if (name !== "anthropic") await step("embed", embed);
await step("unknown", () => chat(told.NOBODY));
await step("wrong_key", () => chat(told.CHAT, stranger));
await step("broken", () => chat(told.BROKEN));
await step("too_long", () => chat(told.NARROW));
await step("crashing", () => chat(told.CRASHING));
await step("failing", () => stream(told.ENDLESS, 100_000));
