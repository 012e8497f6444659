"""What an attempt left: judged, listed, hashed and made durable, many attempts under one set of fsyncs.

Rules: unchanged inputs are told apart before anything is judged, so that a stale file never passes for a result; what
fails for one job is that job's alone, and a defect here ends in its manifest and not in the end of the daemon; trouble
of the machine is no verdict: the job is tried again. It posts nothing and changes no state; it knows no processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
import structlog
from msgspec.structs import replace

from .clock import now_us
from .home import Home
from .judge import judge
from .kinds import AnySolver
from .model import Cause, Check, ExitFacts, FileFact, Job, Verdict
from .names import printable
from .spool import NotDurable, Results, Survey
from .trouble import is_passing

COLLECTING_THREADS = 2
"""Batches under way at once: one with gigabytes to hash does not hold up the next."""

OUTPUTS_INLINE = 1000
"""More outputs than this go to ``outputs.jsonl``, whose hash the manifest holds."""

log = structlog.get_logger()


class Collector:
    """Makes verdicts of what attempts left in their folders."""

    def __init__(self, home: Home, results: Results) -> None:
        self._home = home
        self._results = results
        self._threads = anyio.CapacityLimiter(COLLECTING_THREADS)

    async def collect(self, batch: Sequence[Job]) -> list[Verdict | None]:
        """The verdict on the last attempt of each job; ``None`` where the machine had no room: try again later.

        When this returns, what the verdicts name is durable. Raises ``NotDurable``.
        """
        return await anyio.to_thread.run_sync(self._collect, batch, limiter=self._threads)

    def _collect(self, batch: Sequence[Job]) -> list[Verdict | None]:
        examined = [self._examine(job) for job in batch]
        verdicts = [verdict for verdict, _ in examined]
        surveys = {at: survey for at, (_, survey) in enumerate(examined) if survey is not None}
        errors = self._results.keep([(batch[at].id, survey) for at, survey in surveys.items()])
        for at, error in zip(surveys, errors, strict=True):
            if error is not None:
                verdicts[at] = _unreadable(batch[at], error)
        return verdicts

    def _examine(self, job: Job) -> tuple[Verdict | None, Survey | None]:
        """The verdict, and what is to be kept under it."""
        try:
            survey = self._results.survey(job.id, job.spec.inputs)
            verdict = replace(self._judge(job, survey), outputs=survey.outputs)
            if len(survey.outputs) > OUTPUTS_INLINE:
                more = self._list_elsewhere(self._home.work / job.id, survey.outputs)
                verdict = replace(verdict, outputs=survey.outputs[:OUTPUTS_INLINE], more_outputs=more)
            return _printable(verdict), survey
        except NotDurable:
            raise
        except OSError as error:
            return _unreadable(job, error), None
        except Exception as error:
            log.exception("job.not_judged", id=job.id)
            message = f"it could not be judged, by a defect of Solvisor: {type(error).__name__}: {error}"
            return Verdict(Cause.CHECK, "defect", printable(message)), None

    def _judge(self, job: Job, survey: Survey) -> Verdict:
        attempt = job.current
        solver: AnySolver = msgspec.convert(attempt.settings.table, AnySolver)
        facts = attempt.facts or ExitFacts(None, None, now_us())
        timed_out = attempt.cause is Cause.TIMEOUT
        folder = self._home.work / job.id
        verdict = judge(solver, job.spec, folder, facts, timed_out=timed_out, unchanged=survey.unchanged)
        altered = self._results.altered_inputs(job.id, job.spec.inputs, attempt.started_us)
        return _with_altered(verdict, altered) if altered else verdict

    def _list_elsewhere(self, folder: Path, outputs: tuple[FileFact, ...]) -> FileFact:
        lines = b"".join(msgspec.json.encode(fact) + b"\n" for fact in outputs)
        self._results.write_durably(folder / "outputs.jsonl", lines)
        return FileFact("outputs.jsonl", len(lines), hashlib.sha256(lines).hexdigest())


def _with_altered(verdict: Verdict, altered: Sequence[str]) -> Verdict:
    """A solver that changed its own inputs has no result: nobody could tell what it was computed from."""
    names = ", ".join(altered[:5]) + (f" and {len(altered) - 5} more" if len(altered) > 5 else "")
    verdict = replace(
        verdict, checks=(*verdict.checks, Check("inputs", "as they were dropped", f"{names} changed", False))
    )
    if verdict.cause is not None:
        return verdict
    message = f"the solver changed or removed its inputs ({names}); it gets copies to work on, in its working folder"
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
        return msgspec.convert(_cleaned(msgspec.to_builtins(verdict)), Verdict)
    return verdict


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _cleaned(item) for key, item in value.items()}
    return [_cleaned(item) for item in value] if isinstance(value, list | tuple) else value
