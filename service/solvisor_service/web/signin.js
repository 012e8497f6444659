// The page for whoever has no token, or one that is refused: what to do.

import { h } from "./dom.js";
import * as session from "./session.js";

// `why`: the refusal, or null where there is no token yet; `entered()` once there is one.
export function signin(why, entered) {
  const enter = (event) => {
    event.preventDefault();
    const given = new FormData(event.target).get("link").trim();
    if (!given) return;
    session.use(session.tokenIn(given) ?? given);
    entered();
  };
  return h(
    "section",
    { key: "signin", class: "panel signin", "aria-labelledby": "signin" },
    h("h1", { id: "signin" }, why ? "This page may not look any more" : "This page needs a pass"),
    why && h("p", { class: "sentence", role: "alert" }, `${why}.`.replace(/\.\.$/, ".")),
    h("p", {}, "On the machine of the daemon, as somebody who may use it, type"),
    h("pre", { class: "command" }, "solvisor page"),
    h("p", {}, "and open the link that it prints: it carries a pass. Or put it here:"),
    h(
      "form",
      { onsubmit: enter },
      h("label", { for: "link" }, "Link or pass"),
      h(
        "div",
        { class: "row" },
        h("input", {
          id: "link",
          name: "link",
          type: "password",
          class: "grow",
          autocomplete: "off",
          spellcheck: "false",
          maxlength: 4000,
        }),
        h("button", { class: "primary" }, "Go"),
      ),
    ),
  );
}
