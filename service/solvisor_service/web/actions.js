// Orders: what whoever looks may tell the daemon to do, each with the question that comes before it.
//
// Rules: what destroys is asked about first; every order ends in a note that says what happened, or why it was refused.
// A button that the role does not allow is not made (`may`); while the daemon is not reached none can be pressed.

import { jobPath, order } from "./api.js";
import { note, question } from "./dialog.js";
import { h } from "./dom.js";
import { clock } from "./format.js";
import { live, may, refresh } from "./live.js";
import { go, toJob } from "./route.js";

// Carry it out; the answer, or null if it was refused.
async function carryOut(path, body, said) {
  try {
    const answer = await order(path, body);
    const { text, link } = said(answer);
    note(text, { link });
    refresh();
    return answer;
  } catch (error) {
    note(error.message, { bad: true });
    return null;
  }
}

// A button for an order that `role` may give, or nothing.
export function button(role, words, onclick, { label, danger = false, busy = false } = {}) {
  if (!may(role)) return null;
  const disabled = busy || live.lostSince !== null;
  return h("button", { class: danger ? "danger" : null, "aria-label": label, disabled, onclick }, words);
}

export async function cancel(job) {
  const text =
    job.state === "running"
      ? "Its processes are ended now; what it has written so far is kept with the failed ones."
      : "It is taken out of the queue.";
  const title = `Cancel ${job.name}?`;
  if (!(await question({ title, text, action: "Cancel the job", danger: true }))) return;
  await carryOut(jobPath(job.id, "/cancel"), {}, (view) => ({
    text: view.state === "cancelled" ? `${view.name} is cancelled` : `${view.name} is being stopped`,
  }));
}

// Run it again; `follow`: go to the new job.
export async function retry(job, { follow = false } = {}) {
  const made = await carryOut(jobPath(job.id, "/retry"), {}, (answer) => ({
    text: `${answer.name} runs again as ${answer.id}`,
    link: follow ? null : { href: toJob(answer.id), text: "show" },
  }));
  if (made && follow) go(toJob(made.id));
}

export async function setPriority(job) {
  const given = await question({
    title: `Priority of ${job.name}`,
    text: "Jobs of a higher priority start before others; 0 is usual.",
    action: "Set",
    fields: [{ name: "priority", label: "Priority", type: "number", value: job.priority, required: true }],
  });
  if (!given) return;
  await carryOut(jobPath(job.id, "/priority"), { priority: Number(given.priority) }, (view) => ({
    text: `${view.name} has priority ${view.priority}`,
  }));
}

// Start nothing more: of `solver`, or of one that is asked for.
export async function pause(solvers, solver = null) {
  const fields = [{ name: "note", label: "Note for the others", help: "such as: back at 14:00" }];
  if (solver === null) {
    const choices = [["", "everything"], ...solvers.map((name) => [name, name])];
    fields.unshift({ name: "solver", label: "Pause", choices });
  }
  const given = await question({
    title: solver === null ? "Pause" : `Pause ${solver}`,
    text: "What runs goes on; nothing more is started until somebody resumes it.",
    action: "Pause",
    fields,
  });
  if (!given) return;
  const what = solver ?? (given.solver || null);
  await carryOut("/v1/pause", { solver: what, note: given.note || null }, () => ({
    text: `${what ?? "Everything"} is paused`,
  }));
}

export function resume(solver) {
  return carryOut("/v1/resume", { solver }, () => ({ text: `${solver ?? "Everything"} goes on` }));
}

// Another limit, until a person says otherwise. Bytes are asked for in GiB.
export async function setLimit(limit) {
  const scale = limit.unit === "bytes" ? 1024 ** 3 : 1;
  const unit = limit.unit === "bytes" ? "GiB" : limit.unit;
  const given = await question({
    title: `Limit of ${limit.name}`,
    text: "What runs goes on; no more is started than this allows. It also holds after a restart.",
    action: "Set",
    fields: [
      {
        name: "value",
        label: `At most (${unit})`,
        type: "number",
        min: 0,
        step: limit.unit === "bytes" ? "any" : null,
        value: limit.value === null ? "" : Math.round((limit.value / scale) * 10) / 10,
        required: true,
      },
      { name: "note", label: "Note for the others" },
    ],
  });
  if (!given) return null;
  const value = Math.round(Number(given.value) * scale);
  return carryOut("/v1/limits", { name: limit.name, value, note: given.note || null }, () => ({
    text: `The limit of ${limit.name} is now ${given.value}${limit.unit === "bytes" ? " GiB" : ""}`,
  }));
}

export function freeLimit(limit) {
  return carryOut("/v1/limits", { name: limit.name, value: null }, () => ({
    text: `The limit of ${limit.name} is as configured`,
  }));
}

export async function recycle(target, what) {
  const text = "Each is replaced once it has no job; nothing is lost.";
  if (!(await question({ title: `Recycle ${what}?`, text, action: "Recycle" }))) return null;
  return carryOut(`/v1/servers/${encodeURIComponent(target)}/recycle`, {}, () => ({ text: `${what}: being replaced` }));
}

export function restart(target) {
  return carryOut(`/v1/servers/${encodeURIComponent(target)}/restart`, {}, () => ({
    text: `The servers of ${target} are started again`,
  }));
}

// "by ann, since 14:05: back soon" of a pause or a limit.
export function whoAndWhy({ by, since, note: why }) {
  const who = by ? ` by ${by}` : "";
  return `${since ? `since ${clock(since)}` : ""}${who}${why ? `: ${why}` : ""}`;
}
