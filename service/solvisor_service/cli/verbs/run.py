"""``solvisor run``: a batch from the shell, through the live daemon or one started for it."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solvisor_service.cli.shared import (
    EXIT_JOB_FAILED,
    FILES,
    FOLDERS,
    Verbs,
    add_verb,
    completed,
    config_of,
    given,
    homed,
    live_home,
    path_given,
    text_given,
    whole_number,
)

if TYPE_CHECKING:
    from solvisor_service.batch.ledger import Item, Ledger

EXIT_INTERRUPTED = 130

_EXAMPLES = """\
  solvisor run ccx *.inp
  solvisor run ccx --max-jobs 4 --timeout 30m --out results cases/*.inp
  solvisor run ccx --on-error fail --with mesh.inc --param load=3.5 a.inp b.inp
  solvisor run ccx case-*.job.toml --json > summary.json

Ctrl-C once: nothing more is started, what runs may finish; twice: it is stopped.
exit status: 0 all succeeded, 1 some did not, 130 interrupted"""


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verb = add_verb(
        verbs,
        "run",
        _run,
        help="run a batch: each FILE (input, NAME.job.toml or folder) is one job of SOLVER",
        examples=_EXAMPLES,
        with_config=True,
        with_json=True,
    )
    add = verb.add_argument
    add("solver", metavar="SOLVER", type=text_given, help="a solver of the configuration")
    completed(add("files", nargs="+", metavar="FILE", type=given, help="an input, a job file or a folder"), FILES)
    add("--max-jobs", type=whole_number(1), metavar="N", help="run at most so many of them at once")
    add("--timeout", type=_duration, metavar="TIME", help="the longest run of each job, such as 30m")
    on_error = "after a failure go on with the others (skip, the default), or start nothing more (fail)"
    add("--on-error", choices=("skip", "fail"), default="skip", help=on_error)
    add("--param", dest="params", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the solver")
    along = "goes along with each job"
    companions = add("--with", dest="companions", action="append", default=[], metavar="FILE", type=given, help=along)
    completed(companions, FILES)
    out = "a new folder for summary.csv, summary.json and the results of each job"
    completed(add("--out", type=path_given, metavar="DIR", help=out), FOLDERS)
    add("--project", type=text_given, help="a label that related jobs share")
    add("--name", type=text_given, help="what people call the batch")
    add("--priority", type=int, metavar="N", help="higher starts first (default: 0)")


def _duration(text: str) -> str:
    """The text of a duration, checked; the daemon reads it."""
    from solvisor.units import parse_duration

    try:
        parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error) or f"{text!r} is no duration; write 90s, 30m or 2h") from None
    return text


def _run(arguments: argparse.Namespace) -> int:
    from queue import SimpleQueue

    from solvisor.views import BatchRule
    from solvisor_service.batch.conduct import conduct
    from solvisor_service.batch.ledger import LEAVE, Ledger
    from solvisor_service.batch.life import Life
    from solvisor_service.batch.link import CLOSE_SECONDS, Link
    from solvisor_service.batch.mail import Mailbox, Said, signals_into
    from solvisor_service.batch.progress import Meter

    rule = BatchRule(name=arguments.name or "", on_error=arguments.on_error, max_jobs=arguments.max_jobs)
    ledger = Ledger(arguments.solver, rule, _items(arguments))
    if arguments.out is not None:
        _make_empty(arguments.out)
    mailbox: Mailbox = SimpleQueue()
    home = live_home(arguments)
    chosen = arguments.config is not None
    link = Link(home, config_of(arguments), lambda text: mailbox.put(Said(text)), chosen=chosen)
    life = Life(ledger, link, mailbox, arguments.out)
    meter = Meter(sys.stderr, time.monotonic, silent=arguments.json, reword=lambda text: homed(text, arguments))
    with signals_into(mailbox):
        error = conduct(life, ledger, link, mailbox, meter)
        try:
            if ledger.batch is not None or ledger.wish:
                _tell(ledger, arguments, home)
        finally:
            left = link.close(CLOSE_SECONDS if ledger.wish < LEAVE else 0.0)
            if left is not None:
                meter.say(f"the daemon started for this batch (pid {left}) still has work; it ends by itself")
    if error is not None:
        raise error
    return _exit_status(ledger)


def _items(arguments: argparse.Namespace) -> list[Item]:
    """The inputs in their order. A name that does not exist ends it here; a faulty job file is refused by itself."""
    from solvisor.errors import Refused
    from solvisor_service.batch.ledger import Item
    from solvisor_service.targets import param, prepare

    wishes: dict[str, Any] = {"solver": arguments.solver}
    for key in ("timeout", "project", "priority"):
        if getattr(arguments, key) is not None:
            wishes[key] = getattr(arguments, key)
    if arguments.params:
        wishes["params"] = dict(param(text) for text in arguments.params)
    companions = [Path(name) for name in arguments.companions]
    items = []
    for index, file in enumerate(arguments.files, 1):
        try:
            items.append(Item(index, file, prepare(Path(file), companions, wishes)))
        except Refused as refused:
            items.append(Item(index, file, None, refusal=str(refused)))
    return items


def _make_empty(out: Path) -> None:
    """Make the folder for the results: results of two batches must not mix. Raises ``UsageError``."""
    from solvisor_service.targets import UsageError

    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UsageError(f"--out {out} is not empty; name a new folder")
        if not os.access(out, os.W_OK):
            raise UsageError(f"--out {out} cannot be written by this user; name another folder")
    except OSError as error:
        raise UsageError(f"--out {out} cannot be made: {error.strerror}; name another folder") from None


def _tell(ledger: Ledger, arguments: argparse.Namespace, home: Path) -> None:
    """Write the summary, then print it: a terminal may be gone by now."""
    from solvisor_service.batch import report
    from solvisor_service.batch.summary import write
    from solvisor_service.cli.shared import print_json
    from solvisor_service.cli.text import console

    summary = ledger.summary()
    if arguments.out is not None:
        write(summary, arguments.out)
    if arguments.json:
        print_json(summary)
        return
    lines = report.lines(summary, home=home, folder=arguments.out, brought=ledger.brought)
    report.show(summary, [(label, homed(text, arguments)) for label, text in lines], console())


def _exit_status(ledger: Ledger) -> int:
    if ledger.wish:
        return EXIT_INTERRUPTED
    summary = ledger.summary()
    return 0 if summary.succeeded == summary.total and not ledger.missing else EXIT_JOB_FAILED
