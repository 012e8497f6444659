"""What the live view looks like: the model as exactly as many lines as there are, none wider than the screen.

Rules: pure; red is for what needs a person. Texts from outside are made harmless by ``Glyphs.shown`` where they become
pieces. What does not fit is left out from the end of the longest list first, and that is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.cells import cell_len

from solvisor.model import State
from solvisor.views import JobRow, Level, Status
from solvisor_service.cli.jobtext import (
    check_words,
    clock,
    holders_words,
    is_over,
    own_name,
    short_ids,
    waits_words,
    whose,
)
from solvisor_service.cli.text import duration, share
from solvisor_service.cli.top.lines import GAP, Glyphs, Line, Piece, cropped, cut, fit, flow, width_of, wrapped
from solvisor_service.cli.top.model import Gone, Model, Section
from solvisor_service.cli.verbs.status import HEALTH, is_used, limits, pauses, servers_words, waits

LEAST: Final = (60, 15)
"""Columns and lines that the view needs."""

_HEAD: Final = {"RUNNING": "bold", "WAITING": "bold", "FAILED": "bold red"}
_GAUGE_WIDE: Final = 100
_GAUGE: Final = 10
_SILENT_SECONDS: Final = 3.0
_NAME_WIDE: Final = 24
_NARROWER: Final = ((1, 12), (2, 10), (3, 10), (1, 0), (0, 18), (2, 6), (3, 6))
"""In which order the columns of name, user, solver and id become narrower, and down to what."""
_ROOMY: Final = 22
"""With so many lines there is a blank one between two parts."""
_HELP: Final = (
    ("arrows, PgUp, PgDn", "choose a job; on the page of a job: go through its log"),
    ("Enter", "why that job is where it is, and the end of its log; s: stderr or stdout; Esc: back"),
    ("c", "cancel it (asks first)"),
    ("r", "run a finished one again, as a new job"),
    ("p", "pause or resume everything, or a solver (asks first)"),
    (
        "/",
        "show only jobs that have a text in their id, name, user, solver, project, batch, message or what they wait "
        "for; it looks at those that the daemon tells: 100 that run, 20 that wait, the newest 5 that failed. Others: "
        "solvisor list --search",
    ),
    ("Ctrl-L", "draw the screen anew"),
    ("q", "end"),
)


def frame(model: Model, size: tuple[int, int], glyphs: Glyphs, now: float) -> list[Line]:
    """The lines of a screen of ``size`` (columns, lines)."""
    width, height = size
    if width < LEAST[0] or height < LEAST[1]:
        told = f"too small: {width}x{height}; at least {LEAST[0]}x{LEAST[1]} is needed. q ends."
        return _filled([[(cut(line, width), "")] for line in wrapped(told, max(1, width))], height)
    head = list(_head(model, width, height, glyphs, now))
    foot = [_foot(model, width, glyphs)]
    room = height - len(head) - len(foot)
    model.page_lines = max(1, room - 3)
    match model.page:
        case "help":
            body = _help(width, glyphs)
        case "job":
            body = _job(model, width, room, glyphs)
        case _:
            body = _jobs(model, width, room, glyphs, now)
    return [*_filled([*head, *body][: height - 1], height - 1), *foot]


def _filled(lines: Sequence[Line], height: int) -> list[Line]:
    return [*lines[:height], *([()] * (height - len(lines)))]


# --- the head -------------------------------------------------------------------------------------------------------


def _head(model: Model, width: int, height: int, glyphs: Glyphs, now: float) -> Iterator[Line]:
    status = model.status
    if model.gone is not None:
        yield from _gone(model, model.gone, width, glyphs, now)
    if status is None:
        if model.gone is None:
            yield [("asking the daemon", "dim")]
        return
    if model.gone is None:
        yield from flow(_counts(model, status, glyphs, now), width, most=2, more=glyphs.more)
    bars = _GAUGE if width >= _GAUGE_WIDE else 0
    yield from flow(_gauges(status, bars, glyphs), width, most=2 if height < 30 else 4, more=glyphs.more)
    told = list(_warnings(model, status, width, glyphs))
    most = max(2, height // 4)
    yield from told[:most] if len(told) <= most else [*told[: most - 1], [("and more: solvisor status", "dim")]]


def _gone(model: Model, gone: Gone, width: int, glyphs: Glyphs, now: float) -> Iterator[Line]:
    host = f"{glyphs.shown(model.status.host)}  " if model.status else ""
    since = f", for {duration(now - gone.since)}" if now - gone.since >= 1 else ""
    head: list[Piece] = [(host, "bold"), (gone.word, "bold red"), (f"  since {gone.clock}{since}", "")]
    yield cropped(head, width, glyphs.more)
    for line in wrapped(glyphs.shown(gone.why), width - 2)[:3]:
        yield [(f"  {line}", "")]
    if model.status is not None:
        yield [(cut("  below is what it said last; this goes on by itself when it is back", width), "dim")]


def _counts(model: Model, status: Status, glyphs: Glyphs, now: float) -> Iterator[Line]:
    ended = status.last_day
    up = duration(status.up_seconds + max(0.0, now - model.at))
    yield [(glyphs.shown(status.host), "bold"), (": ", ""), (status.health, HEALTH[status.health])]
    if model.silent_since is not None and now - model.silent_since >= _SILENT_SECONDS:
        yield [(f"no answer for {duration(now - model.silent_since)}", "bold red")]
    yield [(f"up {up}", "")]
    yield [(f"running {status.running}", "")]
    if status.collecting:
        yield [(f"collecting {status.collecting}", "")]
    yield [(f"waiting {status.waiting}", "")]
    ends: list[Piece] = [(f"24 h: {ended.succeeded} ok", "")]
    if ended.failed:
        ends += [(", ", ""), (f"{ended.failed} failed", "red")]
    others = {"rejected": ended.rejected, "cancelled": ended.cancelled, "skipped": ended.skipped}
    ends += [(f", {count} {word}", "") for word, count in others.items() if count]
    yield ends
    if status.escaped:
        yield [(f"escaped processes killed: {status.escaped}", "")]


def _gauges(status: Status, bar: int, glyphs: Glyphs) -> Iterator[Line]:
    memory = status.memory_bytes
    yield _gauge("jobs", status.jobs, f"{status.jobs.used}/{status.jobs.total}", bar, glyphs)
    yield _gauge("cores", status.cpus, f"{status.cpus.used}/{status.cpus.total}", bar, glyphs)
    yield _gauge("memory", memory, share(memory.used, memory.total), bar, glyphs)
    for name, level in status.licenses.items():
        yield _gauge(glyphs.shown(name), level, f"{level.used}/{level.total}", bar, glyphs)


def _gauge(name: str, level: Level, figures: str, bar: int, glyphs: Glyphs) -> Line:
    used = min(1.0, level.used / level.total) if level.total else float(level.used > 0)
    return [(f"{name} ", "dim"), *_bar(used, bar, glyphs), (figures, "bold" if used >= 1 else "")]


def _bar(part: float, width: int, glyphs: Glyphs) -> list[Piece]:
    """How much of something there is; nothing and all are shown only if they are so."""
    if not width:
        return []
    full = round(part * width)
    full = min(max(full, int(part > 0)), width - int(part < 1))
    return [(glyphs.full * full, "cyan"), (glyphs.empty * (width - full), "dim"), (" ", "")]


def _warnings(model: Model, status: Status, width: int, glyphs: Glyphs) -> Iterator[Line]:
    for problem in status.problems:
        yield from _told("PROBLEM", "bold red", " ".join(problem.split("\n")), width, glyphs)
    for words in pauses(status):
        yield from _told("PAUSED", "bold yellow", words, width, glyphs)
    for words in limits(status):
        yield from _told("LIMITED", "bold yellow", words, width, glyphs)
    if model.found or model.typing:
        more = "" if model.typing else "   Esc: all"
        yield [
            ("FILTER   ", "bold yellow"),
            (cut(glyphs.shown(model.found), width - 20, glyphs.more), ""),
            (more, "dim"),
        ]


def _told(label: str, style: str, text: str, width: int, glyphs: Glyphs) -> Iterator[Line]:
    for number, line in enumerate(wrapped(glyphs.shown(text), width - 9)):
        yield [(fit("" if number else label, 9), style), (line, "")]


# --- the jobs -------------------------------------------------------------------------------------------------------


def _jobs(model: Model, width: int, room: int, glyphs: Glyphs, now: float) -> list[Line]:
    status = model.status
    if status is None:
        return []
    sections = [section for section in model.sections() if section.jobs or (section.total and not model.found)]
    servers = flow(_servers(status, glyphs), width, most=3, indent="  ", more=glyphs.more)
    gap = int(room >= _ROOMY)
    parts = len(sections) + bool(servers)
    rows = _shares([len(section.jobs) for section in sections] + [len(servers)], room - parts * (1 + gap))
    names = short_ids([job.id for section in sections for job in section.jobs])
    cells = {job.id: _cells(model, job, names[job.id], glyphs, now) for s in sections for job in s.jobs}
    notes = [width_of(list(_note(model, job, width, glyphs, now))) for section in sections for job in section.jobs]
    widths = _widths(list(cells.values()), max(notes, default=0), width)
    blocks: list[list[Line]] = []
    for section, most in zip(sections, rows, strict=False):
        first = _first(model, section, most)
        shown = section.jobs[first : first + most]
        title = _title(model, status, section, first, len(shown), width, glyphs)
        blocks.append([title, *(_row(model, job, cells[job.id], widths, width, glyphs, now) for job in shown)])
    if servers:
        failed_last = bool(sections) and sections[-1].name == "FAILED"
        blocks.insert(len(blocks) - failed_last, [[("SERVERS", "bold")], *servers[: rows[-1]]])
    if model.found and not sections:
        blocks.insert(0, [cropped([("no job here has that text; Esc: all", "yellow")], width, glyphs.more)])
    if not blocks:
        return _idle(status, width, glyphs)
    return [line for block in blocks for line in [*([()] * gap), *block]]


def _widths(rows: Sequence[Sequence[str]], note: int, width: int) -> list[int]:
    """The columns of id, name, user, solver and time; they leave room for what is said of a job, as far as they can."""
    widths = [max((cell_len(row[at]) for row in rows), default=0) for at in range(5)]
    missing = sum(widths) + 2 + GAP * sum(map(bool, widths)) + min(note, width * 2 // 5) - width
    for at, least in _NARROWER:
        given = max(0, min(missing, widths[at] - least))
        widths[at] -= given
        missing -= given
    return widths


def _idle(status: Status, width: int, glyphs: Glyphs) -> list[Line]:
    told = f"Nothing to do. Drop an input in {glyphs.shown(status.inbox_path)}, or: solvisor submit FILE"
    return [(), *([(line, "dim")] for line in wrapped(told, width))]


def _shares(wanted: Sequence[int], room: int) -> list[int]:
    """So much of ``room`` for each, that none goes without while another has two more than it."""
    given = [0] * len(wanted)
    while room > 0 and given != list(wanted):
        least = min(have for have, want in zip(given, wanted, strict=True) if have < want)
        for at, want in enumerate(wanted):
            if given[at] == least < want and room > 0:
                given[at] += 1
                room -= 1
    return given


def _first(model: Model, section: Section, most: int) -> int:
    """Which of its jobs is shown first, so that the chosen one is there, in the middle if that can be."""
    at = next((n for n, job in enumerate(section.jobs) if job.id == model.chosen), 0)
    return max(0, min(at - most // 2, len(section.jobs) - most))


def _title(model: Model, status: Status, section: Section, first: int, shown: int, width: int, glyphs: Glyphs) -> Line:
    line: list[Piece] = [(section.name, _HEAD[section.name]), (f" {section.total}", "bold")]
    if section.name == "FAILED":
        line.append((" in 24 h", "dim"))
    if model.found:
        line.append((f"   {len(section.jobs)} found", "dim"))
    if shown < (len(section.jobs) if model.found else section.total):
        part = f"{first + 1} to {first + shown}" if shown else "none"
        line.append((f"   {part} shown", "dim"))
    if section.name == "WAITING":
        why = "   ".join(map(glyphs.shown, waits(status)))
        line += [("   ", ""), (cut(why, max(0, width - width_of(line) - 3), glyphs.more), "")]
    return cropped(line, width, glyphs.more)


def _servers(status: Status, glyphs: Glyphs) -> Iterator[Line]:
    for pool in status.servers:
        if is_used(pool):
            style = {"failed": "red", "backoff": "yellow"}.get(pool.state, "")
            yield [(glyphs.shown(pool.solver), "bold"), (" ", ""), (glyphs.shown(servers_words(pool)), style)]


def _cells(model: Model, job: JobRow, name: str, glyphs: Glyphs, now: float) -> tuple[str, str, str, str, str]:
    """Id, own name, user, solver, and a time: how long it runs or waits, or when it ended."""
    if is_over(job):
        when = clock(job.finished) if job.finished else ""
    else:
        seconds = model.seconds_of(job, now)
        when = "" if seconds is None else duration(seconds if seconds < 9.95 and model.gone else int(seconds))
    own = cut(glyphs.shown(own_name(job)), _NAME_WIDE, glyphs.more)
    return glyphs.shown(name), own, glyphs.shown(job.user or ""), glyphs.shown(job.solver), when


def _row(
    model: Model, job: JobRow, cells: Sequence[str], widths: Sequence[int], width: int, glyphs: Glyphs, now: float
) -> Line:
    chosen = job.id == model.chosen
    line: list[Piece] = [
        (f"{glyphs.mark} " if chosen else "  ", "bold cyan"),
    ]
    for at, (text, room) in enumerate(zip(cells, widths, strict=True)):
        style = "bold cyan" if chosen and at == 0 else "bold" if at == 0 else ""
        line.append((fit(text, room, glyphs.more, right=at == 4) + " " * GAP * bool(room), style))
    room = width - width_of(line)
    return cropped([*line, *_note(model, job, room, glyphs, now)], width, glyphs.more)


def _note(model: Model, job: JobRow, room: int, glyphs: Glyphs, now: float) -> Iterator[Piece]:
    """The last column: what is to be said of a job."""
    if job.state is State.RUNNING:
        if job.tries > 1:
            yield f"try {job.tries}  ", "yellow"
        yield from _estimate(model, job, room - 7 * (job.tries > 1), glyphs, now)
    elif job.reason is not None:
        told = f"{glyphs.shown(waits_words(job))}{f'  try {job.tries + 1}' if job.tries else ''}"
        yield cut(told, max(0, room), glyphs.more), ""
    elif job.message:
        yield cut(glyphs.shown(job.message), max(0, room), glyphs.more), "red" if job.state is State.FAILED else ""
    elif is_over(job) or job.state is State.COLLECTING:
        yield job.state.value, "red" if job.state is State.FAILED else ""


def _estimate(model: Model, job: JobRow, room: int, glyphs: Glyphs, now: float) -> Iterator[Piece]:
    usual, ran = job.usual_seconds, model.seconds_of(job, now)
    if usual is None or ran is None:
        return
    over = ran >= usual
    told = f"longer than its usual {duration(usual)}" if over else f"about {duration(usual - ran)} left"
    if room >= len(told) + _GAUGE + 1:
        yield from _bar(min(1.0, ran / usual) if usual else 1.0, _GAUGE, glyphs)
    yield (told if room >= len(told) else f"{'>' if over else '~'}{duration(usual if over else usual - ran)}"), "dim"


# --- one job, help, the foot ----------------------------------------------------------------------------------------


def _job(model: Model, width: int, room: int, glyphs: Glyphs) -> list[Line]:
    if model.look is None:
        return [(), [(f"asking about {glyphs.shown(model.chosen or '')}", "dim")]]
    explanation = model.look.explanation
    job = explanation.job
    lines: list[Line] = [()]
    bad = job.state in (State.FAILED, State.REJECTED)
    lines.append(cropped([(f"{job.id} ", "bold"), (glyphs.shown(whose(job)), "")], width, glyphs.more))
    lines += [
        [("  ", ""), (line, "red" if bad else "")] for line in wrapped(glyphs.shown(explanation.headline), width - 2)
    ]
    told: list[tuple[str, str]] = [("name", job.name if job.name != job.id else "")]
    told.append(("project", job.project or ""))
    told.append(("", job.message or "" if is_over(job) else ""))
    for finding in explanation.findings:
        who = f": {holders_words(finding.holders)}" if finding.holders else ""
        told.append((finding.label, f"{finding.text}{who}"))
    told += [("checks", f"{check_words(check)}  {'ok' if check.ok else 'FAILED'}") for check in explanation.checks]
    told.append(("next", explanation.next or ""))
    for label, text in told:
        for number, line in enumerate(wrapped(glyphs.shown(text), width - 13)):
            lines.append([("  ", ""), (fit("" if number else glyphs.shown(label), 10, glyphs.more), "dim"), (line, "")])
    most = max(6, room // 2)
    if len(lines) > most:
        lines = [*lines[: most - 1], [(f"  and more: solvisor explain {job.id}", "dim")]]
    tail, left = model.look.tail, room - len(lines) - 2
    end = len(tail) - model.back
    part = tail[max(0, end - left) : end] if left > 0 else ()
    what = f"{model.look.stream}, the end of it" if model.look.tail else f"{model.look.stream}: nothing"
    lines += [(), [(what, "bold"), (f"   {model.back} lines further on" if model.back else "", "dim")]]
    return [*lines, *([(cut(line, width, glyphs.more), "")] for line in part)]


def _help(width: int, glyphs: Glyphs) -> list[Line]:
    lines: list[Line] = [()]
    for keys, what in _HELP:
        for number, line in enumerate(wrapped(what, width - 24)):
            lines.append([("  ", ""), (fit("" if number else keys, 20, glyphs.more), "bold"), (f"  {line}", "")])
    return lines


def _foot(model: Model, width: int, glyphs: Glyphs) -> Line:
    if model.choice is not None:
        return cropped([(glyphs.line(model.choice.text), "bold yellow")], width, glyphs.more)
    if model.typing:
        keys: list[Piece] = [("   Enter keeps it, Esc shows all", "dim")]
        typed = cut(glyphs.shown(model.found), width - 40)
        return [("/", "bold"), (f"{typed}_", "bold"), *keys]
    if model.note is not None:
        return cropped(
            [(glyphs.shown(model.note.text), "bold red" if model.note.bad else "yellow")], width, glyphs.more
        )
    return cropped([piece for key in _keys(model, glyphs) for piece in key], width, glyphs.more)


def _keys(model: Model, glyphs: Glyphs) -> Iterator[Line]:
    acts = not model.gone and model.may_operate
    job = model.meant
    offered = {
        "q": "quit",
        "Esc": "back" if model.page != "jobs" else "all" if model.found else "",
        glyphs.arrows: {"jobs": "choose", "job": "log"}.get(model.page, "") if model.jobs else "",
        "Enter": "look" if model.page == "jobs" and job else "",
        "s": ("stdout" if model.stream == "stderr" else "stderr") if model.page == "job" else "",
        "c": "cancel" if acts and job and not is_over(job) else "",
        "r": "run again" if acts and job and is_over(job) else "",
        "p": "pause" if acts and model.status else "",
        "/": "find" if model.page == "jobs" else "",
        "?": "help",
    }
    for key, what in offered.items():
        if what:
            yield [(key, "bold"), (f" {what}   ", "dim")]
