// The dashboard: two event streams fill the store, the views show it. Nothing is polled.

import { EventStream, getJson, modelUrl, onRefused, postJson, session } from "./api.js";
import { EventsView, QueueView, TimelineView } from "./activity.js";
import { Details, askForKey, confirm, planLines, toast } from "./dialogs.js";
import { MemoryView } from "./memory.js";
import { ModelsView } from "./models.js";
import { NowView, renderConnection } from "./now.js";
import { Store } from "./store.js";
import { count, duration, speed, speedNow, title } from "./words.js";

const $ = (id) => document.getElementById(id);
const store = new Store();
let details = null;

// --- what the buttons do ----------------------------------------------------------------------

async function attempt(work) {
  try {
    const answer = await work();
    toast(answer?.message ?? "Done.");
  } catch (error) {
    toast(error.message, "bad");
  }
}

const actions = {
  async load(alias) {
    const plan = await getJson(modelUrl(alias, "plan")).catch(() => null);
    if (plan?.evicts?.length && !(await confirm(`Load ${alias}?`, planLines(plan), [{ value: "load", label: "Load it" }]))) return;
    await attempt(async () => ({ message: `${alias} is being loaded.`, ...(await postJson("/v1/models/load", { model: alias })) }));
  },

  async eject(alias) {
    const running = store.models.get(alias)?.in_flight ?? 0;
    const lines = [running ? `${count(running, "request")} in flight may finish first; “Stop now” cuts them off.` : "Its memory becomes free. The next request loads it again."];
    const choices = [...(running ? [{ value: "now", label: "Stop now", danger: true }] : []), { value: "drain", label: "Eject" }];
    const mode = await confirm(`Eject ${alias}?`, lines, choices);
    if (mode) await attempt(() => postJson(`/v1/models/eject${mode === "now" ? "?mode=now" : ""}`, { model: alias }));
  },

  async reset(alias) {
    const error = store.models.get(alias)?.error;
    const lines = [error && `It failed with: ${error}`, "After a reset the next request tries to load it again."].filter(Boolean);
    if (await confirm(`Reset ${alias}?`, lines, [{ value: "reset", label: "Reset" }])) await attempt(() => postJson(modelUrl(alias, "reset")));
  },

  async details(alias) {
    details = new Details(store, alias);
    details.render(store.now());
    await details.open();
    details = null;
  },
};

// --- drawing ----------------------------------------------------------------------------------

const views = [
  new NowView($("now"), store, actions), new MemoryView($("memory"), store), new ModelsView($("models"), store, actions),
  new QueueView($("queue"), store), new TimelineView($("timeline"), store), new EventsView($("events"), store, $("spoken")),
];

function totals(now) {
  if (!store.server.status) return "";
  const tokens = speedNow(store.list());
  const up = store.server.uptime_seconds != null ? `up ${duration(now - store.serverSince)}` : "";
  return [`${store.residents().length} of ${count(store.models.size, "model")} in memory`, tokens > 0 && `${speed(tokens)} tokens/s`, up].filter(Boolean).join(" · ");
}

function render() {
  const lost = store.connection.state === "closed";
  const now = lost ? store.connection.since : store.now(); // what cannot be seen does not go on counting
  document.title = title(store);
  document.body.classList.toggle("stale", lost);
  $("totals").textContent = totals(now);
  renderConnection($("connection"), store);
  if (!store.models.size) return;
  for (const view of views) view.render(now);
  details?.render(now);
}

// A timer, not an animation frame: the title of a hidden tab must go on moving.
let drawing = null;
const soon = () => (drawing ??= setTimeout(() => ((drawing = null), render()), 60));
store.onChange(soon);
setInterval(soon, 1000);

// --- data -------------------------------------------------------------------------------------

const statusStream = new EventStream("/v1/models/status/stream", ["full_status", "model_update", "server_update", "heartbeat"], {
  onEvent(name, body) {
    if (name === "full_status") store.fullStatus(body);
    else if (name === "model_update") store.modelUpdate(body);
    else if (name === "server_update") store.serverUpdate(body);
  },
  onState({ state, error, retryAt }) {
    if (error?.status === 401) start();
    else store.setConnection({ state, error, retryAt: retryAt ?? null });
  },
});
const metricsStream = new EventStream("/metrics/stream", ["metrics", "heartbeat"], {
  onEvent: (name, body) => name === "metrics" && store.metrics(body),
});

let starting = false;

/** Log in if need be, then listen. Also the way back when a login has ended. */
async function start() {
  if (starting) return;
  starting = true;
  statusStream.close();
  metricsStream.close();
  const known = await session.get().catch(() => ({ admin: true })); // a router that is away is told by the stream
  const who = known.key_needed && !known.logged_in ? await askForKey() : known;
  store.admin = who.admin;
  $("logout").hidden = !who.logged_in;
  $("logout").title = who.name ? `Logged in as ${who.name}` : "";
  starting = false;
  statusStream.open();
  if (!document.hidden) metricsStream.open();
}

onRefused(start);
$("logout").addEventListener("click", () => session.close().then(leave, (error) => toast(error.message, "bad")));

/** Nothing that was shown stays behind, neither here nor for the next one who logs in. */
function leave() {
  removeEventListener("pagehide", save);
  sessionStorage.clear();
  location.reload();
}

// A browser allows six connections to one HTTP/1.1 host: a hidden tab keeps only the one it needs.
document.addEventListener("visibilitychange", () => (document.hidden ? metricsStream.close() : metricsStream.open()));
const save = () => store.save();
addEventListener("pagehide", save);

store.restore();
start();
