"""Notifications: tell people what became of a job or a batch, by a program of the operator.

Rules: news is posted once a result is published, and nothing that happens here touches a job: posting never waits,
the queue is bounded and drops the oldest, one program runs at a time, for a bounded time, and is tried a few times.
The program is a process tree like a solver's, started by the backend, so that nothing of it is ever left. Arguments are
a list and reach no shell; what users or solvers wrote is made harmless before it becomes part of one. News that waits
when the daemon ends is lost: notifications are a courtesy, the manifest is the truth.

This module must not know what a batch is for, who asked, or how a result is published.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
import structlog
from msgspec import Struct

from . import template
from .config import NOTIFY_PLACEHOLDERS, Notify, NotifyEvent
from .errors import SpawnError
from .home import Home
from .interfaces import AttemptSpec, Backend, Handle
from .model import TARGETS, Batch, ExitFacts, Job, State
from .names import printable
from .solvers.command import find_program
from .units import describe_duration

QUEUE_MOST: Final = 100
"""News that may wait; more drops the oldest."""

RETRY_SECONDS: Final = (2.0, 10.0, 60.0)
"""The waits before the second, third and fourth try. There is no fifth."""

WORDS_MOST: Final = 1000
"""Characters of a user's text in one placeholder."""

GRACE_SECONDS: Final = 2.0
LOG_MOST_BYTES: Final = 64 << 10

_OWN_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
_TAIL_BYTES: Final = 4096

_JOB_EVENTS: Final[dict[State, NotifyEvent]] = {
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
    State.REJECTED: "rejected",
    State.SKIPPED: "skipped",
}

log = structlog.get_logger()


class News(Struct, frozen=True):
    """Something to tell: the word of ``[notify] on`` that asks for it, and what each placeholder stands for."""

    event: NotifyEvent
    id: str
    values: dict[str, str]


def of_job(job: Job, home: Home) -> News:
    """The news of a terminal job, published in ``home``."""
    spec, folder = job.spec, home.root / TARGETS[job.state] / job.id
    values = {
        "state": job.state.value,
        "name": _words(spec.name),
        "cause": job.cause.value if job.cause else "",
        "message": _words(job.message or ""),
        "solver": _words(spec.solver),
        "user": _words(spec.user or ""),
        "project": _words(spec.project or ""),
        "folder": str(folder),
        "manifest": str(folder / "manifest.json"),
        "batch": spec.batch or "",
    }
    return _news(_JOB_EVENTS[job.state], job.id, values)


def of_batch(batch: Batch, counts: Mapping[State, int]) -> News:
    """The news of a batch that is over; ``counts`` says how many of its jobs ended in each terminal state."""
    total, succeeded = sum(counts.values()), counts.get(State.SUCCEEDED, 0)
    said = [f"{succeeded} of {total} succeeded"]
    said += [f"{counts[state]} {state}" for state in _JOB_EVENTS if state != State.SUCCEEDED and counts.get(state)]
    message = ", ".join(said) + (f"; {batch.stopped}" if batch.stopped else "")
    values = {
        "state": (State.SUCCEEDED if succeeded == total else State.FAILED).value,
        "name": _words(batch.name) or batch.id,
        "message": _words(message),
        "user": _words(batch.user or ""),
        "batch": batch.id,
        "total": str(total),
    }
    values.update((event, str(counts.get(state, 0))) for state, event in _JOB_EVENTS.items())
    return _news("batch", batch.id, values)


def arguments(command: Sequence[str], values: Mapping[str, str], config_dir: Path) -> tuple[str, ...]:
    """The argument list of a notification. A program given with a folder is relative to the configuration."""
    program, *rest = (template.expand(element, values) for element in command)
    if os.path.dirname(program):
        program = str((config_dir / program).absolute())
    return (program, *rest)


def _news(event: NotifyEvent, news_id: str, values: Mapping[str, str]) -> News:
    unsaid = dict.fromkeys(NOTIFY_PLACEHOLDERS, "")
    return News(event, news_id, {**unsaid, **values, "event": event, "id": news_id})


def _words(text: str) -> str:
    """What a user or a solver wrote, as one harmless line.

    A space goes before a leading sign, so that the program takes the text neither for an option (``-x``) nor for the
    name of a file to read (``@x``), wherever in an argument it stands.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:WORDS_MOST]
    return line if not line or line[0].isalnum() else f" {line}"


class Notifier:
    """Runs the operator's program for every piece of news that ``settings`` ask for; ``None`` asks for nothing.

    ``environ`` is the daemon's environment, which the program gets but for what systemd meant for the daemon alone.
    ``trouble`` holds a sentence while it fails; ``retry_seconds`` are the waits between its tries. Everything is called
    on the event loop.
    """

    def __init__(
        self,
        settings: Notify | None,
        *,
        home: Home,
        home_id: str,
        backend: Backend,
        environ: Mapping[str, str],
        config_dir: Path,
        trouble: dict[str, str],
        retry_seconds: Sequence[float] = RETRY_SECONDS,
    ) -> None:
        self._settings = settings
        self._home = home
        self._home_id = home_id
        self._backend = backend
        self._environ = {key: value for key, value in environ.items() if key not in _OWN_VARIABLES}
        self._config_dir = config_dir
        self._trouble = trouble
        self._retry_seconds = retry_seconds
        self._ending = anyio.Event()
        self._waiting: deque[News] = deque()
        self._tries = 0
        self._more = anyio.Event()
        self._idle = anyio.Event()
        self._idle.set()

    def use(self, settings: Notify | None) -> None:
        """Ask for other news from now on, or for none."""
        if settings != self._settings:
            self._settings = settings
            self._trouble.pop("notify", None)

    def job(self, job: Job) -> None:
        """Tell of a job that was just published, if it is asked for. Never waits, never raises."""
        if self._wants(_JOB_EVENTS.get(job.state)):
            self.post(of_job(job, self._home))

    def batch(self, batch: Batch, counts: Mapping[State, int]) -> None:
        """Tell of a batch whose last job was just published, if it is asked for. Never waits, never raises."""
        if self._wants("batch"):
            self.post(of_batch(batch, counts))

    def post(self, news: News) -> None:
        """Have ``news`` told soon. Where too much waits, the oldest is dropped."""
        if not self._wants(news.event):
            return
        if len(self._waiting) == QUEUE_MOST:
            dropped = self._waiting.popleft()
            log.warning("notify.dropped", id=dropped.id, on=dropped.event, waiting=QUEUE_MOST)
        self._waiting.append(news)
        self._more.set()
        if self._idle.is_set():
            self._idle = anyio.Event()

    async def run(self) -> None:
        """Tell what is posted, one after the other, until cancelled; a program that runs then is killed."""
        while True:
            if not self._waiting:
                self._idle.set()
                self._more = anyio.Event()
                await self._more.wait()
            news = self._waiting.popleft()
            if self._settings is not None:
                await self._tell(self._settings, news)

    async def wait_idle(self) -> None:
        """Return once everything posted so far was told or given up. How long that may take is for the caller."""
        await self._idle.wait()

    async def finish(self) -> None:
        """The same at the end of the daemon: nothing is tried again."""
        self._ending.set()
        await self._idle.wait()

    def _wants(self, event: NotifyEvent | None) -> bool:
        return self._settings is not None and event in self._settings.on

    async def _tell(self, settings: Notify, news: News) -> None:
        for n, pause in enumerate((*self._retry_seconds, None), start=1):
            failure = await self._try(settings, news)
            if failure is None:
                log.info("notify.sent", id=news.id, on=news.event, tries=n)
                self._trouble.pop("notify", None)
                return
            log.warning("notify.failed", id=news.id, on=news.event, tries=n, error=failure, retry_seconds=pause)
            self._trouble["notify"] = f"the program of [notify] does not do its work: {failure}"
            if pause is not None:
                with anyio.move_on_after(pause):
                    await self._ending.wait()
            if self._ending.is_set():
                return

    async def _try(self, settings: Notify, news: News) -> str | None:
        """Run the program once; why that failed, or ``None``."""
        self._tries += 1
        output = self._home.log_dir / "notify.log"
        try:
            folder = await anyio.to_thread.run_sync(self._make_room, output)
            find_program(settings.command[0], "[notify]", self._config_dir, self._environ.get("PATH", os.defpath))
            spec = AttemptSpec(
                token=f"{self._home_id}/notify-{self._tries}",
                argv=arguments(settings.command, news.values, self._config_dir),
                cwd=str(folder),
                env=self._environ,
                stdout=str(output),
                stderr=str(output),
                grace_seconds=GRACE_SECONDS,
                log_max_bytes=LOG_MOST_BYTES,
            )
            failure = await self._run(spec, settings.timeout)
            said = await anyio.to_thread.run_sync(_last_line, output) if failure else ""
        except (OSError, SpawnError) as error:
            return printable(str(error))
        except Exception as error:  # noqa: BLE001  a defect here must not end what runs jobs
            return f"defect: {error!r}"
        return f"{failure}; the last it said: {said}" if said else failure

    async def _run(self, spec: AttemptSpec, timeout_seconds: float) -> str | None:
        handle: Handle | None = None
        facts: ExitFacts | None = None
        try:
            with anyio.move_on_after(timeout_seconds):
                handle = await self._backend.launch(lambda: spec)
                facts = await handle.wait()
            if facts is not None:
                return _failure(facts)
            if handle is not None:
                handle.stop()
                facts = await handle.wait()
        except anyio.get_cancelled_exc_class():
            if handle is not None:
                handle.stop(now=True)
            raise
        over = f"it ran longer than {describe_duration(timeout_seconds)} and was stopped"
        return f"{over}, but would not die" if facts is not None and facts.unkillable else over

    def _make_room(self, output: Path) -> Path:
        """The folder the program runs in; ``output`` becomes empty: it holds what the last one said."""
        folder = self._home.state / "notify"
        folder.mkdir(0o700, exist_ok=True)
        output.unlink(missing_ok=True)
        return folder


def _failure(facts: ExitFacts) -> str | None:
    if facts.exit_code == 0:
        return None
    return f"signal {facts.signal} ended it" if facts.signal else f"it ended with exit status {facts.exit_code}"


def _last_line(path: Path) -> str:
    """The last line that is not blank, cut short, without anything a terminal would obey."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = [_words(line).strip() for line in text.splitlines()]
    return next((line[:200] for line in reversed(lines) if line), "")
