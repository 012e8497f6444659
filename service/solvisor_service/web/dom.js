// Elements: what is to be shown is described with `h` and laid over what is there, so that focus, selection and
// scrolling stay where they are, and nothing flickers.
//
// Rules: HTML is never parsed; every text and every attribute passes `harmless`, because names and messages come from
// anybody. Styles are set by class or by CSS variable (`vars`); style attributes are forbidden by the page's policy.
// This module must not know the API.

import { harmless } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const KEY = Symbol("key");
const WORN = Symbol("props");
const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "selected", "readOnly", "tabIndex"]);

// Describe an element. `props`: attributes; `onclick` and the like are handlers; `key` tells it from its siblings;
// `vars` are CSS variables; `mount(element)` is called once and makes its children from then on.
export function h(tag, props, ...children) {
  return { tag, props: props ?? {}, children };
}

// Make the children of `parent` what is described.
export function lay(parent, ...described) {
  const wanted = flat(described, []);
  const inSvg = parent.namespaceURI === SVG;
  const keys = new Set(wanted.map((node) => node.props?.key).filter((key) => key !== undefined));
  const keyed = new Map();
  for (const child of [...parent.childNodes]) {
    if (child[KEY] === undefined) continue;
    if (keys.has(child[KEY])) keyed.set(child[KEY], child);
    else child.remove();
  }
  let at = parent.firstChild;
  for (const node of wanted) {
    const found = typeof node === "string" ? textAt(parent, at, node) : elementAt(parent, at, node, keyed, inSvg);
    at = found.nextSibling;
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function flat(nodes, into) {
  for (const node of nodes) {
    if (node === null || node === undefined || node === false || node === true || node === "") continue;
    if (Array.isArray(node)) flat(node, into);
    else into.push(typeof node === "object" ? node : harmless(String(node)));
  }
  return into;
}

function textAt(parent, at, text) {
  const found = at?.nodeType === Node.TEXT_NODE ? at : parent.insertBefore(document.createTextNode(""), at);
  if (found.data !== text) found.data = text;
  return found;
}

function elementAt(parent, at, node, keyed, inSvg) {
  const { tag, props } = node;
  const same = at?.nodeType === Node.ELEMENT_NODE && at[KEY] === undefined && at.localName === tag;
  let found = props.key === undefined ? (same && !props.mount ? at : null) : keyed.get(props.key);
  if (found && found.localName !== tag) {
    found.remove();
    if (found === at) at = null;
    found = null;
  }
  const isNew = !found;
  if (isNew) {
    found = inSvg || tag === "svg" ? document.createElementNS(SVG, tag) : document.createElement(tag);
    found[KEY] = props.key;
    found[WORN] = {};
  }
  if (found !== at) parent.insertBefore(found, at);
  if (!props.mount) lay(found, ...node.children);
  dress(found, props); // after the children: the value of a select needs its options
  if (isNew && props.mount) props.mount(found);
  return found;
}

function dress(element, props) {
  const worn = element[WORN];
  for (const name of Object.keys(worn)) if (!(name in props)) wear(element, name, null, worn[name]);
  for (const [name, value] of Object.entries(props)) {
    if (name !== "key" && name !== "mount" && worn[name] !== value) wear(element, name, value, worn[name]);
  }
  element[WORN] = props;
}

function wear(element, name, value, before) {
  if (name.startsWith("on")) element[name] = value;
  else if (name === "vars") {
    for (const key of Object.keys(before ?? {})) if (!(key in (value ?? {}))) element.style.removeProperty(key);
    for (const [key, part] of Object.entries(value ?? {})) element.style.setProperty(key, String(part));
  } else if (PROPERTIES.has(name) && name in element) {
    element[name] = value ?? (name === "value" ? "" : false);
  } else if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else element.setAttribute(name, value === true ? "" : harmless(String(value)));
}
