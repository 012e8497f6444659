"""Making files durable together: all of them are synced, by one call of the kernel or each by its own."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsync_kit import fsync_by, one_by_one
from solvisor.spool import NotDurable, files, flush

COUNT = 100

kernel = pytest.mark.skipif(sys.platform != "linux", reason="io_submit is of Linux")


@pytest.fixture
def folder_fd(tmp_path: Path) -> Iterator[int]:
    for n in range(COUNT):
        (tmp_path / f"{n}.dat").write_bytes(b"x")
    with files.in_folder(tmp_path) as fd:
        yield fd


@pytest.fixture(params=["the kernel's", "threads"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    with one_by_one() if request.param == "threads" else contextlib.nullcontext():
        yield


def spots(folder_fd: int) -> list[files.Spot]:
    return [(f"{n}.dat", folder_fd) for n in range(COUNT)]


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))


@kernel
def test_many_files_cost_a_few_system_calls(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    script = f"""
import os
from solvisor.spool import files
with files.in_folder({str(tmp_path)!r}) as fd:
    for n in range({COUNT}):
        files.write_file(f"{{n}}.dat", fd, b"x")
    files.durable([*((f"{{n}}.dat", fd) for n in range({COUNT})), (".", fd)])
    files.durable([(".", fd)])
"""
    trace = tmp_path / "trace"
    calls = "trace=fsync,fdatasync,io_setup,io_submit,io_getevents,clone,clone3"
    command = ["strace", "-f", "-qq", "-o", str(trace), "-e", calls, sys.executable, "-c", script]
    subprocess.run(command, check=True)
    counted = Counter(line.split()[1].partition("(")[0] for line in trace.read_text().splitlines())
    assert counted == {"io_setup": 1, "io_submit": 2, "io_getevents": 2, "fsync": 1}


def test_each_is_synced_once_where_the_kernel_takes_no_lists(folder_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    barrier = threading.Barrier(8)
    met = threading.Event()

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        if not met.is_set():
            barrier.wait(20)  # breaks unless eight of them wait for the disk at the same time
            met.set()

    fsync_by(monkeypatch, fsync)
    files.durable(spots(folder_fd))
    assert sorted(synced) == sorted(os.stat(name, dir_fd=fd).st_ino for name, fd in spots(folder_fd))


@kernel
def test_what_the_kernel_does_not_take_is_synced_all_the_same(
    tmp_path: Path, folder_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops at the first that it cannot sync at all; here a pipe, for which fsync fails as well."""
    reading, writing = os.pipe()
    fds = [os.open(tmp_path / f"{n}.dat", os.O_RDONLY) for n in range(10)]
    synced: list[int] = []

    def fsync(fd: int) -> None:
        synced.append(fd)
        real(fd)

    real = os.fsync
    monkeypatch.setattr(os, "fsync", fsync)
    try:
        errors = flush.flush([*fds[:4], writing, *fds[4:]])
        assert [error and type(error) for error in errors] == [*[None] * 4, OSError, *[None] * 6]
        assert sorted(synced) == sorted([writing, *fds[4:]])
        synced.clear()
        (first, *others) = flush.flush([writing, *fds])
        assert isinstance(first, OSError)
        assert first.errno == errno.EINVAL
        assert others == [None] * 10
        assert sorted(synced) == sorted([writing, *fds])
    finally:
        for fd in (reading, writing, *fds):
            os.close(fd)


@kernel
def test_an_error_that_comes_later_is_told_of_the_right_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As when a disk fails: the kernel took all of them, and answers in the order in which it has done them."""
    fds = [os.open(tmp_path, os.O_RDONLY) for _ in range(3)]
    ring = flush._Ring()
    call = ring._call

    def answers(*arguments: object) -> int:
        done = call(*arguments)
        if len(arguments) == 6:  # io_getevents
            for event in ring._events[:done]:
                event.result = -errno.EIO if event.data == 1 else 0
        return done

    monkeypatch.setattr(ring, "_call", answers)
    monkeypatch.setattr(flush, "_idle", [ring])
    try:
        first, second, third = flush.flush(fds)
        assert (first, third) == (None, None)
        assert isinstance(second, OSError)
        assert second.errno == errno.EIO
    finally:
        for fd in fds:
            os.close(fd)


@kernel
def test_a_signal_that_comes_while_it_waits_changes_nothing(monkeypatch: pytest.MonkeyPatch, folder_fd: int) -> None:
    ring = flush._Ring()
    call = ring._call
    signals = [1, 1]

    def interrupted(*arguments: object) -> int:
        if len(arguments) == 6 and signals:
            signals.pop()
            raise InterruptedError(errno.EINTR, "Interrupted system call")
        return call(*arguments)

    monkeypatch.setattr(ring, "_call", interrupted)
    monkeypatch.setattr(flush, "_idle", [ring])
    files.durable(spots(folder_fd))
    assert not signals


def test_threads_do_not_get_one_anothers_answers(folder_fd: int) -> None:
    failed: list[BaseException] = []

    def again() -> None:
        try:
            for _ in range(20):
                files.durable(spots(folder_fd)[:10])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=again) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not failed


def test_whom_another_thread_forestalls_makes_a_queue_of_his_own(
    folder_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forestalled(list[flush._Ring]):
        def __bool__(self) -> bool:
            return True

    monkeypatch.setattr(flush, "_idle", Forestalled())
    assert flush.flush([folder_fd, folder_fd]) == [None, None]


def test_all_are_tried_when_some_fail(folder_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def broken(fd: int) -> None:
        tried.append(fd)
        if len(tried) in (1, COUNT):
            raise OSError(errno.EIO, "Input/output error")

    fsync_by(monkeypatch, broken)
    before = opened()
    with pytest.raises(NotDurable, match="fsync failed") as caught:
        files.durable(spots(folder_fd))
    assert caught.value.filename.endswith(".dat")
    assert caught.value.errno == errno.EIO
    assert len(tried) == COUNT
    assert opened() == before


@pytest.mark.parametrize("nth", [1, COUNT])
def test_one_that_fails_is_told_in_whatever_round_it_is(
    folder_fd: int, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    tried: list[int] = []

    def broken(fd: int) -> None:
        tried.append(fd)
        if len(tried) == nth:
            raise OSError(errno.EIO, "Input/output error")

    fsync_by(monkeypatch, broken)
    with pytest.raises(NotDurable):
        files.durable(spots(folder_fd))
    assert len(tried) == COUNT


def test_whatever_goes_wrong_in_a_sync_is_told(folder_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_fd: int) -> None:
        raise MemoryError

    fsync_by(monkeypatch, broken)
    with pytest.raises(MemoryError):
        files.durable(spots(folder_fd))


@pytest.mark.usefixtures("way")
def test_what_is_gone_is_left_out_and_what_cannot_be_opened_is_told(folder_fd: int) -> None:
    files.durable([("gone.dat", folder_fd), ("0.dat", folder_fd), ("1.dat", folder_fd)])
    os.symlink("0.dat", "link", dir_fd=folder_fd)
    before = opened()
    with pytest.raises(OSError, match="link") as caught, files.Syncs() as syncs:
        syncs.add([("1.dat", folder_fd), ("2.dat", folder_fd), ("link", folder_fd)])
    assert not isinstance(caught.value, NotDurable)
    assert opened() == before


@pytest.mark.usefixtures("way")
def test_no_more_than_some_are_open_at_once(folder_fd: int) -> None:
    before = opened()
    most = 0
    with files.Syncs() as syncs:
        for _ in range(3):
            for spot in spots(folder_fd):
                syncs.add([spot])
                most = max(most, opened() - before)
    assert 32 < most < 80
    assert opened() - before < 8, "all are closed, but what the kernel answers through"


def test_what_is_open_is_neither_opened_again_nor_closed(folder_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync_by(monkeypatch, synced.append)
    fd = files.open_file("0.dat", folder_fd)
    try:
        with files.Syncs() as syncs:
            syncs.add_open(fd, "0.dat")
        files.durable([(".", folder_fd)])
        assert synced == [fd, folder_fd]
        assert os.fstat(fd).st_size == 1
        with files.Syncs() as syncs:
            syncs.add([(".", folder_fd)])
        assert synced[2] != folder_fd, "whoever gives it may close it at once"
    finally:
        os.close(fd)
    assert os.listdir(folder_fd)
