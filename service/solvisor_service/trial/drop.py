"""What is tried, as a drop: copied into the throw-away inbox, claimed and decided there as any other.

Rules: the user's own files are read and never touched. Where there is no job file the command line says what one would:
the solver and the parameters. This module must not know how a job runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import tomli_w
from msgspec import Struct
from msgspec.structs import replace

from solvisor.clock import now_us
from solvisor.config import Config
from solvisor.errors import Refused
from solvisor.home import Home, IdMaker
from solvisor.intake import decide
from solvisor.jobfile import check_params, parse_job_file
from solvisor.model import Intake, Limits
from solvisor.names import FOLDER_JOB_FILE, is_job_file
from solvisor.spool import Claims, NotYet, Take, files
from solvisor_service.client import Upload
from solvisor_service.targets import UsageError, prepare

if sys.platform == "win32":
    raise ImportError("solvisor_service.trial.drop does what only Linux can and cannot be used on Windows")


class Order(Struct, frozen=True):
    """What to try: the first file is ``{input}`` (or a job file, or a folder), the others go along."""

    solver: str
    files: tuple[Path, ...]
    params: dict[str, Any] = {}


def take_in(config: Config, limits: Limits, away: Home, order: Order) -> Intake:
    """Drop copies of the files into the inbox of the home ``away``, claim them, and have them decided.

    Raises ``UsageError`` and ``Refused`` for what never gets as far as a drop.
    """
    target, *companions = order.files
    is_folder = target.is_dir()
    job_file = FOLDER_JOB_FILE if is_folder else target.name
    has_job_file = (target / FOLDER_JOB_FILE).exists() if is_folder else is_job_file(target.name)
    wishes = {"params": order.params} if has_job_file and order.params else {}
    prepared = prepare(target, companions, wishes)
    folder = Path(order.solver, target.resolve().name) if is_folder else Path(order.solver)
    place = away.inbox / folder
    place.mkdir(parents=True)
    names = [upload.name for upload in prepared.uploads]
    if has_job_file:
        data = prepared.job if isinstance(prepared.job, bytes) else tomli_w.dumps(prepared.job or {}).encode()
        asked = parse_job_file(data, job_file).solver
        if asked not in (None, order.solver):
            raise UsageError(f"{target} asks for the solver {asked}; run: solvisor try {asked} {target}")
        (place / job_file).write_bytes(data)
        names.insert(0, job_file)
    for upload in prepared.uploads:
        _copy(upload, place)
    sources = (str(folder),) if is_folder else tuple(str(folder / name) for name in names)
    take = Take(IdMaker().new_id(target.name, now_us()), sources, route=order.solver, folder=is_folder, quiet=True)
    (taken,) = Claims(away).claim_round([take])
    if isinstance(taken, NotYet):
        raise UsageError(f"{target}: {taken.text}")
    intake = decide(config, limits, away, taken)
    if has_job_file or not intake.spec.primary:
        return intake
    try:
        params = dict(check_params(config.solver[order.solver], order.params))
    except Refused as refused:
        return replace(intake, refusal=(refused.refusal, f"{target.name}: {refused}"))
    return Intake(intake.id, replace(intake.spec, solver=order.solver, params=params))


def _copy(upload: Upload, place: Path) -> None:
    """Copy a file to where it is dropped, sharing its blocks where the disk can."""
    target = place / upload.name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with upload.path.open("rb") as source:
            folder_fd = files.open_folder(str(target.parent))
            try:
                files.copy_file(source.fileno(), os.fstat(source.fileno()), target.name, folder_fd)
            finally:
                os.close(folder_fd)
    except OSError as error:
        raise UsageError(f"{upload.path} cannot be copied to {place}: {error.strerror}") from None
