"""What an attempt left: judged, listed, hashed and made durable, many attempts under one set of fsyncs.

Rules: unchanged inputs are told apart before anything is judged, so that a stale file never passes for a result; what
fails for one job is that job's alone, and a defect here ends in its manifest and not in the end of the daemon; trouble
of the machine is no verdict: the job is tried again; what takes long holds up nothing that does not. It posts nothing
and changes no state; it knows no processes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
import structlog
from msgspec.structs import replace

from . import failpoint
from .clock import now_us
from .hand import Hand
from .home import Home
from .judge import judge
from .kinds import AnySolver
from .model import Cause, Check, ExitFacts, FileFact, Job, JobSpec, Verdict
from .names import printable
from .processors import spread
from .records import converter
from .spool import NotDurable, Remains, Results, Survey, Syncs, TooMuch
from .spool.files import DEPTH_MAX
from .trouble import is_passing

COLLECTING_THREADS: Final = 2
"""Batches under way at once: one with gigabytes to hash does not hold up the next."""

SMALL: Final = 1 << 19
"""Who left no more bytes than this to read, or a few dozen small files, is judged in passing."""

OUTPUTS_INLINE = 1000
"""More outputs than this go to ``outputs.jsonl``, whose hash the manifest holds."""

_to_solver = converter(AnySolver)
_to_verdict = converter(Verdict)

log = structlog.get_logger()


class Collector:
    """Makes verdicts of what attempts left in their folders: of little in ``hand``, of much in threads of its own."""

    def __init__(self, home: Home, results: Results, hand: Hand) -> None:
        self._work = str(home.work)
        self._results = results
        self._hand = hand
        self._threads = anyio.CapacityLimiter(COLLECTING_THREADS)
        self._doubted: set[str] = set()
        self._solvers: dict[str, tuple[dict[str, Any], AnySolver]] = {}

    def doubt(self, job_ids: Iterable[str]) -> None:
        """What an earlier life left of these may never reach the disk, whatever a later fsync says: it is copied."""
        self._doubted.update(job_ids)

    async def collect(self, batch: Sequence[Job]) -> list[Verdict | None]:
        """The verdict on the last attempt of each job; ``None`` where the machine had no room: try again later.

        When this returns, what the verdicts name is durable. Raises ``NotDurable``.
        """
        verdicts, large = await self._hand.do(partial(self._collect, batch, most=SMALL))
        if large:
            rest = partial(self._collect, [batch[at] for at in large])
            found, _ = await anyio.to_thread.run_sync(spread(rest), limiter=self._threads)
            for at, verdict in zip(large, found, strict=True):
                verdicts[at] = verdict
        return verdicts

    def _collect(self, batch: Sequence[Job], most: float = math.inf) -> tuple[list[Verdict | None], list[int]]:
        """The verdicts, and the places of those for which more than ``most`` bytes of a job are to be read."""
        verdicts: list[Verdict | None] = []
        large: list[int] = []
        with Syncs() as syncs:
            for job in batch:
                try:
                    verdicts.append(self._examine(job, syncs, most))
                except TooMuch:
                    large.append(len(verdicts))
                    verdicts.append(None)
        failpoint.reach("collect.kept")
        return verdicts, large

    def _examine(self, job: Job, syncs: Syncs, most: float) -> Verdict | None:
        """The verdict; what is to be kept under it is durable once ``syncs`` are done."""
        try:
            if job.id in self._doubted:
                if most < math.inf:
                    raise TooMuch
                self._results.write_anew(job.id)
                self._doubted.discard(job.id)
            spec = job.spec
            with self._results.remains(job.id, spec.inputs, job.submitted_us, most) as remains:
                survey = remains.survey()
                verdict = _printable(replace(self._judge(job, spec, remains, survey), outputs=survey.outputs))
                if len(survey.outputs) > OUTPUTS_INLINE:
                    more = self._list_elsewhere(job.id, survey.outputs)
                    verdict = replace(verdict, outputs=survey.outputs[:OUTPUTS_INLINE], more_outputs=more)
                remains.keep(survey, syncs)
            return verdict
        except (NotDurable, TooMuch):
            raise
        except OSError as error:
            return _unreadable(job, error)
        except Exception as error:
            log.exception("job.not_judged", id=job.id)
            message = f"it could not be judged, by a defect of Solvisor: {type(error).__name__}: {error}"
            return Verdict(Cause.CHECK, "defect", printable(message))

    def _judge(self, job: Job, spec: JobSpec, remains: Remains, survey: Survey) -> Verdict:
        attempt = job.current
        verdict = judge(
            self._solver(spec.solver, attempt.settings.table),
            spec,
            self._folder(job.id),
            attempt.facts or ExitFacts(None, None, now_us()),
            timed_out=attempt.cause is Cause.TIMEOUT,
            unchanged=survey.unchanged,
            silent=survey.silent,
        )
        if survey.unread is not None:
            verdict = _with_unread(verdict, survey.unread)
        altered = remains.altered()
        return _with_altered(verdict, altered) if altered else verdict

    def _solver(self, name: str, table: dict[str, Any]) -> AnySolver:
        """The solver as it stood at an attempt; most attempts have the table of the one before."""
        known = self._solvers.get(name)
        if known is None or known[0] != table:
            known = self._solvers[name] = table, _to_solver(table)
        return known[1]

    def _folder(self, job_id: str) -> str:
        return f"{self._work}/{job_id}"

    def _list_elsewhere(self, job_id: str, outputs: tuple[FileFact, ...]) -> FileFact:
        lines = b"".join(msgspec.json.encode(fact) + b"\n" for fact in outputs)
        self._results.write_durably(Path(self._folder(job_id), "outputs.jsonl"), lines)
        return FileFact("outputs.jsonl", len(lines), hashlib.sha256(lines).hexdigest())


def _with_unread(verdict: Verdict, folder: str) -> Verdict:
    """A result of which a part is not known is none."""
    most = f"at most {DEPTH_MAX} folders within each other"
    verdict = replace(verdict, checks=(*verdict.checks, Check("outputs", most, f"output/{folder}", False)))
    if verdict.cause is not None:
        return verdict
    message = f"what the solver left in output/{folder} lies too deep to be listed and kept ({most}); have it flattened"
    return replace(verdict, cause=Cause.CHECK, code="outputs_deep", message=message)


def _with_altered(verdict: Verdict, altered: Sequence[str]) -> Verdict:
    """A job whose inputs were changed has no result: nobody could tell what it was computed from."""
    names = ", ".join(altered[:5]) + (f" and {len(altered) - 5} more" if len(altered) > 5 else "")
    verdict = replace(
        verdict, checks=(*verdict.checks, Check("inputs", "as they were dropped", f"{names} changed", False))
    )
    if verdict.cause is not None:
        return verdict
    message = (
        f"the solver, or somebody else, changed or removed its inputs ({names}) after they were taken; "
        "a solver gets copies to work on, in its working folder"
    )
    return replace(verdict, cause=Cause.CHECK, code="input_changed", message=message)


def _unreadable(job: Job, error: OSError) -> Verdict | None:
    """No verdict while the machine is in trouble; else one that says what could not be read."""
    if is_passing(error):
        log.error("job.collection_delayed", id=job.id, error=printable(str(error)))
        return None
    return Verdict(Cause.CHECK, "collect", printable(f"its outputs could not be read: {error}"))


def _printable(verdict: Verdict) -> Verdict:
    """The same verdict; with every text fit for rows and manifests, should one not be."""
    try:
        msgspec.json.encode(verdict)
    except UnicodeEncodeError:
        cleaned: Verdict = _to_verdict(_cleaned(msgspec.to_builtins(verdict)))
        return cleaned
    return verdict


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _cleaned(item) for key, item in value.items()}
    return [_cleaned(item) for item in value] if isinstance(value, list | tuple) else value
