// Questions to whoever looks, and short notes that something was done.
//
// Rules: a question is a <dialog>: Esc closes it, the focus is kept in it and goes back to where it was. Notes are read
// out (the only live region besides the connection's), and go away by themselves unless they tell of a failure.

import { h, lay } from "./dom.js";

const NOTE_MS = 6000;

// Ask; the answers by name, or null. `fields`: {name, label, type, value, choices, help, min, step, required}.
export function question({ title, text, action, danger = false, fields = [] }) {
  return new Promise((resolve) => {
    const dialog = document.createElement("dialog");
    document.body.append(dialog);
    let answers = null;
    const answer = (event) => {
      event.preventDefault();
      answers = Object.fromEntries(new FormData(event.target));
      dialog.close();
    };
    lay(
      dialog,
      h(
        "form",
        { onsubmit: answer },
        h("h2", { id: "question" }, title),
        text && h("p", {}, text),
        fields.map(field),
        h(
          "div",
          { class: "row end" },
          h("button", { type: "button", onclick: () => dialog.close() }, "Back"),
          h("button", { type: "submit", class: danger ? "danger" : "primary" }, action),
        ),
      ),
    );
    dialog.setAttribute("aria-labelledby", "question");
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(answers);
    });
    dialog.showModal();
    dialog.querySelector("input, select")?.select?.();
  });
}

function field({ name, label, type = "text", value = "", choices, help, min, step, required = false }) {
  const id = `field-${name}`;
  const input = choices
    ? h(
        "select",
        { id, name, value },
        choices.map(([key, words]) => h("option", { value: key }, words)),
      )
    : h("input", {
        id,
        name,
        type,
        value,
        min,
        step,
        required,
        maxlength: 500,
        autocomplete: "off",
        spellcheck: "false",
      });
  return h("p", { class: "field" }, h("label", { for: id }, label), input, help && h("small", {}, help));
}

// Show something large over the page, until Esc or a click.
export function enlarge(label, source) {
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  document.body.append(dialog);
  lay(
    dialog,
    h("div", { class: "row" }, h("span", { class: "grow" }, label), closer(dialog)),
    h("img", { src: source, alt: label }),
  );
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  dialog.showModal();
}

function closer(dialog) {
  return h("button", { type: "button", onclick: () => dialog.close() }, "Close");
}

let notes = [];
let last = 0;

// Say something; `link`: {href, text}.
export function note(text, { bad = false, link } = {}) {
  const id = (last += 1);
  notes = [...notes.slice(-3), { id, text, bad, link }];
  drawNotes();
  if (!bad) setTimeout(() => drop(id), NOTE_MS);
}

function drop(id) {
  notes = notes.filter((one) => one.id !== id);
  drawNotes();
}

function drawNotes() {
  lay(
    document.getElementById("notes"),
    notes.map(({ id, text, bad, link }) =>
      h(
        "div",
        { key: id, class: bad ? "note bad" : "note" },
        h("span", { class: "grow" }, text),
        link && h("a", { href: link.href }, link.text),
        h("button", { class: "plain", "aria-label": "Close this note", onclick: () => drop(id) }, "×"),
      ),
    ),
  );
}
