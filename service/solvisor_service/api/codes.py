"""The stable codes of refusals: with which status each comes, what it means, and what to do about it.

The tables of the documentation and the API's description are made from these; a test holds them against the source.
Rules: a code never changes its meaning; a new one is added here.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Code(NamedTuple):
    """One code of problem documents."""

    code: str
    statuses: tuple[int, ...]
    means: str
    todo: str


_AGAIN: Final = "correct it as `detail` says and send it again"

CODES: Final = (
    Code("usage", (400,), "the request is not understood: a value, a key, a body", _AGAIN),
    Code("token", (401,), "over TCP: no token, or one that is not good or has expired", "`solvisor page` gives one"),
    Code("not_permitted", (403,), "the role of who asks does not allow it", "`detail` says who may; `GET /v1/me`"),
    Code("host", (403,), "over TCP: asked for under a name that is not the daemon's own", "add it to `[api] hosts`"),
    Code("origin", (403,), "over TCP: asked by a page that is not the daemon's own", "use the daemon's own page"),
    Code("no_such_job", (404,), "no job has this id or an id that begins so", "`GET /v1/jobs` lists them"),
    Code("no_such_batch", (404,), "no batch has this id", "`POST /v1/batches` opens one"),
    Code("no_such_server", (404,), "no warm server and no solver with such is called so", "`GET /v1/servers`"),
    Code("no_such_file", (404,), "the job has no such file, log or try", "its manifest lists its files"),
    Code("no_such_route", (404,), "there is no such route", "this page lists them"),
    Code("method", (405,), "the route has no such method", "the header `Allow` lists those it has"),
    Code("slow", (408,), "a head or small body took over 5 s, or a submission rested for 30 s", "send it again"),
    Code("ambiguous_job", (409,), "several ids begin so; `candidates` are some of them", "give more of the id"),
    Code("finished", (409,), "the job is finished, so this cannot be done any more", "nothing, or `retry` it"),
    Code("started", (409,), "the job has started, so it has no place in the order any more", "nothing"),
    Code("not_finished", (409,), "the job is not finished, so it has no result yet", "ask with `wait=60`"),
    Code("removed", (409,), "the files of the job were removed, as `[retention]` says", "submit its inputs again"),
    Code("not_paused", (409,), "what is to go on was not paused", "`GET /v1/status` lists what is"),
    Code("no_page", (409,), "nobody listens for browsers", "set `listen` in `[api]`"),
    Code("batch_closed", (409,), "no more jobs may join the batch", "open another one"),
    Code("key", (409,), "the idempotency key belongs to another job", "send it with another key"),
    Code("too_large", (413, 431), "a body that is no submission, or a head, is larger than 64 KiB", "send less"),
    Code("content_type", (415,), "over TCP: a body of a type that a form of any page can send", "`application/json`"),
    Code("range", (416,), "what is asked for lies behind the end of the file", "`Content-Range` says how long it is"),
    Code("after", (422,), "a job in `after` does not exist", _AGAIN),
    Code("ambiguous", (422,), "several solvers accept the file", "say which: `solver`"),
    Code("defect", (422, 500), "a defect of Solvisor met this request; nothing was taken in", "please report it"),
    Code("hard_link", (422,), "a file has two names, so that somebody could change it later", "send a copy"),
    Code("inputs", (422,), "the inputs are not named, or not as they can be", _AGAIN),
    Code("inputs_changed", (422,), "the inputs of the job were changed since", "submit them again"),
    Code("inputs_gone", (422,), "the inputs of the job are not there any more", "submit them again"),
    Code("job_file", (422,), "a job file is needed, or there are several", _AGAIN),
    Code("job_file_key", (422,), "the wishes have a key that does not exist", _AGAIN),
    Code("job_file_syntax", (422,), "the job file is no good TOML", _AGAIN),
    Code("job_file_too_large", (422,), "the wishes are larger than 64 KiB", "ask for less"),
    Code("job_file_value", (422,), "a value among the wishes is not allowed", _AGAIN),
    Code("license", (422,), "more servers than there are licenses for", "ask for fewer"),
    Code("missing_input", (422,), "an input that is named was not sent", "send all of them together"),
    Code("name", (422,), "the name of a file cannot be used", "rename it"),
    Code("no_solver", (422,), "no solver accepts the file", "say which: `solver`; `GET /v1/solvers` lists them"),
    Code("not_a_file", (422,), "something is no file or folder", "leave it out"),
    Code("param", (422,), "a parameter does not exist, is missing, or has a value that is not allowed", _AGAIN),
    Code("resources", (422,), "the job asks for more than there is", "ask for less"),
    Code("solver", (422,), "there is no such solver", "`GET /v1/solvers` lists them"),
    Code("too_deep", (422,), "folders lie too deep in each other", "flatten them"),
    Code("too_many_files", (422,), "there are more files than a job may have", "send an archive, or fewer"),
    Code("unreadable", (422,), "the files cannot be read", _AGAIN),
    Code("store", (500,), "the database refused a row; nothing was changed", "please report it"),
    Code("store_damaged", (500,), "the database is damaged; the daemon ends", "`solvisor rebuild`"),
    Code("store_failed", (500,), "the disk failed under the database; the daemon ends", "check the disk"),
    Code("not_ready", (503,), "`/readyz`: the daemon lives and takes no work now", "ask again later"),
    Code(
        "unavailable",
        (503, 507),
        "stopping, too busy, or a full or read-only disk; nothing was taken in",
        "later again",
    ),
)


def of_status(status: int) -> tuple[Code, ...]:
    """The codes that come with this status."""
    return tuple(code for code in CODES if status in code.statuses)


def table() -> str:
    """All of them as a table in Markdown, by status."""
    lines = ["| status | code | what it means | what to do |", "|---|---|---|---|"]
    for code in CODES:
        statuses = ", ".join(map(str, code.statuses))
        lines.append(f"| {statuses} | `{code.code}` | {code.means} | {code.todo} |")
    return "\n".join(lines)
