"""``solvisor try``: one input exactly as the service would run it, with all there is to see."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from solvisor_service.cli.shared import (
    FILES,
    FOLDERS,
    Verbs,
    add_verb,
    completed,
    config_of,
    given,
    home_of,
    homed,
    path_given,
    print_json,
    text_given,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from solvisor.config import Config
    from solvisor.interfaces import AttemptSpec
    from solvisor.manifest import Manifest
    from solvisor_service.holder import Surroundings
    from solvisor_service.trial import EnvironmentDifference, Order, Trial

_INTERRUPTED = 130
_FILES_SHOWN = 20
"""So many of its files are named."""

_LAST_BYTES = 400
_LABEL_WIDTH = len("environment")


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verb = add_verb(
        verbs,
        "try",
        _try,
        help="run one input as the service would, and show command, environment, checks and verdict",
        with_config=True,
        with_json=True,
        examples=(
            "  solvisor try ccx beam.inp                   would it succeed as a job, and if not, why?\n"
            "  solvisor try ccx beam.inp mesh.inc          the first file is {input}, the others go along\n"
            "  solvisor try cbc hard.lp --param seconds=5  a parameter that the solver declares\n"
            "  solvisor try ccx beam.inp --keep ./look     keep the job's folder to look at"
        ),
    )
    verb.add_argument("solver", metavar="SOLVER", type=text_given, help="a solver of the configuration")
    files = "the input and what goes along, a job file, or a folder"
    completed(verb.add_argument("files", metavar="FILE", nargs="+", type=given, help=files), FILES)
    verb.add_argument("--param", metavar="NAME=VALUE", action="append", default=[], help="a parameter; may be repeated")
    keep = "move the job's folder here; without it nothing stays"
    completed(verb.add_argument("--keep", metavar="DIR", type=path_given, help=keep), FOLDERS)


def _try(arguments: argparse.Namespace) -> int:
    from solvisor.errors import SolvisorError

    if sys.platform == "win32":
        raise SolvisorError("this release runs solvers on Linux only; on Windows it cannot try them yet")
    from solvisor import config, log
    from solvisor_service import targets, trial
    from solvisor_service.cli.text import console
    from solvisor_service.holder import surroundings

    home = home_of(arguments)
    loaded = config.load(config_of(arguments))
    order = trial.Order(
        solver=arguments.solver,
        files=tuple(map(Path, arguments.files)),
        params=dict(map(targets.param, arguments.param)),
    )
    around = surroundings(home)
    keep = arguments.keep.absolute() if arguments.keep is not None else None
    lines = log.configure(sys.stderr, level="error")
    try:
        if arguments.json:
            done = trial.try_out(loaded, home, order, around, keep=keep, watcher=_Silence())
            _print_json(done, around, keep)
        else:
            out = console()
            with _Onlooker(out, console(stderr=True), order, loaded, around) as onlooker:
                done = trial.try_out(loaded, home, order, around, keep=keep, watcher=onlooker)
            _print_end(out, done, order, keep, arguments)
    finally:
        lines.close()
    if done.interrupted:
        return _INTERRUPTED
    return 0 if done.manifest.state == "succeeded" else 1


class _Silence:
    """Tells nothing while it runs."""

    def starting(self, spec: AttemptSpec, difference: EnvironmentDifference) -> None:
        """Not shown."""

    def running(self, spec: AttemptSpec, seconds: float) -> None:
        """Not shown."""

    def stopping(self) -> None:
        """Not shown."""


class _Onlooker:
    """Shows what is started, and on a terminal the last thing the solver said.

    With a warm server several programs are: it, its client, what asks it to end. What they have in common is told once.
    """

    def __init__(self, out: Console, errors: Console, order: Order, config: Config, around: Surroundings) -> None:
        self._out = out
        self._errors = errors
        self._order = order
        self._config = config
        self._around = around
        self._server: AttemptSpec | None = None
        self._told: set[tuple[str, str]] = set()
        self._status: Status | None = None

    def __enter__(self) -> _Onlooker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def starting(self, spec: AttemptSpec, difference: EnvironmentDifference) -> None:
        """Print what is about to be executed."""
        from rich.text import Text

        from solvisor_service.cli.text import table

        rows = [
            ("solver", f"{self._order.solver}, as in {self._config.path}"),
            (self._role(spec), shlex.join(spec.argv)),
            ("folder", spec.cwd),
            ("environment", _base(self._around)),
            *(("", line) for line in _differences(difference)),
        ]
        new = [row for row in rows if row not in self._told]
        self._told.update(rows)
        if self._status is not None:
            self._status.stop()
        table(self._out, [(Text(label.ljust(_LABEL_WIDTH)), words) for label, words in new])
        sys.stdout.flush()
        if self._errors.is_terminal:
            self._status = self._errors.status("running")
            self._status.start()

    def _role(self, spec: AttemptSpec) -> str:
        """What a program is for: a server started anew has the folder of the first, what asks it to end its token."""
        from solvisor.kinds import WarmSolver

        if not isinstance(self._config.solver[self._order.solver], WarmSolver):
            return "command"
        server = self._server
        if server is not None and spec.token.startswith(f"{server.token}."):
            return "quit"
        if server is None or spec.cwd == server.cwd:
            self._server = spec
            return "server"
        return "client"

    def running(self, spec: AttemptSpec, seconds: float) -> None:
        """Show how long, and the last line of its output."""
        from rich.text import Text

        from solvisor_service.cli.text import duration

        if self._status is not None:
            line = f"running {duration(seconds)}   {_last_line(spec.stdout)}"
            self._status.update(Text(line[: max(20, self._errors.width - 4)], no_wrap=True))

    def stopping(self) -> None:
        """Say that it takes its time."""
        self._errors.print("stopping the solver; Ctrl-C again kills it at once")


def _base(around: Surroundings) -> str:
    if around.daemon is None:
        return "made of this shell's; a daemon may be started with another PATH"
    if around.unread is not None:
        return f"made of this shell's: that of the daemon (pid {around.daemon}) cannot be read ({around.unread})"
    return f"made of that of the daemon (pid {around.daemon}), as for its jobs; against this shell's:"


def _differences(difference: EnvironmentDifference) -> Iterator[str]:
    """One line for each variable that matters."""
    from solvisor_service.trial import telling

    for name, value in difference.added.items():
        yield f"+ {name}={value}"
    for name, (value, here) in difference.changed.items():
        yield f"~ {name}={value}  (here: {here})"
    first = telling(difference.missing)
    if first:
        yield f"- {', '.join(first)}  (pass_env passes them on)"
    others = difference.missing[len(first) :]
    if others:
        yield f"- {'and ' if first else ''}{len(others)} {'more' if first else 'that solvers seldom need'}"


def _last_line(path: str) -> str:
    from solvisor_service.cli.text import clean

    try:
        with open(path, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((clean(line) for line in reversed(lines) if line.strip()), "")


# --- the end ----------------------------------------------------------------------------------------------------------


def _print_end(out: Console, done: Trial, order: Order, keep: Path | None, arguments: argparse.Namespace) -> None:
    from rich.text import Text

    from solvisor_service.cli.text import size, table

    manifest = done.manifest
    said = manifest.log_tail.strip("\n")
    if said:
        out.print("\nthe last of its output")
        for line in said.splitlines():
            out.print(Text("  " + line.expandtabs()), soft_wrap=True)
    if manifest.checks and not done.interrupted:
        out.print("\nchecks")
        rows = [
            (
                Text("ok", "green") if check.ok else Text("FAILED", "bold red"),
                check.check,
                check.got if check.ok else f"{check.got}; wanted: {check.want}",
            )
            for check in manifest.checks
        ]
        table(out, rows, indent=2)
    if manifest.outputs:
        out.print("\nfiles")
        files = [(size(fact.size), fact.path) for fact in manifest.outputs[:_FILES_SHOWN]]
        table(out, files, right={0}, indent=2)
        if len(manifest.outputs) > _FILES_SHOWN:
            out.print(f"  and {len(manifest.outputs) - _FILES_SHOWN} more")
    conclusion = [(label, text) for label, text in _conclusion(done, order, keep) if text]
    rows_at_end = [(label, homed(text, arguments) if label == "next" else text) for label, text in conclusion]
    if done.launched is not None:
        out.print()
    table(out, [(Text(label, _STYLES.get(label, "")), text) for label, text in rows_at_end])


_STYLES = {"OK": "bold green", "FAILED": "bold red", "REJECTED": "bold red", "STOPPED": "bold yellow"}


def _conclusion(done: Trial, order: Order, keep: Path | None) -> Iterator[tuple[str, str]]:
    """What it used, what it would have become, and what to do next."""
    manifest = done.manifest
    if done.launched is not None:
        yield "used", _used(manifest)
    message = manifest.message or ""
    if manifest.state == "succeeded":
        yield "OK", "as a job it would succeed"
    elif manifest.state == "failed":
        why = ", ".join(dict.fromkeys(word for word in (manifest.cause, manifest.code) if word))
        yield "FAILED", f"as a job it would fail ({why}): {message}"
    elif manifest.state == "rejected":
        yield "REJECTED", f"as a job it would be refused: {message}"
    else:
        yield "STOPPED", "it was stopped before its end, so nothing is known of its result"
    for advice in done.advice:
        yield "next", advice
    if manifest.state == "succeeded":
        yield "next", f"run it as a job: {_submission(order)}"
    if keep is not None:
        yield "kept", str(keep)


def _used(manifest: Manifest) -> str:
    from solvisor_service.cli.text import duration, size

    last = manifest.attempts[-1]
    parts = [duration(manifest.run_seconds)] if manifest.run_seconds is not None else []
    if last.cpu_user_seconds is not None:
        parts.append(f"processor {duration(last.cpu_user_seconds + (last.cpu_system_seconds or 0.0))}")
    if last.max_rss_bytes is not None:
        how = "at least " if last.max_rss_source == "sampled" else ""
        parts.append(f"memory {how}{size(last.max_rss_bytes)}")
    return ", ".join(parts)


def _submission(order: Order) -> str:
    from solvisor.params import param_text

    first, *others = order.files
    params = [f"{name}={param_text(value)}" for name, value in order.params.items()]
    options = [*(("--with", str(file)) for file in others), *(("--param", param) for param in params)]
    words = ["solvisor", "submit", "--solver", order.solver, str(first), *(word for pair in options for word in pair)]
    return shlex.join(words)


def _print_json(done: Trial, around: Surroundings, keep: Path | None) -> None:
    launched, difference = done.launched, done.environment
    answer = {
        "state": done.manifest.state,
        "message": done.manifest.message,
        "advice": done.advice,
        "argv": None if launched is None else launched.argv,
        "folder": None if launched is None else launched.cwd,
        "environment": None
        if difference is None
        else {
            "daemon_pid": None if around.unread else around.daemon,
            "added": difference.added,
            "changed": {name: {"solver": value, "here": here} for name, (value, here) in difference.changed.items()},
            "missing": difference.missing,
        },
        "kept": None if keep is None else str(keep),
        "manifest": done.manifest,
    }
    print_json(answer)
