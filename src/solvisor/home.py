"""The home directory: its folders, the checks before anything is trusted to it, its lock, its identity, its job ids.

Rules: one home is held by at most one daemon; its folders can rename into each other and lie on a local file system.
This module must not know jobs, rows or what lies in the folders.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import itertools
import os
import re
import secrets
import socket
import sys
import threading
import time
import tomllib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import tomli_w

from . import failpoint
from .errors import AlreadyRunning, HomeError, HomeUnavailable
from .exposed import open_to_all
from .trouble import is_passing

if sys.platform != "win32":
    import fcntl

_NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"}
    | {"glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "orangefs", "pvfs2", "smb2", "smb3", "smbfs"}
)
_BASE32HEX = "0123456789abcdefghijklmnopqrstuv"
_TIME_LENGTH = 9
_RANDOM_LENGTH = 6
_PLACES = tuple(range(5 * (_TIME_LENGTH + _RANDOM_LENGTH - 1), -1, -5))
_SLUG_MAX = 32
_PROBE = ".solvisor-probe-"


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
    def token(self) -> Path:
        """What the TCP listener is used with."""
        return self.state / "token"

    def suspects(self, phase: str) -> Path:
        """Where it is written down whom the start is taking up in a phase of it."""
        return self.state / f"suspects-{phase}.json"

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
        self._refuse_open_parents()
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
            raise _cannot(self.root, f"cannot make {error.filename}", error) from error
        self._refuse_network(mounts)
        self._prove_renames()
        _sync_folder(self.root)

    def inbox_sees_all_writers(self, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
        """Whether a read lease in the inbox tells of every writer: not on a share, where others write unseen."""
        kind = filesystem_type(self.inbox, mounts)
        return kind is not None and kind not in _NETWORK and not kind.startswith("fuse")

    def _inbox_inside(self) -> bool:
        return self.inbox.resolve().is_relative_to(self.root.resolve())

    def _refuse_open_parents(self) -> None:
        for what, path in (("home", self.root), ("inbox", self.inbox)):
            parent = open_to_all(path)
            if parent is not None:
                raise HomeError(
                    f"home {self.root}: every user may write to {parent}, so anyone could replace the {what}; "
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
            _clear_probes(self.inbox)
            _prove_rename(self, self.inbox, self.inbox)
        for folder in folders:
            _clear_probes(folder)
        for first, second in itertools.combinations(folders, 2):
            _prove_rename(self, first, second)
            _prove_rename(self, second, first)


def _prove_rename(home: Home, source: Path, target: Path) -> None:
    """A bind mount has the same device number and refuses all the same: only a rename proves a rename."""
    name = f"{_PROBE}{os.getpid()}-{secrets.token_hex(4)}"
    before, after = source / name, target / f"{name}.moved"
    try:
        before.touch(exist_ok=False)
        try:
            failpoint.reach("start.probe_made")
            before.rename(after)
            failpoint.reach("start.probe_moved")
        finally:
            before.unlink(missing_ok=True)
            after.unlink(missing_ok=True)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise HomeError(
                f"home {home.root}: {source} and {target} lie on different file systems (or one is a mount); keep all "
                "folders of a home on one file system; an inbox elsewhere is set by [inbox] path"
            ) from error
        raise _cannot(home.root, f"no files can be made and moved from {source} to {target}", error) from error


def _cannot(root: Path, what: str, error: OSError) -> HomeError:
    if is_passing(error):
        return HomeUnavailable(f"home {root}: {what}: {error.strerror}; mend the disk, then start again")
    return HomeError(
        f"home {root}: {what}: {error.strerror}; give this user the right to write there, or choose another home"
    )


def _clear_probes(folder: Path) -> None:
    """Remove the probes of processes that were killed over them; another one may be at it this very moment."""
    for path in folder.glob(f"{_PROBE}*"):
        pid = path.name.removeprefix(_PROBE).partition("-")[0]
        if pid.isdecimal() and not _lives(int(pid)):
            path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


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
    """The exclusive right to a home, until ``close`` or the end of the process.

    A lock of the process, not of the open file: a solver that is just being started shares our open files until its
    exec, and would hold the home after a kill -9. Its price: closing any descriptor of that file lets go as well, so
    nothing else in this process may open it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._file = _identity(os.fstat(fd))
        _held.add(self._file)

    def close(self) -> None:
        """Let go. The file stays: removing it would let two daemons hold two files of one name."""
        os.close(self._fd)
        _held.discard(self._file)


_held: set[tuple[int, int]] = set()
"""The locks of this process, by device and inode: the kernel refuses them to other processes only."""


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


class _Holder(msgspec.Struct, frozen=True):
    pid: int
    since: str


_decode_holder = msgspec.json.Decoder(_Holder).decode


def lock(home: Home) -> Lock:
    """Take the home's lock. Raises ``AlreadyRunning``, naming the holder."""
    path = home.state / "lock"
    with contextlib.suppress(FileNotFoundError):
        if _identity(path.stat()) in _held:
            raise AlreadyRunning(f"home {home.root} is held by this very process (pid {os.getpid()})")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if sys.platform != "win32":
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise AlreadyRunning(f"home {home.root} is held by {_holder(path)}") from None
    since = datetime.datetime.fromtimestamp(int(time.time()), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    os.ftruncate(fd, 0)
    os.write(fd, msgspec.json.encode(_Holder(os.getpid(), since)) + b"\n")
    return Lock(fd)


def _holder(path: Path) -> str:
    try:
        holder = _decode_holder(path.read_bytes())
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
    failpoint.reach("start.identity_written")
    temporary.replace(path)
    failpoint.reach("start.identity_named")
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
    """Makes job ids whose time part never decreases. ``last_id`` is the newest id known from an earlier life.

    Any thread may ask for one.
    """

    def __init__(self, last_id: str | None = None) -> None:
        self._last_ms = 0 if last_id is None else _id_ms(last_id)
        self._lock = threading.Lock()

    def new_id(self, name: str, now_us: int) -> str:
        """An id for a drop called ``name``: its slug, a hyphen, 9 characters of time and 6 random ones."""
        with self._lock:
            ms = self._last_ms = max(self._last_ms, now_us // 1000)
        number = ms << 5 * _RANDOM_LENGTH | secrets.randbits(5 * _RANDOM_LENGTH)
        return f"{_slug(name)}-{''.join([_BASE32HEX[number >> place & 31] for place in _PLACES])}"


def _slug(name: str) -> str:
    stem = name.rsplit("/", 1)[-1].lstrip(".").rsplit(".", 1)[0]
    ascii_only = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only)[:_SLUG_MAX].strip("-") or "job"


def _id_ms(job_id: str) -> int:
    return int(job_id[-_TIME_LENGTH - _RANDOM_LENGTH : -_RANDOM_LENGTH], 32)
