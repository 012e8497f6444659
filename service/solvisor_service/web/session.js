// Who is looking: the token that came in the address, kept for this tab only.
//
// Rules: a token is never left in the address or in the history, and goes to no place but this daemon. A tab that has
// none asks the other tabs of this page; they are of the same origin.

import { decoded } from "./route.js";

const STORED = "solvisor.token";
const channel = "BroadcastChannel" in window ? new BroadcastChannel("solvisor") : null;
const ASKING_MS = 250;

let token = read();

function read() {
  try {
    return sessionStorage.getItem(STORED);
  } catch {
    return null; // storage is forbidden: the token lasts as long as the page
  }
}

function keep(value) {
  token = value;
  try {
    if (value === null) sessionStorage.removeItem(STORED);
    else sessionStorage.setItem(STORED, value);
  } catch {
    // as above
  }
}

export function current() {
  return token;
}

// The token in an address that somebody typed or was given: "#token=...", with or without what stands before it.
export function tokenIn(text) {
  const found = /(?:^|[#&?\s])token=([^&\s]+)/.exec(text);
  return found ? decoded(found[1]) : null;
}

// The parts of a pass, or null for what is none: the content, which names its holder, and the signature.
export function partsOf(bearer) {
  const found = /^pass1\.([\w-]{1,2000})\.([\w-]+)$/.exec(bearer);
  return found && { content: found[1], signature: found[2] };
}

// In whose name a bearer lets one act, as it says itself; the daemon alone knows whether that is true.
export function nameIn(bearer) {
  const content = partsOf(bearer)?.content;
  if (!content) return "the owner of the daemon";
  try {
    const { user, uid } = JSON.parse(atob(content.replaceAll("-", "+").replaceAll("_", "/")));
    return String(user ?? `user ${uid}`);
  } catch {
    return "somebody";
  }
}

// Take the token out of the address; the view that it stands for comes into its place. It, or null if there is none.
export function takeFromAddress(view = "#/") {
  const given = tokenIn(location.hash);
  if (given === null) return null;
  const wanted = /[#&]view=([^&]+)/.exec(location.hash);
  history.replaceState(null, "", wanted ? `#${decoded(wanted[1])}` : view);
  return given;
}

export function use(given) {
  keep(given);
}

export function forget() {
  keep(null);
}

// A token of another tab, or null.
export function askOtherTabs() {
  if (!channel) return Promise.resolve(null);
  return new Promise((resolve) => {
    const timer = setTimeout(() => done(null), ASKING_MS);
    const heard = (event) => typeof event.data?.token === "string" && done(event.data.token);
    function done(found) {
      clearTimeout(timer);
      channel.removeEventListener("message", heard);
      if (found !== null) keep(found);
      resolve(found);
    }
    channel.addEventListener("message", heard);
    channel.postMessage("token?");
  });
}

channel?.addEventListener("message", (event) => {
  if (event.data === "token?" && token !== null) channel.postMessage({ token });
});
