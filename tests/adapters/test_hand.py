"""A hand: work off the loop, in order, whatever becomes of those who wait."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import partial

import anyio
import pytest

from solvisor.hand import Batches, Hand
from solvisor.processors import STANDS_BACK
from waiting import eventually


def held(gate: threading.Event) -> None:
    assert gate.wait(20)


async def test_work_is_done_in_its_order_and_by_one_thread() -> None:
    hand = Hand("hand")
    seen: list[tuple[int, int]] = []

    async def do(number: int) -> None:
        await hand.do(lambda: seen.append((number, threading.get_ident())))

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(do, number)
    assert [number for number, _ in seen] == list(range(50))
    assert len({thread for _, thread in seen}) == 1
    assert seen[0][1] != threading.get_ident()


async def test_what_work_returns_or_raises_comes_back() -> None:
    hand = Hand("hand")

    def fail() -> None:
        raise ValueError("no")

    assert await hand.do(lambda: 7) == 7
    with pytest.raises(ValueError, match="no"):
        await hand.do(fail)
    assert await hand.do(lambda: 8) == 8


async def test_a_cancellation_waits_for_the_work_and_no_error_is_lost() -> None:
    hand = Hand("hand")
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def work() -> None:
        begun.set()
        assert go_on.wait(20)
        done.append("work")

    def fail() -> None:
        work()
        raise ValueError("no")

    async def cancelled(piece: Callable[[], None], scope: anyio.CancelScope) -> None:
        with scope:
            await hand.do(piece)
            done.append("went on")
        done.append("cancelled")

    async def cancel_in_its_middle(piece: Callable[[], None]) -> None:
        begun.clear()
        go_on.clear()
        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()
            tasks.start_soon(cancelled, piece, scope)
            await eventually(begun.is_set, "the work to begin")
            scope.cancel()
            go_on.set()

    await cancel_in_its_middle(work)
    assert done == ["work", "cancelled"]
    with pytest.raises(ExceptionGroup) as caught:
        await cancel_in_its_middle(fail)
    assert caught.group_contains(ValueError)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are as nice as their process elsewhere")
async def test_one_that_stands_back_is_nicer_than_others() -> None:
    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    ours = nice()
    assert await Hand("hand").do(nice) == ours
    assert await Hand("hand", stands_back=True).do(nice) == min(ours + STANDS_BACK, 19)
    assert nice() == ours


async def test_its_thread_ends_when_it_is_let_go_or_forgotten_and_another_one_begins() -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "let go"]

    hand = Hand("let go")
    assert threads() == []
    await hand.do(lambda: None)
    assert threads() == ["let go"]
    hand.let_go()
    await eventually(lambda: threads() == [], "the thread to end")
    assert await hand.do(lambda: 1) == 1
    del hand
    await eventually(lambda: threads() == [], "the second thread to end")


async def test_without_a_thread_nothing_waits_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    hand = Hand("hand")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        with pytest.raises(RuntimeError):
            await hand.do(lambda: 1)
    with anyio.fail_after(10):
        assert await hand.do(lambda: 2) == 2


async def test_things_are_worked_off_many_at_a_time_and_in_their_order_whoever_adds_them() -> None:
    hand = Hand("hand")
    gate = threading.Event()
    seen: list[list[int]] = []
    batches = Batches(hand, seen.append, 3)
    hand.do_later(partial(held, gate))
    batches.add(1)
    batches.add(2, 3, 4)
    other = threading.Thread(target=batches.add, args=(5, 6, 7))
    other.start()
    other.join()
    gate.set()
    await eventually(lambda: sum(map(len, seen)) == 7, "all of them")
    assert seen == [[1, 2, 3], [4, 5, 6], [7]]
    batches.add(8)
    await hand.do(lambda: None)
    assert seen[3:] == [[8]]


async def test_nothing_is_left_behind_when_many_threads_add() -> None:
    hand = Hand("hand")
    seen: list[list[int]] = []
    batches = Batches(hand, seen.append, 7)

    def add() -> None:
        for number in range(2000):
            batches.add(number)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    await eventually(lambda: sum(map(len, seen)) == 8000, "all of them")
