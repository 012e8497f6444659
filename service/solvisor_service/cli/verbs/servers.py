"""``solvisor servers``: the warm servers, how many there shall be, and their replacement."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from solvisor_service.cli.shared import Verbs, add_verb, client_of, homed, print_json, reader_of, text_given

if TYPE_CHECKING:
    from solvisor.views import PoolView, ServerRow
    from solvisor_service.cli.text import Cell

_WIDE: Final = 100
"""Columns of a terminal that has room for process ids."""
_STYLES: Final = {
    "starting": "cyan",
    "ready": "green",
    "busy": "cyan",
    "draining": "yellow",
    "stopping": "yellow",
    "backoff": "yellow",
    "failed": "bold red",
}
_EXAMPLES: Final = """\
  solvisor servers
  solvisor servers scale rserve 3
  solvisor servers recycle rserve-2
  solvisor servers restart rserve"""
_AUTO: Final = "auto"
_TARGET: Final = "a solver, for all of its servers, or the name of one server"


def add(verbs: Verbs) -> None:
    """Declare the verb and its actions."""
    servers = verbs.add_parser(
        "servers",
        help="show warm servers, say how many there shall be, have them replaced",
        description="Warm servers. Without an action they are listed.",
        epilog=f"examples:\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = servers.add_subparsers(metavar="ACTION")
    add_verb(
        actions,
        "list",
        _list,
        help="list the warm servers and what they do",
        examples="  solvisor servers\n  solvisor servers list --json | jq '.pools[].servers[].port'",
        with_json=True,
    )
    scale = add_verb(
        actions,
        "scale",
        _scale,
        help="have exactly so many servers of a solver until the daemon ends; auto goes back to the configuration",
        examples="  solvisor servers scale rserve 3\n  solvisor servers scale rserve 0\n"
        "  solvisor servers scale rserve auto",
        with_json=True,
    )
    scale.add_argument("solver", metavar="SOLVER", type=text_given, help="a solver with warm servers")
    scale.add_argument("count", metavar="N|auto", type=_count, help="how many; auto: what the configuration says")
    recycle = add_verb(
        actions,
        "recycle",
        _recycle,
        help="replace servers, each once it has no job",
        examples="  solvisor servers recycle rserve\n  solvisor servers recycle rserve-3",
        with_json=True,
    )
    restart = add_verb(
        actions,
        "restart",
        _restart,
        help="replace servers likewise, and let a solver whose servers failed start them again at once",
        examples="  solvisor servers restart rserve\n  solvisor servers restart rserve-3",
        with_json=True,
    )
    for verb in (recycle, restart):
        verb.add_argument("target", metavar="SOLVER|SERVER", type=text_given, help=_TARGET)


def _count(text: str) -> int | None:
    if text == _AUTO:
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number from 0 on, or auto")
    return int(text)


def _list(arguments: argparse.Namespace) -> int:
    import sys

    found = reader_of(arguments).servers()
    if arguments.json:
        print_json(found)
        return 0
    _show(found.pools, arguments)
    if not found.pools:
        from solvisor_service.cli.text import clean

        none = "no solver has warm servers; those of the kinds server, omc and python do"
        print(clean(found.note or none), file=sys.stderr)
    return 0


def _scale(arguments: argparse.Namespace) -> int:
    pool = client_of(arguments).scale(arguments.solver, arguments.count)
    if arguments.count is None:
        numbers = f"{pool.min} to {pool.max}" if pool.min < pool.max else f"{pool.max}"
        return _done(pool, arguments, f"{pool.solver} has as many servers as the configuration says: {numbers}")
    count = "1 server" if pool.scale == 1 else f"{pool.scale} servers"
    return _done(pool, arguments, f"{pool.solver} is scaled to {count}")


def _recycle(arguments: argparse.Namespace) -> int:
    pool = client_of(arguments).recycle(arguments.target)
    return _done(pool, arguments, _replaced(pool, arguments.target))


def _restart(arguments: argparse.Namespace) -> int:
    pool = client_of(arguments).restart(arguments.target)
    told = f"{_replaced(pool, arguments.target)}; what went wrong with the servers of {pool.solver} is forgotten"
    return _done(pool, arguments, told)


def _replaced(pool: PoolView, target: str) -> str:
    if target == pool.solver:
        return f"the servers of {target} are replaced, each once it has no job"
    return f"{target} is replaced once it has no job"


def _done(pool: PoolView, arguments: argparse.Namespace, told: str) -> int:
    from solvisor_service.cli.text import clean

    if arguments.json:
        print_json(pool)
        return 0
    print(clean(told))
    _show([pool], arguments)
    return 0


def _show(pools: Sequence[PoolView], arguments: argparse.Namespace) -> None:
    from rich.text import Text

    from solvisor_service.cli import text
    from solvisor_service.cli.jobtext import short_ids

    out = text.console()
    wide = out.width >= _WIDE
    servers = [server for pool in pools for server in pool.servers]
    ids = {server.job: server.job for server in servers if server.job}
    if out.is_terminal:
        ids = short_ids(ids)
    titles = ["SERVER", "STATE", "PORT", *(["PID"] if wide else []), "JOBS", "MEMORY", "AGE", "JOB / WHY"]
    rows = [_row(server, ids, wide=wide) for server in servers]
    text.table(out, rows, titles=titles, right=range(2, len(titles) - 1), cut=True)
    most = out.width if out.is_terminal else None  # columns for what a server said
    about = [(pool, word, told) for pool in pools for word, told in _about(pool, most)]
    lines = [(pool.solver, Text(word, _STYLES.get(word, "")), homed(told, arguments)) for pool, word, told in about]
    text.table(out, lines)


def _row(server: ServerRow, ids: dict[str, str], *, wide: bool) -> list[Cell]:
    from rich.text import Text

    from solvisor_service.cli.text import duration, size

    told = [f"{ids[server.job]} {duration(server.in_state_seconds)}"] if server.job else []
    return [
        server.name,
        Text(server.state.value, _STYLES[server.state]),
        "" if server.port is None else str(server.port),
        *([] if not wide else ["" if server.pid is None else str(server.pid)]),
        str(server.jobs),
        "" if server.rss_bytes is None else size(server.rss_bytes),
        duration(server.age_seconds),
        "; ".join([*told, *([server.why] if server.why else [])]),
    ]


def _about(pool: PoolView, most: int | None) -> Iterator[tuple[str, str]]:
    """Lines about a solver's servers together: a state of theirs, if it has a name, and the words for it.

    Of an error at most so many characters are told.
    """
    from solvisor_service.cli.text import clean, duration

    error = clean(pool.error or "")
    if most is not None and len(error) > most:
        error = f"{error[: most - 3]}..."
    again = f"solvisor servers restart {pool.solver}"
    if pool.state == "failed":
        yield "failed", f"{pool.failures} times in a row: {error}; correct it, then {again}"
    elif pool.state == "backoff":
        yield "backoff", f"the next one starts in {duration(pool.rests_seconds or 0.0)}, after: {error}"
    elif error and not pool.ready:
        yield "", f"the last one that failed: {error}"
    if pool.scale is not None:
        yield "", f"scaled to {pool.scale} until the daemon ends, or until: solvisor servers scale {pool.solver} auto"
    elif not pool.servers and pool.state == "ok":
        few = f"up to {pool.most} are started when jobs need them"
        yield "", f"none now; {few if pool.most else 'no license is left for one (solvisor limit)'}"
    if pool.waiting:
        yield "", "1 job waits for a server" if pool.waiting == 1 else f"{pool.waiting} jobs wait for a server"
