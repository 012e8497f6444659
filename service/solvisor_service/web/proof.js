// Whether whoever answers at this address is the daemon that gave the pass: asked before the pass is sent to it. While a
// daemon is down, any user of the machine can listen in its place.
//
// Rules: a proof is good for a moment, or as long as a stream of who gave it goes on and the address is a number (behind
// a name there may be two listeners, as of IPv4 and IPv6). What is asked tells nothing: a
// number that is used once, and the part of the pass that names its holder. Without WebCrypto (a name without TLS that
// is not this machine's own) nothing can be proved, and the pass is sent as it is.

import * as session from "./session.js";

const GOOD_MS = 1000;
const PATIENCE_MS = 10_000;
const IS_NUMBER = /^[\d.]+$|^\[/.test(location.hostname);

// Somebody answers who does not know the pass.
export class Unproved extends Error {}

let provedFor = null; // the bearer
let provedAt = -Infinity;
let streams = 0;
let losses = 0; // of connections, so far
let asking = null; // the bearer and what is asked for it

// Nothing is known any more: a connection was lost.
export function distrust() {
  provedFor = null;
  streams = 0;
  losses += 1;
}

// A stream of who has proved it begins; returns what is to be called once it ends.
export function streamed() {
  const bearer = provedFor;
  streams += 1;
  return () => {
    if (provedFor === bearer) distrust();
  };
}

// Raises Unproved, or what fetch raises.
export async function prove(bearer) {
  if (!globalThis.crypto?.subtle) return;
  if (provedFor === bearer && ((streams > 0 && IS_NUMBER) || performance.now() - provedAt < GOOD_MS)) return;
  if (asking?.bearer !== bearer) {
    const mine = (asking = { bearer, done: ask(bearer).finally(() => asking === mine && (asking = null)) });
  }
  await asking.done;
}

async function ask(bearer) {
  const [begun, before] = [performance.now(), losses];
  const nonce = hex(crypto.getRandomValues(new Uint8Array(16)));
  const { of, key } = await partsOf(bearer);
  const answer = await fetch(`/healthz?nonce=${nonce}&of=${encodeURIComponent(of)}`, {
    signal: AbortSignal.timeout(PATIENCE_MS),
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
  });
  if (!answer.ok) throw new TypeError(`answered ${answer.status}`);
  const told = answer.headers.get("Solvisor-Proof");
  if (told !== hex(await hmac(key, `${nonce}\n${location.host}`)))
    throw new Unproved(
      "Whoever answers here does not know this pass, and was not sent it: another program took the daemon's place, or " +
        "the daemon has a new token",
    );
  if (losses !== before) return ask(bearer); // who proved it may be gone since
  provedFor = bearer;
  provedAt = begun;
  streams = 0;
}

// What the proof is asked of, and the key that it is made with.
async function partsOf(bearer) {
  const { content, signature } = session.partsOf(bearer) ?? {};
  if (content) return { of: content, key: utf8(signature) };
  return { of: "token", key: await hmac(utf8(bearer), "solvisor proof") };
}

async function hmac(key, text) {
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const imported = await crypto.subtle.importKey("raw", key, algorithm, false, ["sign"]);
  return new Uint8Array(await crypto.subtle.sign("HMAC", imported, utf8(text)));
}

const utf8 = (text) => new TextEncoder().encode(text);
const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
