// How busy the machine was: a chart for each resource, of the last 24 hours or 7 days.
//
// Rules: asked for once a minute while it is shown; a resource that nobody took is told in words, not drawn. What is
// taken is summed by the minute: in the first minutes of a daemon, and of what is taken just now, nothing is said yet.

import { get } from "./api.js";
import { chart, mean } from "./chart.js";
import { h } from "./dom.js";
import { live, nowMs } from "./live.js";
import { panel } from "./parts.js";

const FRESH_MS = 60_000;
const POINTS = 96;
const YOUNG_SECONDS = 300; // less than that is no evidence that nobody uses something
const SPANS = { "24 h": 86400, "7 d": 7 * 86400 };
const LABELS = { cpus: "cores", memory: "memory", jobs: "jobs", waiting: "waiting" };

const seen = { span: "24 h", usage: null, at: -Infinity, cursor: null };

// The panel, or nothing while nothing is known.
export function busy(draw) {
  keepFresh(draw);
  const { usage } = seen;
  if (!usage) return null;
  const drawn = usage.series.filter(isDrawn);
  const blank = usage.series.filter((series) => isResource(series) && !isDrawn(series));
  const named = (words, list) =>
    list.length > 0 && h("p", { class: "dim" }, `${words}: ${list.map(labelOf).join(", ")}`);
  const unknown = blank.filter((series) => isUnknown(usage, series, live.status));
  const idle = blank.filter((series) => !unknown.includes(series));
  if (!drawn.length) return null;
  return panel(
    "busy",
    { title: "Busy", aside: spans(draw), kind: "wide" },
    h(
      "div",
      { class: "charts" },
      drawn.map((series) => chart(usage, series, labelOf(series), cursorOf(series), looker(series, draw))),
    ),
    drawn.some((series) => series.values.includes(null)) &&
      h("p", { class: "dim gapkey" }, h("span", { class: "gap", "aria-hidden": "true" }), "no daemon ran"),
    named("not known yet", unknown),
    named("not used", idle),
  );
}

const labelOf = (series) => LABELS[series.name] ?? series.name.replace(/^license\./, "license ");
const isResource = (series) => series.name !== "waiting" && series.name !== "jobs";

// Whether what a series of zeros says is no evidence.
export function isUnknown(usage, series, status) {
  const watched = Math.max(
    status.up_seconds,
    (series.values.filter((value) => value !== null).length - 1) * usage.step_seconds, // the last has just begun
  );
  const { cpus, memory_bytes: memory, licenses } = status;
  const now = { cpus, memory }[series.name] ?? licenses[series.name.replace(/^license\./, "")];
  return watched < YOUNG_SECONDS || now?.used > 0;
}

function isDrawn(series) {
  if (series.name === "jobs") return false; // cores and licenses say it better
  return mean(series.values) > 0;
}

function cursorOf(series) {
  return seen.cursor?.name === series.name ? seen.cursor.step : null;
}

function looker(series, draw) {
  return (step) => {
    const cursor = step === null ? null : { name: series.name, step };
    if (seen.cursor?.name === cursor?.name && seen.cursor?.step === cursor?.step) return;
    seen.cursor = cursor;
    draw();
  };
}

function spans(draw) {
  return Object.keys(SPANS).map((span) =>
    h(
      "button",
      {
        key: span,
        class: "choice",
        "aria-pressed": String(span === seen.span),
        onclick: () => {
          seen.span = span;
          seen.at = -Infinity;
          draw();
        },
      },
      span,
    ),
  );
}

function keepFresh(draw) {
  if (live.lostSince || performance.now() - seen.at < FRESH_MS) return;
  seen.at = performance.now();
  const span = seen.span;
  const until = nowMs();
  const since = new Date(until - SPANS[span] * 1000).toISOString();
  get("/v1/usage", { since, until: new Date(until).toISOString(), points: POINTS }).then(
    (usage) => {
      if (span !== seen.span) return;
      seen.usage = usage;
      seen.cursor = null;
      draw();
    },
    () => {},
  );
}

// What is known is of another daemon, or of somebody else.
export function forgetUsage() {
  Object.assign(seen, { usage: null, at: -Infinity, cursor: null });
}
