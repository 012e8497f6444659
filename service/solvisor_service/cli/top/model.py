"""What the live view knows and what keys do: answers come in, orders come out.

Rules: no clock (``now`` is monotonic seconds and is passed in), no terminal, nobody is asked here. Nothing grows with
time: of each question only the last answer is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from solvisor.model import State
from solvisor.views import Explanation, JobRow, Status
from solvisor_service.cli.jobtext import is_over, short_ids, waits_words
from solvisor_service.cli.text import clean

NOTE_SECONDS: Final = 8.0
_FILTER_MAX: Final = 60

Page = Literal["jobs", "job", "help"]
Stream = Literal["stdout", "stderr"]


class Order(NamedTuple):
    """What a key asks for: ``quit``, ``redraw``, or something to be asked of the daemon about ``target``."""

    what: Literal["quit", "redraw", "look", "cancel", "retry", "pause", "resume"]
    target: str | None = None


class Choice(NamedTuple):
    """A question to the user; each key that answers it has an order, every other one means no."""

    text: str
    answers: Mapping[str, Order]


class Note(NamedTuple):
    """A sentence for a while."""

    text: str
    bad: bool
    until: float


class Gone(NamedTuple):
    """The daemon does not answer: a word for it, since when (as a time of day and monotonic), and why."""

    word: Literal["NO DAEMON", "NO ANSWER"]
    clock: str
    since: float
    why: str


class Look(NamedTuple):
    """A job that was looked at: why it is where it is, and the end of what its solver wrote."""

    explanation: Explanation
    stream: Stream
    tail: tuple[str, ...]


class Section(NamedTuple):
    """Jobs of one kind: those that are shown of ``total``."""

    name: Literal["RUNNING", "WAITING", "FAILED"]
    total: int
    jobs: Sequence[JobRow]


@dataclass(slots=True)
class Model:
    """All that is shown. ``at`` is when ``status`` came; ``may_operate`` is what the daemon lets this user do."""

    may_operate: bool = True
    status: Status | None = None
    at: float = 0.0
    gone: Gone | None = None
    silent_since: float | None = None
    page: Page = "jobs"
    chosen: str | None = None
    found: str = ""
    typing: bool = False
    choice: Choice | None = None
    note: Note | None = None
    look: Look | None = None
    stream: Stream = "stdout"
    back: int = 0
    """How many lines before the end of the log the page of a job ends."""
    page_lines: int = 10
    """How far a page goes; the view says so."""
    _place: int = 0

    # --- what comes in ----------------------------------------------------------------------------------------------

    def take_status(self, status: Status, now: float) -> None:
        """The daemon answered."""
        self.status, self.at = status, now
        self.gone = None
        self._keep_chosen()

    def lose(self, gone: Gone) -> None:
        """It did not; the first time counts."""
        self.gone = gone._replace(clock=self.gone.clock, since=self.gone.since) if self.gone else gone
        self.choice = None

    def take_look(self, look: Look) -> None:
        """A job was looked at; an answer about one that is not looked at any more is nothing."""
        if self.page == "job" and look.explanation.job.id == self.chosen and look.stream == self.stream:
            self.look = look

    def tell(self, text: str, now: float, *, bad: bool = False) -> None:
        """Show a sentence for a while."""
        self.note = Note(text, bad, now + NOTE_SECONDS)

    def forget(self, now: float) -> None:
        """What was shown for long enough goes."""
        if self.note is not None and now >= self.note.until:
            self.note = None

    # --- what is shown ----------------------------------------------------------------------------------------------

    def sections(self) -> list[Section]:
        """The jobs by what they do, those that the filter finds."""
        status = self.status
        if status is None:
            return []
        return [
            Section("RUNNING", status.running, self._found(status.running_jobs)),
            Section("WAITING", status.waiting, self._found(status.waiting_jobs)),
            Section("FAILED", status.last_day.failed, self._found(status.last_failed)),
        ]

    def _found(self, jobs: Sequence[JobRow]) -> Sequence[JobRow]:
        if not self.found:
            return jobs
        wanted = self.found.casefold()
        return [job for job in jobs if wanted in _words_of(job)]

    @property
    def jobs(self) -> list[JobRow]:
        """Those that can be chosen, from top to bottom."""
        return [job for section in self.sections() for job in section.jobs]

    @property
    def job(self) -> JobRow | None:
        """The one that is chosen."""
        return next((job for job in self.jobs if job.id == self.chosen), None)

    @property
    def meant(self) -> JobRow | None:
        """The job that a key is about: the one that is looked at, or else the one that is chosen."""
        if self.page == "job" and self.look is not None:
            return self.look.explanation.job
        return self.job

    def seconds_of(self, job: JobRow, now: float) -> float | None:
        """How long it has been running or waiting."""
        since = job.queue_seconds if job.state is State.QUEUED else job.run_seconds
        if since is None or job.state is State.COLLECTING:  # it has ended running
            return since
        return since + (0.0 if self.gone else max(0.0, now - self.at))

    # --- keys -------------------------------------------------------------------------------------------------------

    def press(self, key: str, now: float) -> Order | None:
        """What a key does here, and what it asks for."""
        if self.choice is not None:
            choice, self.choice = self.choice, None
            return choice.answers.get(key)
        if self.typing:
            self._type(key)
            return None
        self.note = None
        if key in _GO:
            self._go(_GO[key](self.page_lines))
            return None
        known: dict[str, Callable[[float], Order | None]] = {
            "q": lambda _: Order("quit"),
            "redraw": lambda _: Order("redraw"),
            "esc": self._back_out,
            "?": self._help,
            "/": self._filter,
            "enter": self._open,
            "s": self._switch,
            "c": self._cancel,
            "r": self._retry,
            "p": self._pause,
        }
        return known[key](now) if key in known else None

    def _type(self, key: str) -> None:
        if key in ("enter", "esc"):
            self.typing = False
            self.found = self.found if key == "enter" else ""
        elif key == "backspace":
            self.found = self.found[:-1]
        elif len(key) == 1 and len(self.found) < _FILTER_MAX:
            self.found += key
        self._keep_chosen()

    def _go(self, steps: int) -> None:
        if self.page == "job":
            most = max(0, len(self.look.tail) - 1) if self.look else 0
            self.back = min(max(0, self.back - steps), most)
        elif self.page == "jobs" and (jobs := self.jobs):
            there = next((n for n, job in enumerate(jobs) if job.id == self.chosen), -1 if steps > 0 else len(jobs))
            self._place = min(max(0, there + steps), len(jobs) - 1)
            self.chosen = jobs[self._place].id

    def _keep_chosen(self) -> None:
        """Where the chosen one is not there any more, the one in its place is."""
        if self.chosen is None or self.page == "job":
            return
        jobs = self.jobs
        there = next((n for n, job in enumerate(jobs) if job.id == self.chosen), None)
        if there is None:
            there = min(self._place, len(jobs) - 1)
        self._place = max(there, 0)
        self.chosen = jobs[there].id if jobs else None

    def _back_out(self, _: float) -> None:
        if self.page == "jobs":
            self.found = ""
        self.page, self.look, self.back = "jobs", None, 0
        self._keep_chosen()

    def _help(self, _: float) -> None:
        self.page, self.look = ("jobs" if self.page == "help" else "help"), None

    def _filter(self, _: float) -> None:
        if self.page == "jobs":
            self.typing = True

    def _open(self, now: float) -> Order | None:
        job = self.job
        if self.page != "jobs" or job is None:
            if self.page == "jobs":
                self.tell("choose a job with the arrows first", now)
            return None
        self.page, self.look, self.back, self.stream = "job", None, 0, "stdout"
        return Order("look", job.id)

    def _switch(self, _: float) -> Order | None:
        if self.page != "job":
            return None
        self.stream, self.back = ("stderr" if self.stream == "stdout" else "stdout"), 0
        return Order("look", self.chosen)

    def _meant_for(self, now: float) -> JobRow | None:
        """The job that an order is about, if orders may be given now."""
        if not self._may(now):
            return None
        if self.meant is None:
            self.tell("choose a job with the arrows first", now)
        return self.meant

    def _may(self, now: float) -> bool:
        if not self.may_operate:
            self.tell("you may look, and change nothing: the group that may is [api] group", now)
        elif self.gone:
            self.tell("the daemon is not there", now)
        return self.may_operate and not self.gone

    def _cancel(self, now: float) -> None:
        job = self._meant_for(now)
        if job is not None and is_over(job):
            self.tell(f"{named(job)} is finished already", now)
        elif job is not None:
            self.choice = Choice(f"cancel {named(job)}?  y yes   any other key: no", {"y": Order("cancel", job.id)})

    def _retry(self, now: float) -> Order | None:
        job = self._meant_for(now)
        if job is not None and not is_over(job):
            self.tell(f"{named(job)} is {job.state.value}; only a finished job can be run again", now)
            return None
        return None if job is None else Order("retry", job.id)

    def _pause(self, now: float) -> None:
        if self.status is None or not self._may(now):
            return
        paused = {pause.solver for pause in self.status.paused}
        wanted: list[str | None] = [
            None,
            *sorted({self.meant.solver} if self.meant else ()),
            *sorted(filter(None, paused)),
        ]
        answers: dict[str, Order] = {}
        told = []
        for number, solver in enumerate(list(dict.fromkeys(wanted))[:9], 1):
            order = Order("resume" if solver in paused else "pause", solver)
            answers[str(number)] = order
            told.append(f"{number} {order.what} {solver or 'everything'}")
        self.choice = Choice(f"{'   '.join(told)}   any other key: nothing", answers)


_GO: Final[Mapping[str, Callable[[int], int]]] = {
    "up": lambda _: -1,
    "down": lambda _: 1,
    "pageup": lambda page: -page,
    "pagedown": lambda page: page,
    "home": lambda _: -(1 << 30),
    "end": lambda _: 1 << 30,
}


def named(job: JobRow) -> str:
    """A job in a question: its id and whose it is."""
    return f"{short_ids([job.id])[job.id]}{f' of {job.user}' if job.user else ''}"


def _words_of(job: JobRow) -> str:
    """What the filter looks at."""
    parts = (
        job.id,
        job.name,
        job.user,
        job.solver,
        job.project,
        job.batch,
        job.message,
        waits_words(job),
    )
    return clean(" ".join(part for part in parts if part)).casefold()
