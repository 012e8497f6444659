// How many streams all windows of this browser have: it has six connections for one daemon, and every window needs one
// for its questions.
//
// Rules: who finds no slot free asks now and then instead, and tries again. The browser gives a slot back however its
// window ends. Where there are no locks (a name without TLS that is not this machine's own) there are no streams.

const SLOTS = { events: 3, log: 1 };

// Run `stream` while holding a slot of this kind; false, at once, if none is free.
export async function withSlot(kind, stream) {
  for (let n = 0; n < SLOTS[kind]; n += 1) {
    const had = await navigator.locks?.request(`solvisor ${kind} ${n}`, { ifAvailable: true }, async (lock) => {
      if (lock) await stream();
      return lock !== null;
    });
    if (had) return true;
  }
  return false;
}
