// The words of the command line for what the daemon's answers name: states, reasons, ends of tries, drops, checks.
//
// Rules: pure; the answers' own words are used wherever they have some.

import { duration, several } from "./format.js";

export const FINAL = new Set(["succeeded", "failed", "cancelled", "rejected", "skipped"]);

// State -> how it looks; red is for what needs a person.
export const TONES = {
  queued: "quiet",
  running: "busy",
  collecting: "busy",
  succeeded: "good",
  failed: "bad",
  rejected: "bad",
  skipped: "warn",
  cancelled: "warn",
};

const REASONS = {
  order: "a turn",
  jobs: "a free place",
  cpus: "cores",
  memory: "memory",
  license: "license",
  server: "a warm server",
  dependency: "another job",
  paused: "paused",
  backoff: "the next try",
  hours: "the hours",
  disk: "room on the disk",
  solver: "a place at the solver",
};

const NAMED = {
  jobs: "a place in",
  server: "a warm server of",
  solver: "a place at",
};

// "license orcaflex", "cores", "paused ccx"
export function reasonWords(reason, what) {
  const word = REASONS[reason] ?? reason;
  return what ? `${NAMED[reason] ?? word} ${what}` : word;
}

// What a job in a table waits for: "waits for license orcaflex", "paused".
export function waitWords(reason, what) {
  return reason === "paused" ? "paused" : `waits for ${reasonWords(reason, what)}`;
}

const DROPS = {
  settling: ["settling", "settling"],
  second_name: ["file with a second name", "files with a second name"],
  claim: ["drop that could not be taken yet", "drops that could not be taken yet"],
  companion: ["job file whose inputs are not all there", "job files whose inputs are not all there"],
  held: ["input beside an upload that may name it", "inputs beside an upload that may name them"],
  job_file: ["waits for a job file that names it", "wait for a job file that names them"],
  disk: ["drop that waits for room on the disk", "drops that wait for room on the disk"],
  folder: ["folder without a job.toml", "folders without a job.toml"],
};

// Drops that wait, by why: [number, words, example].
export function dropLines(inbox) {
  const byWhy = Map.groupBy ? Map.groupBy(inbox, (drop) => drop.why) : grouped(inbox);
  return [...byWhy].map(([why, drops]) => {
    const [one, many] = DROPS[why] ?? [why, why];
    const first = `${drops[0].name}${why === "settling" ? `, ${drops[0].text}` : ""}`;
    return [drops.length, drops.length === 1 ? one : many, drops.length === 1 ? first : `${first}, ...`];
  });
}

function grouped(inbox) {
  const found = new Map();
  for (const drop of inbox) found.set(drop.why, [...(found.get(drop.why) ?? []), drop]);
  return found;
}

// "succeeded in 12 s", "failed after 0.1 s", "running"
export function standing(job) {
  const ran = job.run_seconds === null ? "" : duration(job.run_seconds);
  if (!ran) return job.state;
  if (job.state === "succeeded") return `succeeded in ${ran}`;
  return job.state === "failed" || job.state === "cancelled" ? `${job.state} after ${ran}` : job.state;
}

// "exit 201, allowed 0", "output beam.frd: missing"
export function checkWords(check) {
  if (check.check === "exit") return `exit ${check.got}, allowed ${check.want}`;
  if (check.ok && check.got === check.want) return check.check;
  const wanted = check.ok || check.check.startsWith("no ") ? "" : `, wanted: ${check.want}`;
  return `${check.check}: ${check.got}${wanted}`;
}

const ENDS = { server: "server died", lost: "interrupted", spawn: "did not start", unkillable: "would not die" };

// How a try ended, or that it runs.
export function endWords(attempt, runs) {
  if (attempt.code === "server_gone") return "server gone before it began";
  if (ENDS[attempt.cause]) return ENDS[attempt.cause];
  if (attempt.signal !== null) return `signal ${attempt.signal}`;
  if (attempt.exit_code !== null) return `exit ${attempt.exit_code}`;
  return runs ? "running" : "interrupted";
}

// "2 ready, 1 busy of 4"
export function serversWords(pool) {
  const counts = { ready: pool.ready - pool.busy, busy: pool.busy, starting: pool.starting };
  const there = Object.entries(counts)
    .filter(([, count]) => count)
    .map(([word, count]) => `${count} ${word}`);
  const told = `${there.join(", ") || "none"} of ${pool.most}`;
  return { backoff: `${told}, backoff: ${pool.error}`, failed: `${told}, failed` }[pool.state] ?? told;
}

// Whether there is something to be told of a solver's warm servers.
export function poolIsUsed(pool) {
  return Boolean(pool.starting || pool.up || pool.ready || pool.wanted || pool.waiting || pool.state !== "ok");
}

// "2 cores, memory 4 GiB" and so on: what a job takes.
export function cores(number) {
  return several(number, "core");
}

// An argument list as one would type it.
export function commandLine(argv) {
  return argv.map((part) => (/^[\w@%+=:,./-]+$/.test(part) ? part : `'${part.replaceAll("'", `'"'"'`)}'`)).join(" ");
}
