// Each device as one bar: every model on it, what is still coming, other programs, free.

import { h, setAttribute, setChildren, setText, setVars, sync } from "./dom.js";
import { colour } from "./models.js";
import { isComing, isResident, memory } from "./words.js";

const HOST = "host";

/** Where a model's memory lies: [{index, mb}]. Without figures per device it is split evenly. */
function placement(model, devices, total) {
  const places = Array.isArray(model.devices) && model.devices.length ? model.devices : devices.slice(0, 1).map((device) => device.index);
  return places.map((place) => {
    const index = typeof place === "object" ? place.index : place;
    const own = typeof place === "object" ? place.used_mb ?? place.vram_mb ?? place.mb ?? place.need_mb : null;
    return { index, mb: own ?? total / places.length };
  });
}

const onDevice = (model, device, devices, total) =>
  placement(model, devices, total).filter((place) => place.index === device.index).reduce((sum, place) => sum + place.mb, 0);

/** The pieces of one bar, left to right; their sum never exceeds the device. */
export function segments(device, devices, models) {
  const here = models.filter((model) => (device.index === HOST ? isResident(model) : model.vram_mb || (isComing(model) && model.estimated_mb)));
  const has = (model) => (device.index === HOST && isComing(model) ? 0 : onDevice(model, device, devices, model.vram_mb ?? 0));
  const held = here.map((model) => ({ key: model.alias, kind: "held", model, mb: has(model) }));
  const known = held.reduce((sum, piece) => sum + piece.mb, 0);
  const other = Math.max(0, device.used_mb - known);
  let room = Math.max(0, device.total_mb - Math.max(device.used_mb, known));
  const coming = here.filter(isComing).map((model) => {
    const mb = Math.min(room, Math.max(0, onDevice(model, device, devices, model.estimated_mb ?? 0) - has(model)));
    room -= mb;
    return { key: `${model.alias}+`, kind: "coming", model, mb };
  });
  // what a model still needs stands beside what it already has
  const pieces = held.flatMap((piece) => [piece, ...coming.filter((next) => next.model === piece.model)]);
  return [...pieces, { key: " other", kind: "other", mb: other }].filter((piece) => piece.mb >= 1);
}

const pieceName = (piece, device) =>
  piece.kind === "other" ? "other programs" : piece.kind === "coming" ? `${piece.model.alias}, still loading` : piece.model.alias;

export class MemoryView {
  constructor(root, store) {
    Object.assign(this, { store, root: root.querySelector(".devices") });
    this.none = h("p", { class: "muted" });
  }

  render() {
    const devices = this.#devices();
    sync(this.root, devices, (device) => device.index, () => this.#make(), (card, device) => this.#update(card, device, devices));
    if (!devices.length) setText(this.none, this.store.noGpu ?? "No GPU memory to show; models run on the CPU.");
    if (!devices.length && !this.none.isConnected) this.root.after(this.none);
    if (devices.length) this.none.remove();
  }

  /** The host's memory without a GPU, or where models run there in spite of one. */
  #devices() {
    const { devices, host } = this.store;
    const onHost = this.store.list().some((model) => isResident(model) && model.vram_mb === 0);
    if (!host?.total_mb || (devices.length && !onHost)) return devices;
    return [...devices, { ...host, index: HOST, name: devices.length ? "Host memory" : "Host memory (no GPU)" }];
  }

  #make() {
    const card = h("div", { class: "device" });
    card.parts = { name: h("h3", {}), sum: h("p", { class: "sum" }), bar: h("div", { class: "stack", role: "img" }), key: h("ul", { class: "key" }) };
    card.append(h("div", { class: "bar" }, card.parts.name, card.parts.sum), card.parts.bar, card.parts.key);
    return card;
  }

  #update(card, device, devices) {
    const { name, sum, bar, key } = card.parts;
    const pieces = segments(device, devices, this.store.list());
    const free = Math.max(0, device.free_mb ?? device.total_mb - device.used_mb);
    const text = (piece) => `${pieceName(piece, device)} ${memory(piece.mb)}`;
    const look = (piece) => (piece.model ? colour(this.store, piece.model.alias) : "var(--other)");
    setText(name, device.index === HOST ? device.name : `GPU ${device.index} · ${device.name ?? ""}`);
    setText(sum, `${memory(free)} free of ${memory(device.total_mb)}`);
    setAttribute(bar, "aria-label", [...pieces.map(text), `free ${memory(free)}`].join(", "));
    sync(bar, pieces, (piece) => piece.key, () => h("span", {}), (span, piece) => {
      setAttribute(span, "class", piece.kind);
      setAttribute(span, "title", text(piece));
      setVars(span, { "--c": look(piece), "--share": piece.mb / device.total_mb });
    });
    setChildren(key, pieces.map((piece) => h("li", { class: piece.kind, vars: { "--c": look(piece) } }, h("span", { class: "swatch" }), pieceName(piece, device), h("b", {}, memory(piece.mb)))));
  }
}
