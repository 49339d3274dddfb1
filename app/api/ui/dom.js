// The few DOM helpers the page needs. Data only ever becomes text nodes and attributes, never markup.

/** @typedef {Node | string | number | null | undefined | false} Child numbers: only 0, which is left out */
/** @typedef {Record<string, string | number>} Vars CSS custom properties */
/** @typedef {{ vars?: Vars } & Record<string, any>} Props */

/** @param {(Child | Child[])[]} children */
const nodes = (children) =>
  /** @type {(Node | string)[]} */ (children.flat().filter((child) => child || child === ""));

/**
 * Build an element: `on*` are listeners, `vars` CSS custom properties, `null` and `false` are left out.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Props} [props]
 * @param {(Child | Child[])[]} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "vars") setVars(element, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...nodes(children));
  return element;
}

/**
 * The one element that the page has there.
 * @template {Element} [T=HTMLElement]
 * @param {ParentNode} root
 * @param {string} selector
 */
export function the(root, selector) {
  const found = root.querySelector(selector);
  if (!found) throw new Error(`the page has no ${selector}`);
  return /** @type {T} */ (found);
}

/**
 * The content security policy forbids style attributes; properties set from here are allowed.
 * @param {HTMLElement} element
 * @param {Vars} vars
 */
export function setVars(element, vars) {
  for (const [name, value] of Object.entries(vars)) {
    if (element.style.getPropertyValue(name) !== String(value))
      element.style.setProperty(name, String(value));
  }
}

/** @param {Element} element @param {string} text */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** @param {Element | null} element @param {string} name @param {string | number | null | false} value */
export function setAttribute(element, name, value) {
  if (value == null || value === false) element?.removeAttribute(name);
  else if (element?.getAttribute(name) !== String(value)) element?.setAttribute(name, String(value));
}

/** @param {Element} element @param {(Child | Child[])[]} children */
export function setChildren(element, ...children) {
  element.replaceChildren(...nodes(children));
}

/**
 * One child per item, in order. What has a known key stays the same element, so that focus, text selection
 * and CSS transitions survive an update.
 * @template T
 * @template {{ root: HTMLElement }} P
 */
export class Children {
  /** @type {Map<string | number, P>} */
  #parts = new Map();
  #parent;
  #keyOf;
  #make;
  #empty;

  /**
   * @param {Element} parent
   * @param {(item: T) => string | number} keyOf
   * @param {(item: T) => P} make
   * @param {HTMLElement | null} [empty] stands there when there are no items
   */
  constructor(parent, keyOf, make, empty = null) {
    this.#parent = parent;
    this.#keyOf = keyOf;
    this.#make = make;
    this.#empty = empty;
  }

  /** @param {T[]} items @param {(part: P, item: T) => void} update */
  show(items, update) {
    const old = this.#parts;
    this.#parts = new Map();
    if (items.length) this.#empty?.remove();
    items.forEach((item, index) => {
      const key = this.#keyOf(item);
      const part = old.get(key) ?? this.#make(item);
      this.#parts.set(key, part);
      update(part, item);
      this.#put(part.root, index);
    });
    for (const [key, { root }] of old) if (!this.#parts.has(key)) root.remove();
    if (!items.length && this.#empty && !this.#empty.isConnected) this.#parent.append(this.#empty);
  }

  /** @param {HTMLElement} root @param {number} index */
  #put(root, index) {
    const there = this.#parent.children[index];
    if (there !== root) this.#parent.insertBefore(root, there ?? null);
  }
}
