"""What ended within the last 24 hours: no more, no less, to the minute, whatever the clock does."""

from __future__ import annotations

from collections import Counter

import pytest
from msgspec.structs import replace

from builders import NOON_US, Story
from solvisor.lately import DAY_US, FAILURES_KEPT, MINUTE_US, Ends, Lately
from solvisor.model import Job, State

S, F = State.SUCCEEDED, State.FAILED
NOON = NOON_US // MINUTE_US


def job(at_us: int, state: State = S, name: str = "a") -> Job:
    story = Story()
    story.accept(name)
    return replace(story.job(name), state=state, finished_us=at_us, manifest=b"{}")


@pytest.fixture
def lately() -> Lately:
    return Lately()


def test_all_of_the_day_counts(lately: Lately) -> None:
    for at_us, state in ((NOON_US, S), (NOON_US, F), (NOON_US + MINUTE_US - 1, S), (NOON_US + MINUTE_US, F)):
        lately.count(job(at_us, state))
    assert lately.totals(NOON_US + 2 * MINUTE_US) == Counter({S: 2, F: 2})


def test_what_ended_a_day_ago_counts_no_more(lately: Lately) -> None:
    lately.count(job(NOON_US, F))
    lately.count(job(NOON_US + MINUTE_US, F))
    counts = []
    for minutes in (0, 1, 2):
        now_us = NOON_US + DAY_US + minutes * MINUTE_US
        counts.append((lately.totals(now_us)[F], len(lately.failures(now_us))))
    assert counts == [(2, 2), (1, 1), (0, 0)]


def test_a_night_is_seen_whole_in_the_morning(lately: Lately) -> None:
    evening, midnight, morning = (NOON_US + hours * 60 * MINUTE_US for hours in (11, 12, 20))
    lately.count(job(evening, F, "a"))
    lately.count(job(midnight, F, "b"))
    assert lately.totals(morning) == Counter({F: 2})
    assert [failed.spec.name for failed in lately.failures(morning)] == ["b", "a"]


def test_of_many_failures_the_last_are_kept_without_their_manifests(lately: Lately) -> None:
    for n in range(FAILURES_KEPT + 2):
        lately.count(job(NOON_US, F, f"f{n}"))
        lately.count(job(NOON_US, S, f"s{n}"))
    failures = lately.failures(NOON_US)
    assert [failed.spec.name for failed in failures] == [f"f{n}" for n in range(FAILURES_KEPT + 1, 1, -1)]
    assert [failed.manifest for failed in failures] == [None] * FAILURES_KEPT
    assert lately.totals(NOON_US)[F] == FAILURES_KEPT + 2


def test_earlier_lives_count_as_well(lately: Lately) -> None:
    lately.add([Ends(NOON, S, 40), Ends(NOON + 1, F, 2)], [job(NOON_US, F, "old"), job(NOON_US, F, "new")])
    lately.count(job(NOON_US + MINUTE_US, F, "newest"))
    assert lately.totals(NOON_US + MINUTE_US) == Counter({S: 40, F: 3})
    assert [failed.spec.name for failed in lately.failures(NOON_US)] == ["newest", "new", "old"]
    assert lately.totals(NOON_US + DAY_US + MINUTE_US) == Counter({F: 3})


def test_what_ended_long_ago_and_is_published_late_does_not_count(lately: Lately) -> None:
    assert lately.totals(NOON_US + DAY_US) == Counter()
    lately.count(job(NOON_US - MINUTE_US, F))
    assert lately.totals(NOON_US + DAY_US) == Counter()
    assert lately.failures(NOON_US + DAY_US) == []


def test_a_clock_that_was_wrong_for_a_while_leaves_nothing_behind(lately: Lately) -> None:
    lately.count(job(NOON_US + 2 * DAY_US))
    lately.count(job(NOON_US))
    assert lately.totals(NOON_US) == Counter({S: 2}), "two days ahead, then set right"
    assert lately.totals(NOON_US + DAY_US + MINUTE_US) == Counter({S: 1}), "what is behind is let go in its time"
    assert lately.totals(NOON_US + 3 * DAY_US + MINUTE_US) == Counter()
