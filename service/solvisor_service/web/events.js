// Server-sent events, read from a fetch: an EventSource cannot carry the bearer.
//
// Rules: whoever listens is called for every event in order. A stream that breaks or goes silent is begun again from
// its last id, sooner after the first break than after many. What was missed for good is told by the daemon (`reset`).

import { send } from "./api.js";
import { streamed } from "./proof.js";

const SILENT_MS = 40_000; // the daemon says something every 15 s
const RETRY_MS = [500, 1000, 2000, 5000];

// Pieces of text in, events out.
export class EventParser {
  constructor(heard) {
    this.heard = heard;
    this.rest = "";
    this.lastId = "";
    this.begin();
  }

  begin() {
    this.name = "message";
    this.data = [];
  }

  feed(text) {
    const lines = (this.rest + text).split(/\r\n|\n|\r(?!$)/);
    this.rest = lines.pop();
    for (const line of lines) this.line(line);
  }

  line(line) {
    if (line === "") {
      if (this.data.length) this.heard(this.name, this.data.join("\n"));
      this.begin();
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment: a sign of life
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.name = value;
    else if (field === "data") this.data.push(value);
    else if (field === "id" && !value.includes("\0")) this.lastId = value;
  }
}

// Listen until `signal` is aborted, from `place.id` on, which is kept up to date. `heard(name, data)`; `broken()` once a
// stream has ended.
export async function listen(path, place, heard, broken, signal) {
  for (let failures = 0; !signal.aborted; failures += 1) {
    try {
      await once(path, place.id, signal, (name, data, id) => {
        failures = 0;
        place.id = id;
        heard(name, data);
      });
    } catch {
      // told below, like an end that was no error
    }
    if (signal.aborted) return;
    broken();
    await pause(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)], signal);
  }
}

async function once(path, lastId, signal, heard) {
  const stop = new AbortController();
  const stopped = () => stop.abort();
  signal.addEventListener("abort", stopped);
  let silence;
  let ended = () => {};
  const alive = () => {
    clearTimeout(silence);
    silence = setTimeout(stopped, SILENT_MS);
  };
  try {
    alive();
    const headers = { Accept: "text/event-stream", ...(lastId ? { "Last-Event-ID": lastId } : {}) };
    const answer = await send(path, { headers, signal: stop.signal });
    ended = streamed();
    const decoder = new TextDecoder();
    const parser = new EventParser((name, data) => heard(name, JSON.parse(data), parser.lastId));
    parser.lastId = lastId;
    for (const reader = answer.body.getReader(); ;) {
      const { value, done } = await reader.read();
      if (done) return;
      alive();
      parser.feed(decoder.decode(value, { stream: true }));
    }
  } finally {
    ended();
    clearTimeout(silence);
    signal.removeEventListener("abort", stopped);
    stop.abort();
  }
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const over = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", over);
      resolve();
    };
    const timer = setTimeout(over, ms);
    signal.addEventListener("abort", over);
  });
}
