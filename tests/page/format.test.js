import assert from "node:assert/strict";
import test from "node:test";

import * as format from "../../app/api/ui/format.js";

test("a duration has the two units that matter", () => {
  const shown = { 0: "0 s", 59.4: "59 s", 60: "1 min", 61: "1 min 1 s", 599: "9 min 59 s", 700: "11 min" };
  const longer = { 3600: "1 h 0 min", 7260: "2 h 1 min", 86_400: "1 d 0 h", 176_400: "2 d 1 h" };
  for (const [seconds, text] of Object.entries({ ...shown, ...longer })) {
    assert.equal(format.duration(Number(seconds)), text);
  }
  assert.equal(format.duration(-3), "0 s", "two clocks that differ");
});

test("memory is told in the unit that fits", () => {
  assert.equal(format.memory(999.4), "999\u00a0MB");
  assert.equal(format.memory(1536), "1.5\u00a0GB");
  assert.equal(format.memory(204_800), "200\u00a0GB");
});

test("a sentence begins with a capital, unless that is the name of a file", () => {
  assert.equal(format.sentence("there is room"), "There is room.");
  assert.equal(format.sentence("qwen.gguf: no such file"), "qwen.gguf: no such file.");
  assert.equal(format.sentence("What now?"), "What now?");
});

test("numbers of things", () => {
  assert.equal(format.count(1, "request"), "1 request");
  assert.equal(format.count(1200, "request"), "1,200 requests");
  assert.equal(format.speed(9.96), "10.0");
  assert.equal(format.speed(1234.5), "1,235");
  assert.equal(format.took(0.4), "under 1 s");
});

test("a list has one 'and'", () => {
  assert.deepEqual([[], ["a"], ["a", "b"], ["a", "b", "c"]].map(format.list), [
    "",
    "a",
    "a and b",
    "a, b and c",
  ]);
});

test("only what is there is present", () => {
  assert.deepEqual(format.present(["a", "", null, false, 0, undefined, "b"]), ["a", "b"]);
});
