// The dashboard: two event streams fill the store, the views show it. Nothing is polled.

import { EventsView, QueueView, TimelineView } from "./activity.js";
import { EventStream, getJson, modelUrl, onRefused, postJson, session, wantsLogin } from "./api.js";
import { Details } from "./details.js";
import { askForKey, confirm, toast } from "./dialogs.js";
import { the } from "./dom.js";
import { count, duration, present, speed } from "./format.js";
import { NowView, renderConnection } from "./headline.js";
import { title } from "./headline_topics.js";
import { MemoryView } from "./memory.js";
import { ModelsView } from "./models.js";
import { planLines } from "./plan.js";
import { speedNow } from "./status.js";
import { Store } from "./store.js";

/** @import { StreamState } from "./api.js" */
/** @import { Actions } from "./models.js" */
/** @import { Plan, Session, Told } from "./shapes.js" */

/** @param {string} id */
const $ = (id) => the(document, `#${id}`);
const store = new Store();
/** @type {Details | null} */
let details = null;

// --- what the buttons do --------------------------------------------------------------------------

/** @param {() => Promise<Told>} work */
async function attempt(work) {
  try {
    toast((await work()).message);
  } catch (error) {
    complain(error);
  }
}

/** @param {unknown} error */
const complain = (error) => toast(error instanceof Error ? error.message : String(error), "bad");

/** @type {Actions} */
const actions = {
  async load(alias) {
    /** @type {Plan | null} */
    const plan = await getJson(modelUrl(alias, "plan")).catch(() => null);
    const sure = [{ value: "load", label: "Load it" }];
    if (plan?.evicts.length && !(await confirm(`Load ${alias}?`, planLines(plan), sure))) return;
    await attempt(async () => {
      await postJson("v1/models/load", { model: alias });
      return { message: `${alias} is being loaded.` };
    });
  },

  async eject(alias) {
    const running = store.models.get(alias)?.in_flight;
    const line = running
      ? `${count(running, "request")} in flight may finish first; “Stop now” cuts them off.`
      : "Its memory becomes free. The next request loads it again.";
    const now = { value: "now", label: "Stop now", danger: true };
    const drain = { value: "drain", label: "Eject" };
    const mode = await confirm(`Eject ${alias}?`, [line], running ? [now, drain] : [drain]);
    if (mode) await attempt(() => postJson(`v1/models/eject?mode=${mode}`, { model: alias }));
  },

  async reset(alias) {
    const error = store.models.get(alias)?.error;
    const after = "After a reset the next request tries to load it again.";
    const lines = present([error && `It failed with: ${error}`, after]);
    const sure = [{ value: "reset", label: "Reset" }];
    if (await confirm(`Reset ${alias}?`, lines, sure))
      await attempt(() => postJson(modelUrl(alias, "reset")));
  },

  async details(alias) {
    details = new Details(store, alias);
    details.render(store.now());
    await details.open();
    details = null;
  },
};

// --- drawing --------------------------------------------------------------------------------------

const views = [
  new NowView($("now"), store, actions),
  new MemoryView($("memory"), store),
  new ModelsView($("models"), store, actions),
  new QueueView($("queue"), store),
  new TimelineView($("timeline"), store),
  new EventsView($("events"), store, $("spoken")),
];

/** @param {number} now */
function totals(now) {
  if (!store.server) return "";
  const tokens = speedNow(store.list());
  return present([
    `${store.residents().length} of ${count(store.models.size, "model")} in memory`,
    tokens > 0 && `${speed(tokens)} tokens/s`,
    `up ${duration(now - store.serverSince)}`,
  ]).join(" · ");
}

function render() {
  const lost = store.connection.state === "closed";
  const now = (lost && store.connection.since) || store.now(); // what cannot be seen does not go on counting
  document.title = title(store);
  document.body.classList.toggle("stale", lost);
  $("totals").textContent = totals(now);
  renderConnection($("connection"), store);
  if (!store.models.size) return;
  for (const view of views) view.render(now);
  details?.render(now);
}

/** @type {ReturnType<typeof setTimeout> | null} */
let drawing = null;

/** A timer, not an animation frame: the title of a hidden tab must go on moving. */
function soon() {
  drawing ??= setTimeout(() => {
    drawing = null;
    render();
  }, 60);
}

store.onChange(soon);
setInterval(soon, 1000);

// --- data -----------------------------------------------------------------------------------------

const statusStream = new EventStream(
  "v1/models/status/stream",
  {
    full_status: (body) => store.fullStatus(body),
    model_update: (body) => store.modelUpdate(body),
    server_update: (body) => store.serverUpdate(body),
    heartbeat: null,
  },
  onState,
);
const metricsStream = new EventStream("metrics/stream", {
  metrics: (body) => store.metrics(body),
  heartbeat: null,
});

/** @param {StreamState} next */
function onState(next) {
  if (next.state === "closed" && wantsLogin(next.error)) start();
  else store.setConnection({ error: null, retryAt: null, ...next });
}

let starting = false;

/** Log in if need be, then listen. Also the way back when a login has ended. */
async function start() {
  if (starting) return;
  starting = true;
  statusStream.close();
  metricsStream.close();
  const who = await whoAsks();
  store.admin = who.admin;
  $("logout").hidden = !who.logged_in;
  $("logout").title = who.name ? `Logged in as ${who.name}` : "";
  starting = false;
  statusStream.open();
  if (!document.hidden) metricsStream.open();
}

/** @returns {Promise<Session>} */
async function whoAsks() {
  const away = { key_needed: false, logged_in: false, name: "", admin: true }; // the stream will tell
  const known = await session.get().catch(() => away);
  return known.key_needed && !known.logged_in ? askForKey() : known;
}

onRefused(start);
$("logout").addEventListener("click", () => session.close().then(leave, complain));

/** Nothing that was shown stays behind, neither here nor for the next one who logs in. */
function leave() {
  removeEventListener("pagehide", save);
  sessionStorage.clear();
  location.reload();
}

// A browser allows six connections to one HTTP/1.1 host: a hidden tab keeps only the one it needs.
document.addEventListener("visibilitychange", () =>
  document.hidden ? metricsStream.close() : metricsStream.open(),
);
const save = () => store.save(sessionStorage);
addEventListener("pagehide", save);

store.restore(sessionStorage);
start();
