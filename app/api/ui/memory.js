// Each device as one bar: every model on it, what is still coming, other programs, free.

import { Children, h, setAttribute, setChildren, setText, setVars, the } from "./dom.js";
import { memory } from "./format.js";
import { colour } from "./models.js";
import { isComing, isResident } from "./status.js";

/** @import { Device } from "./shapes.js" */
/** @import { Seen, Store } from "./store.js" */

/** @typedef {{ key: string, kind: "held" | "coming" | "other", alias: string, mb: number }} Piece */

const HOST = "host";

/**
 * The pieces of one bar, left to right; their sum never exceeds the device.
 * @param {Device} device
 * @param {Seen[]} models
 * @returns {Piece[]}
 */
export function segments(device, models) {
  /** @type {Piece[]} */
  const pieces = models.map((model) => ({
    key: model.alias,
    kind: isComing(model) ? "coming" : "held",
    alias: model.alias,
    mb: model.devices?.find((place) => place.index === device.index)?.used_mb ?? 0,
  }));
  const ours = pieces.reduce((sum, piece) => sum + piece.mb, 0);
  const other = Math.min(device.others_mb, device.total_mb - ours);
  pieces.push({ key: " other", kind: "other", alias: "", mb: other });
  return pieces.filter((piece) => piece.mb >= 1);
}

/** @param {Piece} piece */
function nameOf(piece) {
  if (piece.kind === "other") return "other programs";
  return piece.kind === "coming" ? `${piece.alias}, still loading` : piece.alias;
}

/** @param {Piece} piece */
const textOf = (piece) => `${nameOf(piece)} ${memory(piece.mb)}`;

/** @param {Device} device */
const titleOf = ({ index, name }) => (index === HOST ? name : `GPU ${index} · ${name}`);

/** The bars, and where there is none the reason. */
export class MemoryView {
  /** @param {Element} root @param {Store} store */
  constructor(root, store) {
    this.store = store;
    this.none = h("p", { class: "muted" });
    /** @type {Children<Device, ReturnType<typeof card>>} */
    this.cards = new Children(the(root, ".devices"), (device) => device.index, card, this.none);
  }

  render() {
    setText(this.none, this.store.noGpu ?? "No GPU memory to show; models run on the CPU.");
    this.cards.show(this.#devices(), (parts, device) => this.#update(parts, device));
  }

  /** The host's memory without a GPU, or where models run there in spite of one. */
  #devices() {
    const { devices, host } = this.store;
    const onHost = this.store.list().some((model) => isResident(model) && model.vram_mb === 0);
    if (!host || (devices.length && !onHost)) return devices;
    return [...devices, { ...host, name: devices.length ? "Host memory" : "Host memory (no GPU)" }];
  }

  /** @param {ReturnType<typeof card>} parts @param {Device} device */
  #update({ name, sum, bar, pieces, key }, device) {
    const shown = segments(device, this.store.list());
    const free = memory(device.free_mb);
    /** @param {Piece} piece */
    const look = (piece) => (piece.alias ? colour(this.store, piece.alias) : "var(--other)");
    setText(name, titleOf(device));
    setText(sum, `${free} free of ${memory(device.total_mb)}`);
    setAttribute(bar, "aria-label", [...shown.map(textOf), `free ${free}`].join(", "));
    pieces.show(shown, ({ root }, piece) => {
      setAttribute(root, "class", piece.kind);
      setAttribute(root, "title", textOf(piece));
      setVars(root, { "--c": look(piece), "--share": piece.mb / device.total_mb });
    });
    setChildren(
      key,
      shown.map((piece) => legend(piece, look(piece))),
    );
  }
}

function card() {
  const name = h("h3");
  const sum = h("p", { class: "sum" });
  const bar = h("div", { class: "stack", role: "img" });
  const key = h("ul", { class: "key" });
  const root = h("div", { class: "device" }, h("div", { class: "bar" }, name, sum), bar, key);
  /** @type {Children<Piece, { root: HTMLElement }>} */
  const pieces = new Children(
    bar,
    (piece) => piece.key,
    () => ({ root: h("span") }),
  );
  return { root, name, sum, bar, pieces, key };
}

/** @param {Piece} piece @param {string} look */
function legend(piece, look) {
  const swatch = h("span", { class: "swatch" });
  return h(
    "li",
    { class: piece.kind, vars: { "--c": look } },
    swatch,
    nameOf(piece),
    h("b", {}, memory(piece.mb)),
  );
}
