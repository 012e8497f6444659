// A small chart of how busy something was: an area, the total as a line, hours below, values by pointer and by keys.
//
// Rules: SVG made element by element; colours are CSS variables. Where no daemon ran there is a grey band, no zero. The
// text beside it says what the picture says.

import { h } from "./dom.js";
import { clock, figures, percent, size } from "./format.js";

const WIDTH = 480;
const HEIGHT = 96;

// The mean of the values that are there, or null.
export function mean(values) {
  const there = values.filter((value) => value !== null);
  return there.length ? there.reduce((sum, value) => sum + value, 0) / there.length : null;
}

// Closed outlines of the runs of values that are there; `top` is the value of the upper edge.
export function areas(values, top, width = WIDTH, height = HEIGHT) {
  const step = width / values.length;
  const y = (value) => (height - (Math.min(value, top) / top) * height).toFixed(1);
  const outlines = [];
  let open = null;
  values.forEach((value, n) => {
    if (value === null) {
      open = null;
      return;
    }
    if (open === null) {
      open = [`M${(n * step).toFixed(1)},${height}`];
      outlines.push(open);
    }
    open.push(`L${(n * step).toFixed(1)},${y(value)}L${((n + 1) * step).toFixed(1)},${y(value)}`);
    open.end = ((n + 1) * step).toFixed(1);
  });
  return outlines.map((outline) => `${outline.join("")}L${outline.end},${height}Z`);
}

// Runs of steps without a value: [first, after].
export function gaps(values) {
  const found = [];
  values.forEach((value, n) => {
    if (value !== null) return;
    if (found.at(-1)?.[1] === n) found.at(-1)[1] = n + 1;
    else found.push([n, n + 1]);
  });
  return found;
}

export function amount(value, unit) {
  return unit === "bytes" ? size(value) : figures(value);
}

// Describe the chart of `series` of a usage answer. `cursor` is the step that is looked at, or null; `look(step)`.
export function chart(usage, series, label, cursor, look) {
  const { values, total, unit } = series;
  const average = mean(values);
  const known = total ?? null;
  const peak = Math.max(0, ...values.filter((value) => value !== null));
  const top = Math.max(known ?? 0, peak) || 1;
  const busy = average === null ? "no data" : known ? percent(average / known) : `${amount(average, unit)} on average`;
  const marks = ticks(usage);
  const told = cursor === null ? null : reading(usage, series, cursor);
  const keys = (event) => {
    const at = cursor ?? values.length - 1;
    const wanted = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: values.length - 1 }[event.key];
    if (event.key === "Escape" && cursor !== null) {
      look(null);
      event.stopPropagation();
    }
    if (wanted === undefined) return;
    event.preventDefault();
    look(Math.min(values.length - 1, Math.max(0, wanted)));
  };
  const point = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const at = Math.floor(((event.clientX - box.left) / box.width) * values.length);
    look(Math.min(values.length - 1, Math.max(0, at)));
  };
  return h(
    "figure",
    { key: series.name, class: "chart" },
    h(
      "figcaption",
      {},
      h("bdi", { class: "grow", title: label }, label),
      told ? h("span", { class: "dim" }, told) : h("strong", {}, busy),
    ),
    h(
      "div",
      {
        class: "plot",
        tabindex: 0,
        role: "slider",
        "aria-label": `${label}: ${busy}`,
        "aria-valuemin": 0,
        "aria-valuemax": values.length - 1,
        "aria-valuenow": cursor ?? values.length - 1,
        "aria-valuetext": reading(usage, series, cursor ?? values.length - 1),
        "aria-readonly": "true",
        onkeydown: keys,
        onblur: () => look(null),
        onpointermove: point,
        onpointerleave: () => look(null),
      },
      h(
        "svg",
        { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true", focusable: "false" },
        gaps(values).map(([first, after]) => band((first * WIDTH) / values.length, (after * WIDTH) / values.length)),
        marks.map(([where]) => h("line", { class: "hour", ...upright(where * WIDTH) })),
        areas(values, top).map((outline) => h("path", { d: outline, class: "area" })),
        known && h("line", { class: "total", x1: 0, x2: WIDTH, ...at(HEIGHT - (known / top) * HEIGHT + 0.5) }),
        h("line", { class: "ground", x1: 0, x2: WIDTH, ...at(HEIGHT - 0.5) }),
        cursor !== null && h("line", { class: "cursor", ...upright(((cursor + 0.5) * WIDTH) / values.length) }),
      ),
    ),
    h(
      "div",
      { class: "hours", "aria-hidden": "true" },
      marks
        .filter(([where]) => where > ROOM && where < 1 - ROOM)
        .map(([where, words]) => h("span", { vars: { "--at": where.toFixed(4) } }, words)),
      h("span", {}, "now"),
    ),
  );
}

const band = (x, right) =>
  h(
    "rect",
    { class: "gap", x: x.toFixed(1), y: 0, width: (right - x).toFixed(1), height: HEIGHT },
    h("title", {}, "no daemon ran"),
  );
const at = (y) => ({ y1: y.toFixed(1), y2: y.toFixed(1) });
const upright = (x) => ({ x1: x.toFixed(1), x2: x.toFixed(1), y1: 0, y2: HEIGHT });

function reading(usage, { values, total, unit }, step) {
  const when = clock(Date.parse(usage.since) + step * usage.step_seconds * 1000);
  const value = values[step];
  if (value === null || value === undefined) return `${when}: no daemon ran`;
  return `${when}: ${amount(value, unit)}${total ? ` of ${amount(total, unit)}` : ""}`;
}

const STEPS = [3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 2 * 86400, 7 * 86400];
const MOST_TICKS = 5;
const ROOM = 0.1; // of the width: nearer to an end is no place for a word

// Round times of the day between the ends: [where, words].
export function ticks(usage) {
  const since = Date.parse(usage.since);
  const length = Date.parse(usage.until) - since;
  const step = 1000 * (STEPS.find((seconds) => length / (seconds * 1000) <= MOST_TICKS) ?? STEPS.at(-1));
  const midnight = new Date(since);
  midnight.setHours(0, 0, 0, 0);
  const found = [];
  for (let n = 0; midnight.getTime() + n * step < since + length; n += 1) {
    const then = new Date(midnight);
    then.setSeconds((n * step) / 1000); // by the calendar: a day of a change of clocks is no shorter here
    const where = (then - since) / length;
    if (where < 0 || where > 1) continue;
    const [day, month] = clock(then, then.getTime() + 2 * 86400e3).split(" ");
    found.push([where, step < 86400e3 ? clock(then, then) : `${day} ${month}`]);
  }
  return found;
}
