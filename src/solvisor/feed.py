"""What happened lately, for whoever wants to be told: one ring of light records, each with a rising number.

A reader is a place in the ring (a cursor: the name of this life and a number) and nothing more, so a thousand that read
nothing cost what none does. Whoever falls behind by more than the ring holds is told so, and asks anew for what he
shows; what is older was never kept for anybody.

Rules: adding costs about a microsecond, whoever reads; what a stream says of a record is worked out when the first
reader wants it, and once for all. No I/O, no clock. It must not know HTTP, or why something happened.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import msgspec
from msgspec import Struct

from .model import Cause, Job, JobSpec, State

RING: Final = 16_384
"""Records that are kept: some seconds of jobs that do nothing at full speed, and a few MB."""

PIECE_BYTES: Final = 64 << 10
"""A piece of the stream has at most about so many bytes."""

PIECE_RECORDS: Final = 1_000
"""Records looked at for one piece."""

MESSAGE_MAX: Final = 500
"""Characters of a job's message that are told; the job has all of it."""

CURSOR_MAX: Final = 40
"""Characters of a cursor."""

What = Literal["servers", "limits", "pauses", "batches", "config", "health", "inbox", "order"]


class Hello(Struct, frozen=True):
    """The first event of each stream: where it begins, and whose it is."""

    cursor: str
    host: str
    version: str


class JobChange(Struct, frozen=True, gc=False):
    """A job came into ``state`` at the time ``at``. It is told finished once its manifest lies in its place.

    One whose processes would not die is told twice: once that is so, and once its manifest lies in its place.
    """

    id: str
    name: str
    state: State
    solver: str
    user: str | None
    project: str | None
    batch: str | None
    cause: Cause | None
    code: str | None
    message: str | None
    at: str


class Changed(Struct, frozen=True):
    """What is to be asked for anew, where it is shown."""

    what: tuple[What, ...]


class Reset(Struct, frozen=True):
    """Something may have been missed: all that is shown is to be asked for anew. The stream goes on from now."""

    why: str


class TooLate(Exception):
    """What a reader wants is not kept any more."""


class Filter(NamedTuple):
    """Only changes of this job, or of the jobs of this batch."""

    job: str | None = None
    batch: str | None = None

    def lets(self, told: JobChange | Changed) -> bool:
        """Whether it is wanted."""
        if self.job is None and self.batch is None:
            return True
        if isinstance(told, Changed):
            return False
        return self.job in (None, told.id) and self.batch in (None, told.batch)


class _Brief(Struct, frozen=True, gc=False):
    """What is told of a job's spec; read from the bytes of one, the rest of which is skipped."""

    name: str
    solver: str
    user: str | None = None
    project: str | None = None
    batch: str | None = None


_read_brief: Final = msgspec.json.Decoder(_Brief).decode
_encode: Final = msgspec.json.Encoder().encode


def sse(event: str, data: Struct, cursor: str | None = None) -> bytes:
    """One event of a stream. JSON has no line breaks, so its data is always one line."""
    begin = f"id: {cursor}\nevent: {event}\n" if cursor is not None else f"event: {event}\n"
    return begin.encode() + b"data: " + _encode(data) + b"\n\n"


def is_cursor(text: str) -> bool:
    """Whether this could be a cursor, of this life or another."""
    life, _, number = text.rpartition("-")
    return bool(life) and text.isascii() and life.isalnum() and number.isdigit() and len(text) <= CURSOR_MAX


class Feed:
    """The ring of one life, whose random name is ``life``. ``last`` is the number of the newest record, 0 without one.

    A cursor stands behind what was read: it is the number of the last record before it.
    """

    def __init__(self, life: str, size: int = RING) -> None:
        self.life = life
        self.last = 0
        self._size = size
        self._ring: list[JobChange | Changed | None] = [None] * size
        self._said: list[bytes | None] = [None] * size

    def add_job(self, job: Job, state: State, at: str) -> None:
        """A job is in ``state`` now, which is what is told of it outside."""
        asked = job.asked
        brief = asked if isinstance(asked, JobSpec) else _read_brief(asked)
        message = job.message
        if message is not None and len(message) > MESSAGE_MAX:
            message = message[:MESSAGE_MAX]
        self._add(
            JobChange(
                job.id,
                brief.name,
                state,
                brief.solver,
                brief.user,
                brief.project,
                brief.batch,
                job.cause,
                job.code,
                message,
                at,
            )
        )

    def add_changed(self, what: tuple[What, ...]) -> None:
        """Something changed that is to be asked for."""
        self._add(Changed(what))

    def _add(self, told: JobChange | Changed) -> None:
        self.last += 1
        place = self.last % self._size
        self._ring[place] = told
        self._said[place] = None

    def cursor(self, number: int) -> str:
        """How a place is called outside."""
        return f"{self.life}-{number}"

    def number(self, cursor: str) -> int | None:
        """The place that a cursor names, if it is one of this life."""
        life, _, digits = cursor.rpartition("-")
        number = int(digits) if is_cursor(cursor) and life == self.life else self.last + 1
        return number if number <= self.last else None

    def read(self, after: int, wanted: Filter = Filter()) -> tuple[bytes, int]:  # noqa: B008  it is a constant
        """A piece of the stream after ``after``, and where the next one begins; an empty one may be followed by more.

        Raises ``TooLate``.
        """
        if after < self.last - self._size:
            raise TooLate
        pieces: list[bytes] = []
        size, number = 0, after
        end = min(self.last, after + PIECE_RECORDS)
        while number < end and size < PIECE_BYTES:
            number += 1
            told = self._ring[number % self._size]
            if told is not None and wanted.lets(told):
                pieces.append(self._say(number, told))
                size += len(pieces[-1])
        return b"".join(pieces), number

    def _say(self, number: int, told: JobChange | Changed) -> bytes:
        place = number % self._size
        said = self._said[place]
        if said is None:
            said = sse("job" if isinstance(told, JobChange) else "changed", told, self.cursor(number))
            self._said[place] = said
        return said
