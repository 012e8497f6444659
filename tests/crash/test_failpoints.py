"""Failpoints: each has one name and one place, costs nothing unless armed, and nobody can arm it but a test."""

from __future__ import annotations

import subprocess
import sys
import timeit

from crash import failpoints
from solvisor import failpoint


def test_every_failpoint_has_a_name_of_its_own() -> None:
    named = failpoints.in_code()
    assert len(named) > 60
    assert [name for name, times in named.items() if times > 1] == []


def test_nothing_in_the_program_arms_a_failpoint() -> None:
    assert list(failpoints.calls("arm")) == []


def test_passing_a_failpoint_costs_nothing_beside_the_step_it_follows() -> None:
    """Some fifty are passed per job, each beside a call to the disk that takes a hundred times longer."""
    each = min(timeit.repeat(lambda: failpoint.reach("nowhere"), number=1000, repeat=20)) / 1000
    assert each < 2e-6


def test_no_environment_arms_a_daemon() -> None:
    """The module looks at nothing but its hook: no environment is read, no file, no argument."""
    code = "import solvisor.failpoint as f; print(f._hook, sorted(n for n in vars(f) if not n.startswith('_')))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "None ['Callable', 'annotations', 'arm', 'reach']\n"
