// The files of a finished job: inputs and outputs to download, pictures to look at.
//
// Rules: files are fetched with the bearer and become blobs. A picture is only ever an <img>, where nothing in it runs.
// Pictures are fetched when they come into sight; what is large says so before.

import { filePath, send } from "./api.js";
import { enlarge, note } from "./dialog.js";
import { h } from "./dom.js";
import { percent, several, size } from "./format.js";

const PICTURES = {
  png: "image/png",
  svg: "image/svg+xml",
  jpg: "image/jpeg",
  jpeg: "image/jpeg",
  gif: "image/gif",
  webp: "image/webp",
};
const PICTURE_MAX = 20 * 2 ** 20;
const PICTURES_SHOWN = 8;
const FILES_SHOWN = 12;
const LARGE = 2 ** 30;

export class JobFiles {
  constructor(id, draw) {
    this.id = id;
    this.draw = draw;
    this.progress = new Map(); // path -> words
    this.urls = new Map(); // path -> blob URL, or null while it comes
    this.opened = new Set();
    this.leaving = new AbortController();
  }

  // Forget the pictures, and what is still coming.
  close() {
    this.closed = true;
    this.leaving.abort();
    for (const url of this.urls.values()) if (url) URL.revokeObjectURL(url);
    this.urls.clear();
  }

  list(name, files) {
    const opened = this.opened.has(name);
    const shown = opened ? files : files.slice(0, FILES_SHOWN);
    const open = () => {
      this.opened.add(name);
      this.draw();
    };
    return [
      h(
        "ul",
        { class: "files" },
        shown.map((file) => this.line(file)),
      ),
      shown.length < files.length &&
        h("p", { class: "more" }, h("button", { onclick: open }, `${files.length - shown.length} more`)),
    ];
  }

  line(file) {
    const path = shortPath(file.path);
    if (typeof file.link === "string") {
      return h(
        "li",
        { key: file.path },
        h("bdi", { class: "grow cut", title: path }, path),
        h("span", { class: "dim" }, `link to ${file.link}`),
      );
    }
    const coming = this.progress.get(file.path);
    return h(
      "li",
      { key: file.path },
      h(
        "button",
        {
          class: "plain link grow cut",
          title: `Download ${path}`,
          "aria-label": `Download ${path}`,
          disabled: coming !== undefined,
          onclick: () => this.download(file),
        },
        h("bdi", {}, path),
      ),
      h("span", { class: "number dim" }, coming ?? size(file.size)),
    );
  }

  async download(file) {
    if (file.size > LARGE) note(`${shortPath(file.path)} is large; quicker: solvisor get ${this.id}`);
    this.tell(file, "...");
    try {
      const blob = await this.fetch(file, "application/octet-stream", (part) => this.tell(file, percent(part)));
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = file.path.split("/").pop();
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    } catch (error) {
      if (this.closed) return;
      note(`${shortPath(file.path)}: ${error.message}`, { bad: true });
    }
    this.tell(file, undefined);
  }

  tell(file, words) {
    if (words === undefined) this.progress.delete(file.path);
    else this.progress.set(file.path, words);
    if (!this.closed) this.draw();
  }

  async fetch(file, type, told) {
    const answer = await send(filePath(this.id, file.path), { signal: this.leaving.signal });
    const pieces = [];
    let got = 0;
    for (const reader = answer.body.getReader(); ;) {
      const { value, done } = await reader.read();
      if (done) break;
      pieces.push(value);
      got += value.length;
      if (file.size) told?.(got / file.size);
    }
    return new Blob(pieces, { type });
  }

  // --- pictures ---

  pictures(outputs) {
    const found = outputs.filter(
      (file) => typeof file.link !== "string" && typeOf(file.path) && file.size > 0 && file.size <= PICTURE_MAX,
    );
    if (!found.length) return null;
    const opened = this.opened.has("pictures");
    const shown = opened ? found : found.slice(0, PICTURES_SHOWN);
    const open = () => {
      this.opened.add("pictures");
      this.draw();
    };
    return [
      h(
        "div",
        { class: "pictures" },
        shown.map((file) => this.picture(file)),
      ),
      shown.length < found.length &&
        h("p", { class: "more" }, h("button", { onclick: open }, several(found.length - shown.length, "more picture"))),
    ];
  }

  picture(file) {
    const path = shortPath(file.path);
    const url = this.urls.get(file.path);
    return h(
      "figure",
      { key: file.path },
      h(
        "button",
        { class: "plain picture", "aria-label": `Enlarge ${path}`, disabled: !url, onclick: () => enlarge(path, url) },
        h("img", {
          alt: path,
          src: url || null,
          onerror: (event) => event.target.src && this.unreadable(file),
          mount: (image) => this.whenSeen(image, file),
        }),
      ),
      h(
        "figcaption",
        { class: "cut", title: path },
        h("bdi", {}, this.bad?.has(file.path) ? `${path}: no picture` : path),
      ),
    );
  }

  unreadable(file) {
    (this.bad ??= new Set()).add(file.path);
    this.draw();
  }

  whenSeen(image, file) {
    const watch = new IntersectionObserver((seen) => {
      if (!seen.some((entry) => entry.isIntersecting)) return;
      watch.disconnect();
      this.load(file);
    });
    watch.observe(image.parentElement ?? image);
  }

  async load(file) {
    if (this.urls.has(file.path)) return;
    this.urls.set(file.path, null);
    try {
      const blob = await this.fetch(file, typeOf(file.path));
      if (this.closed) return;
      this.urls.set(file.path, URL.createObjectURL(blob));
      this.draw();
    } catch {
      if (!this.closed) this.unreadable(file);
    }
  }
}

function typeOf(path) {
  return PICTURES[/\.(\w+)$/.exec(path)?.[1].toLowerCase()];
}

// "beam.frd" of "output/beam.frd": the list says whose it is.
function shortPath(path) {
  return path.replace(/^(?:input|output)\//, "");
}
