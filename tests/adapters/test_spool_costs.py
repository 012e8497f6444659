"""What one small job costs at the disk: calls are counted, because times lie."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from fsync_kit import one_by_one
from solvisor.home import Home
from solvisor.model import FileFact, Request
from solvisor.spool import Claims, Publication, Results, Syncs, Take, Taken, Upload, flush

JOB = "beam-0123456789abcde"
CALLS = (
    *("open", "close", "stat", "fstat", "listdir", "scandir", "readlink", "dup", "read", "write", "copy_file_range"),
    *("mkdir", "rename", "unlink", "rmdir", "utime", "chmod", "fsync"),
)


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often each call is made within the block."""
    count: Counter[str] = Counter()

    def counting(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **named: Any) -> Any:
            count[name] += 1
            return real(*args, **named)

        return call

    with contextlib.ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(mock.patch.object(os, name, counting(name)))
        yield count


def test_what_a_job_costs_that_leaves_nothing(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    home.prepare()
    folder = home.work / JOB
    (folder / "input").mkdir(parents=True)
    (folder / "input" / "beam.inp").write_bytes(b"12345678")
    inputs = (FileFact("input/beam.inp", 8, hashlib.sha256(b"12345678").hexdigest()),)
    results = Results(home)
    with counted() as staging:
        results.stage(JOB, 1)
    for log in ("stdout.log", "stderr.log"):
        (folder / log).touch()
    with (
        one_by_one(),
        counted() as collecting,
        Syncs() as syncs,
        results.remains(JOB, inputs, time.time_ns() // 1000) as remains,
    ):
        survey = remains.survey()
        assert remains.altered() == []
        remains.keep(survey, syncs)
    result = [Publication(JOB, "done", b"{}")]
    with one_by_one(), counted() as writing, results.writing_ahead(result):
        pass
    with one_by_one(), counted() as moving, mock.patch.object(flush, "flush", wraps=flush.flush) as wait:
        assert results.publish(result) == ([JOB], {})
    assert staging.total() <= 21, staging
    assert collecting.total() <= 28, collecting
    assert writing.total() <= 10, writing
    assert moving.total() <= 7, moving
    assert (collecting["fsync"], writing["fsync"], moving["fsync"]) == (4, 2, 2)
    assert wait.call_count == 2, "each is a wait for the disk; those of its manifest are beside that of its row"


def test_what_it_costs_to_take_one_file_in(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    home.prepare()
    (home.inbox / "beam.inp").write_bytes(b"12345678")
    claims = Claims(home)
    with one_by_one(), counted() as claiming:
        (taken,) = claims.claim_round([Take(JOB, ("beam.inp",))])
    assert isinstance(taken, Taken)
    assert claiming.total() <= 24, claiming
    assert claiming["fsync"] == 5, "the file, its two folders, work/; the inbox"


def test_what_a_short_submission_costs(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    home.prepare()
    with one_by_one(), counted() as sending:
        upload = Upload(home, JOB)
        for name in ("beam.inp", "job.toml"):
            upload.begin(name)
            upload.write(b"12345678")
            upload.end()
        upload.finish(Take(JOB, ("beam.inp",), folder=True, request=Request("socket")))
    assert sending.total() <= 39, sending
    assert sending["fsync"] == 6, "two files, the plan, two folders; work/"
