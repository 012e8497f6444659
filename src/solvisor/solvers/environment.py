"""The environment of warm servers.

Rules: it is made of what is listed here and nothing else, so that a server works the same whoever started the daemon.
This module starts nothing and does not know kinds.
"""

from __future__ import annotations

from collections.abc import Mapping

from solvisor import template
from solvisor.errors import SpawnError
from solvisor.interfaces import Site
from solvisor.kinds import WarmSolver

from .command import inherited


def server_environment(
    solver: WarmSolver,
    place: Site,
    values: Mapping[str, str],
    environ: Mapping[str, str],
    script_env: Mapping[str, str],
) -> dict[str, str]:
    """The whole environment of a server of ``solver`` at ``place``; ``values`` are those of the placeholders.

    Later ones win: what is inherited (``environ``, ``script_env``, ``pass_env``), its own ``TMPDIR``, ``env``.
    Raises ``SpawnError`` for a placeholder without a value.
    """
    env = {**inherited(solver, environ, script_env), "TMPDIR": place.tmp}
    for variable, text in solver.env.items():
        try:
            env[variable] = template.expand(text, values)
        except KeyError as error:
            known = ", ".join(f"{{{name}}}" for name in values)
            text = f"env.{variable} of a warm server cannot hold {{{error.args[0]}}}; there are {known}"
            raise SpawnError("env", text) from None
    return env
