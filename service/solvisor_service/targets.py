"""What a user names on the command line, as a submission: which files are sent, and the wishes that go with them.

A target is one job: a file, a job file with the inputs it names, or a folder. Rules: what can be seen to be wrong here
is said before anything is sent, and in the words of the file; which solver takes an input is for the daemon to say.
This module must not know the socket, or what is printed.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from solvisor.errors import Refused, SolvisorError
from solvisor.names import escape_name, is_plain_name
from solvisor_service.client import Upload

FOLDER_JOB_FILE: Final = "job.toml"
JOB_FILE_SUFFIX: Final = ".job.toml"
FILES_MAX: Final = 10_000
DEPTH_MAX: Final = 32
_LISTED: Final = 5


class UsageError(SolvisorError):
    """What was asked for cannot be done as it was written."""

    code = "usage"
    exit_status = 2


class Prepared(NamedTuple):
    """A submission. ``job`` is a job file, or the keys of one, or nothing where the files speak for themselves.

    ``key`` is the idempotency key in it.

    Where neither names inputs, keys make all ``uploads`` inputs in their order; a job file leaves it to the daemon to
    find the one that a solver accepts.
    """

    uploads: tuple[Upload, ...]
    job: dict[str, Any] | bytes | None
    key: str | None = None


def prepare(target: Path, companions: Sequence[Path], wishes: Mapping[str, Any]) -> Prepared:
    """What to send for ``target``, with ``companions`` beside its files and ``wishes`` laid over its job file.

    ``wishes`` are keys of a job file; of a table (``params``, ``licenses``, ``retry``) only what is given is laid over.
    Raises ``UsageError`` for what cannot be read, and ``Refused`` with every fault of a job file.
    """
    _check_job_file_names(target, companions)
    extras = [Upload(_plain(path), path) for path in companions]
    if os.path.isdir(target):  # not Path.is_dir, which raises where a folder on the way may not be entered
        prepared = _folder(target, extras, wishes)
    elif target.name.lower().endswith(JOB_FILE_SUFFIX):
        prepared = _job_file(target, extras, wishes)
    else:
        prepared = Prepared((Upload(_plain(target), target), *extras), dict(wishes) or None, wishes.get("key"))
    for upload in prepared.uploads:
        _check_regular(upload.path)
    return prepared._replace(uploads=_distinct(prepared.uploads))


def _check_job_file_names(target: Path, companions: Sequence[Path]) -> None:
    """Refuse a job file where none can be: sent along, it would be taken for that of the job."""
    for path in companions:
        if _is_job_file(path.name):
            raise UsageError(f"{path} is a job file, which cannot go along with another input; name it as a target")
    if target.name == FOLDER_JOB_FILE and not os.path.isdir(target):
        raise UsageError(f"{target} is the job file of a folder; name the folder: {target.absolute().parent}")


def _is_job_file(name: str) -> bool:
    """Whether the daemon takes a file of this name for a job file; hidden and temporary ones it does not."""
    named = name.lower().endswith(JOB_FILE_SUFFIX) and not name.startswith((".", "~$"))
    return named or name == FOLDER_JOB_FILE


def _folder(folder: Path, extras: Sequence[Upload], wishes: Mapping[str, Any]) -> Prepared:
    found = {upload.name: upload for upload in _tree(folder)}
    source = found.pop(FOLDER_JOB_FILE, None)
    misnamed = next((name for name in found if "/" not in name and _is_job_file(name)), None)
    if misnamed is not None:
        what = "take it out" if source else "rename it"
        raise UsageError(f"{folder} holds {misnamed}: in a folder the job file is called {FOLDER_JOB_FILE}; {what}")
    uploads = (*found.values(), *extras)
    if not uploads:
        raise UsageError(f"{folder} holds no file to run; name another folder, or a file")
    if source is None:
        return Prepared(uploads, _toml(wishes), wishes.get("key"))
    data, table, named = _read_job_file(source.path)
    _check_named(source.path, named, uploads)
    asked = _laid_over(table, wishes)
    return Prepared(uploads, _toml(asked) if wishes else data, asked.get("key"))


def _job_file(path: Path, extras: Sequence[Upload], wishes: Mapping[str, Any]) -> Prepared:
    data, table, named = _read_job_file(path)
    uploads = (*(Upload(name, path.parent / name) for name in named), *extras)
    if not uploads:
        raise UsageError(f'{path} names no inputs; add inputs = ["FILE"], or send them along with --with FILE')
    _check_named(path, named, uploads)
    asked = _laid_over(table, wishes)
    return Prepared(uploads, asked if wishes or not named else data, asked.get("key"))


def param(text: str) -> tuple[str, bool | int | float | str]:
    """``NAME=VALUE`` of an option: ``true`` and ``false``, whole numbers, other numbers, else text; ``"42"`` is text.

    Raises ``UsageError``.
    """
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise UsageError(f"--param {text}: write it as NAME=VALUE, for example --param load=3.5")
    return name.strip(), _scalar(value)


def _scalar(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1]
    # What Python alone takes for a number (1_000, nan, " 5") stays text: solvers and job files do not.
    if set(text) <= set("0123456789+-.eE"):
        for number in (int, float):
            try:
                value = number(text)
            except ValueError:
                continue
            return value if math.isfinite(value) else text
    return text


def _kind(path: Path) -> int:
    """The type bits of what lies there, links followed: on the command line they are the user's own."""
    try:
        return path.stat().st_mode
    except OSError as error:
        raise _unreadable(path, error) from None


def _check_regular(path: Path) -> None:
    if not stat.S_ISREG(_kind(path)):
        raise UsageError(f"{path} is not a regular file; only such files, and folders as targets, can be sent")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{path} cannot be read by you; ask its owner for the right to read it")


def _unreadable(path: Path, error: OSError) -> UsageError:
    if isinstance(error, FileNotFoundError):
        return UsageError(f"{path} does not exist; check the name and the folder")
    return UsageError(f"{path} cannot be read: {error.strerror}")


def _plain(path: Path) -> str:
    """The name of a file as the solver will see it."""
    name = path.absolute().name
    if not is_plain_name(name):
        odd = "is not UTF-8, or holds a control character or a backslash"
        raise UsageError(f"{escape_name(name)}: this file name {odd}; rename it")
    return name


def _read_job_file(path: Path) -> tuple[bytes, dict[str, Any], tuple[str, ...]]:
    """A job file, its keys, and the inputs it names. Raises ``Refused`` with every fault."""
    from solvisor import tomltext
    from solvisor.jobfile import LARGEST_FILE, parse_job_file

    _check_regular(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        named = parse_job_file(data, path.name).inputs
    except Refused as refused:
        raise Refused(refused.refusal, f"{refused}; correct it and submit it again") from None
    return data, tomltext.parse(data.decode("utf-8-sig")), named


def _check_named(source: Path, named: Sequence[str], sent: Sequence[Upload]) -> None:
    there = {upload.name for upload in sent if upload.path.exists()}
    missing = [name for name in named if name not in there]
    if missing:
        shown = ", ".join(missing[:_LISTED]) + (", ..." if len(missing) > _LISTED else "")
        raise UsageError(f"{source} names inputs that are not beside it: {shown}; bring them there, or correct it")


def _toml(table: Mapping[str, Any]) -> bytes:
    import tomli_w

    return tomli_w.dumps(table).encode()


def _laid_over(table: Mapping[str, Any], wishes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(table)
    for key, wish in wishes.items():
        below = merged.get(key)
        merged[key] = {**below, **wish} if isinstance(below, dict) and isinstance(wish, dict) else wish
    return merged


def _tree(folder: Path) -> Iterator[Upload]:
    """All files of a folder, those at the top first, each with its name relative to it."""
    count = 0
    for path, names, files in os.walk(folder, onerror=_raise):
        names.sort()
        here = Path(path)
        below = here.relative_to(folder)
        if len(below.parts) >= DEPTH_MAX:
            raise UsageError(f"{folder} holds folders more than {DEPTH_MAX} deep; flatten it")
        for name in names:
            _plain(here / name)
            if (here / name).is_symlink():
                raise UsageError(f"{here / name} is a link to a folder; put the folder itself there")
        for name in sorted(files):
            count += 1
            if count > FILES_MAX:
                raise UsageError(f"{folder} holds more than {FILES_MAX:,} files; send an archive your solver can open")
            _plain(here / name)
            yield Upload((below / name).as_posix(), here / name)


def _raise(error: OSError) -> None:
    raise _unreadable(Path(error.filename), error)


def _distinct(uploads: Sequence[Upload]) -> tuple[Upload, ...]:
    """Each name once: a file that is named twice is sent once, two of one name are a mistake."""
    seen: dict[str, Upload] = {}
    for upload in uploads:
        other = seen.setdefault(upload.name, upload)
        if other is not upload and not os.path.samefile(other.path, upload.path):
            raise UsageError(f"{other.path} and {upload.path} have one name, so one would hide the other; rename one")
    return tuple(seen.values())
