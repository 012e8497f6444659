// What a person must know, or has done: problems, pauses, limits that were set.
//
// Rules: nothing is shown where there is nothing to know; red is for problems alone.

import { button, freeLimit, resume, whoAndWhy } from "./actions.js";
import { h } from "./dom.js";
import { several, size } from "./format.js";

const LATE_SECONDS = 1; // less is for the log, and for the machine's view

// The list, or nothing.
export function alerts(status) {
  const limits = status.limits_set ?? [];
  const late =
    status.loop_lag_seconds > LATE_SECONDS &&
    `The daemon answers late, by up to ${status.loop_lag_seconds.toFixed(2)} s.`;
  const lost = status.log_lines_lost > 0 && `${several(status.log_lines_lost, "line")} of the daemon's log lost.`;
  const lines = [
    ...status.problems.map((text) => alert("bad", status.health === "degraded" ? "Problem" : "Note", text)),
    ...status.paused.map((one) =>
      alert(
        "warn",
        "Paused",
        `${one.solver ?? "everything"}, ${whoAndWhy(one)}`,
        button("operate", "Resume", () => resume(one.solver), { label: `Resume ${one.solver ?? "everything"}` }),
      ),
    ),
    ...limits.map((one) =>
      alert(
        "warn",
        "Limited",
        limitWords(one),
        button("administer", "As configured", () => freeLimit(one), { label: `${one.name} as configured` }),
      ),
    ),
    ...[late, lost].filter(Boolean).map((text) => alert("warn", "Note", text)),
  ];
  return lines.length > 0 && h("ul", { key: "alerts", class: "alerts", "aria-label": "To know" }, lines);
}

function alert(tone, word, text, ...buttons) {
  const calm = word === "Note" ? "warn" : tone;
  return h(
    "li",
    { key: `${word} ${text}`, class: `alert ${calm}` },
    h("b", {}, word),
    h("span", { class: "grow sentence" }, text),
    buttons,
  );
}

function limitWords(limit) {
  const shown = (value) => (value === null ? "none" : limit.unit === "bytes" ? size(value) : `${value}`);
  return `${limit.name} ${shown(limit.value)} (configured: ${shown(limit.configured)}), ${whoAndWhy(limit)}`;
}
