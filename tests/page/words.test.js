import assert from "node:assert/strict";
import test from "node:test";

import { segments } from "../../app/api/ui/memory.js";
import { planLines } from "../../app/api/ui/plan.js";
import { progressOf, stageText, statusNote, transition, work } from "../../app/api/ui/status.js";
import { Store } from "../../app/api/ui/store.js";
import { story, title } from "../../app/api/ui/headline_topics.js";
import { T0, fullStatus, queue, update } from "./models.js";

/** @import { Model, Plan, Process, Queue } from "../../app/api/ui/shapes.js" */

/** @param {Record<string, Partial<Model & Process>>} models */
function storeOf(models) {
  const store = new Store(() => T0 + 2);
  store.fullStatus(fullStatus(models));
  return store;
}

/** @param {Record<string, Partial<Model & Process>>} models */
const told = (models) => story(storeOf(models), T0 + 2);

test("quiet is told as such", () => {
  assert.equal(told({ a: {} })[0].verb, "All quiet");
  assert.match(told({ a: {} })[0].lines[0], /^No model is in memory/);
  assert.match(told({ a: { status: "ready" }, b: {} })[0].lines[0], /^1 model of 2 can answer at once/);
  assert.equal(told({ a: { status: "ready", in_flight: 2 } })[0].verb, "Answering 2 requests");
});

test("a load tells its step, its progress and who waits", () => {
  const waits = { queue_depth: 2, by_priority: { high: 1, normal: 1, low: 0 } };
  const [topic] = told({ a: { status: "loading", load_progress: 0.5, load_stage: "text_model", ...waits } });
  assert.equal(topic.tail, "50\u00a0%");
  assert.deepEqual(topic.lines, ["2 requests (1 high, 1 normal) are waiting for it."]);
  assert.deepEqual(
    topic.steps?.map((step) => [step.name, step.state]),
    [
      ["Start", "done"],
      ["Load", "current"],
      ["Answer", "todo"],
    ],
  );
});

test("a model that had to go is named with the reason", () => {
  const gone = { stopped_for: "b", stop_reason: /** @type {const} */ ("count"), status_since: T0 + 1 };
  const [topic] = told({ a: gone, b: { status: "starting", status_since: T0 + 1 } });
  assert.match(topic.lines[0], /^a had to stop: only so many models may be loaded at once/);
  assert.equal(topic.steps?.[0].detail, "a");
  const [later] = told({ a: { ...gone, status_since: T0 - 100 }, b: { status: "starting" } });
  assert.deepEqual(later.lines, ["Nobody is waiting for it yet."], "an earlier story");
});

test("what a waiting model waits for is said", () => {
  const waiting = { queue_depth: 1, by_priority: { high: 0, normal: 1, low: 0 } };
  const busy = { status: /** @type {const} */ ("ready"), in_flight: 1 };
  const [named] = told({ a: busy, b: { ...waiting, waits_for: ["a"], waits_until: T0 + 12 } });
  assert.match(
    named.lines[0],
    /takes the place of a, which still answers 1 request and takes new ones for at most 10 s/,
  );
  const [unnamed] = told({ a: busy, b: waiting });
  assert.match(unnamed.lines[0], /^a still answers 1 request; running requests are never cut off/);
  const [, later] = told({ a: { status: "starting" }, b: waiting });
  assert.equal(later.lines[0], "a is loading first.");
});

test("a failure is told with its error, three of them on one card", () => {
  const failed = { status: /** @type {const} */ ("failed"), error: "no such file" };
  const [, topic] = told({ a: failed });
  assert.equal(topic.lines[0], "No such file.");
  assert.ok(topic.broken);
  const many = told({ a: failed, b: failed, c: failed });
  assert.equal(many.length, 2);
  assert.equal(many[1].verb, "3 models");
});

test("the title names the one thing worth knowing", () => {
  const store = storeOf({ a: { status: "loading", load_progress: 0.25 }, b: { status: "failed" } });
  assert.equal(title(store), "Disconnected · Router");
  store.setConnection({ state: "open" });
  assert.equal(title(store), "25\u00a0% a · Router");
  store.modelUpdate(update("a", { status: "ready" }));
  assert.equal(title(store), "⚠ 1 failed · Router");
  store.modelUpdate(update("b", {}));
  assert.equal(title(store), "1 ready · Router");
});

test("a change says why", () => {
  const stopped = update("a", { status: "stopping", stop_reason: "idle" });
  assert.equal(transition("ready", stopped).text, "stopping after being idle");
  assert.equal(
    transition("crashed", update("a", { status: "starting" })).text,
    "starting again after the crash",
  );
  assert.equal(transition("failed", update("a", {})).text, "reset, it may be loaded again");
  assert.equal(transition("ready", update("a", { status: "crashed", error: "signal 9" })).tone, "bad");
});

test("a load that is read but not ready has no progress to show", () => {
  const over = update("a", { status: "loading", load_progress: 1, load_stage: "text_model" });
  assert.equal(progressOf(over), null);
  assert.equal(stageText(over), "preparing the weights");
  assert.equal(stageText(update("a", { load_stage: "some_new_stage" })), "some new stage");
});

test("a note says what a state does not", () => {
  const view = { now: T0 + 60, age: 60, loadStart: T0, eta: null, oldest: null };
  const note = (/** @type {Partial<Model>} */ fields) => statusNote(update("a", fields), view);
  assert.equal(note({}), "");
  assert.equal(note({ queue_depth: 1, waits_for: ["b", "c"] }), "waiting for b and c");
  assert.equal(note({ stopped_for: "b" }), "stopped to make room for b");
  assert.equal(note({ status: "ready", last_used: T0 }), "idle 1 min");
  assert.equal(
    note({ status: "stopping", stop_reason: "idle", in_flight: 1 }),
    "after being idle, 1 request still running",
  );
  assert.equal(note({ status: "failed", error: "why" }), "why");
});

test("long answers are seen to move", () => {
  const nothing = { prompt_tokens: null, prompt_read: null, generated: null };
  /** @param {Partial<Queue>} fields */
  const view = (fields) => ({
    now: T0 + 60,
    age: 60,
    loadStart: T0,
    eta: null,
    oldest: null,
    queue: queue(fields),
  });
  /** @param {number} in_flight @param {Partial<Queue>} fields */
  const note = (in_flight, fields) => statusNote(update("a", { status: "ready", in_flight }), view(fields));
  const reads = { since: T0 + 30, prompt_tokens: 4000, prompt_read: 512, generated: 0 };
  const writes = { since: T0, prompt_tokens: 10, prompt_read: 10, generated: 1204 };
  assert.equal(note(1, { requests: [{ since: T0 + 58, ...nothing }] }), "answering 1 request");
  assert.equal(note(1, { requests: [{ since: T0, ...nothing }] }), "answering 1 request for 1 min");
  assert.equal(
    note(1, { requests: [reads] }),
    "answering 1 request for 30 s: 512 of 4,000 prompt tokens read",
  );
  assert.equal(
    note(2, { requests: [writes, reads] }),
    "answering 2 requests, the longest for 1 min: 1,204 tokens",
  );
  assert.equal(work(view({})), null);
  assert.equal(
    work(view({ requests: [writes, reads] })),
    "for 1 min: 1,204 tokens; for 30 s: 512 of 4,000 prompt tokens read",
  );
  const progress = { seen: T0 + 50, prompt_tokens: 30, prompt_read: 30, generated: 900 };
  const requests = [{ since: T0, ...nothing }];
  assert.equal(work(view({ requests, progress })), "for 1 min; together 900 tokens");
});

test("a plan in words", () => {
  /** @type {Plan} */
  const plan = {
    status: "off",
    fits: true,
    devices: [{ index: 0, need_mb: 500, free_mb: 900 }],
    evicts: [],
    estimate_mb: 500,
    measured_mb: null,
    reason: "there is room",
  };
  assert.deepEqual(planLines(plan), [
    "It fits into the free memory; nothing has to stop.",
    "There is room.",
    "GPU 0: needs 500\u00a0MB, 900\u00a0MB free",
    "Size: estimated 500\u00a0MB",
  ]);
  assert.equal(
    planLines({ ...plan, evicts: ["b", "c"], reason: "after stopping b, c" })[0],
    "Would stop: b, c.",
  );
  assert.deepEqual(planLines({ ...plan, status: "ready", reason: "whatever it says" }), [
    "Whatever it says.",
  ]);
});

test("a device's bar never exceeds the device", () => {
  const device = { index: 0, name: "", total_mb: 1000, used_mb: 700, free_mb: 100, others_mb: 600 };
  const models = [
    update("a", { status: "ready", devices: [{ index: 0, used_mb: 300 }] }),
    update("b", {
      status: "loading",
      devices: [
        { index: 0, used_mb: 200 },
        { index: 1, used_mb: 900 },
      ],
    }),
    update("c", {}),
  ];
  assert.deepEqual(
    segments(device, models).map(({ kind, alias, mb }) => [kind, alias, mb]),
    [
      ["held", "a", 300],
      ["coming", "b", 200],
      ["other", "", 500],
    ],
  );
});
