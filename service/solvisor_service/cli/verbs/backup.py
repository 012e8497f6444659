"""``solvisor backup``: a whole and proven copy of the database, beside a daemon or without one."""

from __future__ import annotations

import argparse
import os

from solvisor_service.cli.shared import FILES, Verbs, add_verb, completed, home_of, path_given, print_json


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verb = add_verb(
        verbs,
        "backup",
        _backup,
        help="copy the database of the home, while its daemon runs or not, and prove the copy whole",
        examples="  solvisor backup /mnt/backup/solvisor-$(date +%F).db\n  solvisor backup --force latest.db",
        with_json=True,
    )
    completed(verb.add_argument("file", metavar="FILE", type=path_given, help="the copy to make"), FILES)
    verb.add_argument("--force", action="store_true", help="replace FILE if it is there")


def _backup(arguments: argparse.Namespace) -> int:
    from solvisor.backup import back_up
    from solvisor.errors import HomeError
    from solvisor.home import Home
    from solvisor_service.cli.text import clean, size

    home = Home.at(home_of(arguments))
    if not os.path.exists(home.db):  # may raise what keeps this user from looking
        raise HomeError(f"{home.root} has no database; name the home: --home DIR")
    done = back_up(home.db, arguments.file.absolute(), replace=arguments.force)
    if arguments.json:
        print_json({"path": str(done.path), "jobs": done.jobs, "size_bytes": done.size_bytes})
    else:
        jobs = "1 job" if done.jobs == 1 else f"{done.jobs:,} jobs"
        print(f"{clean(str(done.path))}  {jobs}, {size(done.size_bytes)}, whole")
    return 0
