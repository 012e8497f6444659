"""The manifest: what a user finds in ``manifest.json``, and the only way it is made.

Rules: it is built once, when a job becomes terminal, from the job and the verdict alone; the bytes go into the terminal
row and later, unchanged, to the disk. Times are RFC 3339 UTC, durations ``_seconds``, sizes ``_bytes``, paths relative
to the job's folder. The JSON Schema shipped beside the code is generated from these types. No I/O, no clock.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from typing import Any, Literal, cast

import msgspec
from msgspec import Struct

from . import __version__
from .model import Attempt, Cause, Check, FileFact, Job, Report, Retry, Source, Verdict

TerminalState = Literal["succeeded", "failed", "cancelled", "rejected", "skipped"]


class SolverFacts(Struct, frozen=True):
    """The solver as it stood at the last attempt. ``command`` is the argument list that was run."""

    name: str
    kind: str | None = None
    version: str | None = None
    command: tuple[str, ...] = ()


class AttemptFacts(Struct, frozen=True):
    """One try. ``cause`` says why it did not succeed; ``lost`` means interrupted and is not charged to the job."""

    n: int
    token: str
    host: str
    server: str | None
    port: int | None
    pid: int | None
    started: str
    finished: str | None
    exit_code: int | None
    signal: int | None
    cause: Cause | None
    code: str | None
    message: str | None
    cpu_user_seconds: float | None
    cpu_system_seconds: float | None
    max_rss_bytes: int | None
    max_rss_source: str | None


class Resources(Struct, frozen=True):
    """What was reserved for the last attempt."""

    cpus: int
    memory_bytes: int
    licenses: dict[str, int]


class Manifest(Struct, frozen=True):
    """The result of one job. Its presence as ``manifest.json`` means: finished, complete, and never to change."""

    schema: Literal[1]
    id: str
    name: str
    user: str | None
    project: str | None
    source: Source
    batch: str | None
    key: str | None
    solver: SolverFacts
    state: TerminalState
    cause: Cause | None
    code: str | None
    message: str | None
    checks: tuple[Check, ...]
    submitted: str
    started: str | None
    finished: str
    queue_seconds: float | None
    run_seconds: float | None
    attempts: tuple[AttemptFacts, ...]
    retry: Retry | None
    params: dict[str, Any]
    resources: Resources | None
    inputs: tuple[FileFact, ...]
    outputs: tuple[FileFact, ...]
    more_outputs: FileFact | None
    result: Any
    log_tail: str
    log_truncated: bool
    retry_of: str | None
    solvisor_version: str
    options: dict[str, Any] = {}


def rfc3339(time_us: int) -> str:
    """UTC microseconds as ``2026-01-31T12:00:00.123456Z``."""
    seconds, micros = divmod(time_us, 1_000_000)
    return f"{_to_the_second(seconds)}.{micros:06d}Z"


@functools.lru_cache(maxsize=256)  # what happens at about one time is told again and again
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def build(job: Job, verdict: Verdict | None) -> bytes:
    """The exact bytes of the manifest of a terminal ``job``; ``verdict`` is that of its last attempt, if it ran."""
    assert job.finished_us is not None, f"{job.id} is not finished"  # noqa: S101  a defect, not a user's mistake
    last = job.attempt
    verdict = verdict or Verdict(job.cause)
    report = last.facts.report if last and last.facts else None
    spec = job.spec
    manifest = Manifest(
        schema=1,
        id=job.id,
        name=spec.name,
        user=spec.user,
        project=spec.project,
        source=spec.source,
        batch=spec.batch,
        key=spec.key,
        solver=_solver(job, report),
        state=cast(TerminalState, str(job.state)),
        cause=job.cause,
        code=job.code,
        message=job.message,
        checks=verdict.checks,
        submitted=rfc3339(job.submitted_us),
        started=None if job.started_us is None else rfc3339(job.started_us),
        finished=rfc3339(job.finished_us),
        queue_seconds=None if job.started_us is None else max(0, job.started_us - job.submitted_us) / 1e6,
        run_seconds=run_seconds(last) if last else None,
        attempts=tuple(map(attempt_facts, job.attempts)),
        retry=last.settings.retry if last else spec.retry,
        params=spec.params,
        options=spec.options,
        resources=Resources(last.settings.cpus, last.settings.memory_bytes, last.settings.licenses) if last else None,
        inputs=spec.inputs,
        outputs=verdict.outputs,
        more_outputs=verdict.more_outputs,
        result=report.result if report else None,
        log_tail=verdict.log_tail,
        log_truncated=verdict.log_truncated,
        retry_of=spec.retry_of,
        solvisor_version=__version__,
    )
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def run_seconds(attempt: Attempt) -> float | None:
    """How long a try ran, if it has ended; where one life saw it all, whatever became of the clock meanwhile."""
    facts = attempt.facts
    if facts is None:
        return None
    return max(0, facts.finished_us - attempt.started_us) / 1e6 if facts.seconds is None else round(facts.seconds, 6)


def _solver(job: Job, report: Report | None) -> SolverFacts:
    """What carried the job out knows its own version better than what was resolved before it was chosen."""
    last = job.attempt
    if last is None:
        return SolverFacts(job.spec.solver)
    version = report.version if report else None
    return SolverFacts(job.spec.solver, last.settings.kind, version or last.settings.version, last.argv)


def attempt_facts(attempt: Attempt) -> AttemptFacts:
    """One try, as manifests and answers show it."""
    facts = attempt.facts
    return AttemptFacts(
        n=attempt.n,
        token=attempt.token,
        host=attempt.host,
        server=attempt.server,
        port=attempt.port,
        pid=attempt.pid,
        started=rfc3339(attempt.started_us),
        finished=rfc3339(facts.finished_us) if facts else None,
        exit_code=facts.exit_code if facts else None,
        signal=facts.signal if facts else None,
        cause=attempt.cause,
        code=attempt.code,
        message=attempt.message,
        cpu_user_seconds=facts.usage.cpu_user_seconds if facts else None,
        cpu_system_seconds=facts.usage.cpu_system_seconds if facts else None,
        max_rss_bytes=facts.usage.max_rss_bytes if facts else None,
        max_rss_source=facts.usage.max_rss_source if facts else None,
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the manifest."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Manifest)}
