// What the daemon said last, and whether it still says something: one place that asks, many that look.
//
// Rules: the status is asked for every 10 s, and after events at most once a second; every 3 s by a page for which there
// is no stream (slots.js). A daemon that is gone is asked for its status alone, ever less often; events are followed
// again once it answers. A hidden page asks seldom and has no stream. Times that count up follow the daemon's clock, so
// that a wrong clock here does no harm. Views never change this.

import { get, Unreachable } from "./api.js";
import { listen } from "./events.js";
import { withSlot } from "./slots.js";

const EVERY_MS = 10_000;
const DEAF_MS = 3_000;
const HIDDEN_MS = 60_000;
const SOONEST_MS = 1_000;
const UNSEEN_MS = 2_000; // hidden for so long, a page lets its streams go
const AGAIN_MS = [1000, 2000, 4000, 8000, 10_000];

export const live = {
  me: null,
  status: null,
  lostSince: null, // when the daemon was heard last, while it is not reached
  trouble: null, // what it says instead of its status
  updated: false, // the daemon is of another version than the one that gave this page
};

let clockAt = 0; // performance.now() of the daemon's clock below
let clockMs = 0;
let lastHeard = 0;
let askedAt = -Infinity;
let misses = 0;
let timer = null;
let asking = false;
let dirty = false;
let stop = null;
let ears = null; // what ends the stream, from the wish for one on
let hears = false; // there is one
let place = { id: "" };
let meIsOld = true;
const listeners = new Set();
const heardJobs = new Set();

// `changed()` after every answer; returns how to stop.
export function onChange(changed) {
  listeners.add(changed);
  return () => listeners.delete(changed);
}

// `heard(change | null)` for every change of a job; null: anything may have changed.
export function onJob(heard) {
  heardJobs.add(heard);
  return () => heardJobs.delete(heard);
}

function changed() {
  for (const one of [...listeners]) one();
}

function tellJob(change) {
  for (const one of [...heardJobs]) one(change);
}

// Milliseconds UTC by the daemon's clock.
export function nowMs() {
  return live.status ? clockMs + performance.now() - clockAt : Date.now();
}

// Seconds of something that was `seconds` when the last status was made and goes on.
export function grown(seconds) {
  return seconds + (live.lostSince ? 0 : (performance.now() - clockAt) / 1000);
}

const RANKS = { look: 1, operate: 2, administer: 3 };

// Whether whoever looks may `operate` or `administer`.
export function may(what) {
  const role = live.me?.role;
  return (typeof role === "number" ? role : (RANKS[role] ?? 0)) >= RANKS[what];
}

export function begin() {
  end();
  stop = new AbortController();
  misses = 0;
  meIsOld = true;
  lastHeard = Date.now();
  place = { id: "" };
  soon(0);
  follow();
}

async function follow() {
  if (!stop || ears || document.hidden) return;
  const mine = (ears = new AbortController());
  await withSlot("events", async () => {
    if (mine.signal.aborted) return;
    hears = true;
    await listen("/v1/events", place, heard, refresh, mine.signal);
  });
  if (ears === mine) unfollow();
}

function unfollow() {
  ears?.abort();
  ears = null;
  hears = false;
}

export function end() {
  unfollow();
  stop?.abort();
  stop = null;
  clearTimeout(timer);
  timer = null;
  Object.assign(live, { me: null, status: null, lostSince: null, trouble: null });
}

function heard(name, data) {
  if (name === "job") tellJob(data);
  if (name === "reset" || name === "hello" || data.what?.includes("order")) tellJob(null);
  refresh();
}

// Ask again, soon.
export function refresh() {
  if (document.hidden) {
    dirty = true;
    return;
  }
  soon(Math.max(0, askedAt + SOONEST_MS - performance.now()));
}

let dueAt = Infinity;

function soon(ms) {
  const at = performance.now() + ms;
  if (timer !== null && dueAt <= at) return;
  clearTimeout(timer);
  dueAt = at;
  timer = setTimeout(ask, ms);
}

async function ask() {
  timer = null;
  dueAt = Infinity;
  if (asking || !stop) return;
  asking = true;
  dirty = false;
  askedAt = performance.now();
  const { signal } = stop;
  try {
    if (meIsOld) live.me = await get("/v1/me");
    meIsOld = false;
    const status = await get("/v1/status");
    if (signal.aborted) return;
    hear(status);
  } catch (error) {
    if (signal.aborted) return;
    miss(error);
  } finally {
    asking = false;
    if (!signal.aborted) {
      changed();
      soon(misses ? AGAIN_MS[Math.min(misses - 1, AGAIN_MS.length - 1)] : pace());
    } else if (stop) soon(0);
  }
}

function pace() {
  return document.hidden ? HIDDEN_MS : hears ? EVERY_MS : DEAF_MS;
}

function hear(status) {
  if (!hears && live.status) tellJob(null); // nobody told which
  const back = live.lostSince !== null;
  live.updated ||= live.status !== null && live.status.version !== status.version;
  live.status = status;
  live.lostSince = null;
  live.trouble = null;
  misses = 0;
  lastHeard = Date.now();
  clockAt = performance.now();
  clockMs = Date.parse(status.now);
  follow();
  if (back) {
    meIsOld = true; // the daemon may be another one now, with other rules
    tellJob(null);
    soon(0);
  }
}

function miss(error) {
  misses += 1;
  unfollow();
  live.lostSince ??= new Date(lastHeard);
  live.trouble = error instanceof Unreachable ? null : error.message;
}

export function tryNow() {
  soon(0);
}

// --- seen and not seen -----------------------------------------------------------------------------------------------

const watchers = new Set();
let unseen = null;

// `seen(bool)` once the page was hidden for a moment, and once it is seen again after that.
export function onSeen(seen) {
  watchers.add(seen);
}

onSeen((seen) => {
  if (seen) follow();
  else unfollow();
});

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    unseen ??= setTimeout(() => {
      unseen = "gone";
      for (const one of watchers) one(false);
    }, UNSEEN_MS);
    return;
  }
  clearTimeout(unseen);
  if (unseen === "gone") for (const one of watchers) one(true);
  unseen = null;
  if (stop) soon(dirty || performance.now() - askedAt > pace() ? 0 : pace());
});
