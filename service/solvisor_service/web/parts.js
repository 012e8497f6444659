// Small parts that several views share: a panel, a state, a link to a job, a meter.
//
// Rules: descriptions only; nothing is asked here.

import { h } from "./dom.js";
import { duration } from "./format.js";
import { toJob } from "./route.js";
import { TONES } from "./words.js";

// A titled part of the page; `aside` stands at the right of its title.
export function panel(name, { title, aside, tone, kind = "" }, ...children) {
  const id = `panel-${name}`;
  return h(
    "section",
    { key: name, class: `panel ${kind}`, "aria-labelledby": id },
    h("div", { class: "panel-head" }, h("h2", { id, class: tone }, title), h("div", { class: "row aside" }, aside)),
    children,
  );
}

export function state(word) {
  return h("span", { class: `state ${TONES[word] ?? "quiet"}` }, word);
}

// A job by its name; its id is what tells it from others of that name.
export function jobLink(job) {
  return h("a", { href: toJob(job.id), class: "name", title: job.id }, h("bdi", {}, job.name));
}

// Parts in one line, those that are there, with dots between them.
export function dotted(...parts) {
  return parts
    .flat()
    .filter(Boolean)
    .map((part, n) => [n ? " · " : "", h("bdi", {}, part)]);
}

// Jobs that hold what others wait for, and since how long.
export function holders(list) {
  return list.map((one, n) => [
    n ? ", " : "",
    h("a", { key: one.id, href: toJob(one.id) }, h("bdi", {}, one.id)),
    `${one.user ? ` (${one.user})` : ""} ${duration(one.seconds)}`,
  ]);
}

// How much of something is taken. A full one is no fault.
export function meter(part) {
  return h(
    "span",
    { class: "meter", "aria-hidden": "true" },
    h("span", { vars: { "--part": Math.min(1, Math.max(0, part || 0)).toFixed(4) } }),
  );
}

export function facts(pairs) {
  return h(
    "dl",
    { class: "facts" },
    pairs
      .filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false)
      .map(([label, value]) => h("div", { key: label }, h("dt", {}, label), h("dd", {}, value))),
  );
}
