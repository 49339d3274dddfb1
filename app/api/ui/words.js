// What the page says. Pure functions: a picture of the router in, words out; no DOM, no clock.

export const STATUS = {
  off: { label: "Off", tone: "off" },
  starting: { label: "Starting", tone: "busy" },
  loading: { label: "Loading", tone: "busy" },
  ready: { label: "Ready", tone: "ok" },
  stopping: { label: "Stopping", tone: "wait" },
  crashed: { label: "Crashed", tone: "bad" },
  failed: { label: "Failed", tone: "bad" },
};

export const statusOf = (model) => STATUS[model.status] ?? { label: model.status ?? "Unknown", tone: "off" };
export const isResident = (model) => ["starting", "loading", "ready", "stopping"].includes(model.status);
export const isComing = (model) => model.status === "starting" || model.status === "loading";

export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return s < 600 && s % 60 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 60)} min`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/** How long a load took: often less than what is worth a number. */
export const took = (seconds) => (seconds < 1 ? "under 1 s" : duration(seconds));

export const memory = (mb) => (mb < 1000 ? `${Math.round(mb)}\u00a0MB` : `${(mb / 1024).toFixed(mb < 102_400 ? 1 : 0)}\u00a0GB`);
export const percent = (fraction) => `${Math.round(fraction * 100)}\u00a0%`;
export const speed = (tokens) => (tokens < 10 ? tokens.toFixed(1) : Math.round(tokens).toLocaleString("en"));
export const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString([], { hour12: false });
/** A capital for a word, never for the name of a file or a program; a full stop. */
export const sentence = (text) => text.replace(/^[a-z]+(?=[\s,])/, (word) => word.charAt(0).toUpperCase() + word.slice(1)) + (/[.!?]$/.test(text) ? "" : ".");

/** Tokens per second of the models that answer now; a model keeps the figure of its last answer. */
export const speedNow = (models) => models.reduce((sum, model) => sum + (model.in_flight ? model.tokens_per_second ?? 0 : 0), 0);

export function list(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

/** The alias for which this model had to go, if that is why it went. */
export const evictedFor = (model) => model.stopped_for ?? null;

function stopReason(model) {
  if (model.stopped_for) return `to make room for ${model.stopped_for}`;
  if (model.stop_reason === "idle") return "after being idle";
  return model.reason ? `(${model.reason})` : "";
}

/** Why there was not room for both. */
const noRoom = (model) => (model.stop_reason === "count" ? "only so many models may be loaded at once (max_concurrent_models)" : "there is not enough free memory for both");

const bytes = (n) => memory(n / 2 ** 20);

/** What is kept of a model's conversations over a swap; null where nothing is. */
export function kept(model) {
  if (!model.keep_cache || model.keep_cache === "off") return null;
  const place = model.keep_cache === "ram" ? "in memory" : "on disk";
  return model.kept_tokens ? `${model.kept_tokens.toLocaleString("en")} tokens ${place} (${bytes(model.kept_bytes ?? 0)})` : `${place}, nothing yet`;
}

/** The part of a load that is known; null when nothing is, or when what is known is over and it still loads. */
export const progressOf = (model) => (model.status === "loading" && model.load_progress < 1 ? model.load_progress ?? null : null);

const because = (model) => (model.reason ? ` (${model.reason})` : "");
const withError = (text, model) => (model.error ? `${text}: ${model.error}` : text);

/** One line of the event list for a change of status, or null where it says nothing new. */
export function transition(before, model, { waiting = 0, loadSeconds = null } = {}) {
  switch (model.status) {
    case "starting":
      return before === "crashed"
        ? { tone: "busy", text: "starting again after the crash" }
        : { tone: "busy", text: waiting ? `starting, ${count(waiting, "request")} waiting for it` : `starting${because(model)}` };
    case "loading":
      return { tone: "busy", text: loadingText(model), live: true };
    case "ready":
      return {
        tone: "ok",
        text: ["ready", loadSeconds && `after ${duration(loadSeconds)}`, model.vram_mb && `using ${memory(model.vram_mb)}`].filter(Boolean).join(" "),
      };
    case "stopping":
      return { tone: "wait", text: `stopping ${stopReason(model)}`.trim() };
    case "crashed":
      return { tone: "bad", text: withError("crashed, restarting", model) };
    case "failed":
      return { tone: "bad", text: withError("failed", model) };
    case "off":
      if (before === "failed") return { tone: "off", text: "reset, it may be loaded again" };
      return { tone: "off", text: before === "stopping" ? "stopped, its memory is free" : `off${because(model)}` };
    default:
      return null;
  }
}

export function loadingText(model) {
  return progressOf(model) == null ? "loading" : `loading, ${percent(progressOf(model))}`;
}

const STAGES = { text_model: "reading the weights", weights: "reading the weights", mmproj_model: "reading the image encoder", context: "preparing its context", "warm-up": "warming up" };

export function stageText(model) {
  if (model.load_progress >= 1 && model.load_stage in { weights: 0, text_model: 0 }) return "preparing the weights";
  return STAGES[model.load_stage] ?? (model.load_stage ?? "").replaceAll("_", " ");
}

/** The second line of a model's status: why it is as it is, or for how long. */
export function statusNote(model, view) {
  const waiting = model.queue_depth ?? 0;
  switch (model.status) {
    case "starting":
      return "process is starting";
    case "loading":
      return [stageText(model), view.eta != null && `about ${duration(view.eta)} left`].filter(Boolean).join(", ");
    case "ready":
      if (model.in_flight) return `answering ${count(model.in_flight, "request")}`;
      if (waiting) return `up ${duration(view.age)}`;
      return model.last_used ? `idle ${duration(view.now - model.last_used)}` : `up ${duration(view.age)}, not used yet`;
    case "stopping":
      return [stopReason(model), model.in_flight && `${count(model.in_flight, "request")} still running`].filter(Boolean).join(", ");
    case "crashed":
    case "failed":
      return model.error ?? model.reason ?? "";
    default:
      if (waiting) return model.waits_for?.length ? `waiting for ${list(model.waits_for)}` : "waiting for room";
      return stopReason(model) && `stopped ${stopReason(model)}`;
  }
}

function waiters(model, oldest) {
  const waiting = model.queue_depth ?? 0;
  if (!waiting) return null;
  const by = model.by_priority ?? {};
  const levels = ["high", "normal", "low"].filter((level) => by[level]).map((level) => `${by[level]} ${level}`);
  const mix = levels.length && !(levels.length === 1 && by.normal) ? ` (${levels.join(", ")})` : "";
  const verb = waiting === 1 ? "is" : "are";
  const since = oldest == null ? "" : waiting === 1 ? `, for ${duration(oldest)} now` : `, the longest for ${duration(oldest)} now`;
  return `${count(waiting, "request")}${mix} ${verb} waiting for it${since}`;
}

/** Who went for this model since it was last seen without a process; an earlier time is another story. */
function departed(store, model, now) {
  const before = store.history.get(model.alias)?.findLast((entry) => !isComing(entry))?.t ?? store.view(model, now).loadStart - 30;
  return store.list().filter((other) => evictedFor(other) === model.alias && ["stopping", "off"].includes(other.status) && other.status_since > before);
}

function steps(model, room) {
  const order = ["off", "starting", "loading", "ready"];
  const at = order.indexOf(model.status);
  const all = [
    { name: "Make room", detail: list(room.map((other) => other.alias)), at: 0, skip: !room.length && at > 0 },
    { name: "Start", detail: "process", at: 1 },
    { name: "Load", detail: (at === 2 && stageText(model)) || "into memory", at: 2 },
    { name: "Answer", detail: model.queue_depth ? count(model.queue_depth, "request") : "ready", at: 3 },
  ];
  return all.filter((step) => !step.skip).map((step) => ({
    ...step, state: step.at < at ? "done" : step.at === at ? "current" : "todo",
  }));
}

/** Who went, why, and what becomes of what was said to it. */
function departure(model) {
  const back = kept(model) && model.kept_tokens ? ` Its conversations are kept: ${kept(model)}.` : "";
  return `${model.alias} had to stop: ${noRoom(model)}.${back}`;
}

function comingTopic(store, model, now) {
  const view = store.view(model, now);
  const room = departed(store, model, now);
  const facts = [{ value: duration(now - view.loadStart), label: "so far" }];
  if (view.eta > 0) facts.push({ value: `≈ ${duration(view.eta)}`, label: "left" });
  if (model.expected_load_sec) facts.push({ value: took(model.expected_load_sec), label: "last time" });
  if (model.queue_depth) facts.push({ value: String(model.queue_depth), label: "waiting" });
  const lines = room.map(departure);
  lines.push(sentence(waiters(model, view.oldest) ?? (model.reason ? `Reason: ${model.reason}` : "Nobody is waiting for it yet")));
  return {
    key: model.alias, tone: "busy", verb: model.status === "starting" ? "Starting" : "Loading", alias: model.alias,
    tail: progressOf(model) != null ? percent(progressOf(model)) : "", lines, facts,
    progress: progressOf(model), steps: steps(model, room),
  };
}

function leaving(model) {
  const last = model.in_flight ? `; ${count(model.in_flight, "running request")} may finish first` : kept(model) ? "; what was said to it is saved first" : "";
  return `${model.alias} is stopping, because ${noRoom(model)}${last}.`;
}

/** Why a model that will have to go is still there. */
function holding(other, model, now) {
  const left = model.waits_until == null ? null : model.waits_until - now;
  const limit = left > 0.5 ? ` for at most ${duration(left)} more` : "";
  if (other.queue_depth) return `It takes the place of ${other.alias}, which goes on with its own ${count(other.queue_depth, "waiting request")} first${limit}. Running requests are never cut off.`;
  if (other.in_flight) return `It takes the place of ${other.alias}, which still answers ${count(other.in_flight, "request")}${limit && ` and takes new ones${limit}`}. Running requests are never cut off.`;
  return `It takes the place of ${other.alias}${isComing(other) ? ", which is loading for a request of its own first" : ""}.`;
}

/** What a waiting model waits for, as far as the picture shows it. */
function blockers(store, model, room, now) {
  const going = room.filter((other) => other.status === "stopping");
  if (going.length) return going.map(leaving);
  const wanted = (model.waits_for ?? []).map((alias) => store.models.get(alias)).filter(Boolean);
  if (wanted.length) return wanted.map((other) => holding(other, model, now));
  const ahead = store.list().filter((other) => other !== model && other.waits_for?.length);
  if (ahead.length) return [`${list(ahead.map((other) => other.alias))} ${ahead.length > 1 ? "come first: their requests are" : "comes first: its requests are"} more urgent or have waited longer.`];
  const loading = store.list().filter(isComing);
  if (loading.length) return [`${list(loading.map((other) => other.alias))} ${loading.length > 1 ? "are" : "is"} loading first.`];
  const busy = store.list().filter((other) => other.status === "ready" && other.in_flight && !other.pinned);
  if (!busy.length) return [];
  const running = busy.reduce((sum, other) => sum + other.in_flight, 0);
  return [`${list(busy.map((other) => other.alias))} still ${busy.length > 1 ? "answer" : "answers"} ${count(running, "request")}; running requests are never cut off.`];
}

function waitingTopic(store, model, now) {
  const view = store.view(model, now);
  const room = departed(store, model, now);
  const facts = [{ value: String(model.queue_depth), label: "waiting" }];
  if (view.oldest != null) facts.push({ value: duration(view.oldest), label: "longest wait" });
  if (model.expected_load_sec) facts.push({ value: took(model.expected_load_sec), label: "to load, last time" });
  return {
    key: model.alias, tone: "wait", alias: model.alias, facts,
    verb: room.length ? "Making room for" : "", tail: room.length ? "" : "waits for room",
    lines: [...blockers(store, model, room, now), sentence(waiters(model, view.oldest))],
    steps: room.length ? steps(model, room) : undefined,
  };
}

function brokenTopic(store, model, now) {
  const failed = model.status === "failed";
  const lines = [sentence(model.error ?? model.reason ?? "No error text; see the log")];
  lines.push(failed
    ? "It gets no requests until you reset it, or until its file or configuration changes."
    : "The router starts it again by itself.");
  if (model.queue_depth) lines.push(sentence(waiters(model, store.view(model, now).oldest)));
  return {
    key: model.alias, tone: "bad", verb: "", alias: model.alias, tail: failed ? "has failed" : "crashed, restarting",
    lines, facts: [{ value: duration(store.view(model, now).age), label: "ago" }], broken: failed,
  };
}

function readyTopic(store, model) {
  const seconds = store.lastLoad.get(model.alias);
  const lines = [model.in_flight ? `It is answering ${count(model.in_flight, "request")}.` : "It can answer now."];
  return { key: model.alias, tone: "ok", verb: "", alias: model.alias, tail: "is ready", lines, facts: [{ value: took(seconds), label: "to load" }] };
}

function stoppingTopic(store, model, now) {
  const lines = [model.in_flight ? `${count(model.in_flight, "running request")} may finish first.` : kept(model) ? "What was said to it is saved, then its memory is given back." : "Its memory is being given back."];
  return {
    key: model.alias, tone: "wait", verb: "Stopping", alias: model.alias, tail: stopReason(model), lines,
    facts: [{ value: duration(store.view(model, now).age), label: "so far" }],
  };
}

function quietTopic(store) {
  const models = store.list();
  const ready = models.filter((model) => model.status === "ready").length;
  const running = models.reduce((sum, model) => sum + (model.in_flight ?? 0), 0);
  const tokens = speedNow(models);
  const facts = [{ value: String(ready), label: "ready" }, { value: String(running), label: "in flight" }];
  if (tokens > 0) facts.push({ value: speed(tokens), label: "tokens/s" });
  const lines = [ready ? `${count(ready, "model")} of ${models.length} can answer at once; nobody has to wait.` : "No model is in memory. The first request loads the one it asks for."];
  return { key: "", tone: "ok", verb: running ? `Answering ${count(running, "request")}` : "All quiet", alias: "", tail: "", lines, facts };
}

function failedTopics(store, failed, now) {
  if (failed.length < 3) return failed.map((model) => brokenTopic(store, model, now));
  const lines = failed.map((model) => `${model.alias}: ${model.error ?? model.reason ?? "no error text"}`);
  return [{ key: " failed", tone: "bad", verb: `${failed.length} models`, alias: "", tail: "have failed", lines, facts: [] }];
}

/** What is going on, the current work first; never empty. */
export function story(store, now) {
  const models = store.list();
  const inState = (status) => models.filter((model) => model.status === status);
  const coming = models.filter(isComing);
  const waiting = inState("off").filter((model) => model.queue_depth);
  const explained = new Set([...coming, ...waiting].map((model) => model.alias));
  const topics = [
    ...coming.map((model) => comingTopic(store, model, now)),
    ...waiting.map((model) => waitingTopic(store, model, now)),
    ...inState("stopping").filter((model) => !explained.has(evictedFor(model))).map((model) => stoppingTopic(store, model, now)),
    ...models.filter((model) => store.justLoaded(model, now)).map((model) => readyTopic(store, model)),
    ...inState("crashed").map((model) => brokenTopic(store, model, now)),
  ];
  if (!topics.length) topics.push(quietTopic(store));
  return [...topics, ...failedTopics(store, inState("failed"), now)];
}

/** For the tab: the one thing worth knowing when the page is in the background. */
export function title(store) {
  if (!store.connected) return "Disconnected · Router";
  const models = store.list();
  const coming = models.find(isComing);
  if (coming) return `${progressOf(coming) != null ? percent(progressOf(coming)) : "…"} ${coming.alias} · Router`;
  const broken = models.filter((model) => model.status === "failed").length;
  const ready = models.filter((model) => model.status === "ready").length;
  return broken ? `⚠ ${broken} failed · Router` : `${ready} ready · Router`;
}
