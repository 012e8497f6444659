"""The home directory: its folders, the checks before anything is trusted to it, its lock, its identity, its job ids.

Rules: one home is held by at most one daemon; its folders can rename into each other and lie on a local file system.
This module must not know jobs, rows or what lies in the folders.
"""

from __future__ import annotations

import datetime
import errno
import itertools
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import time
import tomllib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import tomli_w

from .errors import AlreadyRunning, HomeError

if sys.platform != "win32":
    import fcntl

_NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"}
    | {"glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "orangefs", "pvfs2", "smb2", "smb3", "smbfs"}
)
_BASE32HEX = "0123456789abcdefghijklmnopqrstuv"
_TIME_LENGTH = 9
_RANDOM_LENGTH = 6
_SLUG_MAX = 32


@dataclass(frozen=True, slots=True)
class Home:
    """Where everything of one home lies. Make it with ``Home.at``; nothing is touched before ``prepare``."""

    root: Path
    inbox: Path

    @classmethod
    def at(cls, path: Path, inbox: Path | None = None) -> Home:
        """The home at ``path`` with its inbox inside, or at ``inbox``."""
        root = path.absolute()
        return cls(root, root / "inbox" if inbox is None else inbox.absolute())

    @property
    def work(self) -> Path:
        """Claimed and running jobs."""
        return self.root / "work"

    @property
    def done(self) -> Path:
        """Succeeded jobs."""
        return self.root / "done"

    @property
    def failed(self) -> Path:
        """Failed, cancelled and skipped jobs."""
        return self.root / "failed"

    @property
    def rejected(self) -> Path:
        """Drops that could not become a job."""
        return self.root / "rejected"

    @property
    def run(self) -> Path:
        """The socket."""
        return self.root / "run"

    @property
    def state(self) -> Path:
        """Private: database, lock, identity, log."""
        return self.root / "state"

    @property
    def db(self) -> Path:
        """The database."""
        return self.state / "solvisor.db"

    @property
    def cache(self) -> Path:
        """What may be thrown away between two lives: compiled models."""
        return self.state / "cache"

    @property
    def log_dir(self) -> Path:
        """The daemon's own log."""
        return self.state / "log"

    def prepare(self, mounts: Path = Path("/proc/self/mountinfo")) -> None:
        """Make the folders and prove that the home can be used. Raises ``HomeError``.

        ``mounts`` is where the kernel lists the mounted file systems.
        """
        if not (self._inbox_inside() or self.inbox.is_dir()):
            # Not made here: where a share should be mounted, an empty folder would hide that it is not.
            raise HomeError(f"home {self.root}: the inbox {self.inbox} does not exist; mount it or make it")
        self._refuse_open_parent()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if self._inbox_inside():
                self.inbox.mkdir(exist_ok=True)
            for folder in (self.done, self.failed, self.rejected):
                folder.mkdir(exist_ok=True)
            for folder, mode in ((self.work, 0o750), (self.run, 0o750), (self.state, 0o700), (self.log_dir, 0o700)):
                folder.mkdir(mode, exist_ok=True)
                if folder.stat().st_mode & 0o777 & ~mode:
                    folder.chmod(mode)
        except OSError as error:
            raise HomeError(
                f"home {self.root}: cannot make {error.filename}: {error.strerror}; "
                "give this user the right to write there, or choose another home"
            ) from error
        self._refuse_network(mounts)
        self._prove_renames()
        _sync_folder(self.root)

    def free_bytes(self) -> int:
        """Bytes this process may still write to the file system of the home."""
        return shutil.disk_usage(self.root).free

    def inbox_sees_all_writers(self, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
        """Whether a read lease in the inbox tells of every writer: not on a share, where others write unseen."""
        kind = filesystem_type(self.inbox, mounts)
        return kind is not None and kind not in _NETWORK and not kind.startswith("fuse")

    def _inbox_inside(self) -> bool:
        return self.inbox.resolve().is_relative_to(self.root.resolve())

    def _refuse_open_parent(self) -> None:
        parent = self.inbox.parent
        while not parent.exists():
            parent = parent.parent
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise HomeError(
                f"home {self.root}: every user may write to {parent}, so anyone could replace the inbox; "
                f"run: chmod o-w {parent} (or chmod +t {parent})"
            )

    def _refuse_network(self, mounts: Path) -> None:
        for folder in (self.root, self.state, self.work, self.done, self.failed, self.rejected):
            kind = filesystem_type(folder, mounts)
            if kind in _NETWORK:
                raise HomeError(
                    f"home {self.root}: {folder} lies on a network file system ({kind}), where neither locks nor the "
                    "database are safe; choose a home on a local disk; only the inbox may lie on a share ([inbox] path)"
                )

    def _prove_renames(self) -> None:
        folders = [self.work, self.done, self.failed, self.rejected]
        if self._inbox_inside():
            folders.append(self.inbox)
        else:
            _prove_rename(self, self.inbox, self.inbox)
        for first, second in itertools.combinations(folders, 2):
            _prove_rename(self, first, second)
            _prove_rename(self, second, first)


def _prove_rename(home: Home, source: Path, target: Path) -> None:
    """A bind mount has the same device number and refuses all the same: only a rename proves a rename."""
    name = f".solvisor-probe-{secrets.token_hex(4)}"
    before, after = source / name, target / f"{name}.moved"
    try:
        before.touch(exist_ok=False)
        try:
            before.rename(after)
        finally:
            before.unlink(missing_ok=True)
            after.unlink(missing_ok=True)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise HomeError(
                f"home {home.root}: {source} and {target} lie on different file systems (or one is a mount); keep all "
                "folders of a home on one file system; an inbox elsewhere is set by [inbox] path"
            ) from error
        raise HomeError(
            f"home {home.root}: no files can be made and moved from {source} to {target}: {error.strerror}; "
            "give this user the right to write there, or choose another home"
        ) from error


def filesystem_type(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The type of the file system that holds ``path``; ``None`` where the kernel keeps no such list."""
    real = path.resolve()
    found: tuple[int, str] | None = None
    for mount_point, kind in _mounted(mounts):
        # Of two mounts on one folder the later one hides the earlier.
        if real.is_relative_to(mount_point) and (found is None or len(mount_point.parts) >= found[0]):
            found = len(mount_point.parts), kind
    return found[1] if found else None


def _mounted(mounts: Path) -> Iterator[tuple[Path, str]]:
    try:
        text = mounts.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
        yield Path(point), after.split()[0]


class Lock:
    """The exclusive right to a home, until ``close`` or the end of the process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        """Let go. The file stays: removing it would let two daemons hold two files of one name."""
        os.close(self._fd)


class _Holder(msgspec.Struct, frozen=True):
    pid: int
    since: str


def lock(home: Home) -> Lock:
    """Take the home's lock. Raises ``AlreadyRunning``, naming the holder."""
    path = home.state / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)  # Python opens it close-on-exec: no solver inherits it
    try:
        if sys.platform != "win32":
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise AlreadyRunning(f"home {home.root} is held by {_holder(path)}") from None
    since = datetime.datetime.fromtimestamp(int(time.time()), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    os.ftruncate(fd, 0)
    os.write(fd, msgspec.json.encode(_Holder(os.getpid(), since)) + b"\n")
    return Lock(fd)


def _holder(path: Path) -> str:
    try:
        holder = msgspec.json.decode(path.read_bytes(), type=_Holder)
    except (OSError, msgspec.DecodeError):  # it took the lock a moment ago and has not signed yet
        return "another process (solvisor serve)"
    return f"pid {holder.pid} (solvisor serve, since {holder.since})"


def home_id(home: Home) -> str:
    """The 32 hex digits that mark this home's processes.

    They are bound to the machine and to the inode of ``state/``: a home that was copied or moved draws new ones, so
    that it never signals the processes of the home it came from.
    """
    path = home.state / "home-id"
    found = home.state.stat()
    bound = {"machine": _machine(), "device": found.st_dev, "inode": found.st_ino}
    try:
        known = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if isinstance(known.get("id"), str) and known == {"id": known["id"], **bound}:
        return str(known["id"])
    fresh = secrets.token_hex(16)
    temporary = path.with_name("home-id.tmp")
    with temporary.open("wb") as file:
        tomli_w.dump({"id": fresh, **bound}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(home.state)
    return fresh


def _sync_folder(folder: Path) -> None:
    if sys.platform != "win32":
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _machine() -> str:
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip() or socket.gethostname()
    except OSError:
        return socket.gethostname()


class IdMaker:
    """Makes job ids whose time part never decreases. ``last_id`` is the newest id known from an earlier life."""

    def __init__(self, last_id: str | None = None) -> None:
        self._last_ms = 0 if last_id is None else _id_ms(last_id)

    def new_id(self, name: str, now_us: int) -> str:
        """An id for a drop called ``name``: its slug, a hyphen, 9 characters of time and 6 random ones."""
        self._last_ms = max(self._last_ms, now_us // 1000)
        time_part = _base32hex(self._last_ms, _TIME_LENGTH)
        return f"{_slug(name)}-{time_part}{_base32hex(secrets.randbits(5 * _RANDOM_LENGTH), _RANDOM_LENGTH)}"


def _slug(name: str) -> str:
    stem = name.rsplit("/", 1)[-1].lstrip(".").rsplit(".", 1)[0]
    ascii_only = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only)[:_SLUG_MAX].strip("-") or "job"


def _base32hex(number: int, length: int) -> str:
    return "".join(_BASE32HEX[number >> 5 * place & 31] for place in reversed(range(length)))


def _id_ms(job_id: str) -> int:
    return int(job_id[-_TIME_LENGTH - _RANDOM_LENGTH : -_RANDOM_LENGTH], 32)
