// The log of a job: its last part, and what comes as it comes.
//
// Rules: one stream at a time, of the log that is looked at; it is closed when nobody looks, and begun again where it
// was. While other windows have all the streams there may be (slots.js) it is asked for what is new instead. Text
// is drawn a few times a second, however fast it comes. It stays at its end unless somebody scrolled up.

import { jobPath, query, send } from "./api.js";
import { h } from "./dom.js";
import { LogText } from "./logtext.js";
import { withSlot } from "./slots.js";

const TAIL = 200_000; // bytes
const AGAIN_MS = 1500;
const DEAF_MS = 2000;
const PAINT_MS = 100;
const SLACK = 24; // pixels from the end that still count as the end

export class JobLog {
  // `ended()`: the try that was followed is over.
  constructor(id, ended) {
    this.id = id;
    this.ended = ended;
    this.which = "stdout";
    this.attempt = null; // null: the newest
    this.newest = 1; // which that is
    this.offset = null; // up to where it was read
    this.cut = false; // its middle is gone
    this.text = new LogText();
    this.atEnd = true;
    this.note = "";
    this.element = null;
    this.reading = null;
  }

  // Show the tail of a log and follow it; `live`: the job is not over. `further`: from where it was read up to.
  async open(live, draw, { further = false } = {}) {
    this.close();
    if (!further) this.offset = null;
    const reading = (this.reading = new AbortController());
    this.live = live;
    this.draw = draw;
    this.note = "";
    let tries = 0;
    for (;;) {
      try {
        if (live && this.attempt === null) await this.follow(reading);
        else await this.read(reading, {});
        this.note = "";
        if (live && !reading.signal.aborted) this.ended();
        break;
      } catch (error) {
        if (reading.signal.aborted) return;
        this.note = error.status === 404 || error.status === 409 ? error.message : "";
        if (error.status && error.status < 500) break;
        tries += 1;
        await new Promise((resolve) => setTimeout(resolve, AGAIN_MS * Math.min(tries, 4)));
        if (reading.signal.aborted) return;
      }
    }
    draw();
  }

  // By a stream, or by looking again and again until one is free or the job is over.
  async follow(reading) {
    const stream = () => (reading.signal.aborted ? null : this.read(reading, { follow: "true" }));
    while (!(await withSlot("log", stream)) && !reading.signal.aborted) {
      const last = !this.live;
      let before;
      do {
        before = this.offset;
        await this.read(reading, {});
      } while (last && this.offset !== before);
      if (last) return;
      await new Promise((resolve) => setTimeout(resolve, DEAF_MS));
    }
  }

  // What is there, and with `follow` what comes until the try is over.
  async read(reading, wishes) {
    const begin = this.offset === null ? { tail: TAIL } : { offset: this.offset };
    const asked = { ...begin, ...wishes, try: this.attempt ?? this.newest };
    const answer = await send(jobPath(this.id, `/logs/${this.which}`) + query(asked), { signal: reading.signal });
    if (this.offset === null) {
      this.text.clear();
      this.paint();
    }
    const told = Number(answer.headers.get("Solvisor-Offset"));
    if (wishes.follow) this.offset = told; // of a stream where it begins, of a piece where that ends
    for (const reader = answer.body.getReader(); ;) {
      const { value, done } = await reader.read();
      if (reading.signal.aborted) return;
      if (done) break;
      this.text.feed(value);
      if (wishes.follow) this.offset += value.length;
      this.paint();
    }
    if (!wishes.follow) this.offset = told;
    this.paint();
  }

  close() {
    this.reading?.abort();
    this.reading = null;
  }

  // Nobody looks: what is followed is let go, and taken up again once somebody does.
  seen(seen) {
    if (!seen && this.live && this.reading) {
      this.reading.abort();
      this.resting = true;
    } else if (seen && this.resting) {
      this.resting = false;
      this.open(this.live, this.draw, { further: !this.cut }); // in what is cut, bytes do not tell the place
    }
  }

  look(which, attempt, live, draw) {
    this.which = which;
    this.attempt = attempt;
    this.atEnd = true;
    this.text.clear();
    this.open(live, draw);
  }

  paint() {
    if (this.due) return;
    this.due = setTimeout(() => {
      this.due = null;
      const { element } = this;
      if (!element?.isConnected) return;
      const text = this.text.text;
      const none = this.live ? "(nothing yet)" : "(empty)";
      element.firstChild.data = text || (this.offset === null ? "" : none); // before it was read nobody knows
      if (this.atEnd) element.scrollTop = element.scrollHeight;
    }, PAINT_MS);
  }

  mount(element) {
    this.element = element;
    element.append(document.createTextNode(""));
    element.addEventListener("scroll", () => {
      this.atEnd = element.scrollTop + element.clientHeight >= element.scrollHeight - SLACK;
    });
    this.paint();
  }

  // The log with its choices; `tries`: how many there were; `longer`: its middle was cut out.
  view({ tries, live, draw, cut }) {
    const choice = (words, pressed, onclick, key) =>
      h("button", { key, class: "choice", "aria-pressed": String(pressed), onclick }, words);
    const which = ["stdout", "stderr"].map((name) =>
      choice(name, this.which === name, () => (this.look(name, this.attempt, live, draw), draw()), name),
    );
    const newest = this.attempt ?? tries;
    const attempts =
      tries > 1 &&
      h(
        "select",
        {
          key: "tries",
          "aria-label": "Try",
          value: String(newest),
          onchange: (event) => {
            const n = Number(event.target.value);
            this.look(this.which, n === tries ? null : n, live, draw);
            draw();
          },
        },
        Array.from({ length: tries }, (_, n) => h("option", { key: n, value: String(n + 1) }, `try ${n + 1}`)),
      );
    return [
      h(
        "div",
        { key: "choices", class: "row" },
        which,
        attempts,
        live && this.attempt === null && h("span", { class: "dim grow right" }, "follows"),
      ),
      this.note && h("p", { key: "note", class: "dim sentence" }, this.note),
      cut && h("p", { key: "cut", class: "dim" }, "Longer than its limit: the middle of it was cut out."),
      h("pre", {
        key: "log",
        class: "log",
        tabindex: 0,
        role: "region",
        "aria-label": `Log, ${this.which}`,
        mount: (element) => this.mount(element),
      }),
    ];
  }
}
