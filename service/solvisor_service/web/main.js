// The page: who looks, at what, and when it is drawn again.
//
// Rules: one function draws everything, at most once a frame, from what `live` and the views know. Counting seconds are
// drawn once a second while the page is visible. This is the only module that touches the frame of the page.

import { onRefusedToken } from "./api.js";
import { forgetUsage } from "./busy.js";
import { note, question } from "./dialog.js";
import { h, lay } from "./dom.js";
import { moment } from "./format.js";
import * as jobView from "./job.js";
import { forgetJobs, jobs } from "./jobs.js";
import { begin, end, live, onChange, tryNow } from "./live.js";
import { forgetMachine, machine } from "./machine.js";
import { overview } from "./overview.js";
import { Unproved } from "./proof.js";
import * as route from "./route.js";
import * as session from "./session.js";
import { signin } from "./signin.js";

const TICK_MS = 1000;

let refused = null; // why the token is refused
let waiting = true; // for the first answer, or for a token of another tab
let frame = null;
let seenStatus = null;
let lastView = null;
let moved = false; // back leads to another view of this page

function draw() {
  frame ??= requestAnimationFrame(() => {
    frame = null;
    paint();
  });
}

function paint() {
  const main = document.getElementById("main");
  const at = route.current();
  document.body.classList.toggle("lost", Boolean(live.lostSince && live.status));
  lay(document.getElementById("nav"), live.status && navigation(at));
  lay(document.getElementById("connection"), connection());
  if (!session.current()) lay(main, waiting ? null : signin(refused, enter));
  else if (live.status) lay(main, view(at));
  else lay(main, h("p", { key: "wait", class: "dim wait" }, live.lostSince ? "" : "Asking the daemon ..."));
  document.title = titleOf(at);
}

function view(at) {
  if (at.view !== "job") jobView.leaveJob();
  switch (at.view) {
    case "job":
      return jobView.job(at.id ?? "last", draw);
    case "jobs":
      return [heading("Jobs"), jobs(at.fields, true, draw)];
    case "machine":
      return [heading("Machine"), machine(live.status, draw)];
    default:
      return [overview(draw), jobs({}, false, draw)];
  }
}

// For those who do not see which view it is.
const heading = (words) => h("h1", { key: "heading", class: "unseen" }, words);

function titleOf(at) {
  const { status } = live;
  if (!status) return "Solvisor";
  const host = `${status.host}, Solvisor`;
  if (live.lostSince) return `(not connected) ${host}`;
  const own = at.view === "job" ? jobView.title() : null;
  if (own) return `${own}, ${host}`;
  const parts = [
    status.health !== "healthy" && status.health,
    status.last_day.failed && `${status.last_day.failed} failed`,
    status.running && `${status.running} running`,
    status.waiting && `${status.waiting} waiting`,
  ];
  return [parts.filter(Boolean).join(", ") || "idle", host].join(", ");
}

function navigation(at) {
  const views = { overview: ["#/", "Overview"], jobs: ["#/jobs", "Jobs"], machine: ["#/machine", "Machine"] };
  return Object.entries(views).map(([name, [href, words]]) =>
    h("a", { key: name, href, "aria-current": at.view === name ? "page" : null }, words),
  );
}

function connection() {
  if (!session.current()) return null;
  if (live.lostSince) {
    const words = live.trouble ?? `Not connected since ${moment(live.lostSince).slice(11)}`;
    return [
      h("span", { key: "lost", class: "lostword", id: "lost" }, words),
      h("button", { key: "again", class: "choice", onclick: tryNow }, "Try now"),
    ];
  }
  const reload = () => location.reload();
  if (live.updated)
    return h("button", { key: "reload", class: "choice", onclick: reload }, "A new version is there: reload");
  return (
    live.status &&
    h("span", { key: "live", class: "dim livedot", id: "live" }, live.me?.user ? `live, as ${live.me.user}` : "live")
  );
}

// --- coming and going ------------------------------------------------------------------------------------------------

function enter() {
  refused = null;
  waiting = false;
  forgetAll();
  begin();
  draw();
}

function forgetAll() {
  forgetUsage();
  forgetJobs();
  forgetMachine();
  jobView.leaveJob();
}

onRefusedToken((refusal) => {
  if (refused) return;
  const unproved = refusal instanceof Unproved;
  if (unproved && live.status) return; // it may come back: the connection says what is wrong
  refused = unproved ? refusal.message : `The daemon says: ${refusal.message}`;
  session.forget();
  end();
  draw();
});

onChange(() => {
  if (live.status !== seenStatus) {
    seenStatus = live.status;
    jobView.statusCame();
  }
  draw();
});

// Use the pass of a link; in place of one with another name only if whoever looks wants that, for anybody can make a
// link with a pass of their own. Whether there is another now.
async function take(given) {
  if (given === null) return false;
  const [name, own] = [session.nameIn(given), session.current() && session.nameIn(session.current())];
  if (own && own !== name) {
    const text = `The link has a pass of ${name}; until now this page acts for ${own}.`;
    if (!(await question({ title: `Act for ${name}?`, text, action: "Use that pass" }))) return false;
  }
  session.use(given);
  return true;
}

addEventListener("hashchange", (event) => {
  const before = event.oldURL ? new URL(event.oldURL).hash : "";
  take(session.takeFromAddress(before || "#/")).then((taken) => taken && enter());
  const now = route.current();
  const name = `${now.view} ${now.id ?? ""}`;
  if (lastView !== null && name !== lastView) {
    moved = true;
    paint();
    if (!document.activeElement?.closest(".filters")) {
      scrollTo(0, 0);
      if (document.activeElement === document.body || !document.activeElement)
        document.getElementById("main").focus({ preventScroll: true });
    }
  }
  lastView = name;
  draw();
});

addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, select, textarea, dialog");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey && live.status) {
    event.preventDefault();
    if (!document.getElementById("search")) {
      route.go("#/jobs");
      paint();
    }
    document.getElementById("search")?.focus();
  }
  if (event.key === "Escape" && !event.defaultPrevented && !document.querySelector("dialog[open]")) {
    if (typing) event.target.blur();
    else if (route.current().view === "job" && moved) history.back();
    else route.go("#/");
  }
});

addEventListener("unhandledrejection", (event) => {
  if (event.reason?.name === "AbortError") event.preventDefault();
  else note(`The page met an error: ${event.reason?.message ?? event.reason}`, { bad: true });
});

setInterval(() => !document.hidden && live.status && !live.lostSince && draw(), TICK_MS);

async function start() {
  const given = session.takeFromAddress("#/");
  const { view: name, id } = route.current();
  lastView = `${name} ${id ?? ""}`;
  await take(given);
  if (!session.current()) await session.askOtherTabs();
  if (session.current()) enter();
  waiting = false;
  draw();
}

start();
