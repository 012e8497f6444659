"""A server that knows a single port: it is told it, asked on it and talked to on it, and no port is leased."""

from __future__ import annotations

import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest

from pool_kit import SERVER, lab, solver
from probe_kit import HOST, free_port

if sys.platform == "win32":
    pytest.skip("processes of Linux", allow_module_level=True)

LOOPS = "uvloop"


@pytest.mark.parametrize("told", [False, True])
async def test_it_serves_on_its_only_port(tmp_path: Path, told: bool) -> None:
    port = free_port()
    start = SERVER if told else (*SERVER[:-1], str(port))
    async with lab(tmp_path, solver(start=start, port=port)) as pool:
        name = await pool.ready()
        assert pool.server(name).port == port
        assert pool.leases.taken_ports == []
        errand = pool.lend(name)
        facts = await pool.pool.carry_out(name, errand)
        assert facts.exit_code == 0
        assert (errand.folder / "stdout.log").read_text() == "pong\n", "the client is told the port"


async def test_a_stranger_on_its_only_port_is_a_failure_that_names_him(tmp_path: Path) -> None:
    port = free_port()
    with closing(socket.socket()) as stranger:
        stranger.bind((HOST, port))
        stranger.listen()
        # It does not even try to listen there: that it waits is all that it does.
        idle = solver(start=("sleep", "1000"), port=port)
        async with lab(tmp_path, idle) as pool:
            end = await pool.ended(pool.start())
            assert f"listens on port {port} of {HOST}" in (end.error or "")
            assert not end.blameless, "there is no other port to try"
