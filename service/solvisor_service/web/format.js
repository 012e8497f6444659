// How things look: durations, sizes, times and harmless text, in the same words as on the command line.
//
// Rules: pure functions; texts from outside are made harmless here and nowhere else.

const UNITS = [
  ["d", 86400],
  ["h", 3600],
  ["m", 60],
  ["s", 1],
];
const SIZES = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const SHAPELESS = /[\p{C}\p{Zl}\p{Zp}]/gu; // control characters, marks that turn the direction of writing, ...

// At most two units: "0.1 s", "34 s", "4 m 10 s", "22 m", "1 h 12 m", "6 d".
export function duration(seconds) {
  seconds = Math.max(0, seconds);
  if (seconds > 0 && seconds < 0.0995) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  if (seconds < 0.995) return `${seconds.toFixed(2).replace(/\.?0+$/, "")} s`;
  if (seconds < 9.95) return `${seconds.toFixed(1).replace(/\.0$/, "")} s`;
  let whole = Math.round(seconds);
  if (whole >= 600) whole = Math.round(whole / 60) * 60;
  if (whole >= 86400) whole = Math.round(whole / 3600) * 3600;
  const parts = [];
  for (const [unit, length] of UNITS) {
    const count = Math.floor(whole / length);
    whole -= count * length;
    if (count) parts.push(`${count} ${unit}`);
  }
  return parts.join(" ");
}

// A duration that counts up on the page: whole seconds, so that nothing trembles.
export function elapsed(seconds) {
  return duration(seconds < 600 ? Math.floor(Math.max(0, seconds)) : seconds);
}

// Bytes with three figures at most: "512 B", "1.5 MiB", "57 GiB".
export function size(count) {
  const power = powerOf(count);
  return `${figures(count / 1024 ** power)} ${SIZES[power]}`;
}

// Bytes of bytes, in the unit of the whole: "71/128 GiB".
export function share(used, total) {
  const power = powerOf(total);
  return `${figures(used / 1024 ** power)}/${figures(total / 1024 ** power)} ${SIZES[power]}`;
}

function powerOf(count) {
  let power = 0;
  while (power < SIZES.length - 1 && Math.round((count / 1024 ** power) * 10) / 10 >= 1000) power += 1;
  return power;
}

export function figures(number) {
  return number < 9.95 ? number.toFixed(1).replace(/\.0$/, "") : number.toFixed(0);
}

// "1,234"
export function count(number) {
  return String(number).replace(/\B(?=(\d{3})+$)/g, ",");
}

// "1 job", "3 jobs"
export function several(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

export function percent(part) {
  return `${Math.round(part * 100)} %`;
}

// A time of an answer for people: "14:05", "2 Nov 14:05" or "2 Nov 2025", by how long ago it is.
export function clock(stamp, now = Date.now()) {
  const then = new Date(stamp);
  const today = new Date(now);
  const time = `${two(then.getHours())}:${two(then.getMinutes())}`;
  if (then.toDateString() === today.toDateString()) return time;
  const day = `${then.getDate()} ${MONTHS[then.getMonth()]}`;
  return Math.abs(today - then) < 300 * 86400e3 ? `${day} ${time}` : `${day} ${then.getFullYear()}`;
}

// The whole of it: "2026-01-31 12:00:00".
export function moment(stamp) {
  const then = new Date(stamp);
  const day = `${then.getFullYear()}-${two(then.getMonth() + 1)}-${two(then.getDate())}`;
  return `${day} ${two(then.getHours())}:${two(then.getMinutes())}:${two(then.getSeconds())}`;
}

function two(number) {
  return String(number).padStart(2, "0");
}

// `text` without what has no shape of its own; line ends and tabs stay.
export function harmless(text) {
  return text.replace(SHAPELESS, (found) => (found === "\n" || found === "\t" ? found : ""));
}
