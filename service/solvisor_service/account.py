"""Who runs the system's daemon, and the folders made for them.

Rules: this runs as root. What is there already keeps its modes, and what belongs to somebody else is refused. Nothing
is changed by a path that another user could redirect: folders are opened once and changed by descriptor. This module
knows no unit file.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from solvisor_service.unit import ServiceError

if sys.platform == "win32":
    raise ImportError("solvisor_service.account needs accounts and groups of POSIX")

import grp
import pwd

HOME_MODE: Final = 0o750
INBOX_MODE: Final = 0o3770
"""Of folders made for the system's daemon: the account's group may drop files, read results and use the socket; nobody
removes what another one dropped."""


class Account(NamedTuple):
    """A user of this machine. ``folder`` is the one it logs in to, ``group`` the name of its primary group."""

    name: str
    uid: int
    gid: int
    folder: str
    group: str


def _record(uid: int) -> Account:
    found = pwd.getpwuid(uid)
    try:
        group = grp.getgrgid(found.pw_gid).gr_name
    except KeyError:
        group = str(found.pw_gid)
    return Account(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir, group)


def own() -> Account:
    """The user that asks. Raises ``ServiceError`` for one without a name."""
    try:
        return _record(os.getuid())
    except KeyError:
        raise ServiceError(f"uid {os.getuid()} has no account on this machine") from None


def named(name: str, home: Path, did: list[str]) -> Account:
    """The account ``name``; made if there is none, with ``home`` as its folder. Raises ``ServiceError``."""
    try:
        account = _record(pwd.getpwnam(name).pw_uid)
    except KeyError:
        account = _add(name, home)
        did.append(f"made the account {name}")
    if account.uid == 0:
        raise ServiceError(f"{name} is root, and solvers must not run as root; name another account with --as")
    return account


def _add(name: str, home: Path) -> Account:
    try:
        grp.getgrnam(name)
        group = ["--gid", name]
    except KeyError:
        group = ["--user-group"]
    path = "/usr/sbin:/sbin:/usr/bin:/bin"
    useradd = shutil.which("useradd", path=path)
    said = "useradd is not installed"
    if useradd is not None:
        folder = ["--home-dir", str(home), "--no-create-home"]
        shell = ["--shell", shutil.which("nologin", path=path) or "/bin/false"]
        command = [useradd, "--system", *group, *folder, *shell, "--", name]
        made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        said = made.stderr.strip()
    try:
        return _record(pwd.getpwnam(name).pw_uid)
    except KeyError:
        text = f"the account {name} could not be made: {said}; make it, or name another one with --as"
        raise ServiceError(text) from None


def rehearse(account: Account, program: Sequence[str], arguments: Sequence[str], search_path: str) -> list[str]:
    """Let the account run ``program`` with ``arguments``; the lines of warning it prints. Raises ``ServiceError``.

    What root sees proves nothing: a program below /root, or a configuration for root alone, is no use to the account.
    """
    environ = {"PATH": search_path, "HOME": account.folder, "USER": account.name, "LANG": "C.UTF-8"}
    same = os.geteuid() == account.uid
    try:
        ran = subprocess.run(
            [*program, *arguments],
            env=environ,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            user=None if same else account.uid,
            group=None if same else account.gid,
            extra_groups=None if same else os.getgrouplist(account.name, account.gid),
        )
    except OSError as error:
        raise ServiceError(
            f"{account.name} cannot run {program[0]} ({error.strerror}); install Solvisor where that account may read "
            "it, for example in /opt/solvisor"
        ) from None
    said = ran.stderr.strip()
    if ran.returncode:
        raise ServiceError(f"{account.name} cannot use this configuration or program:\n{said[-4000:]}")
    return [line.removeprefix("warning: ") for line in said.splitlines() if line.startswith("warning: ")]


def make_folders(home: Path, account: Account, did: list[str], *, own_inbox: bool) -> None:
    """The home and its inbox (``own_inbox``: it lies inside), made for the account and its group.

    Raises ``ServiceError`` if the home belongs to somebody else.
    """
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        _make(home, did)
        fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if found.st_uid == 0 and not os.listdir(fd):
                os.fchmod(fd, HOME_MODE)
            elif found.st_uid != account.uid:
                raise ServiceError(
                    f"the home {home} belongs to {_user(found.st_uid)}, not to {account.name}; run: "
                    f"chown -R {account.name}: {home}   or choose another home or account (--home, --as)"
                )
            if own_inbox:
                _inbox(home, fd, account, did)
            os.fchown(fd, account.uid, account.gid)
        finally:
            os.close(fd)
    except OSError as error:
        raise ServiceError(f"the folders of the home {home} cannot be made: {error.strerror}") from None


def _make(folder: Path, did: list[str]) -> None:
    try:
        folder.mkdir(0o700)
    except FileExistsError:
        return
    did.append(f"made {folder}")


def _inbox(home: Path, home_fd: int, account: Account, did: list[str]) -> None:
    try:
        os.mkdir("inbox", 0o700, dir_fd=home_fd)
    except FileExistsError:
        return
    fd = os.open("inbox", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=home_fd)
    try:
        os.fchown(fd, account.uid, account.gid)
        os.fchmod(fd, INBOX_MODE)
        if not _share(fd):
            did.append(f"{home} lies on a file system without ACLs: dropped folders must be group-writable (umask 002)")
    finally:
        os.close(fd)
    did.append(f"made {home / 'inbox'}, open to the group {account.group}")


def _share(fd: int) -> bool:
    """Let the group write whatever is made in the folder, whoever makes it with whichever umask; whether that works.

    The daemon must read a dropped file and empty a dropped folder. This is the default ACL u::rwx g::rwx o::--- in the
    form of Linux (linux/posix_acl_xattr.h): a version, then tag, permissions and id of each entry.
    """
    nobody = 0xFFFFFFFF
    entries = ((0x01, 7, nobody), (0x04, 7, nobody), (0x20, 0, nobody))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(fd, "system.posix_acl_default", acl)
    except OSError:
        return False
    return True


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
