"""What one job costs that only waits: 100,000 of them are a normal day."""

from __future__ import annotations

import gc
import tracemalloc

from builders import Story, make_demand, make_spec
from solvisor.model import FileFact, Job, Source, State
from solvisor.rows import decode_spec
from solvisor.world import World

JOBS = 4000
BYTES_EACH = 1500
"""A job with one input; 100,000 of them are 150 MB beside the 50 MB of a daemon."""


def accept_many(count: int) -> Story:
    story = Story()
    demand = make_demand()
    for number in range(count):
        name = f"riser-{number:06}.inp"
        fact = FileFact(f"input/{name}", 6, f"{number:064x}")
        source = Source("inbox", name)
        job_id, params = f"riser-{number:06}-1k83q13e3au5rqa", {"load": float(number)}
        story.accept(job_id, demand, inputs=(fact,), source=source, name=name, primary=name, params=params)
    story.world.take_changes()
    story.world.take_moved()
    return story


def test_fault_47_a_job_that_waits_costs_little_memory_and_nothing_of_the_collector() -> None:
    accept_many(10)
    gc.collect()
    tracked = len(gc.get_objects())
    tracemalloc.start()
    try:
        story = accept_many(JOBS)
        gc.collect()
        each = tracemalloc.get_traced_memory()[0] / JOBS
    finally:
        tracemalloc.stop()
    assert each < BYTES_EACH
    assert len(gc.get_objects()) - tracked < JOBS / 10
    assert len(story.world.jobs) == JOBS


def test_fault_47_a_packed_job_is_the_same_job() -> None:
    spec = make_spec("a", key="k", after=("b",), params={"x": [1, None]}, cpus=3)
    job = Job("a", 1, State.QUEUED, spec, 5)
    packed = job.packed()
    assert isinstance(packed.asked, bytes)
    assert (packed.spec, packed.packed()) == (spec, packed)
    assert decode_spec(packed.spec_bytes) == spec
    assert packed.spec_bytes == job.spec_bytes


def test_fault_47_a_job_is_packed_while_it_waits_and_no_longer() -> None:
    story = Story(World())
    story.accept("a")
    assert isinstance(story.job("a").asked, bytes)
    story.start("a")
    assert not isinstance(story.job("a").asked, bytes)
    story.lost("a")
    assert isinstance(story.job("a").asked, bytes)
    assert story.job("a").spec == make_spec("a")
