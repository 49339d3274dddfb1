// What a client sees, told line by line to the test that judges it.

export const BASE = process.argv[2]; // the router's address, without /v1
export const KEY = "secret";
export const WRONG_KEY = "wrong";
export const [CHAT, OTHER, CALLER, EMBED] = ["chat", "other", "caller", "embed"];
export const [NOBODY, BROKEN, ENDLESS] = ["nobody", "broken", "endless"];
export const [NARROW, CRASHING] = ["narrow", "CRASH-BY-ABORT"];
export const ASK = "Say hello.";
export const MOST_TOKENS = 12;
export const MOST_IN_A_CALL = 200;
export const WEATHER = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
  required: ["city"],
};

function tell(line) {
  process.stdout.write(JSON.stringify(line) + "\n");
}

// What `call` gives, or the error that it throws.
export async function step(name, call) {
  try {
    tell({ step: name, saw: await call() });
  } catch (error) {
    tell({ step: name, error: `${error.name}: ${error.message} ${error.responseBody ?? ""}` });
  }
}

// All pieces of a stream. At the first one of the endless stream the test lets that fail.
export async function pieces(model, stream, textOf) {
  const found = [];
  for await (const piece of stream) {
    const text = textOf(piece);
    if (!text) continue;
    found.push(text);
    if (model === ENDLESS && found.length === 1) tell({ step: "failing", begun: true });
  }
  return found;
}

// One after the other: a swap each.
export async function swap(chat) {
  return [await chat(OTHER), await chat(CHAT)];
}
