// The machine: limits, licenses and who holds them, solvers, warm servers.
//
// Rules: asked for when it is shown and when the status came anew; who may not change something sees it all the same.

import { alerts } from "./alerts.js";
import { get } from "./api.js";
import { button, freeLimit, pause, recycle, restart, resume, setLimit, whoAndWhy } from "./actions.js";
import { h } from "./dom.js";
import { count, duration, size } from "./format.js";
import { facts, holders, panel } from "./parts.js";
import { toJob, toJobs } from "./route.js";
import { serversWords } from "./words.js";

const SOONEST_MS = 2000;
const seen = { at: -Infinity, limits: null, licenses: null, solvers: null, pools: null };

async function ask(draw) {
  if (performance.now() - seen.at < SOONEST_MS) return;
  seen.at = performance.now();
  const wanted = { limits: "/v1/limits", licenses: "/v1/licenses", solvers: "/v1/solvers", pools: "/v1/servers" };
  await Promise.all(
    Object.entries(wanted).map(async ([name, path]) => {
      const answer = await get(path).catch(() => null);
      if (answer) seen[name] = answer[name];
    }),
  );
  draw();
}

let drawnFor = null;

// The view; `status` is the last one: whenever it is another, all is asked for again.
export function machine(status, draw) {
  if (drawnFor !== status) {
    drawnFor = status;
    ask(draw);
  }
  const again = () => {
    seen.at = -Infinity;
    ask(draw);
  };
  return [alerts(status), limits(again), licenses(), solvers(again), pools(again), daemon(status)];
}

export function forgetMachine() {
  Object.assign(seen, { at: -Infinity, limits: null, licenses: null, solvers: null, pools: null });
  drawnFor = null;
}

function table(name, titles, rows) {
  return h(
    "table",
    { role: "table", "aria-labelledby": `panel-${name}`, class: "plainly" },
    h(
      "thead",
      { role: "rowgroup" },
      h(
        "tr",
        { role: "row" },
        titles.map(([title, kind]) =>
          h(
            "th",
            { key: title, role: "columnheader", scope: "col", class: kind },
            title || h("span", { class: "unseen" }, "Orders"),
          ),
        ),
      ),
    ),
    h("tbody", { role: "rowgroup" }, rows),
  );
}

function row(key, titles, cells) {
  return h(
    "tr",
    { key, role: "row" },
    cells.map((cell, n) => h("td", { key: n, role: "cell", class: titles[n][1], "data-title": titles[n][0] }, cell)),
  );
}

const LIMITS = [
  ["Limit", "lead"],
  ["Used", "number"],
  ["Now", "number"],
  ["Configured", "number"],
  ["Set", "sentence"],
  ["", "orders"],
];

function limits(again) {
  if (!seen.limits) return null;
  const shown = (limit, value) => (value === null ? "none" : limit.unit === "bytes" ? size(value) : String(value));
  const rows = seen.limits
    .filter((limit) => !limit.name.startsWith("solver.") || limit.value !== null || limit.since)
    .map((limit) =>
      row(limit.name, LIMITS, [
        h("bdi", {}, limit.name),
        shown(limit, limit.used),
        h("b", { class: limit.since ? "warn" : null }, shown(limit, limit.value)),
        shown(limit, limit.configured),
        limit.since && whoAndWhy(limit),
        [
          limit.since &&
            button("administer", "As configured", () => freeLimit(limit).then(again), {
              label: `${limit.name} as configured`,
            }),
          button("administer", "Set ...", () => setLimit(limit).then(again), {
            label: `Set the limit of ${limit.name}`,
          }),
        ],
      ]),
    );
  return panel("limits", { title: "Limits", kind: "wide" }, table("limits", LIMITS, rows));
}

const LICENSES = [
  ["License", "lead"],
  ["Used", "number"],
  ["Total", "number"],
  ["Waiting", "number"],
  ["Held by", "sentence"],
];

function licenses() {
  if (!seen.licenses?.length) return null;
  const rows = seen.licenses.map((one) => {
    const servers = one.servers.length ? `warm servers ${one.servers.join(", ")}` : "";
    const rests = one.rests_seconds ? `refused, asked again in ${duration(one.rests_seconds)}` : "";
    const others = [servers, rests, one.error].filter(Boolean).join("; ");
    const held = [
      holders(one.holders),
      one.holders.length > 0 && others && "; ",
      others && h("span", { class: one.error ? "warn" : null }, others),
    ];
    return row(one.name, LICENSES, [h("bdi", {}, one.name), one.used, one.total, one.waiting || "", held]);
  });
  return panel("licenses", { title: "Licenses", kind: "wide" }, table("licenses", LICENSES, rows));
}

const SOLVERS = [
  ["Solver", "lead"],
  ["Kind", ""],
  ["Running", "number"],
  ["Waiting", "number"],
  ["Takes", "sentence"],
  ["Accepts", "sentence"],
  ["", "orders"],
];

function solvers(again) {
  if (!seen.solvers?.length) return null;
  const rows = seen.solvers.map((one) => {
    const takes = [
      one.cpus && `${one.cpus} cores`.replace(/^1 cores$/, "1 core"),
      one.memory_bytes > 0 && size(one.memory_bytes),
      ...Object.entries(one.licenses).map(([name, number]) => `${name} ${number}`),
      one.timeout_seconds !== null && `at most ${duration(one.timeout_seconds)}`,
    ];
    const own = one.paused?.solver === one.name; // that of everything stands above
    const order = own
      ? button("operate", "Resume", () => resume(one.name).then(again), { label: `Resume ${one.name}` })
      : button("operate", "Pause ...", () => pause([], one.name).then(again), { label: `Pause ${one.name}` });
    const name = h("a", { href: toJobs({ solver: one.name }) }, h("bdi", {}, one.name));
    return row(one.name, SOLVERS, [
      [name, own && h("div", { class: "warn sentence" }, `paused ${whoAndWhy(one.paused)}`)],
      one.kind,
      one.running || "",
      one.waiting || "",
      takes.filter(Boolean).join(", "),
      one.accept.join(" "),
      order,
    ]);
  });
  return panel("solvers", { title: "Solvers", kind: "wide" }, table("solvers", SOLVERS, rows));
}

const SERVERS = [
  ["Server", "lead"],
  ["State", ""],
  ["Job", "sentence"],
  ["Served", "number"],
  ["Memory", "number"],
  ["Age", "number"],
  ["", "orders"],
];

function pools(again) {
  const shown = seen.pools?.filter((pool) => pool.servers.length || pool.state !== "ok") ?? [];
  if (!shown.length) return null;
  return panel(
    "pools",
    { title: "Warm servers", kind: "wide" },
    shown.map((pool) =>
      h(
        "div",
        { key: pool.solver },
        h(
          "div",
          { class: "row wrap actions" },
          h("h3", { id: `panel-pool-${pool.solver}` }, h("bdi", {}, pool.solver)),
          h(
            "span",
            { class: `grow sentence ${{ failed: "bad", backoff: "warn" }[pool.state] ?? "dim"}` },
            serversWords(pool),
          ),
          button("operate", "Recycle", () => recycle(pool.solver, `the servers of ${pool.solver}`).then(again), {
            label: `Recycle the servers of ${pool.solver}`,
          }),
          pool.state !== "ok" &&
            button("operate", "Start again", () => restart(pool.solver).then(again), {
              label: `Start the servers of ${pool.solver} again`,
            }),
        ),
        pool.error && h("p", { class: "dim sentence" }, pool.error),
        pool.servers.length > 0 &&
          table(
            `pool-${pool.solver}`,
            SERVERS,
            pool.servers.map((server) => serverRow(server, again)),
          ),
      ),
    ),
  );
}

function serverRow(server, again) {
  return row(server.name, SERVERS, [
    h("bdi", {}, server.name),
    server.why ? `${server.state}: ${server.why}` : server.state,
    server.job && h("a", { href: toJob(server.job) }, server.job),
    server.jobs,
    server.rss_bytes === null ? "" : size(server.rss_bytes),
    duration(server.age_seconds),
    button("operate", "Recycle", () => recycle(server.name, server.name).then(again), {
      label: `Recycle ${server.name}`,
    }),
  ]);
}

function daemon(status) {
  const { disk_free_bytes: free, disk_reserve_bytes: reserve } = status;
  return panel(
    "daemon",
    { title: "Daemon" },
    facts([
      ["version", status.version],
      ["up", `${duration(status.up_seconds)}, pid ${status.pid}`],
      ["home", h("code", { class: "sentence" }, status.home)],
      ["inbox", h("code", { class: "sentence" }, status.inbox_path)],
      ["disk", free !== null && `${size(free)} free${reserve ? `, ${size(reserve)} of them kept free` : ""}`],
      ["late", `by at most ${duration(status.loop_lag_worst_seconds)} since the start`],
      [
        "escaped",
        status.escaped > 0 && `${count(status.escaped)} processes outlived their job or server and were killed`,
      ],
    ]),
  );
}
