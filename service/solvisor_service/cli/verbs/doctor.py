"""``solvisor doctor``: what is wrong with a home, its daemon and its machine, and how to mend it."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

from solvisor_service.cli.shared import Verbs, add_verb, config_of, home_of, homed, print_json

if TYPE_CHECKING:
    from solvisor_service.doctor import Finding

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "fault": "bold red"}


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verb = add_verb(
        verbs,
        "doctor",
        _doctor,
        help="look at home, machine, solvers and daemon, and say how to mend what is wrong",
        with_config=True,
        with_json=True,
        examples=(
            "  solvisor doctor                            exit status 1 if anything keeps the service from working\n"
            "  solvisor doctor --home /srv/solvisor --json\n"
            "  solvisor doctor --deep                     every row and index of the database, and every result\n"
        ),
    )
    deep = "also examine the whole database, beside a daemon too, and look for results without a row and rows without"
    verb.add_argument("--deep", action="store_true", help=deep)


def _doctor(arguments: argparse.Namespace) -> int:
    from msgspec import structs

    from solvisor.errors import SolvisorError

    if sys.platform == "win32":
        raise SolvisorError("the doctor knows Linux only; on Windows try: solvisor config check")
    from solvisor_service.cli.text import console
    from solvisor_service.doctor import Level, Subject, examine

    subject = Subject(home_of(arguments), config_of(arguments), deep=arguments.deep)
    with console(stderr=True).status("looking") if sys.stderr.isatty() else nullcontext():
        findings = examine(subject)
    if arguments.json:
        rows = [{"check": check, **structs.asdict(finding)} for check, finding in findings]
        print_json({"findings": rows})
    else:
        _print(str(subject.home), findings, arguments)
    return 1 if any(finding.level is Level.FAULT for _, finding in findings) else 0


def _print(home: str, findings: list[tuple[str, Finding]], arguments: argparse.Namespace) -> None:
    from rich.text import Text

    from solvisor_service.cli.text import clean, console, table

    out = console()
    rows: list[tuple[str | Text, str | Text, str | Text]] = []
    before = ""
    for check, finding in findings:
        label = Text(finding.level.value.upper() if finding.level == "fault" else finding.level.value)
        label.stylize(_STYLES[finding.level])
        rows.append((label, check if check != before else "", finding.found))
        if finding.mend:
            rows.append(("", "", Text(f"> {clean(homed(finding.mend, arguments))}", "bold")))
        before = check
    table(out, [(f"solvisor doctor, {home}",)])
    out.print()
    table(out, rows)
    out.print()
    out.print(_summary([finding.level.value for _, finding in findings]))


def _summary(levels: list[str]) -> str:
    counts = [(levels.count(level), level) for level in ("fault", "warning", "note")]
    said = [f"{count} {level}{'s' if count > 1 else ''}" for count, level in counts if count]
    return ", ".join(said) if said else "all is well"
