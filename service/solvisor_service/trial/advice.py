"""What to change so that a job succeeds, or what makes a success worth more.

Rules: one sentence each, naming the key of the configuration; what the message says already is not repeated.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Final

from solvisor.kinds import AnySolver, SolverConfig, programs
from solvisor.manifest import Manifest
from solvisor.model import Cause
from solvisor_service.trial.environment import EnvironmentDifference, often_missed

_LISTED: Final = 5


def advise(
    manifest: Manifest, solver: AnySolver, difference: EnvironmentDifference | None, caller: Mapping[str, str]
) -> tuple[str, ...]:
    """What to do about a verdict, one sentence each. ``caller`` is the environment of whoever tried it."""
    name, success = manifest.solver.name, f"[solver.{manifest.solver.name}.success]"
    if manifest.state == "succeeded" and not (solver.success.outputs or solver.success.log_forbid):
        text = "only the exit code was looked at, and many solvers exit 0 without a result"
        return (f"{text}: name the outputs of a good run in {success}",)
    if manifest.state != "failed":
        return ()
    if manifest.cause is Cause.SPAWN:
        return tuple(_advice_on_program(manifest, solver, caller))
    advice = [*_advice_on_cause(manifest, solver, name, success)]
    if solver.retry.max and manifest.cause in solver.retry.on:
        times = "once" if solver.retry.max == 1 else f"up to {solver.retry.max} times"
        advice.append(f"the service would try it again {times}, by [solver.{name}.retry]")
    if not solver.success.error_pattern and manifest.cause is not Cause.TIMEOUT:
        advice.append(f"error_pattern in {success} can make the solver's own error sentence the message")
    wanted = [] if difference is None else often_missed(difference.missing)
    if wanted:
        listed = ", ".join(f'"{variable}"' for variable in wanted)
        advice.append(f"your shell has variables that it did not get; if it needs them: pass_env = [{listed}]")
    return tuple(advice)


def _advice_on_cause(manifest: Manifest, solver: SolverConfig, name: str, success: str) -> Iterator[str]:
    pattern = solver.success.error_pattern
    if pattern and manifest.cause in (Cause.EXIT, Cause.CHECK) and re.search(pattern, manifest.log_tail, re.MULTILINE):
        yield f"that is how {name} itself puts it: correct the input, and try it again"
        return
    match manifest.cause, manifest.code:
        case Cause.EXIT, _:
            code = manifest.attempts[-1].exit_code
            yield f"if a good run of {name} exits with {code}, add it to exit in {success}"
        case Cause.TIMEOUT, _:
            yield f"if it needs longer, raise timeout in [solver.{name}], or give this job its own in a job file"
        case Cause.CHECK, "output_missing":
            found = [fact.path.removeprefix("output/") for fact in manifest.outputs if fact.path.startswith("output/")]
            if found:
                more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
                yield f"it wrote {', '.join(found[:_LISTED])}{more}; if that is the result, name it in {success}"
            else:
                yield "it wrote no file: compare the command above with the one that works by hand"
        case Cause.CHECK, "log_forbid":
            yield f"if that line is harmless, narrow log_forbid in {success}"


def _advice_on_program(manifest: Manifest, solver: AnySolver, caller: Mapping[str, str]) -> Iterator[str]:
    """The service looks for programs on its own PATH; the caller's may know more."""
    if manifest.code == "program_missing":
        for key, (program, *_) in programs(solver).items():
            found = shutil.which(program, path=caller.get("PATH"))
            if found is not None and program in (manifest.message or ""):
                yield f"your shell finds it as {found}: put that into {key}"
