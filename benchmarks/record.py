"""How every benchmark is asked, and how its figures are kept: options, the machine, one line of JSON.

Rules: ``main`` of a benchmark makes its options here and ends with ``keep``. Everything that it makes lies in a folder
of ``scratch`` and is gone at the end, and so is every process.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tree

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
RESULTS = BUILD / "bench"
"""Where ``make bench`` keeps what each benchmark found, by its name."""

MEMORY_ONLY = {"tmpfs", "ramfs"}
"""File systems on which to flush means nothing."""

_GET_FLAGS, _SET_FLAGS, _TOP_OF_TREES = 0x80086601, 0x40086602, 0x00020000
"""FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_TOPDIR_FL of linux/fs.h, where a long has 64 bits."""


class Options(argparse.ArgumentParser):
    """What a benchmark can be told; ``about`` is the text of its module."""

    def __init__(self, about: str | None) -> None:
        super().__init__(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        self._counts: dict[str, tuple[float, float]] = {}
        self.add_argument("--quick", action="store_true", help="a small run: is all well? Figures are rough")
        self.add_argument("--json", type=Path, metavar="FILE", help="keep the line of JSON there as well")
        self.add_argument(
            "--dir", type=Path, default=Path("/var/tmp"), help="where throw-away homes lie (%(default)s); a real disk"
        )
        self.add_argument("--leave", action="store_true", help="leave them there; whoever asked removes them")

    def count(self, name: str, whole: float, quick: float, about: str = "") -> None:
        """How many of something: in a ``whole`` run, and in a ``quick`` one."""
        self.add_argument(f"--{name}", type=type(whole), help=f"{about} (default: {whole})".strip())
        self._counts[name] = whole, quick

    def peers(self) -> None:
        """Whether they are to be measured as well."""
        self.add_argument("--no-peers", action="store_true", help="no peers, and nothing is installed")

    def asked(self) -> argparse.Namespace:
        """What was asked for; what was not said is filled in."""
        arguments = self.parse_args()
        for name, (whole, quick) in self._counts.items():
            if getattr(arguments, name) is None:
                setattr(arguments, name, quick if arguments.quick else whole)
        return arguments


@contextlib.contextmanager
def scratch(arguments: argparse.Namespace) -> Iterator[Path]:
    """A folder on the disk that is measured. At the end it is gone, and all processes are; also upon Ctrl-C.

    Nothing of it goes before: files that were just removed make new ones near them slow (see ``spread_folders``), and
    then a round would pay for the one before it.
    """
    if file_system(arguments.dir) in MEMORY_ONLY:
        sys.exit(f"{arguments.dir} lies in memory, where to flush costs nothing; name a folder on a disk with --dir")
    tree.adopt_orphans()
    with throw_away(arguments.dir, leave=arguments.leave) as folder, tree.alone():
        yield folder


@contextlib.contextmanager
def throw_away(place: Path, *, leave: bool = False) -> Iterator[Path]:
    """A folder in ``place`` that is gone at the end, unless it is to be left; what lies in it is spread."""
    folder = Path(tempfile.mkdtemp(dir=place, prefix="solvisor-bench-"))
    try:
        spread_folders(folder)
        yield folder
    finally:
        if not leave:
            shutil.rmtree(folder)


def spread_folders(parent: Path) -> None:
    """Have ext4 put each folder below this one into another part of the disk.

    Where it has no journal it looks at every inode that was freed in the last minutes before it takes another nearby: a
    home beside one that was just removed would pay for that one's thousands.
    """
    fd = os.open(parent, os.O_RDONLY)
    with contextlib.suppress(OSError):  # not ext4
        flags = struct.unpack("l", fcntl.ioctl(fd, _GET_FLAGS, bytes(struct.calcsize("l"))))[0]
        fcntl.ioctl(fd, _SET_FLAGS, struct.pack("l", flags | _TOP_OF_TREES))
    os.close(fd)


def keep(question: str, report: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Print the line of JSON, and write it to the file that was asked for."""
    whole = {"question": question, "when": datetime.now(UTC).isoformat(timespec="seconds"), "quick": arguments.quick}
    line = json.dumps(whole | {"machine": machine(arguments.dir)} | dict(report))
    print(line, flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(f"{line}\n")


def machine(folder: Path) -> dict[str, Any]:
    """On what it was measured."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "Linux"),
        "python": platform.python_version(),
        "disk": file_system(folder),
        "load": [round(load, 2) for load in os.getloadavg()],
        "solvisor": _revision(),
    }


def file_system(folder: Path) -> str:
    """The type of the file system on which a folder lies, as ``/proc/self/mountinfo`` names it."""
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return "unknown"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _revision() -> str:
    """Which state of the tree was measured."""
    with contextlib.suppress(OSError):
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode == 0:
            return told.stdout.strip()
    return "unknown"
