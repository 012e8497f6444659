"""Job files: what a user asks for, in the words of the file.

Rules: the bytes come from anyone, so they are bounded before they are parsed, and every text in a message is made
harmless; all faults are named at once, with their lines. This module does not know which solvers there are, or which
files lie beside this one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct, field

from . import tomltext
from .errors import Refused
from .fieldtypes import Count, FileName, LicenseName, Priority, Scalar, Size, SolverName, Text, Timeout, doc
from .kindchecks import check_retry
from .kinds import OmcSolver, RetryTable, SolverConfig
from .model import Retry
from .modeljob import ModelJob, Override, ParameterName, Simulate, check_model_job
from .params import WORDS
from .tables import DISTINCT, Faults, editor_schema, read

LARGEST_FILE: Final = 64 << 10


class JobFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a job file asks for; what it leaves out is as the solver says."""

    solver: Annotated[SolverName | None, doc("The solver; may be left out below inbox/SOLVER.")] = None
    inputs: Annotated[tuple[FileName, ...], DISTINCT, doc("Names of files beside this one; the first is {input}.")] = ()
    name: Annotated[Text | None, doc("What people call the job.")] = None
    project: Annotated[Text | None, doc("A label that related jobs share.")] = None
    priority: Annotated[Priority, doc("Higher starts first.")] = 0
    params: Annotated[dict[str, Scalar], doc("Values for the parameters that the solver declares.")] = {}
    after: Annotated[tuple[Text, ...], DISTINCT, doc("Ids of jobs that must succeed first.")] = ()
    key: Annotated[Text | None, doc("A job with a key that was accepted before is not accepted again.")] = None
    timeout: Annotated[Timeout | None, doc("The longest run.")] = None
    cpus: Annotated[Count | None, doc("Cores reserved for the job.")] = None
    memory: Annotated[Size | None, doc("Memory reserved for the job.")] = None
    licenses: Annotated[
        dict[LicenseName, Annotated[int, Meta(ge=0, le=1_000_000)]] | None, doc("Licenses the job holds.")
    ] = None
    retry_table: Annotated[RetryTable | None, doc("When a failed attempt is tried again.")] = field(
        default=None, name="retry"
    )
    simulate: Annotated[Simulate | None, doc("How the model is simulated; only for solvers of kind omc.")] = None
    overrides: Annotated[
        dict[ParameterName, Override] | None,
        doc('Values for parameters of the model, such as "body.mass" = 2; only for solvers of kind omc.'),
    ] = None

    @property
    def retry(self) -> Retry | None:
        """The retry rule in force for this job, if it brings one."""
        return None if self.retry_table is None else self.retry_table.rule()


def parse_job_file(data: bytes, name: str) -> JobFile:
    """Read a job file; ``name`` is for messages.

    Raises ``Refused`` with code ``job_file_too_large``, ``job_file_syntax``, ``job_file_key`` (a key that does not
    exist) or ``job_file_value``; the message names every fault.
    """
    if len(data) > LARGEST_FILE:
        raise Refused("job_file_too_large", f"{name} is larger than {LARGEST_FILE >> 10} KiB")
    try:
        text = data.decode("utf-8-sig")  # editors on Windows put a mark in front
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Refused("job_file_syntax", f"{name}: line {line}: not UTF-8; save the file as UTF-8") from None
    try:
        table = tomltext.parse(text)
    except ValueError as error:
        raise Refused("job_file_syntax", f"{name}: {error}") from None
    faults = Faults()
    job = read(JobFile, table, faults)
    if job is not None and job.retry_table is not None and not faults.below(("retry",)):
        check_retry(("retry",), job.retry_table, faults)
    if job is not None and job.simulate is not None:
        check_model_job((), ModelJob(simulate=job.simulate), faults)
    if job is None or faults.found:
        code = "job_file_key" if any(fault.unknown_key for fault in faults.found) else "job_file_value"
        raise Refused(code, f"{name}: {'; '.join(faults.lines(tomltext.locate(text)))}")
    return job


def named_inputs(data: bytes) -> tuple[str, ...]:
    """The names that a faulty job file still gives as its inputs, as far as they can be made out.

    A job file that is rejected must not leave its inputs behind, to run without what it asked for.
    """
    text = data[:LARGEST_FILE].decode("utf-8-sig", errors="replace")
    try:
        named = tomltext.parse(text).get("inputs", [])
    except ValueError:
        found = re.search(r"^[ \t]*inputs\s*=\s*\[([^\]]*)", text, re.MULTILINE)
        named = re.findall(r"""["']([^"'\n]+)["']""", found[1]) if found else []
    names = named if isinstance(named, list) else [named]
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str) and name and "/" not in name))


def check_params(solver: SolverConfig, params: Mapping[str, Any]) -> dict[str, Scalar]:
    """The values a job gives, checked against what its solver declares. Defaults are applied later, at each attempt.

    Raises ``Refused("param", ...)`` with every fault: undeclared names, wrong values, missing ones.
    """
    faults = Faults()
    checked: dict[str, Scalar] = {}
    for name, value in params.items():
        if name not in solver.params:
            faults.add_unknown(("params", name), solver.params, noun="parameter of this solver")
            continue
        try:
            checked[name] = solver.params[name].check(value)
        except ValueError as error:
            faults.add(("params", name), str(error))
    for name, param in solver.params.items():
        if param.default is None and name not in params:
            faults.add(("params", name), f"the solver needs {WORDS[param.type]}; give it in a job file")
    if faults.found:
        raise Refused("param", "; ".join(faults.lines({})))
    return checked


def check_options(name: str, solver: SolverConfig, job: JobFile) -> dict[str, Any]:
    """The tables of a job file that only the kind of its solver, ``name``, knows: as plain values, for its row.

    Raises ``Refused("param", ...)`` for those that it does not know.
    """
    asked: dict[str, Any] = {}
    if job.simulate is not None:
        settings = msgspec.to_builtins(job.simulate)
        asked["simulate"] = {key: value for key, value in settings.items() if value is not None}
    if job.overrides is not None:
        asked["overrides"] = dict(job.overrides)
    if asked and not isinstance(solver, OmcSolver):
        listed = " and ".join(asked)
        raise Refused("param", f'{listed}: only for solvers of kind "omc", and {name} is of kind "{solver.kind}"')
    return asked


def job_schema() -> dict[str, Any]:
    """The JSON Schema of a job file, for editors."""
    return editor_schema(JobFile, "Solvisor job")
