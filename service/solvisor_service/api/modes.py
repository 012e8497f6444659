"""Whom the file system lets at the Unix socket: its mode and group, those of its folder, and of the way there.

Rules: nobody is let in for a moment who is not meant. Only a folder of ours is changed; what would have to be changed
above it is told.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path

if sys.platform == "win32":
    raise ImportError("solvisor_service.api.modes needs modes and groups of POSIX")

import grp


def group_id(name: str) -> int | None:
    """The number of a group, if there is one of that name. Blocks; it may have to ask a server."""
    with contextlib.suppress(KeyError):
        return grp.getgrnam(name).gr_gid
    return None


def admit(path: Path, gid: int | None, name: str | None, exists: bool) -> str | None:
    """Open the folder of the socket ``path``, and the socket if it ``exists``, to the members of ``gid``, or to nobody.

    ``name`` is that of the group. Returns what keeps the members out, in words. Blocks.
    """
    try:
        folder_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchmod(folder_fd, 0o700)
            if exists:
                open_socket(path.name, folder_fd, gid)
            if gid is not None:
                os.fchown(folder_fd, -1, gid)
                os.fchmod(folder_fd, 0o750)
        finally:
            os.close(folder_fd)
    except PermissionError:
        how = f"put its user into the group (usermod -aG {name}) and start it again"
        return f"[api] group: the daemon cannot let members of {name} in, for it is not one of them; {how}"
    except OSError as error:
        return f"[api] group: the mode of {path} cannot be set: {error.strerror}"
    try:
        closed = None if gid is None else next((at for at in path.parent.parents if not _lets_pass(at, gid)), None)
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
        return f"[api] group: whether members of {name} can reach {path} is not known: {why}; mend that, then reload"
    if closed is not None:
        return (
            f"[api] group: members of {name} cannot reach {path}, for {closed} is closed to them; "
            f"chgrp {name} {closed} and chmod g+x {closed} (or chmod o+x)"
        )
    return None


def open_socket(name: str, folder_fd: int, gid: int | None) -> None:
    """Open the socket ``name`` in a folder to its owner and ``gid``. Raises ``PermissionError``; it is closed then."""
    os.chmod(name, 0o600, dir_fd=folder_fd)
    if gid is not None:
        os.chown(name, -1, gid, dir_fd=folder_fd)
        os.chmod(name, 0o660, dir_fd=folder_fd)


def _lets_pass(folder: Path, gid: int) -> bool:
    """Whether members of ``gid`` can pass through; where there is an access list, that is not judged.

    Raises ``OSError``.
    """
    found = folder.stat()
    if found.st_mode & stat.S_IXOTH or (found.st_gid == gid and found.st_mode & stat.S_IXGRP):
        return True
    try:
        os.getxattr(folder, "system.posix_acl_access")
    except OSError:
        return False
    return True
