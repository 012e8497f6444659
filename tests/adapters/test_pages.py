"""Pages of a long history: whatever is asked for, one page looks at so many rows and no more, and none is left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from builders import NOON_US, SECOND_US, make_spec
from solvisor import history as histories
from solvisor.history import Filters, History
from solvisor.model import Batch, Cause, Job, State
from solvisor.store import Store

ROWS = 3000
EXAMINED = 100
BATCH = Batch("sweep-1", "sweep", "ann", "skip", None, NOON_US)


class Past:
    """``ROWS`` jobs, the last two of them live, and what a question about them costs."""

    def __init__(self, path: Path) -> None:
        self.store = Store.open(path)
        self.store.record([], batches=[BATCH])
        self.jobs = [made(seq) for seq in range(1, ROWS + 1)]
        self.store.record(self.jobs)
        self.store.record([], [job.id for job in self.jobs if job.finished_us is not None])
        self.history = History.open(path)
        self.steps = 0
        self.history._connection.set_progress_handler(self._count, 10)

    def _count(self) -> int:
        self.steps += 10
        return 0

    def close(self) -> None:
        self.history.close()
        self.store.close()

    def walk(self, limit: int = 10, **filters: Any) -> tuple[list[int], int, int]:
        """The ``seq`` of all that fits, over how many pages, and the steps of SQLite's machine for the dearest one."""
        found: list[int] = []
        pages, dearest = 0, 0
        before = None
        while True:
            self.steps = 0
            page = self.history.page(Filters(**filters), before, limit)
            pages, dearest = pages + 1, max(dearest, self.steps)
            assert len(page.jobs) <= limit
            found += [job.seq for job in page.jobs]
            if page.next_seq is None:
                return found, pages, dearest
            assert before is None or page.next_seq < before, "a page leads on"
            before = page.next_seq


def made(seq: int) -> Job:
    """One in 500 failed; ann sends nearly all; the first and the last are of a batch."""
    job_id = f"beam-{seq:05}"
    failed, live = seq % 500 == 0, seq > ROWS - 2
    spec = make_spec(
        job_id,
        name="Träger" if seq == 7 else f"Beam 100%_{seq}",
        user="bob" if seq in (2, ROWS // 2) else "ann",
        project="riser" if seq % 2 else None,
        batch=BATCH.id if seq in (1, ROWS) else None,
    )
    job = Job(job_id, seq, State.QUEUED, spec, NOON_US + seq * SECOND_US)
    if live:
        return job
    state, cause = (State.FAILED, Cause.TIMEOUT if seq == 1000 else Cause.EXIT) if failed else (State.SUCCEEDED, None)
    return replace(job, state=state, cause=cause, finished_us=job.submitted_us + SECOND_US, manifest=b"{}")


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    past = Past(tmp_path_factory.mktemp("pages") / "solvisor.db")
    yield past
    past.close()


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "EXAMINED_MAX", EXAMINED)


FAILED = [*range(ROWS, 0, -500)][1:]
FEW_PAGES = 2
"""Where an index leads from one job that fits to the next."""

SEARCHES: dict[str, tuple[dict[str, Any], list[int], int | None]] = {
    "all": ({}, [*range(ROWS, 0, -1)], None),
    "failed": ({"states": (State.FAILED,)}, FAILED, FEW_PAGES),
    "cancelled": ({"states": (State.CANCELLED, State.REJECTED)}, [], FEW_PAGES),
    "succeeded": ({"states": (State.SUCCEEDED,)}, [n for n in range(ROWS - 2, 0, -1) if n % 500], None),
    "live": ({"states": (State.QUEUED, State.RUNNING)}, [ROWS, ROWS - 1], FEW_PAGES),
    "mixed": ({"states": (State.QUEUED, State.FAILED)}, [ROWS, ROWS - 1, *FAILED], None),
    "cause": ({"causes": (Cause.TIMEOUT, Cause.OOM)}, [1000], FEW_PAGES),
    "nobody": ({"user": "nobody"}, [], FEW_PAGES),
    "somebody": ({"user": "bob"}, [ROWS // 2, 2], FEW_PAGES),
    "his failures": ({"user": "bob", "states": (State.FAILED,)}, [ROWS // 2], FEW_PAGES),
    "batch": ({"batch": BATCH.id}, [ROWS, 1], FEW_PAGES),
    "project": ({"project": "riser", "user": "bob"}, [], FEW_PAGES),
    "solver": ({"solver": "none"}, [], None),
    "word": ({"text": "zzz"}, [], None),
    "part of a name, in any case": ({"text": "BEAM 100%_29"}, [*range(2999, 2899, -1), *range(299, 289, -1), 29], None),
    "part of an id": ({"text": "-00042"}, [42], None),
    "no pattern": ({"text": "100_"}, [], None),
    "not ascii": ({"text": "TRÄG"}, [7], None),
    "since": ({"since_us": NOON_US + (ROWS - 3) * SECOND_US}, [ROWS, ROWS - 1, ROWS - 2, ROWS - 3], None),
    "until": ({"until_us": NOON_US + 4 * SECOND_US}, [3, 2, 1], None),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_page_looks_at_a_bounded_number_of_rows_and_a_search_finds_them_all(past: Past, name: str) -> None:
    filters, expected, pages_max = SEARCHES[name]
    found, pages, dearest = past.walk(**filters)
    assert found == expected
    assert pages <= (pages_max or ROWS // 10 + ROWS // EXAMINED + 1)
    assert dearest < 60 * EXAMINED, "as many steps as so many rows take, and a tenth of those of all rows"


def test_a_job_that_comes_in_meanwhile_moves_nothing(past: Past) -> None:
    first = past.history.page(Filters(text="beam"), None, 7)
    late = replace(made(ROWS), id="beam-late", seq=ROWS + 1, asked=replace(make_spec("beam-late")))
    past.store.record([late])
    second = past.history.page(Filters(text="beam"), first.next_seq, 7)
    assert [job.seq for job in first.jobs + second.jobs] == [*range(ROWS, ROWS - 14, -1)]


def test_looking_one_up_costs_what_one_costs(past: Past) -> None:
    for ask in (
        lambda: past.history.newest("nobody"),
        lambda: past.history.newest("bob"),
        lambda: past.history.ids_like("b", 6),
        lambda: past.history.job("beam-00001"),
    ):
        past.steps = 0
        ask()
        assert past.steps < 500
    assert past.history.newest("bob") == f"beam-{ROWS // 2:05}"
    assert past.history.ids_like("beam-0000", 2) == ["beam-00009", "beam-00008"]
