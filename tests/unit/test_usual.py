"""How long a job usually runs is said where there is evidence: of its name, or of its solver, and much alike."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from builders import BAD, SECOND_US, Story, make_facts
from solvisor.usual import KEPT, Ran, Usual, typical


def known(*ran: Ran) -> Usual:
    usual = Usual()
    for each in ran:
        usual.add(each)
    return usual


def seconds(usual: Usual) -> float | None:
    """Of a job of ccx that is called ``a``."""
    story = Story()
    story.accept("a")
    return usual.seconds(story.job("a"))


@pytest.mark.parametrize(
    ("ran", "usually"),
    [
        ([60.0], 60.0),
        ([100.0, 200.0], 100.0),
        ([100.0, 301.0], None),
        ([100.0, 300.0], 100.0),
        ([9.9] * 9, None),
        ([10.0] * 9, 10.0),
        ([1.0, 100.0, 110.0, 120.0, 9999.0], 110.0),
        ([1.0, 100.0, 110.0, 120.0], None),
        ([1.0, 2.0, 100.0, 110.0, 120.0], None),
        ([100.0 + n for n in range(18)] + [5000.0] * 2, 109.0),
        ([100.0 + n for n in range(17)] + [5000.0] * 3, None),
        ([0.0] * 9, None),
    ],
)
def test_much_alike_is_alike_but_for_a_tenth_at_each_end(ran: list[float], usually: float | None) -> None:
    assert typical(ran) == usually
    assert typical(ran[::-1]) == usually


def test_one_of_its_name_is_evidence_and_so_are_five_of_its_solver() -> None:
    others = [Ran("ccx", f"other-{n}", 100.0 + n) for n in range(5)]
    assert seconds(known()) is None
    assert seconds(known(*others[:4])) is None
    assert seconds(known(*others)) == 102.0
    assert seconds(known(*others, Ran("ccx", "a", 900.0))) == 900.0
    assert seconds(known(*others, Ran("ccx", "a", 900.0), Ran("ccx", "a", 90.0))) is None
    assert seconds(known(*(replace(ran, solver="post") for ran in others), Ran("post", "a", 900.0))) is None


def test_only_the_last_ones_count() -> None:
    usual = known(*[Ran("ccx", "a", 100.0)] * 9, *[Ran("ccx", "a", 900.0)] * KEPT)
    assert seconds(usual) == 900.0
    assert sum(len(ran) for ran in usual._ran.values()) == KEPT


def test_only_what_succeeded_counts() -> None:
    usual, story = Usual(), Story()
    for job_id in ("fails", "a"):
        story.accept(job_id, name="a")
        story.start(job_id)
        usual.count(story.job(job_id))
        story.now_us += 60 * SECOND_US
        story.exited(job_id, replace(make_facts(), finished_us=story.now_us, seconds=None))
        story.judged(job_id, *[BAD] * (job_id == "fails"))
        assert seconds(usual) is None
        usual.count(story.job(job_id))
    assert seconds(usual) == 60.0
