"""What a daemon tells as it happens, read by a client: a stream that goes on where it was when a connection is lost.

Rules: only the standard library and msgspec. Nothing is lost and nothing comes twice; where the daemon itself lost
track, a ``Reset`` says so. It does not know what is made of it.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec
from msgspec import Struct

from solvisor.feed import Changed, Hello, JobChange, Reset
from solvisor_service.client import BrokenOff, Silent

if TYPE_CHECKING:
    from solvisor_service.wire import Answer

Told: TypeAlias = Hello | JobChange | Changed | Reset

QUIET_SECONDS: Final = 45.0
"""A stream that says nothing for so long is dead: a living one says every 15 s that it is."""

AGAIN_SECONDS: Final = (0.1, 2.0)
"""The first rest before it is connected anew, and the longest; it doubles while nothing comes."""

_DECODERS: Final[Mapping[str, Callable[[str], Told]]] = {
    "hello": msgspec.json.Decoder(Hello).decode,
    "job": msgspec.json.Decoder(JobChange).decode,
    "changed": msgspec.json.Decoder(Changed).decode,
    "reset": msgspec.json.Decoder(Reset).decode,
}

Connect: TypeAlias = "Callable[[str | None], contextlib.AbstractContextManager[Answer]]"
"""Opens the stream behind a cursor, or from now on."""


class _Block(Struct):
    """One event as it stands in a stream."""

    id: str | None = None
    event: str = "message"
    data: str = ""


class Events:
    """The events behind ``cursor``, or from now on; ``cursor`` moves with what was told.

    The first is a ``Hello``. Asking for the next raises what connecting raises: ``NotRunning`` once the daemon ended,
    ``RequestRefused`` while it has too many readers. It may be asked again.
    """

    def __init__(self, connect: Connect, cursor: str | None) -> None:
        self.cursor = cursor
        self._connect = connect
        self._stack = contextlib.ExitStack()
        self._answer: Answer | None = None
        self._greeted = False
        self._text = b""
        self._blocks: deque[_Block] = deque()
        self._rest = AGAIN_SECONDS[0]
        self._dead_at = math.inf

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Told]:
        while True:
            told = self.next()
            if told is not None:
                yield told

    def close(self) -> None:
        """Hang up; idempotent."""
        self._answer = None
        self._text = b""
        self._stack.close()

    def next(self, until: float = math.inf) -> Told | None:
        """The next event, or ``None`` if none came until then (``time.monotonic``)."""
        while True:
            while self._blocks:
                told = self._take(self._blocks.popleft())
                if told is not None:
                    return told
            if time.monotonic() >= until:
                return None
            self._read(until)

    def _take(self, block: _Block) -> Told | None:
        self.cursor = block.id or self.cursor
        decode = _DECODERS.get(block.event)
        if decode is None:  # of a later version
            return None
        try:
            told = decode(block.data)
        except msgspec.DecodeError:  # likewise: of a state, say, that is not known here
            return None
        if isinstance(told, Hello) and self._greeted:  # it is connected anew
            return None
        self._greeted = True
        self._rest = AGAIN_SECONDS[0]
        return told

    def _read(self, until: float) -> None:
        """Wait for more, until then at most."""
        try:
            if self._answer is None:
                self._answer = self._stack.enter_context(self._connect(self.cursor))
                self._dead_at = time.monotonic() + QUIET_SECONDS
            rest = min(self._dead_at, until) - time.monotonic()
            if not self._answer.comes(max(0.0, rest)):
                if time.monotonic() >= self._dead_at:
                    self.close()
                return
            self._answer.may_rest(QUIET_SECONDS)
            data = self._answer.read1(1 << 16)
            self._dead_at = time.monotonic() + QUIET_SECONDS
        except TimeoutError:
            self.close()
            return
        except Silent:
            raise
        except (BrokenOff, ConnectionError):
            data = b""
        if not data:
            self.close()
            time.sleep(max(0.0, min(self._rest, until - time.monotonic())))
            self._rest = min(2 * self._rest, AGAIN_SECONDS[1])
            return
        *blocks, self._text = (self._text + data).split(b"\n\n")
        self._blocks.extend(filter(None, map(_block, blocks)))


def _block(text: bytes) -> _Block | None:
    """What one event says; ``None`` for a comment."""
    block = _Block()
    for line in text.decode(errors="replace").split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            block.data += f"\n{value}" if block.data else value
        elif name == "id":
            block.id = value
        elif name == "event":
            block.event = value
    return block if block.data else None
