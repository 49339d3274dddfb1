// The few DOM helpers the page needs. Data only ever becomes text nodes and attributes, never markup.

/** Build an element: `on*` are listeners, `vars` CSS custom properties, `null` and `false` are left out. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "vars") setVars(element, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

/** The content security policy forbids style attributes; properties set from here are allowed. */
export function setVars(element, vars) {
  for (const [name, value] of Object.entries(vars)) {
    if (element.style.getPropertyValue(name) !== String(value)) element.style.setProperty(name, value);
  }
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (value == null || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

export function setChildren(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child != null && child !== false));
}

const keyed = new WeakMap();

/** Make `parent` hold one child per item, in order. Children with a known key stay the same element,
 * so that focus, text selection and CSS transitions survive an update. */
export function sync(parent, items, keyOf, make, update) {
  const old = keyed.get(parent) ?? new Map();
  const fresh = new Map();
  items.forEach((item, index) => {
    const key = keyOf(item);
    const child = old.get(key) ?? make(item);
    fresh.set(key, child);
    update(child, item);
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
  for (const [key, child] of old) if (!fresh.has(key)) child.remove();
  keyed.set(parent, fresh);
}
