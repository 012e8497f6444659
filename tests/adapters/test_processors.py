"""Where our threads run: on one processor, but not what works long by itself, nor what we start."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

CPUS = sorted(os.sched_getaffinity(0))

needs_two = pytest.mark.skipif(len(CPUS) < 2, reason="needs two processors: on one there is nothing to see")


def said_by(program: str) -> str:
    """What a program prints that has threads of its own: not this one's are to be moved."""
    preface = """
        import os, sys, threading
        from concurrent.futures import ThreadPoolExecutor
        from solvisor.processors import gather_threads, granted_cpus, spread, spread_thread
        def here(): return sorted(os.sched_getaffinity(0))
        def there(work): return ThreadPoolExecutor(1).submit(work).result()
    """
    whole = textwrap.dedent(preface) + textwrap.dedent(program)
    return subprocess.run([sys.executable, "-c", whole], check=True, capture_output=True, text=True).stdout


@needs_two
def test_all_threads_are_gathered_and_those_that_they_start() -> None:
    program = """
        pool = ThreadPoolExecutor(1)
        pool.submit(here).result()
        gather_threads()
        gather_threads()
        print([here(), pool.submit(here).result(), there(here)], sorted(granted_cpus()))
    """
    assert said_by(program) == f"{[[CPUS[-1]]] * 3} {CPUS}\n"


@needs_two
def test_long_work_has_all_processors() -> None:
    program = """
        gather_threads()
        print(there(spread(here)), here())
        spread_thread()
        print(here())
    """
    assert said_by(program) == f"{CPUS} {[CPUS[-1]]}\n{CPUS}\n"


def test_nothing_moves_before_threads_are_gathered() -> None:
    assert said_by("print(there(spread(here)), sorted(granted_cpus()))") == f"{CPUS} {CPUS}\n"


def test_threads_stand_back_each_for_itself_and_once() -> None:
    program = """
        from solvisor.processors import stand_back
        def nice(): return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) - before
        def back(): stand_back(); return nice(), there(nice), there(back_again)
        def back_again(): stand_back(); return nice()
        before = 0
        before = nice()
        print(there(back), nice(), there(nice))
        os.nice(19)
        print(there(back_again) + before)
    """
    assert said_by(program) == "(10, 10, 10) 0 0\n(19,)\n".replace("(19,)", "19")


@needs_two
def test_what_there_is_for_jobs_does_not_become_less() -> None:
    program = """
        from solvisor.process.host import usable_cpus
        before = usable_cpus()
        gather_threads()
        print(usable_cpus() == before)
    """
    assert said_by(program) == "True\n"


@pytest.mark.parametrize("starter", ["compiled", "Popen"])
def test_what_is_started_may_use_them_all(starter: str, tmp_path: os.PathLike[str]) -> None:
    program = f"""
        import queue
        from solvisor.interfaces import AttemptSpec
        from solvisor.process import native, spawn
        from solvisor.process.posix import Processes
        if {starter!r} == "Popen":
            native.LIBRARY = "/nowhere"
        elif not native.Starter().works:
            print("no starter")
            sys.exit()
        gather_threads()
        folder = {str(tmp_path)!r}
        ended = queue.Queue()
        class Listener:
            def started(self, tree): pass
            def refused(self, error): ended.put(error)
            def exited(self, facts): ended.put(facts)
            def gone(self): pass
            def broken(self, error): ended.put(error)
        processes = Processes()
        code = "import os; print(sorted(os.sched_getaffinity(0)), os.getpriority(os.PRIO_PROCESS, 0))"
        spec = AttemptSpec("h/t", (sys.executable, "-c", code), folder, dict(os.environ), f"{{folder}}/out",
                           f"{{folder}}/err", 1.0, 1 << 20)
        processes.start(lambda: spec, Listener())
        assert ended.get(timeout=20).exit_code == 0
        processes.close()
        print(open(f"{{folder}}/out").read().strip())
    """
    said = said_by(program).strip()
    if said == "no starter":
        pytest.skip("the starter was not compiled here")
    assert said == f"{CPUS} {os.getpriority(os.PRIO_PROCESS, 0)}"
