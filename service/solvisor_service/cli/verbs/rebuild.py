"""``solvisor rebuild``: the history of a home made anew from its results, where the database is damaged or gone."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from solvisor_service.cli.shared import FILES, Verbs, add_verb, completed, home_of, homed, path_given, print_json

if TYPE_CHECKING:
    from solvisor.rebuild import Rebuilt

_EXAMPLES = """\
  solvisor rebuild                          from what lies in done/, failed/ and rejected/
  solvisor rebuild --backup saved.db        from a backup, and what was finished since

The daemon must not run. A database that cannot be gone on with is set aside, not removed."""

_SHOWN = 20


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verb = add_verb(
        verbs,
        "rebuild",
        _rebuild,
        help="make the history of a home anew from its results, where its database is damaged, gone or too old",
        examples=_EXAMPLES,
        with_json=True,
    )
    backup = "begin with this copy (of solvisor backup, or one in state/backup) instead of the database that is there"
    completed(verb.add_argument("--backup", metavar="FILE", type=path_given, help=backup), FILES)


def _rebuild(arguments: argparse.Namespace) -> int:
    from solvisor import home as homes
    from solvisor.errors import HomeError
    from solvisor.home import Home
    from solvisor.rebuild import rebuild
    from solvisor_service.cli.text import harmless

    home = Home.at(home_of(arguments))
    if not home.state.is_dir():
        raise HomeError(f"{home.root} is no home of a daemon: it has no state/; name another one: --home DIR")
    owner = home.state.stat().st_uid
    if sys.platform != "win32" and owner != os.geteuid():
        raise HomeError(f"{home.state} belongs to user {owner}, and what is made there must too; run this as that user")
    for folder in (home.work, home.done, home.failed, home.rejected):
        folder.mkdir(exist_ok=True)
    with closing(homes.lock(home)):
        done = rebuild(home, arguments.backup and arguments.backup.absolute(), _told)
    if arguments.json:
        print_json(done._asdict() | {"aside": None if done.aside is None else str(done.aside)})
    else:
        for line in _lines(done):
            print(harmless(homed(line, arguments)))
    return 0


def _told(results: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{results:,} results read", end="\n" if results % 10_000 == 0 else "", file=sys.stderr, flush=True)


def _lines(done: Rebuilt) -> list[str]:
    lines = [] if done.aside is None else [f"set aside  {done.aside}"]
    lines.append(f"results    {done.known:,} were known, {done.added:,} added, {done.ended:,} finished as they say")
    lines += [f"not read   {path}: {why}" for path, why in done.unread[:_SHOWN]]
    if len(done.unread) > _SHOWN:
        lines.append(f"           and {len(done.unread) - _SHOWN:,} more")
    if done.anew:
        lines.append("usage      how busy it was is in no manifest: what a backup has of it is kept, the rest is gone")
        lines.append("orders     so it is with pauses, limits and priorities that people set: look at solvisor status")
    if done.claims:
        lines.append(f"work       {done.claims:,} without a row; the next start queues them again")
    if done.lost:
        lines.append(f"lost       {len(done.lost):,} unfinished jobs have no folder, and will fail: {_some(done.lost)}")
    return [*lines, "now        solvisor serve"]


def _some(ids: tuple[str, ...]) -> str:
    more = len(ids) - _SHOWN
    return ", ".join(ids[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
