// What a load would do now, in words.

import { memory, present, sentence } from "./format.js";
import { isResident } from "./status.js";

/** @import { Plan } from "./shapes.js" */

/**
 * For the preview, and before a load that would stop others.
 * @param {Plan} plan
 */
export function planLines(plan) {
  if (isResident(plan)) return [sentence(plan.reason)];
  return present([outcome(plan), why(plan), ...plan.devices.map(need), size(plan)]);
}

/** @param {Plan} plan */
function outcome({ fits, evicts }) {
  if (evicts.length) return `Would stop: ${evicts.join(", ")}.`;
  return fits ? "It fits into the free memory; nothing has to stop." : "It does not fit.";
}

/**
 * With others to stop the reason only names them once more.
 * @param {Plan} plan
 */
const why = ({ reason, evicts }) => !evicts.length && reason && sentence(reason);

/** @param {Plan["devices"][number]} device */
function need({ index, need_mb, free_mb }) {
  const place = index === "host" ? "Host memory" : `GPU ${index}`;
  return `${place}: needs ${memory(need_mb)}, ${memory(free_mb)} free`;
}

/** @param {Plan} plan */
function size({ estimate_mb, measured_mb }) {
  const sizes = present([
    estimate_mb != null && `estimated ${memory(estimate_mb)}`,
    measured_mb != null && `measured ${memory(measured_mb)}`,
  ]);
  return sizes.length && `Size: ${sizes.join(", ")}`;
}
