"""A submission on its way in: from its first byte until it is a claim, or nothing.

What is short waits in memory until it is whole; then all it takes, from its folders to the decision whose job it is, is
one piece of work, handed to one thread once. What gets long goes to the disk as it comes, by threads of a pool: the
gigabytes of one hold up no other.

Rules: the steps of one submission are taken one after the other, in their order. It must not know HTTP, solvers or
rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from .hand import Hand
from .home import Home
from .processors import spread
from .spool import Upload
from .spool.uploads import check_name

T = TypeVar("T")

SHORT_BYTES: Final = 1 << 17
SHORT_STEPS: Final = 64
"""More than that does not wait in memory, of which each connection may take as much; nor is it done by the one hand."""

LONG_THREADS: Final = 4


class Threads:
    """Those that do the file work of all submissions."""

    def __init__(self) -> None:
        self.short: Final = Hand("solvisor-uploads")
        self.long: Final = anyio.CapacityLimiter(LONG_THREADS)


class Submission:
    """What is sent to become the job ``job_id``. ``is_long``: it is known to take long.

    A step that cannot be taken raises where it is taken, which may be later than where it was asked for.
    """

    def __init__(self, home: Home, job_id: str, threads: Threads, *, is_long: bool = False) -> None:
        self.job_id = job_id
        self.names: list[str] = []
        self._home = home
        self._threads = threads
        self._is_long = is_long
        self._steps: list[Callable[[Upload], object]] = []
        self._bytes = 0
        self._upload: Upload | None = None

    async def begin(self, name: str) -> None:
        """Begin a file, as ``Upload.begin``. Raises ``Refused`` at once for a name that no file can have."""
        check_name(name)
        self.names.append(name)
        await self._then(lambda upload: upload.begin(name))

    async def write(self, data: bytes) -> None:
        """Append to the file that was begun."""
        self._bytes += len(data)
        await self._then(lambda upload: upload.write(data))

    async def end(self) -> None:
        """End the file that was begun."""
        await self._then(Upload.end)

    async def _then(self, step: Callable[[Upload], object]) -> None:
        self._steps.append(step)
        if self._bytes > SHORT_BYTES or len(self._steps) > SHORT_STEPS:
            self._is_long = True
            await self.do(_nothing)

    async def do(self, work: Callable[[Upload], T]) -> T:
        """What ``work``, which blocks, returns or raises, after all that was asked for before."""
        steps, self._steps, self._bytes = self._steps, [], 0
        carry_out = partial(self._carry_out, steps, work)
        if self._is_long:
            return await anyio.to_thread.run_sync(spread(carry_out), limiter=self._threads.long)
        return await self._threads.short.do(carry_out)

    def _carry_out(self, steps: list[Callable[[Upload], object]], work: Callable[[Upload], T]) -> T:
        if self._upload is None:
            self._upload = Upload(self._home, self.job_id)
        for step in steps:
            step(self._upload)
        return work(self._upload)

    async def discard(self) -> None:
        """Leave nothing of it."""
        self._steps.clear()
        if self._upload is not None:
            await self.do(Upload.discard)


def _nothing(_: Upload) -> None:
    """No work: only what waits is to be done."""
