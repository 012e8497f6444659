"""Jobs in words: how a job, its times and its checks are told in one line, by every verb alike.

Rules: the words are those of the daemon's answers; nothing is asked here. Texts are plain; who prints cleans them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from solvisor.model import TERMINAL, Check, State
from solvisor.views import Holder, JobRow
from solvisor_service.cli.text import clean, duration

if TYPE_CHECKING:
    from rich.text import Text

    from solvisor_service.cli.text import Cell

STYLES: Final[Mapping[str, str]] = {
    State.RUNNING: "cyan",
    State.COLLECTING: "cyan",
    State.SUCCEEDED: "green",
    State.FAILED: "bold red",
    State.REJECTED: "red",
    State.SKIPPED: "yellow",
    State.CANCELLED: "yellow",
}

LABEL_WIDTH: Final = 7
_UNIQUE_LENGTH: Final = 16
"""What follows the words of an id: a hyphen, when it was made, what is random."""
_SLUG_LONG: Final = 31
"""Words of an id that are so long may have been cut."""
_WORD: Final = re.compile(r"[^\W_]+")
_RANDOM_LENGTH: Final = 6
"""What an id ends in; it tells jobs of one name and one millisecond apart."""


def short_ids(ids: Collection[str]) -> dict[str, str]:
    """Each id without its last, random characters, where that still tells it from the others."""
    cut = [job_id[:-_RANDOM_LENGTH] for job_id in set(ids)]
    return {job_id: job_id if cut.count(job_id[:-_RANDOM_LENGTH]) > 1 else job_id[:-_RANDOM_LENGTH] for job_id in ids}


def own_name(job: JobRow) -> str:
    """What people call a job, where its id does not tell that: ``first try`` of ``beam-1jl9v2k4a``; else nothing."""
    told = job.id[:-_UNIQUE_LENGTH]
    stem = job.name.rsplit("/", 1)[-1].lstrip(".").rsplit(".", 1)[0]
    for text in (job.name, stem):
        words = "-".join(_WORD.findall(text.lower()))
        if words == told or (len(told) >= _SLUG_LONG and words.startswith(told)):
            return ""
    return clean(job.name)


def is_over(job: JobRow) -> bool:
    """Whether a job has its final state."""
    return job.state in TERMINAL


def whose(job: JobRow) -> str:
    """``(ann, ccx)``."""
    known = ", ".join(part for part in (job.user, job.solver) if part)
    return f"({known})" if known else ""


def standing(job: JobRow) -> str:
    """How a job stands, to follow its name: ``succeeded in 12 s``, ``FAILED after 0.1 s``, ``running``."""
    ran = None if job.run_seconds is None else duration(job.run_seconds)
    match job.state:
        case State.SUCCEEDED:
            return f"succeeded in {ran}" if ran else "succeeded"
        case State.FAILED | State.CANCELLED:
            word = "FAILED" if job.state is State.FAILED else "cancelled"
            return f"{word} after {ran}" if ran else word
        case _:
            return job.state.value


def waits_words(job: JobRow) -> str:
    """What a queued job waits for: ``cores``, ``license orcaflex``; nothing of another one."""
    return " ".join(part for part in (job.reason and job.reason.value, job.waits_for) if part)


def outcome(job: JobRow) -> str:
    """The same with the reason: ``FAILED after 0.1 s: no material``."""
    return f"{standing(job)}: {job.message}" if job.message else standing(job)


def place_of(job: JobRow) -> str:
    """Where its files lie, or that they do not any more."""
    if job.removed is None:
        return f"{job.folder}/"
    return f"removed on {time_of(job.removed):%Y-%m-%d %H:%M}, as [retention] says"


def time_of(stamp: str) -> datetime:
    """A time of an answer as local time."""
    return datetime.fromisoformat(stamp).astimezone()


def clock(stamp: str, now: datetime | None = None) -> str:
    """A time of an answer for people: ``14:05``, ``2 Nov 14:05`` or ``2 Nov 2025``, by how long ago it is."""
    then = time_of(stamp)
    now = now or datetime.now().astimezone()
    if then.date() == now.date():
        return f"{then:%H:%M}"
    if abs(now - then) < timedelta(days=300):
        return f"{then.day} {then:%b %H:%M}"
    return f"{then.day} {then:%b %Y}"


def check_words(check: Check) -> str:
    """What a check looked at and found: ``exit 201, allowed 0``, ``output beam.frd: missing``."""
    if check.check == "exit":
        return f"exit {check.got}, allowed {check.want}"
    if check.ok and check.got == check.want:
        return check.check
    wanted = "" if check.ok or check.check.startswith("no ") else f", wanted: {check.want}"
    return f"{check.check}: {check.got}{wanted}"


def labelled(label: str, width: int = LABEL_WIDTH) -> Text:
    """A label that begins a line, as wide as all, so that tables printed one after the other line up."""
    from rich.text import Text

    return Text(clean(label).ljust(width), style="dim")


def checks_rows(checks: Collection[Check], label_width: int = LABEL_WIDTH) -> list[tuple[Cell, Cell, Cell]]:
    """Rows of a table that tells of checks: a label, what was found, and whether that is good."""
    from rich.text import Text

    rows: list[tuple[Cell, Cell, Cell]] = []
    for check in checks:
        verdict = Text("ok", STYLES[State.SUCCEEDED]) if check.ok else Text("failed", STYLES[State.FAILED])
        rows.append((labelled("" if rows else "checks", label_width), check_words(check), verdict))
    return rows


def holders_words(holders: Collection[Holder]) -> str:
    """Who holds something, and since when: ``riser-017-1jl9v2k4a (ann) 1 h 12 m, ...``."""
    names = short_ids([holder.id for holder in holders])
    return ", ".join(f"{names[h.id]}{f' ({h.user})' if h.user else ''} {duration(h.seconds)}" for h in holders)
