"""Which of the known programs are on this machine, and their versions.

Rules: only the PATH is searched; a program is run with a closed input, in an empty folder, for a bounded time, and only
a bounded part of what it prints is read; a program that hangs, fails or prints something else has no known version.
This module must not know configurations.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Final, NamedTuple

from solvisor_service.profiles import Profile, VersionQuery

VERSION_SECONDS: Final = 5.0
_PRINTED_BYTES: Final = 64 << 10
_AT_ONCE: Final = 4
_VERSION: Final = re.compile(r"[0-9A-Za-z.+_~-]{1,40}")


DAEMON_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where a service manager lets a daemon look for programs, whatever the PATH of the user who searched."""


class Found(NamedTuple):
    """A known program on this machine: its absolute path, and its version if it told.

    ``by_name``: a daemon finds it by its bare name too.
    """

    profile: Profile
    program: str
    version: str | None
    by_name: bool = True


def search(known: Iterable[Profile], path: str) -> list[Found]:
    """The known programs on ``path``, in the order of the profiles. Takes as long as the slowest tells its version."""
    directories = [place for place in path.split(os.pathsep) if os.path.isabs(place) and place.isprintable()]
    places: list[tuple[Profile, str]] = []
    for profile in known:
        hits = (shutil.which(program, path=os.pathsep.join(directories)) for program in profile.about.programs)
        place = next(filter(None, hits), None)
        if place is not None:
            places.append((profile, place))
    asked = dict.fromkeys((place, profile.about.version) for profile, place in places)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        versions = dict(zip(asked, threads.map(lambda question: version_of(*question), asked), strict=True))
    return [
        Found(profile, place, versions.get((place, profile.about.version)), _is_found_by_name(place))
        for profile, place in places
    ]


def _is_found_by_name(program: str) -> bool:
    return shutil.which(os.path.basename(program), path=DAEMON_PATH) == program


def version_of(program: str, query: VersionQuery | None, seconds: float = VERSION_SECONDS) -> str | None:
    """The version that ``program`` tells within ``seconds``; ``None`` if it does not."""
    if query is None:
        return None
    printed = _printed((program, *query.arguments), query.exit, seconds)
    found = re.search(query.pattern, printed.decode(errors="replace"), re.MULTILINE) if printed is not None else None
    return found[1] if found and _VERSION.fullmatch(found[1]) else None


def _printed(argv: tuple[str, ...], status: int, seconds: float) -> bytes | None:
    """What a program prints before it exits with ``status``; ``None`` if it prints much, takes long or fails."""
    with tempfile.TemporaryDirectory(prefix="solvisor-init-", ignore_cleanup_errors=True) as folder:
        try:
            process = subprocess.Popen(
                argv,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError:  # not for this machine, or its interpreter is gone
            return None
        data: list[bytes] = []
        # A thread, since a pipe that a grandchild holds open may never end; nobody waits for it longer than `seconds`.
        reader = threading.Thread(target=_read, args=(process.stdout, data), daemon=True)
        reader.start()
        deadline = time.monotonic() + seconds
        reader.join(seconds)
        complete = not reader.is_alive() and len(data[0]) <= _PRINTED_BYTES
        if complete:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        ended = process.returncode
        _end(process)
        return data[0] if complete and ended == status else None


def _read(stream: IO[bytes], data: list[bytes]) -> None:
    with stream:
        data.append(stream.read(_PRINTED_BYTES + 1))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the program's group. Once the program is reaped its number may be a stranger's, so nothing is done then."""
    if process.returncode is None:
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
