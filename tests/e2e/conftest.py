"""A daemon that all tests of a module ask over its socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from daemon import Daemon
from socket_kit import Http

CONFIG = """
[daemon]
max_jobs = 2
stop_timeout = "20s"
[inbox]
settle = "0.1s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
stop_grace = "0.5s"
[solver.sh.params]
load = { type = "float", default = 1.0 }
[solver.twice]
accept = ["*.twice"]
command = ["/bin/sh", "{input}"]
[solver.twice.retry]
max = 1
on = ["exit"]
delay = "0s"
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("socket") / "home", CONFIG)
    daemon.start()
    yield daemon
    assert daemon.events("request.defect") == []
    assert daemon.stop() == 0


@pytest.fixture(scope="module")
def http(daemon: Daemon) -> Http:
    return Http(daemon.home)
