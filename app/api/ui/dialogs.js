// Everything that opens on top of the page: the login, confirmations, messages.

import { session, wantsLogin } from "./api.js";
import { h, setText, the } from "./dom.js";

/** @import { Session } from "./shapes.js" */

/**
 * Show a modal dialog; resolves with the value of the button that closed it ("" for Escape).
 * @param {HTMLDialogElement} dialog
 * @returns {Promise<string>}
 */
export function show(dialog) {
  document.body.append(dialog);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
    dialog.showModal();
  });
}

const ABOUT_KEYS =
  "One of api_keys in the router's configuration. You stay logged in until you close the browser or log out.";

/**
 * Resolves with the session that a key has opened; until then there is nothing to see.
 * @returns {Promise<Session>}
 */
export async function askForKey() {
  /** @type {Session | null} */
  let who = null;
  const dialog = keyDialog((opened) => {
    who = opened;
    dialog.close();
  });
  dialog.addEventListener("keydown", (event) => event.key === "Escape" && event.preventDefault());
  while (!who) await show(dialog);
  return who;
}

/** @param {(opened: Session) => void} opened */
function keyDialog(opened) {
  const wrong = h("p", { class: "wrong", role: "alert" });
  const input = h("input", {
    type: "password",
    name: "key",
    required: true,
    autocomplete: "current-password",
    "aria-labelledby": "key-title",
    autofocus: true,
  });
  const refused = (/** @type {Error} */ error) => {
    setText(wrong, wantsLogin(error) ? "The key was not accepted. Try another one." : error.message);
    input.select();
  };
  const onsubmit = (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    session.open(input.value.trim()).then(opened, refused);
  };
  const user = { name: "username", autocomplete: "username", value: "router", hidden: true };
  return h(
    "dialog",
    { class: "small", "aria-labelledby": "key-title" },
    h(
      "form",
      { onsubmit },
      h("h2", { id: "key-title" }, "This router wants an API key"),
      h("p", {}, ABOUT_KEYS),
      h("input", user), // for password managers
      input,
      wrong,
      h("div", { class: "buttons" }, h("button", { class: "primary" }, "Log in")),
    ),
  );
}

/** @typedef {{ value: string, label: string, danger?: boolean }} Choice */

/**
 * Ask before doing. Resolves with the chosen value or "".
 * @param {string} title
 * @param {string[]} lines
 * @param {Choice[]} choices
 */
export function confirm(title, lines, choices) {
  const button = (/** @type {Choice} */ { value, label, danger }) =>
    h("button", { value, class: danger ? "danger" : "primary" }, label);
  const buttons = [h("button", { value: "" }, "Cancel"), ...choices.map(button)];
  const form = h(
    "form",
    { method: "dialog" },
    h("h2", { id: "confirm-title" }, title),
    lines.map((line) => h("p", {}, line)),
    h("div", { class: "buttons" }, buttons),
  );
  return show(h("dialog", { class: "small", "aria-labelledby": "confirm-title" }, form));
}

/** @param {string} text @param {"ok" | "bad"} [tone] */
export function toast(text, tone = "ok") {
  const box = h("p", { class: `toast ${tone}` }, text);
  the(document, "#toasts").append(box);
  setTimeout(() => box.remove(), tone === "bad" ? 12_000 : 5000);
}
