"""A daemon that all tests of a module ask over its socket; a module that says ``CONFIG`` has one by that."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from daemon import Daemon, living
from page_kit import Site, chromium
from probe_kit import free_port
from socket_kit import Http, TcpHttp, own_address
from waiting import wait_until

CONFIG = (
    f'[api]\nlisten = "{own_address()}"\n'
    + """
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
)


@pytest.fixture(scope="module")
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with living(tmp_path_factory.mktemp("socket") / "home", getattr(request.module, "CONFIG", CONFIG)) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def http(daemon: Daemon) -> Http:
    return Http(daemon.home)


@pytest.fixture(scope="module")
def tcp(daemon: Daemon, http: Http) -> TcpHttp:
    page = wait_until(lambda: http.get("/v1/status").json["page"], "it listens on TCP")
    return TcpHttp(daemon.home, urlsplit(page).netloc)


@pytest.fixture(scope="module", params=["socket", "tcp"])
def door(request: pytest.FixtureRequest) -> Http:
    """Either way in: what harms the one may harm the other."""
    found: Http = request.getfixturevalue("http" if request.param == "socket" else "tcp")
    return found


@pytest.fixture(scope="module")
def port() -> int:
    """For a module that tells its daemon where to listen."""
    return free_port()


@pytest.fixture(scope="module")
def site(daemon: Daemon, port: int) -> Iterator[Site]:
    """The daemon's page in a browser."""
    with chromium() as browser:
        yield Site(browser, daemon, port)
