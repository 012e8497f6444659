"""Records are worked out before there is a second thread."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import solvisor

RACE = """
import os, sys, threading
from solvisor.collector import _to_solver

sys.setswitchinterval(1e-6)
table = {"kind": "command", "command": ["/bin/sh"], "retry": {"max": 1}, "success": {"exit": [0]}}
for _ in range(100):
    pid = os.fork()
    if not pid:
        go = False

        def convert():
            while not go:
                pass
            _to_solver(table)

        threads = [threading.Thread(target=convert) for _ in range(3)]
        for thread in threads:
            thread.start()
        go = True
        for thread in threads:
            thread.join()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, os.waitstatus_to_exitcode(status)
"""


def test_threads_that_meet_a_record_for_the_first_time_at_once_do_not_crash_the_daemon() -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(RACE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_record_is_worked_out_while_threads_run() -> None:
    """Decoders and converters are made where a module is loaded. ``tables`` converts single values, no records."""
    late = []
    root = Path(solvisor.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and path.name not in {"records.py", "tables.py"}:
                called = ast.unparse(node.func)
                if called == "msgspec.convert" or (called == "msgspec.json.decode" and node.keywords):
                    late.append(f"{path.relative_to(root)}:{node.lineno}")
    assert late == []
