// One job: how it stands and why, its log, its pictures and files, its tries and checks, what it used.
//
// Rules: asked for again when it changes; one that waits also with every status, for what it waits for is others' doing.

import { get, jobPath } from "./api.js";
import { button, cancel, retry, setPriority } from "./actions.js";
import { h } from "./dom.js";
import { clock, duration, elapsed, moment, size } from "./format.js";
import { JobFiles } from "./jobfiles.js";
import { JobLog } from "./joblog.js";
import { live, nowMs, onJob, onSeen } from "./live.js";
import { dotted, facts, holders, meter, panel, state } from "./parts.js";
import { toJob } from "./route.js";
import { checkWords, commandLine, cores, endWords, FINAL, standing } from "./words.js";

const SOON_MS = 300;
const RESULT_SHOWN = 2000;
const LINES_SHOWN = 4; // of a message, until more is wanted
const LETTER = 7; // pixels, about

let shown = null; // the job that is looked at

class Shown {
  constructor(id, draw) {
    this.id = id;
    this.draw = draw;
    this.job = this.explained = this.manifest = this.error = null;
    this.unfolded = false; // its message
    this.log = new JobLog(id, () => this.soon());
    this.files = new JobFiles(id, draw);
    this.ask();
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    this.log.close();
    this.files.close();
  }

  soon() {
    if (!this.closed) this.timer ??= setTimeout(() => this.ask(), SOON_MS);
  }

  async ask() {
    clearTimeout(this.timer);
    this.timer = null;
    try {
      const job = await get(jobPath(this.id));
      const explained = job.state === "running" ? null : await get(jobPath(job.id, "/explain"));
      const over = FINAL.has(job.state);
      if (over && !job.removed && !this.manifest)
        this.manifest = await get(jobPath(job.id, "/manifest")).catch(() => null);
      if (this.closed) return;
      const tries = this.job?.tries ?? 0;
      Object.assign(this, { job, explained, error: null, at: performance.now() });
      this.follow(over, tries);
    } catch (error) {
      if (this.closed) return;
      this.error = error.status ? error.message : null;
    }
    this.draw();
  }

  // The log: from the first try on, and again for each.
  follow(over, triesBefore) {
    const { job, log } = this;
    if (!job.tries || job.removed) return;
    const begun = log.reading !== null;
    log.newest = job.tries;
    log.cut = job.log_truncated;
    if (over) log.live = false;
    const another = job.tries !== triesBefore && log.attempt === null;
    if (begun && !another) return;
    const opened = log.open(!over, this.draw);
    if (!begun && job.state === "failed") opened.then(() => this.preferStderr());
  }

  // Of a failed job, stderr is shown first where stdout was read and is empty.
  preferStderr() {
    const { log } = this;
    if (!this.closed && log.which === "stdout" && log.attempt === null && log.offset !== null && !log.text.text)
      log.look("stderr", null, false, this.draw);
  }

  get ran() {
    const { run_seconds: seconds, state: word } = this.job;
    if (seconds === null) return null;
    return word === "running" && !live.lostSince ? seconds + (performance.now() - this.at) / 1000 : seconds;
  }
}

onJob((change) => {
  if (shown && (change === null || change.id === shown.job?.id)) shown.soon();
});

onSeen((seen) => {
  shown?.log.seen(seen);
  if (seen) shown?.soon();
});

export function leaveJob() {
  shown?.close();
  shown = null;
}

// A status came: what a waiting job waits for may have changed.
export function statusCame() {
  if (shown?.job && !FINAL.has(shown.job.state) && shown.job.state !== "running") shown.soon();
}

export function title() {
  return shown?.job ? `${shown.job.name}: ${shown.job.state}` : null;
}

export function job(id, draw) {
  if (shown?.id !== id) {
    leaveJob();
    shown = new Shown(id, draw);
  }
  const { job: view, error } = shown;
  if (error)
    return h(
      "section",
      { key: "nojob", class: "panel" },
      h("h1", {}, "No such job"),
      h("p", { class: "sentence" }, error),
      h("p", {}, h("a", { href: "#/jobs" }, "All jobs")),
    );
  if (!view) return null;
  const over = FINAL.has(view.state);
  return [
    head(view),
    h(
      "div",
      { key: `columns ${view.id}`, class: "columns job" },
      h("div", {}, why(view), pictures(), logPanel(view, over), result(view)),
      h("div", {}, checks(view), files(view), tries(view), about(view)),
    ),
  ];
}

// --- its parts -------------------------------------------------------------------------------------------------------

function head(view) {
  const over = FINAL.has(view.state);
  const bad = view.state === "failed" || view.state === "rejected";
  return h(
    "section",
    { key: `head ${view.id}`, class: "panel jobhead", "aria-label": "Job" },
    h(
      "div",
      { class: "row wrap" },
      h("h1", { class: "cut grow", title: view.name }, h("bdi", {}, view.name)),
      h(
        "span",
        { class: "row actions" },
        view.state === "queued" && button("operate", "Priority ...", () => setPriority(view)),
        over &&
          view.state !== "rejected" &&
          !view.removed &&
          button("operate", "Retry", () => retry(view, { follow: true })),
        !over &&
          button("operate", view.cancel ? "Being stopped" : "Cancel", () => cancel(view), {
            danger: true,
            busy: view.cancel,
          }),
      ),
    ),
    h(
      "p",
      { class: "row wrap" },
      state(view.state),
      h("span", { id: "standing" }, told(view)),
      h("span", { class: "dim" }, dotted(view.user, view.solver, view.project)),
      h("code", { class: "dim cut" }, view.id),
    ),
    view.message && message(view.message, bad ? "bad" : ""),
  );
}

// A long one begins folded.
function message(text, tone) {
  const room = Math.min(innerWidth, 1440) / LETTER;
  const lines = text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / room)), 0);
  if (lines <= LINES_SHOWN) return h("p", { class: `sentence told ${tone}` }, text);
  const { unfolded } = shown;
  const turn = () => {
    shown.unfolded = !unfolded;
    shown.draw();
  };
  return [
    h(
      "p",
      { id: "message", class: `sentence ${tone} ${unfolded ? "" : "folded"}`, vars: { "--lines": LINES_SHOWN } },
      text,
    ),
    h(
      "button",
      {
        key: "more",
        class: "plain link",
        "aria-expanded": String(unfolded),
        "aria-controls": "message",
        onclick: turn,
      },
      unfolded ? "less" : "more",
    ),
  ];
}

function told(view) {
  if (view.state !== "running") {
    const words = standing(view).replace(/^\w+ ?/, "");
    return view.finished ? `${words}${words ? ", " : ""}${clock(view.finished, nowMs())}` : words;
  }
  const usually = view.usual_seconds;
  const ran = shown.ran ?? 0;
  if (usually === null) return `for ${elapsed(ran)}`;
  if (ran > usually)
    return [
      `for ${elapsed(ran)}, `,
      h("span", { class: "warn" }, `longer than usual (${duration(usually)})`),
      meter(1),
    ];
  const ends =
    usually < 60 ? `usually ${duration(usually)}` : `ends about ${clock(nowMs() + (usually - ran) * 1000, nowMs())}`;
  return [`for ${elapsed(ran)}, ${ends}`, meter(ran / usually)];
}

function why(view) {
  const { explained } = shown;
  if (!explained) return null;
  const findings = explained.findings.map((one) => {
    const fits = !one.holds && one.total !== null && !one.holders.length;
    const words = fits ? `${one.text}: ok` : one.text;
    const held = one.holders.length > 0 && [": ", holders(one.holders)];
    return h(
      "div",
      { key: one.label },
      h("dt", {}, one.label),
      h("dd", { class: one.holds ? null : "dim" }, words, held),
    );
  });
  const next = explained.next;
  if (view.state !== "queued" && view.state !== "collecting" && !next) return null;
  return panel(
    "why",
    { title: view.state === "queued" ? "Why it waits" : next ? "What to do" : "Now" },
    !next && h("p", { class: "sentence" }, `It ${explained.headline}`),
    findings.length > 0 && h("dl", { class: "facts" }, findings),
    next && h("p", { class: "sentence" }, next),
  );
}

function pictures() {
  const drawn = shown.manifest && shown.files.pictures(shown.manifest.outputs);
  return drawn && panel("pictures", { title: "Pictures" }, drawn);
}

function logPanel(view, over) {
  if (!view.tries || view.removed) return null;
  return panel(
    "log",
    { title: "Log" },
    shown.log.view({ tries: view.tries, live: !over, draw: shown.draw, cut: view.log_truncated }),
  );
}

function result(view) {
  if (view.result === null) return null;
  const text = JSON.stringify(view.result, null, 2);
  const long = text.length > RESULT_SHOWN;
  return panel(
    "result",
    { title: "Result" },
    h("pre", { class: "log", tabindex: 0 }, text.slice(0, RESULT_SHOWN)),
    long && h("p", { class: "dim" }, "The rest is in manifest.json."),
  );
}

function checks(view) {
  if (!view.checks.length) return null;
  const bad = view.checks.some((check) => !check.ok);
  return panel(
    "checks",
    { title: "Checks", aside: !bad && h("span", { class: "good" }, "all ok") },
    h(
      "ul",
      { class: "files" },
      view.checks.map((check, n) =>
        h(
          "li",
          { key: n },
          h("span", { class: "grow sentence" }, checkWords(check)),
          h("b", { class: check.ok ? "good" : "bad" }, check.ok ? "ok" : "failed"),
        ),
      ),
    ),
  );
}

function files(view) {
  const { manifest } = shown;
  if (view.removed)
    return panel(
      "files",
      { title: "Files" },
      h("p", { class: "dim" }, `Removed on ${moment(view.removed)}, as [retention] says.`),
    );
  if (!manifest) return null;
  const more = manifest.more_outputs;
  return [
    (manifest.outputs.length > 0 || more) &&
      panel(
        "outputs",
        { title: "Outputs" },
        shown.files.list("outputs", manifest.outputs),
        more && h("p", { class: "dim" }, "More, listed in ", shown.files.list("more", [more])),
      ),
    panel("inputs", { title: "Inputs" }, shown.files.list("inputs", manifest.inputs)),
  ];
}

function tries(view) {
  if (!view.attempts.length) return null;
  const last = view.attempts.length;
  const charged = view.tries_max > 1 || last > 1 ? `charged ${view.tries_charged} of at most ${view.tries_max}` : "";
  return panel(
    "tries",
    { title: last > 1 ? "Tries" : "Try", aside: charged && h("span", { class: "dim" }, charged) },
    h(
      "ol",
      { class: "tries" },
      view.attempts.map((attempt) => {
        const runs = view.state === "running" && attempt.n === last;
        const seconds = attempt.finished && (Date.parse(attempt.finished) - Date.parse(attempt.started)) / 1000;
        const { cpu_user_seconds: user, cpu_system_seconds: system, max_rss_bytes: memory } = attempt;
        return h(
          "li",
          { key: attempt.n },
          h("b", {}, endWords(attempt, runs)),
          h(
            "span",
            { class: "dim" },
            dotted(
              seconds !== null && duration(seconds),
              attempt.server && `server ${attempt.server}${attempt.port === null ? "" : ` port ${attempt.port}`}`,
              attempt.pid !== null && runs && `pid ${attempt.pid}`,
              user !== null && system !== null && `cpu ${duration(user + system)}`,
              memory !== null && `memory ${size(memory)}`,
            ),
          ),
          attempt.message && attempt.message !== view.message && h("span", { class: "sentence" }, attempt.message),
        );
      }),
    ),
  );
}

function about(view) {
  const licenses = Object.entries(view.licenses).map(([name, number]) => `license ${name} ${number}`);
  const limits = [
    view.cpus > 0 && cores(view.cpus),
    view.memory_bytes > 0 && `memory ${size(view.memory_bytes)}`,
    view.timeout_seconds === null ? "no timeout" : `timeout ${duration(view.timeout_seconds)}`,
    ...licenses,
  ];
  const again = view.retry_of && h("a", { href: toJob(view.retry_of) }, view.retry_of);
  const cause = [view.cause, view.code].filter(Boolean).join(", ");
  return panel(
    "facts",
    { title: "About it" },
    facts([
      ["solver", dotted(view.solver, shown.manifest?.solver.version)],
      ["batch", view.batch],
      ["run again of", again],
      ["cause", cause],
      ["input", view.primary],
      ["source", view.source],
      ["command", view.command.length > 0 && h("code", { class: "sentence" }, commandLine(view.command))],
      [
        "params",
        Object.entries(view.params)
          .map(([name, value]) => `${name} = ${JSON.stringify(value)}`)
          .join(", "),
      ],
      ["takes", limits.filter(Boolean).join(", ")],
      ["priority", view.priority || null],
      ["after", view.after.length > 0 && view.after.map((id, n) => [n ? ", " : "", h("a", { href: toJob(id) }, id)])],
      ["key", view.key],
      [
        "submitted",
        `${moment(view.submitted)}${view.queue_seconds === null ? "" : `, waited ${duration(view.queue_seconds)}`}`,
      ],
      ["started", view.started && moment(view.started)],
      [
        "finished",
        view.finished &&
          `${moment(view.finished)}${view.run_seconds === null ? "" : `, ran ${duration(view.run_seconds)}`}`,
      ],
      ["folder", view.removed ? null : h("code", { class: "sentence" }, `${view.folder}/`)],
    ]),
  );
}
