// Numbers, times and lists as text.

/** @param {number} seconds */
export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  const minutes = Math.floor(s / 60);
  if (s < 60) return `${s} s`;
  if (s < 600 && s % 60) return `${minutes} min ${s % 60} s`;
  if (s < 3600) return `${minutes} min`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${minutes % 60} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/**
 * How long a load took: often less than what is worth a number.
 * @param {number} seconds
 */
export const took = (seconds) => (seconds < 1 ? "under 1 s" : duration(seconds));

/** @param {number} mb */
export const memory = (mb) =>
  mb < 1000 ? `${Math.round(mb)}\u00a0MB` : `${(mb / 1024).toFixed(mb < 102_400 ? 1 : 0)}\u00a0GB`;

/** @param {number} n */
export const bytes = (n) => memory(n / 2 ** 20);

/** @param {number} fraction */
export const percent = (fraction) => `${Math.round(fraction * 100)}\u00a0%`;

/** @param {number} tokens a second */
export const speed = (tokens) => (tokens < 10 ? tokens.toFixed(1) : number(Math.round(tokens)));

/** @param {number} n */
export const number = (n) => n.toLocaleString("en");

/** @param {number} n @param {string} noun */
export const count = (n, noun) => `${number(n)} ${noun}${n === 1 ? "" : "s"}`;

/** @param {number} unix */
export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString([], { hour12: false });

/**
 * A capital for a word, never for the name of a file or a program; a full stop.
 * @param {string} text
 */
export const sentence = (text) =>
  text.replace(/^[a-z]+(?=[\s,])/, (word) => word.charAt(0).toUpperCase() + word.slice(1)) +
  (/[.!?]$/.test(text) ? "" : ".");

/** @param {string[]} words */
export function list(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

/**
 * Those that there are.
 * @template T
 * @param {(T | null | undefined | false | "" | 0)[]} items
 * @returns {T[]}
 */
export const present = (items) => /** @type {T[]} */ (items.filter(Boolean));
