"""``solvisor explain``: why a job is where it is."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from solvisor_service.cli.shared import Verbs, add_verb, homed, print_json, reader_of, text_given

if TYPE_CHECKING:
    from solvisor.views import Explanation, Finding


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verb = add_verb(
        verbs,
        "explain",
        _explain,
        help="say why a job waits, how long it has been running, or why it failed",
        examples="  solvisor explain last\n  solvisor explain riser-018",
        with_json=True,
    )
    verb.add_argument("job", metavar="JOB", type=text_given, help="an id, the beginning of one, or last")


def _explain(arguments: argparse.Namespace) -> int:
    answer = reader_of(arguments).explain(arguments.job)
    if arguments.json:
        print_json(answer)
    else:
        _show(answer, arguments)
    return 0


def _show(answer: Explanation, arguments: argparse.Namespace) -> None:
    from rich.text import Text

    from solvisor_service.cli import text
    from solvisor_service.cli.jobtext import STYLES, checks_rows, clock, is_over, labelled, place_of, whose

    out = text.console()
    job = answer.job
    over = is_over(job)
    style = STYLES.get(job.state, "") if over else ""
    head = Text.assemble((job.id, "bold"), f" {text.clean(whose(job))} ", (text.clean(answer.headline), style))
    text.table(out, [[head]])
    if over and job.message:
        text.table(out, [[job.message]], indent=2)
    text.table(out, checks_rows(answer.checks), indent=2, wrap=1)
    rows = [(labelled(finding.label), homed(_words(finding), arguments)) for finding in answer.findings]
    if job.state == "running" and job.started and job.run_seconds is not None:
        rows.append((labelled("since"), f"{clock(job.started)}, {text.duration(job.run_seconds)} so far"))
    if over:
        rows.append((labelled("files"), place_of(job)))
    if answer.next:
        rows.append((labelled("next"), homed(answer.next, arguments)))
    text.table(out, rows, indent=2)


def _words(finding: Finding) -> str:
    from solvisor_service.cli.jobtext import holders_words

    if finding.holders:
        return f"{finding.text}: {holders_words(finding.holders)}"
    fits = not finding.holds and finding.total is not None
    return f"{finding.text}: ok" if fits else finding.text
