"""Asks the daemon, shows what it says, and carries out what keys ask for, until told to end.

Rules: the screen and its keys have this thread; whatever asks the daemon has another one, for a daemon that hangs must
not hold up a key. Whether the daemon is there is not remembered: every question finds out anew.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from queue import Empty, SimpleQueue
from typing import Final

from solvisor.errors import SolvisorError
from solvisor.views import Status
from solvisor_service.cli.text import harmless
from solvisor_service.cli.top.lines import Glyphs
from solvisor_service.cli.top.model import Gone, Look, Model, Order, Stream
from solvisor_service.cli.top.terminal import Terminal
from solvisor_service.cli.top.view import frame
from solvisor_service.cli.verbs.logs import Screen
from solvisor_service.client import Client, NotRunning, RequestRefused

TICK_SECONDS: Final = 1.0
"""The longest between two pictures: how long a job has been running is shown to the second."""
AGAIN_SECONDS: Final = 1.0
"""The rest before a daemon that is gone is looked for again: a connection that nobody takes costs nothing."""
CALM_SECONDS: Final = 5.0
"""How often it is asked at least, while the daemon tells what happens and nothing does."""
TAIL_BYTES: Final = 16384
TAIL_LINES: Final = 500

Happened = Callable[[], None]
"""What an answer does to the model; called on the thread of the screen."""


class Courier:
    """Asks on a thread of its own, one question after the other, and hands answers back."""

    def __init__(self, name: str, hand_in: Callable[[Happened], None]) -> None:
        self._hand_in = hand_in
        self._questions: SimpleQueue[Callable[[], Happened]] = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def ask(self, question: Callable[[], Happened]) -> None:
        """Have ``question`` asked, and what it returns carried out."""
        self._questions.put(question)

    def _work(self) -> None:
        while True:
            self._hand_in(_or_raises(self._questions.get()))


def _or_raises(question: Callable[[], Happened]) -> Happened:
    """What comes of a question; a defect that it meets is raised where the terminal is given back before it is told."""
    try:
        return question()
    except Exception as error:  # noqa: BLE001  it is raised on the other thread
        return partial(_raise, error)


def _raise(error: Exception) -> None:
    raise error


class Top:
    """The live view of the daemon that ``client`` talks to, on ``terminal``; asks every ``interval`` seconds."""

    def __init__(self, client: Client, terminal: Terminal, glyphs: Glyphs, interval: float) -> None:
        self._client = client
        self._terminal = terminal
        self._glyphs = glyphs
        self._interval = interval
        self._model = Model()
        self._answers: SimpleQueue[Happened] = SimpleQueue()
        self._watching = Courier("watching", self._hand_in)
        self._doing = Courier("doing", self._hand_in)
        self._asked_at: float | None = None
        self._rested_from = -math.inf
        self._hears = False
        self._changed = False
        self._known = False
        self._looking = False

    def _hand_in(self, happened: Happened) -> None:
        self._answers.put(happened)
        self._terminal.wake()

    def run(self) -> None:
        """Until the user has enough of it."""
        Courier("listening", self._hand_in).ask(self._listen)
        while True:
            now = time.monotonic()
            self._watch(now)
            self._model.silent_since = self._asked_at
            self._model.forget(now)
            self._terminal.paint(frame(self._model, self._terminal.size, self._glyphs, now))
            rest = self._due() - now if self._asked_at is None else TICK_SECONDS
            for key in self._terminal.wait(min(TICK_SECONDS, rest)):
                order = self._model.press(key, time.monotonic())
                if order is not None and order.what == "quit":
                    return
                if order is not None:
                    self._carry_out(order)
            while True:
                try:
                    self._answers.get_nowait()()
                except Empty:
                    break

    # --- watching ---------------------------------------------------------------------------------------------------

    def _listen(self) -> Happened:
        """Hear that something happened, without end; what it was, the daemon is asked."""
        while True:
            with suppress(SolvisorError), self._client.events() as events:
                for _ in events:
                    self._hears = True
                    if not self._changed:
                        self._changed = True
                        self._terminal.wake()
            if self._hears:  # it was there: whether it still is, is asked at once
                self._hears, self._rested_from = False, -math.inf
                self._terminal.wake()
            time.sleep(AGAIN_SECONDS)

    def _due(self) -> float:
        """When to ask again."""
        if self._model.gone is not None:
            return self._rested_from + AGAIN_SECONDS
        calm = self._hears and not self._changed and self._model.page != "job"
        return self._rested_from + (max(self._interval, CALM_SECONDS) if calm else self._interval)

    def _watch(self, now: float) -> None:
        """Ask how the daemon is, if it is time and the last question was answered."""
        if self._asked_at is None and now >= self._due():
            self._asked_at = self._rested_from = now
            self._changed = False
            self._watching.ask(self._status)
            if self._model.page == "job" and self._model.chosen is not None:
                self._look(self._model.chosen)

    def _status(self) -> Happened:
        """How the daemon is; and, of one that was not there before, what it lets this user do."""
        try:
            if not self._known:
                self._model.may_operate = self._client.me().role != "look"
                self._known = True
            return partial(self._take_status, self._client.status())
        except SolvisorError as error:
            return partial(self._lose, error)

    def _take_status(self, status: Status) -> None:
        self._asked_at = None
        self._model.take_status(status, time.monotonic())

    def _lose(self, error: SolvisorError) -> None:
        self._asked_at = None
        self._known = False  # it may come back with another configuration
        clock = f"{datetime.now().astimezone():%H:%M:%S}"
        word: Final = "NO DAEMON" if type(error) is NotRunning else "NO ANSWER"
        self._model.lose(Gone(word, clock, time.monotonic(), str(error)))

    # --- orders -----------------------------------------------------------------------------------------------------

    def _carry_out(self, order: Order) -> None:
        if order.what == "redraw":
            self._terminal.redraw()
        elif order.what == "look":
            self._look(order.target or "", again=True)
        else:
            self._doing.ask(partial(self._do, order))

    def _look(self, job: str, *, again: bool = False) -> None:
        """Have a job looked at, unless that is being done."""
        if again or not self._looking:
            self._looking = True
            self._doing.ask(partial(self._looked, job, self._model.stream))

    def _looked(self, job: str, stream: Stream) -> Happened:
        try:
            explanation = self._client.explain(job)
            tail = self._tail(job, stream)
        except SolvisorError as error:
            return partial(self._not_looked, str(error))

        def take() -> None:
            self._looking = False
            self._model.take_look(Look(explanation, stream, tail))

        return take

    def _not_looked(self, why: str) -> None:
        self._looking = False
        self._tell(why, bad=True)

    def _tail(self, job: str, stream: Stream) -> tuple[str, ...]:
        try:
            data, _ = self._client.log(job, stream, tail=TAIL_BYTES)
        except RequestRefused:  # it was not started yet, or its files were removed
            return ()
        text = Screen().shown(data.decode("utf-8", "replace"), last=True)
        return tuple(map(self._glyphs.line, text.splitlines()[-TAIL_LINES:]))

    def _do(self, order: Order) -> Happened:
        """Carry out an order; how that went is told."""
        try:
            told = self._told(order)
        except NotRunning as error:
            return partial(self._lose, error)
        except SolvisorError as error:
            return partial(self._tell, str(error), bad=True)
        return partial(self._done, told)

    def _told(self, order: Order) -> str:
        job = order.target or ""
        match order.what:
            case "cancel":
                state = self._client.cancel(job).state
                return f"{job}: {'is being stopped' if state == 'running' else state.value}"
            case "retry":
                return f"{job} runs again as {self._client.retry(job).id}"
            case "pause":
                self._client.pause(order.target, "in solvisor top")
                return f"paused: {order.target or 'everything'}; what runs goes on"
            case _:
                self._client.resume(order.target)
                return f"resumed: {order.target or 'everything'}"

    def _done(self, told: str) -> None:
        self._rested_from = -math.inf
        self._tell(told)

    def _tell(self, text: str, *, bad: bool = False) -> None:
        self._model.tell(harmless(text), time.monotonic(), bad=bad)
