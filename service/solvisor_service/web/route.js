// Where the page is: the view and its wishes stand in the fragment, so that back, forward and bookmarks work.
//
// Rules: "#/" the overview, "#/jobs?state=failed" the jobs, "#/job/ID" one job, "#/machine" limits, solvers, servers.

export function current() {
  const [path, wishes] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, ...rest] = path.split("/");
  const fields = {};
  for (const [name, value] of new URLSearchParams(wishes ?? "")) (fields[name] ??= []).push(value);
  return { view: view || "overview", id: rest.length ? decoded(rest.join("/")) : null, fields };
}

// What "%20" and the like stand for; as it is where it is no such thing.
export function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function toJob(id) {
  return `#/job/${encodeURIComponent(id)}`;
}

// `fields`: name -> text or texts; empty ones are left out.
export function toJobs(fields = {}) {
  const pairs = new URLSearchParams();
  for (const [name, values] of Object.entries(fields)) {
    for (const value of [values].flat()) if (value) pairs.append(name, value);
  }
  const text = pairs.toString();
  return text ? `#/jobs?${text}` : "#/jobs";
}

// Go there; `instead`: back does not lead to where we are.
export function go(hash, { instead = false } = {}) {
  if (hash === location.hash) return;
  if (instead) {
    history.replaceState(null, "", hash);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else location.hash = hash;
}
