// The overview: healthy? what runs, until when? what waits, and why? what failed, and why? how busy were we?
//
// Rules: everything is of the last status, and of what is asked for in support of it; what is empty is not shown.

import { button, pause, restart, retry } from "./actions.js";
import { alerts } from "./alerts.js";
import { busy } from "./busy.js";
import { h } from "./dom.js";
import { clock, count, duration, elapsed, moment, share, size } from "./format.js";
import { grown, live, nowMs } from "./live.js";
import { dotted, jobLink, meter, panel } from "./parts.js";
import { toJob, toJobs } from "./route.js";
import { dropLines, poolIsUsed, reasonWords, serversWords } from "./words.js";

const RUNNING_SHOWN = 12;
const NAMED = 3;
const LONG = 4; // jobs that run, as high as some that failed

export function overview(draw) {
  const { status } = live;
  return [
    summary(status),
    levels(status),
    alerts(status),
    h(
      "div",
      { key: "board", ...board(status) },
      running(status),
      waiting(status),
      failed(status),
      servers(status),
    ),
    busy(draw),
  ];
}

// How the panels lie where there is room: beside a long list of what runs all others below one another; otherwise what
// failed has the whole width, for its sentences are what is read.
function board({ running_jobs: jobs, last_failed: bad, servers: pools }) {
  const beside = 1 + (bad.length > 0) + pools.some(poolIsUsed);
  const long = !bad.length || Math.min(jobs.length, RUNNING_SHOWN) >= LONG;
  return { class: `board ${long ? "long" : ""}`, vars: { "--beside": beside } };
}

function summary(status) {
  const { last_day: ended } = status;
  const lost = live.lostSince !== null;
  const tone = lost ? "quiet" : { healthy: "good", degraded: "bad", stopping: "warn" }[status.health];
  const tally = (number, word, tone) =>
    number > 0 &&
    h("a", { key: word, class: tone, href: toJobs({ state: word }) }, h("b", {}, count(number)), ` ${word}`);
  const since = h("span", { key: "up", class: "dim" }, `up ${duration(grown(status.up_seconds))}`);
  return h(
    "section",
    { key: "summary", class: "summary", "aria-label": "Health" },
    h("h1", {}, h("bdi", {}, status.host)),
    h("span", { class: `health ${tone}`, id: "health" }, lost ? "not connected" : status.health),
    lost ? h("span", { key: "then", class: "dim" }, `as it was at ${moment(live.lostSince).slice(11)}`) : since,
    h(
      "span",
      { class: "tallies" },
      h("a", { key: "running", href: toJobs({ state: "running" }) }, h("b", {}, count(status.running)), " running"),
      status.collecting > 0 &&
        h(
          "a",
          { key: "collecting", href: toJobs({ state: "collecting" }) },
          h("b", {}, count(status.collecting)),
          " collecting",
        ),
      h("a", { key: "waiting", href: toJobs({ state: "queued" }) }, h("b", {}, count(status.waiting)), " waiting"),
      h("span", { key: "ended", class: "dim" }, "24 h:"),
      tally(ended.succeeded, "succeeded"),
      tally(ended.failed, "failed", "bad"),
      tally(ended.cancelled, "cancelled"),
      tally(ended.rejected, "rejected", "bad"),
      tally(ended.skipped, "skipped"),
      !Object.values(ended).some(Boolean) && h("span", { key: "none", class: "dim" }, "nothing finished"),
    ),
    !status.paused.some((one) => one.solver === null) &&
      h(
        "span",
        { key: "pause", class: "row aside" },
        button("operate", "Pause ...", () => pause(status.solvers)),
      ),
  );
}

function levels(status) {
  const limited = new Set((status.limits_set ?? []).map((limit) => limit.name));
  const level = (name, label, { used, total }, words = `${used}/${total}`) =>
    h(
      "li",
      { key: name },
      h(
        "span",
        { class: "level" },
        h("bdi", { class: "dim", title: label }, label, limited.has(name) && " (limited)"),
        h("b", {}, words),
      ),
      meter(used / total),
    );
  const { memory_bytes: memory, disk_free_bytes: free } = status;
  return h(
    "ul",
    { key: "levels", class: "levels", "aria-label": "What is taken" },
    level("max_jobs", "jobs", status.jobs),
    level("cpus", "cores", status.cpus),
    level("memory", "memory", memory, share(memory.used, memory.total)),
    Object.entries(status.licenses).map(([name, of]) => level(`license.${name}`, `license ${name}`, of)),
    free !== null &&
      h(
        "li",
        { key: "disk" },
        h("span", { class: "level" }, h("span", { class: "dim" }, "disk"), h("b", {}, `${size(free)} free`)),
      ),
  );
}

// --- running ---------------------------------------------------------------------------------------------------------

function running(status) {
  const shown = status.running_jobs.slice(0, RUNNING_SHOWN);
  const more = status.running - shown.length;
  return panel(
    "running",
    { title: "Running", aside: status.running > 0 && h("span", { class: "dim" }, count(status.running)) },
    shown.length
      ? h(
          "ul",
          { class: "jobs" },
          shown.map(runningJob),
        )
      : h("p", { class: "dim" }, status.waiting ? "Nothing runs just now." : begin(status)),
    more > 0 && h("p", { class: "more" }, h("a", { href: toJobs({ state: "running" }) }, `and ${count(more)} more`)),
  );
}

function begin(status) {
  return [
    "Nothing to do. Drop an input in ",
    h("code", {}, status.inbox_path),
    ", or: ",
    h("code", {}, "solvisor submit FILE"),
  ];
}

function runningJob(job) {
  const ran = grown(job.run_seconds ?? 0);
  const usually = job.usual_seconds;
  const late = usually !== null && ran > usually;
  const ends = clock(nowMs() + (usually - ran) * 1000, nowMs());
  const told = late
    ? `longer than usual (${duration(usually)})`
    : usually !== null && (usually < 60 ? `usually ${duration(usually)}` : `ends about ${ends}`);
  return h(
    "li",
    { key: job.id },
    h("span", { class: "first" }, jobLink(job), h("span", { class: "number" }, elapsed(ran))),
    h(
      "span",
      { class: "second" },
      h("span", { class: "grow cut" }, dotted(job.user, job.solver, job.tries > 1 && `try ${job.tries}`)),
      h("span", { class: late ? "warn" : null }, told),
    ),
    usually !== null && meter(ran / usually),
  );
}

// --- failed ----------------------------------------------------------------------------------------------------------

function failed(status) {
  const { last_failed: jobs, last_day: ended } = status;
  if (!jobs.length) return null;
  const more = ended.failed - jobs.length;
  return panel(
    "failed",
    { title: "Failed in 24 h", tone: "bad", aside: h("span", { class: "dim" }, count(ended.failed)) },
    h("ul", { class: "jobs" }, jobs.map(failedJob)),
    more > 0 && h("p", { class: "more" }, h("a", { href: toJobs({ state: "failed" }) }, `and ${count(more)} more`)),
  );
}

function failedJob(job) {
  return h(
    "li",
    { key: job.id },
    h(
      "span",
      { class: "first" },
      jobLink(job),
      h(
        "span",
        { class: "row actions" },
        h(
          "a",
          {
            class: "button",
            href: live.lostSince ? null : `${toJob(job.id)}?show=log`,
            "aria-disabled": live.lostSince ? "true" : null,
            "aria-label": `Log of ${job.name}`,
          },
          "Log",
        ),
        !job.removed && button("operate", "Retry", () => retry(job), { label: `Retry ${job.name}` }),
      ),
    ),
    h("span", { class: "sentence message bad", title: job.message }, job.message ?? job.code ?? job.state),
    h(
      "span",
      { class: "second" },
      h("span", { class: "grow cut" }, dotted(job.user, job.solver, job.state !== "failed" && job.state)),
      h("span", {}, job.finished ? clock(job.finished, nowMs()) : ""),
    ),
  );
}

// --- waiting ---------------------------------------------------------------------------------------------------------

function waiting(status) {
  const drops = dropLines(status.inbox);
  const unseen = status.inbox_total - status.inbox.length;
  const empty = !status.waiting_for.length && !status.inbox_total;
  return panel(
    "waiting",
    { title: "Waiting, and why", aside: status.waiting > 0 && h("span", { class: "dim" }, count(status.waiting)) },
    empty && h("p", { class: "dim" }, "Nothing waits."),
    h(
      "ul",
      { class: "reasons" },
      status.waiting_for.map((one) => {
        const words = reasonWords(one.reason, one.what);
        return h(
          "li",
          { key: words },
          h("b", { class: "number" }, count(one.jobs)),
          h("span", {}, h("bdi", {}, words)),
          first(one, status.waiting_jobs),
        );
      }),
      drops.map(([number, words, example]) =>
        h(
          "li",
          { key: `drop ${words}` },
          h("b", { class: "number" }, count(number)),
          h("span", {}, "in the inbox: ", words),
          h("span", { class: "dim cut names", title: example }, example),
        ),
      ),
      unseen > 0 &&
        h("li", { key: "unseen" }, h("b", { class: "number" }, count(unseen)), h("span", {}, "more in the inbox")),
    ),
  );
}

// The first of the jobs that wait for that, as far as the status names them.
function first({ reason, what, jobs }, inOrder) {
  const shown = inOrder.filter((job) => job.reason === reason && job.waits_for === what).slice(0, NAMED);
  if (!shown.length) return null;
  const links = shown.map((job, n) => [n ? ", " : "", jobLink(job)]);
  return h("span", { class: "names cut dim" }, links, jobs > shown.length && ", ...");
}

// --- warm servers ----------------------------------------------------------------------------------------------------

function servers(status) {
  const used = status.servers.filter(poolIsUsed);
  if (!used.length) return null;
  return panel(
    "servers",
    { title: "Warm servers", aside: h("a", { href: "#/machine" }, "all") },
    h(
      "ul",
      { class: "reasons" },
      used.map((pool) =>
        h(
          "li",
          { key: pool.solver },
          h("bdi", {}, pool.solver),
          h(
            "span",
            { class: `sentence ${{ failed: "bad", backoff: "warn" }[pool.state] ?? "dim"}` },
            serversWords(pool),
          ),
          pool.state !== "ok" &&
            button("operate", "Start again", () => restart(pool.solver), {
              label: `Start the servers of ${pool.solver} again`,
            }),
        ),
      ),
    ),
  );
}
