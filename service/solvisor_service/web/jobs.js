// The table of jobs: filters, search, pages.
//
// Rules: the wishes stand in the address; what is shown is asked for again when jobs change, all pages that are open in
// one question, so that nothing is lost or doubled. On the overview it is short, and using a filter leads to the table.

import { get } from "./api.js";
import { h } from "./dom.js";
import { clock, duration, elapsed } from "./format.js";
import { live, nowMs, onJob } from "./live.js";
import { jobLink, panel, state } from "./parts.js";
import { current, go, toJobs } from "./route.js";
import { waitWords } from "./words.js";

const SHORT = 8;
const PAGE = 50;
const MOST = 1000; // that one question may ask for
const REQUESTS = 5; // for one look
const PATIENCE_MS = 60_000;
const TYPING_MS = 250;
const SOONEST_MS = 2000;
const STATES = ["queued", "running", "collecting", "succeeded", "failed", "cancelled", "rejected", "skipped"];
const AGES = { "": "any time", 1: "last 24 h", 7: "last 7 days", 30: "last 30 days" };
const TEXTS = { user: "User", project: "Project" };
const TYPED = ["q", ...Object.keys(TEXTS)]; // what is typed on takes no further step in the history

const table = {
  wishes: "", // what is asked for, as text
  fields: {},
  rows: null,
  rowsOf: "", // the wishes that they answer
  next: null, // the cursor of what comes after them
  wanted: PAGE,
  error: null,
  asking: null,
  at: -Infinity,
  due: null,
  draw: null,
};

// The panel; `fields` are the wishes in the address, `whole`: not the short one of the overview.
export function jobs(fields, whole, draw) {
  const wishes = JSON.stringify([fields, whole]);
  if (wishes !== table.wishes) {
    Object.assign(table, { wishes, fields, draw, wanted: whole ? PAGE : SHORT, error: null });
    ask(draw);
  }
  return panel(
    "jobs",
    { title: whole ? "Jobs" : "Newest jobs", kind: "wide", aside: !whole && h("a", { href: "#/jobs" }, "all") },
    filters(fields),
    table.error && h("p", { class: "bad sentence" }, table.error),
    table.rows && list(table.rows, fields),
    whole &&
      table.next !== null &&
      table.rows &&
      h(
        "p",
        { class: "more" },
        h(
          "button",
          { onclick: () => more(draw), disabled: table.asking !== null },
          isPartial() ? "Search further" : "More",
        ),
      ),
  );
}

// --- asking ----------------------------------------------------------------------------------------------------------

function questionOf(fields) {
  const days = Number(fields.since?.[0]);
  const since = days > 0 ? new Date(nowMs() - days * 86400e3).toISOString() : null;
  const { state: states, solver, user, project, batch, cause, q } = fields;
  return { state: states, solver, user, project, batch, cause, q, since };
}

// Ask for the first pages anew, or for what comes after those that are there.
async function ask(draw, { further = false } = {}) {
  const { fields, wishes } = table;
  table.asking?.abort();
  const asking = (table.asking = new AbortController());
  const signal = AbortSignal.any([asking.signal, AbortSignal.timeout(PATIENCE_MS)]);
  clearTimeout(table.due);
  table.due = null;
  table.at = performance.now();
  let rows = further ? table.rows : [];
  let next = further ? table.next : null;
  const wanted = further ? rows.length + PAGE : table.wanted;
  try {
    for (let asked = 0; asked < REQUESTS && (asked === 0 || (next !== null && rows.length < wanted)); asked += 1) {
      const limit = Math.min(MOST, wanted - rows.length);
      const page = await pageOf(fields, limit, next, signal);
      rows = rows.concat(page.jobs);
      next = page.next;
    }
    Object.assign(table, { rows, rowsOf: wishes, next, wanted: Math.max(wanted, rows.length), error: null });
  } catch (error) {
    if (asking.signal.aborted) return;
    if (!live.lostSince) table.error = error.message;
  }
  table.asking = null;
  draw();
}

async function pageOf(fields, limit, cursor, signal) {
  const page = await get("/v1/jobs", { ...questionOf(fields), limit, cursor }, { signal });
  const at = performance.now();
  return { jobs: page.jobs.map((job) => ({ ...job, at })), next: page.next };
}

// Ask only once, for what comes first, and lay it over what is there: what the daemon did not look at now stays.
async function askFirst(draw) {
  const { fields, wishes } = table;
  table.at = performance.now();
  const asking = (table.asking = new AbortController());
  const signal = AbortSignal.any([asking.signal, AbortSignal.timeout(PATIENCE_MS)]);
  try {
    const page = await pageOf(fields, Math.min(MOST, table.wanted), null, signal);
    const found = new Set(page.jobs.map((job) => job.id));
    const others = page.next === null ? [] : table.rows.filter((job) => !found.has(job.id) && isWished(job, fields));
    Object.assign(table, { rows: page.jobs.concat(others), rowsOf: wishes, error: null });
    if (page.next === null) table.next = null;
  } catch {
    // asked again with the next change
  }
  if (asking.signal.aborted) return;
  table.asking = null;
  draw();
}

// Whether a job that was like that still is, after what was told of it since.
function isWished(job, { state: states, cause: causes }) {
  return (!states || states.includes(job.state)) && (!causes || causes.includes(job.cause));
}

function more(draw) {
  ask(draw, { further: true });
  draw();
}

// Fewer rows than were asked for, and still more to look at: the daemon looks at so many jobs for one question only.
const isPartial = () => table.next !== null && table.rows.length < table.wanted;

// Something changed: what is shown is asked for again, soon, if somebody looks; of a search that has not looked at
// everything only what comes first, where new jobs are.
function stale(change) {
  const row = change && table.rows?.find((one) => one.id === change.id);
  if (row) {
    Object.assign(row, { state: change.state, cause: change.cause, code: change.code, message: change.message });
    table.draw();
  }
  if (table.due !== null || !table.draw) return;
  const soonest = table.asking ? SOONEST_MS : Math.max(0, table.at + SOONEST_MS - performance.now());
  table.due = setTimeout(() => {
    table.due = null;
    if (document.hidden || !document.getElementById("panel-jobs")) table.wishes = "";
    else if (table.asking) stale(null);
    else if (table.rows && isPartial()) askFirst(table.draw);
    else ask(table.draw);
  }, soonest);
}

onJob(stale);

// --- filters ---------------------------------------------------------------------------------------------------------

let typing = null;

function wish(name, value) {
  const { view, fields } = current(); // now, not when the key was pressed
  const before = view === "jobs" ? fields : {};
  const typedOn = Boolean(TYPED.includes(name) && before[name]);
  go(toJobs({ ...before, [name]: value ? [value] : [] }), { instead: typedOn });
}

function filters(fields) {
  const chosen = (fields.state ?? []).join(" ");
  const states = STATES.map((word) => [word, word]);
  if (chosen && !STATES.includes(chosen)) states.push([chosen, chosen.replaceAll(" ", ", ")]);
  const solvers = (live.status?.solvers ?? []).map((name) => [name, name]);
  const solver = fields.solver?.[0] ?? "";
  if (solver && !solvers.some(([name]) => name === solver)) solvers.push([solver, solver]);
  const pick = (name, label, value, choices) =>
    h(
      "label",
      { key: name },
      h("span", {}, label),
      h(
        "select",
        { value, onchange: (event) => wish(name, event.target.value) },
        choices.map(([key, words]) => h("option", { key, value: key }, words)),
      ),
    );
  const text = (name, label, type = "text") =>
    h(
      "label",
      { key: name, class: name },
      h("span", {}, label),
      h("input", {
        id: name === "q" ? "search" : null,
        type,
        value: fields[name]?.[0] ?? "",
        maxlength: 200,
        autocomplete: "off",
        spellcheck: "false",
        placeholder: name === "q" ? "part of a name or id" : "any",
        oninput: (event) => {
          clearTimeout(typing);
          const { value } = event.target;
          typing = setTimeout(() => wish(name, value), TYPING_MS);
        },
      }),
    );
  const set = Object.keys(fields).length > 0;
  return h(
    "form",
    { key: "filters", class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
    text("q", "Search", "search"),
    pick("state", "State", chosen, [["", "any"], ...states]),
    pick("solver", "Solver", solver, [["", "any"], ...solvers]),
    Object.entries(TEXTS).map(([name, label]) => text(name, label)),
    pick(
      "since",
      "Submitted",
      fields.since?.[0] ?? "",
      Object.entries(AGES).sort(([a], [b]) => a - b),
    ),
    set && h("a", { key: "clear", class: "button", href: "#/jobs" }, "Clear"),
  );
}

// --- rows ------------------------------------------------------------------------------------------------------------

const COLUMNS = ["State", "Name", "Solver", "User", "Project", "Submitted", "Waited", "Ran", ""];

function list(rows, fields) {
  if (!rows.length) {
    const filtered = Object.keys(fields).length > 0;
    const none = isPartial() ? "None so far." : filtered ? "No job is like that." : "No job yet.";
    return h("p", { key: "none", class: "dim" }, none);
  }
  const bare = Object.keys(TEXTS).filter((field) => !rows.some((job) => job[field])); // is no column
  const shown = COLUMNS.filter((title) => !bare.includes(title.toLowerCase()));
  return h(
    "table",
    {
      key: "table",
      role: "table",
      "aria-labelledby": "panel-jobs",
      "aria-busy": table.rowsOf !== table.wishes ? "true" : null,
    },
    h(
      "thead",
      { role: "rowgroup" },
      h(
        "tr",
        { role: "row" },
        shown.map((title) =>
          h(
            "th",
            {
              key: title,
              role: "columnheader",
              scope: "col",
              class: `c-${(title || "told").toLowerCase()}${isNumber(title) ? " number" : ""}`,
            },
            title || h("span", { class: "unseen" }, "Message"),
          ),
        ),
      ),
    ),
    h(
      "tbody",
      { role: "rowgroup", onkeydown: walk },
      rows.map((job) => row(job, shown)),
    ),
  );
}

const isNumber = (title) => title === "Waited" || title === "Ran";

function row(job, shown) {
  const goesOn = job.state === "running" || job.state === "queued";
  const seconds = (value, grows) => (value === null ? "" : grows ? elapsed(aged(job, value)) : duration(value));
  const told = job.message ?? (job.reason ? waitWords(job.reason, job.waits_for) : (job.code ?? ""));
  const cell = (name, content, title) => h("td", { key: name, role: "cell", class: name, title }, content);
  return h(
    "tr",
    { key: job.id, role: "row" },
    cell("c-state", state(job.state)),
    cell("c-name", jobLink(job)),
    cell("c-solver", h("bdi", {}, job.solver), job.solver),
    shown.includes("User") && cell("c-user", job.user && h("bdi", {}, job.user), job.user),
    shown.includes("Project") && cell("c-project", job.project && h("bdi", {}, job.project), job.project),
    cell("c-submitted", clock(job.submitted, nowMs())),
    cell("c-waited number", seconds(job.queue_seconds, goesOn && job.state === "queued")),
    cell("c-ran number", seconds(job.run_seconds, job.state === "running")),
    cell("c-told", told && h("bdi", { class: "message" }, told), told),
  );
}

// Rows are asked for less often than the status: what goes on has grown since.
function aged(job, seconds) {
  return live.lostSince ? seconds : seconds + (performance.now() - job.at) / 1000;
}

// Up, down, Home and End go from row to row.
function walk(event) {
  const links = [...event.currentTarget.querySelectorAll("a.name")];
  const at = links.indexOf(document.activeElement);
  const wanted = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: links.length - 1 }[event.key];
  if (at < 0 || wanted === undefined || !links[wanted]) return;
  event.preventDefault();
  links[wanted].focus();
}

// What is known is of another daemon, or of somebody else.
export function forgetJobs() {
  Object.assign(table, { wishes: "", rows: null, next: null });
}
