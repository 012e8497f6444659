// What a solver printed, as text to look at: decoded piece by piece, without what moves a cursor.
//
// Rules: escape sequences and control characters are taken out, never obeyed; of a line that was written over (progress
// bars do that) the last writing stands. What is kept is bounded.

import { harmless } from "./format.js";

// Sequences of ECMA-48: CSI, then strings such as OSC (a title, a link) up to their end, then the short ones.
const ESCAPES =
  /(?:\u001b\[|\u009b)[0-?]*[ -/]*[@-~]?|(?:\u001b[\]PX^_]|[\u009d\u0090\u0098\u009e\u009f])[^\u0007\u001b\u009c\n]*(?:\u0007|\u001b\\|\u009c)?|\u001b[ -/]*[0-~]?/g;

const KEPT = 400_000; // characters
const LINE = 20_000; // of one line; a longer one is cut into several

export function cleanLine(line) {
  const plain = line.replace(ESCAPES, "").replace(/\r+$/, "");
  return harmless(plain.slice(plain.lastIndexOf("\r") + 1));
}

export class LogText {
  constructor() {
    this.decoder = new TextDecoder();
    this.clear();
  }

  clear() {
    this.lines = [];
    this.length = 0;
    this.open = ""; // the last line, which has no end yet
    this.cut = false;
    this.decoder = new TextDecoder();
  }

  // Take in a piece of bytes.
  feed(bytes) {
    const pieces = (this.open + this.decoder.decode(bytes, { stream: true })).split("\n");
    this.open = pieces.pop();
    for (const piece of pieces) this.add(piece);
    while (this.open.length > LINE) {
      this.add(this.open.slice(0, LINE));
      this.open = this.open.slice(LINE);
    }
    while (this.length > KEPT && this.lines.length > 1) {
      this.length -= this.lines.shift().length + 1;
      this.cut = true;
    }
  }

  add(line) {
    const clean = cleanLine(line);
    this.lines.push(clean);
    this.length += clean.length + 1;
  }

  get text() {
    const last = cleanLine(this.open);
    const whole = this.lines.join("\n");
    return this.lines.length && last ? `${whole}\n${last}` : whole || last;
  }
}
