// Asking the daemon: every request carries the bearer, every refusal becomes an error with its code and its words.
//
// Rules: nothing but this daemon is ever asked; a bearer is sent to whoever has proved to know it. This module knows no
// view; who wants to hear that the token is refused says so with `onRefusedToken`.

import { distrust, prove, Unproved } from "./proof.js";
import * as session from "./session.js";

const PATIENCE_MS = 20_000;

// The daemon answered, and refused. `code` is stable; the message says what to do.
export class Refused extends Error {
  constructor(status, code, detail) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

// Nobody answered.
export class Unreachable extends Error {}

let tokenRefused = () => {};
export function onRefusedToken(heard) {
  tokenRefused = heard;
}

export function query(fields) {
  const pairs = new URLSearchParams();
  for (const [name, value] of Object.entries(fields)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") pairs.append(name, one);
    }
  }
  const text = pairs.toString();
  return text ? `?${text}` : "";
}

// The answer itself; raises Refused or Unreachable. Who passes a `signal` says how long to wait.
export async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const token = session.current();
  let answer;
  try {
    if (token) await prove(token);
    answer = await fetch(path, {
      method,
      body,
      headers: { ...headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) },
      signal: signal ?? AbortSignal.timeout(PATIENCE_MS),
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    distrust();
    if (error instanceof Unproved) {
      tokenRefused(error);
      throw error;
    }
    throw new Unreachable("nobody answers");
  }
  if (answer.ok) return answer;
  const refusal = await refusalOf(answer);
  if (refusal.status === 401) tokenRefused(refusal);
  throw refusal;
}

async function refusalOf(answer) {
  try {
    const problem = await answer.json();
    return new Refused(answer.status, String(problem.code), String(problem.detail));
  } catch {
    return new Refused(answer.status, "unknown", `the daemon answered ${answer.status}`);
  }
}

export async function get(path, fields = {}, options = {}) {
  const answer = await send(path + query(fields), options);
  try {
    return await answer.json();
  } catch {
    throw new Unreachable("the answer broke off");
  }
}

export async function order(path, body) {
  const answer = await send(path, {
    method: "POST",
    body: JSON.stringify(body ?? {}),
    headers: { "Content-Type": "application/json" },
  });
  return answer.json();
}

export function jobPath(id, rest = "") {
  return `/v1/jobs/${encodeURIComponent(id)}${rest}`;
}

// The address of a file by its path in the manifest.
export function filePath(id, path) {
  return jobPath(id, `/files/${path.split("/").map(encodeURIComponent).join("/")}`);
}
