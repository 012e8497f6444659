"""``solvisor logs``: what a job's solver wrote to stdout or stderr."""

from __future__ import annotations

import argparse
import codecs
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, TypeAlias

from solvisor_service.cli.shared import (
    Verbs,
    add_verb,
    for_each,
    homed,
    print_json,
    reader_of,
    tell,
    text_given,
    whole_number,
)

if TYPE_CHECKING:
    from solvisor.views import JobView
    from solvisor_service.cli.away import Patience
    from solvisor_service.client import Client

Stream: TypeAlias = Literal["stdout", "stderr"]

_LONGEST_TAIL = 1 << 20
"""Bytes that ``--tail`` looks back at most."""
_NEAR_SECONDS = 0.3
"""How long the end of a job is waited for once its try has ended."""
_LONGEST_SEQUENCE = 256
"""Characters of a control sequence that may still be incomplete at the end of a piece."""

# ECMA-48: CSI up to its final byte; OSC, DCS, SOS, PM and APC up to BEL or ST; other escapes of two characters or more.
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-OQ-WYZ\\`-~])")
_EXAMPLES = """\
  solvisor logs last
  solvisor logs -f beam-1              as it is written, until the job is finished
  solvisor logs -f beam-1 beam-2       each line with the job it is of
  solvisor logs beam-1 --stderr --tail 20
  solvisor logs beam-1 --try 1 > first-try.log"""


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verb = add_verb(
        verbs,
        "logs",
        _logs,
        help="print what jobs' solvers wrote; as it stands when piped, without control sequences on a terminal",
        examples=_EXAMPLES,
        with_json=True,
    )
    verb.add_argument("jobs", nargs="+", metavar="JOB", type=text_given, help="an id, the beginning of one, or last")
    verb.add_argument("-f", "--follow", action="store_true", help="go on as it is written, until the job is finished")
    verb.add_argument("--stderr", action="store_true", help="stderr instead of stdout")
    verb.add_argument("--tail", metavar="N", type=whole_number(0), help="only the last N lines (of the last MiB)")
    verb.add_argument("--try", dest="attempt", metavar="N", type=whole_number(1), help="of an earlier try")


def _logs(arguments: argparse.Namespace) -> int:
    from solvisor_service.cli.away import Patience

    client = reader_of(arguments)
    if len(arguments.jobs) > 1:
        from solvisor_service.cli.manylogs import print_logs

        jobs: dict[str, JobView] = {}

        def find(name: str) -> None:
            job = client.job(name)
            jobs[job.id] = job

        status = for_each(arguments, find)
        return print_logs(client, [*jobs.values()], arguments) or status
    job = client.job(arguments.jobs[0])
    write = _writer(job.id, stream_of(arguments), as_json=arguments.json)
    for piece, offset in pieces_of(client, job, arguments, Patience(client, tell), tell):
        write(piece, offset)
    write(b"", None)
    return 0


def stream_of(arguments: argparse.Namespace) -> Stream:
    """Which log is asked for."""
    return "stderr" if arguments.stderr else "stdout"


def pieces_of(
    client: Client, job: JobView, arguments: argparse.Namespace, patience: Patience, told: Callable[[str], None]
) -> Iterator[tuple[bytes, int]]:
    """The log of a job as it is asked for, each piece with the offset of its end; ``told`` hears why there is none.

    A followed one goes on where it was once a daemon is back that went, as long as ``patience`` has some.
    """
    from solvisor_service.cli.jobtext import place_of

    which = stream_of(arguments)
    if job.removed:
        told(f"the files of {job.id} were {place_of(job)}")
    elif not job.tries:
        told(homed(_no_log(job), arguments))
    if arguments.follow:
        return _follow(client, job, which, arguments, patience, told)
    return _read(client, job.id, which, arguments.attempt, arguments.tail)


def _no_log(job: JobView) -> str:
    """Why there is nothing to print of a job that was not started."""
    from solvisor_service.cli.jobtext import is_over

    why = f"was {job.state.value} before it was started, so it wrote nothing" if is_over(job) else "waits to be started"
    return f"{job.id} {why}; see: solvisor explain {job.id}"


def _read(
    client: Client, job_id: str, which: Stream, attempt: int | None, tail: int | None, offset: int = 0
) -> Iterator[tuple[bytes, int]]:
    """Pieces of a log from ``offset`` on, or its last ``tail`` lines, up to its end now; each with its own end."""
    if tail is not None:
        piece, offset = client.log(job_id, which, tail=_LONGEST_TAIL, attempt=attempt)
        yield _last_lines(piece, tail), offset
    while True:
        piece, offset = client.log(job_id, which, offset=offset, attempt=attempt)
        if not piece:
            return
        yield piece, offset


def _last_lines(data: bytes, count: int) -> bytes:
    lines = data.split(b"\n")
    whole = [line + b"\n" for line in lines[:-1]]
    return b"".join((whole + [lines[-1]] * bool(lines[-1]))[-count:]) if count else b""


def _follow(
    client: Client,
    job: JobView,
    which: Stream,
    arguments: argparse.Namespace,
    patience: Patience,
    told: Callable[[str], None],
) -> Iterator[tuple[bytes, int]]:
    """The same until the job is finished; without ``--try`` from one try on to the next, of which ``told`` hears."""
    from solvisor_service.cli.jobtext import is_over
    from solvisor_service.client import NotRunning

    if is_over(job) and not job.tries:
        return
    job_id, attempt, tail = job.id, arguments.attempt, arguments.tail
    current, offset = attempt or max(1, job.tries), 0
    if tail is not None and current <= job.tries:
        piece, offset = client.log(job_id, which, tail=_LONGEST_TAIL, attempt=current)
        yield _last_lines(piece, tail), offset
    while True:
        try:
            with client.follow(job_id, which, attempt=current, offset=offset) as log:
                offset = log.offset
                for piece in log.pieces:
                    offset += len(piece)
                    yield piece, offset
        except NotRunning as error:
            patience.bear(error)
            patience.ask(lambda: client.job(job_id))
            continue
        job = patience.ask(lambda: client.job(job_id, wait=_NEAR_SECONDS))
        if job.tries <= current:
            if is_over(job):
                return
            patience.ask(client.must_run)  # nobody else goes on with it
        rests = job.state == "queued" and job.tries == current
        if job.tries > current or rests:
            if attempt is not None:
                return
            current, offset = current + 1, 0
            told(f"{'waits for ' * rests}try {current} of {job.tries_max}")


def _writer(job_id: str, which: Stream, *, as_json: bool) -> Callable[[bytes, int | None], None]:
    """What prints pieces of the log; it is called with an empty last one."""
    if not (as_json or sys.stdout.isatty()):

        def write_raw(piece: bytes, _: int | None) -> None:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()

        return write_raw

    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    screen = Screen()
    ended_in = "\n"

    def write_text(piece: bytes, offset: int | None) -> None:
        text = decode(piece, offset is None)
        if as_json:
            if text:
                print_json({"id": job_id, "stream": which, "offset": offset, "text": text}, line=True)
        else:
            nonlocal ended_in
            shown = screen.shown(text, last=offset is None)
            ended_in = shown[-1:] or ended_in
            if offset is None and ended_in != "\n":
                shown += "\n"  # what is typed next begins a line
            sys.stdout.write(shown)
            sys.stdout.flush()

    return write_text


class Screen:
    """What may be shown on a terminal of a text that comes in pieces."""

    def __init__(self) -> None:
        self._held = ""

    def shown(self, text: str, *, last: bool = False) -> str:
        """``text`` without control sequences and characters; what may be half a sequence is held back for the next."""
        text, self._held = self._held + text, ""
        if not last:
            end = _whole(text)
            text, self._held = text[:end], text[end:]
        text = _SEQUENCE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
        return "".join(char for char in text if char.isprintable() or char in "\n\t")


def _whole(text: str) -> int:
    """Where in ``text`` something begins that may be only half there."""
    escape = text.rfind("\x1b")
    if escape >= 0 and len(text) - escape < _LONGEST_SEQUENCE and not _SEQUENCE.match(text, escape):
        return escape
    return len(text) - text.endswith("\r")
