"""A machine of our own for the tests: a real systemd as process 1, on an overlay of this machine's files.

It lives in private namespaces (processes, mounts, network, cgroups) and in a cgroup of its own. What is done in it
touches nothing outside, and all of it is gone with its process 1: processes, mounts, accounts, files. Needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias, TypeVar

from waiting import wait_until

T = TypeVar("T")
Completed: TypeAlias = "subprocess.CompletedProcess[str]"

REPOSITORY = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("systemd_lab.sh")
TOOLS = ("systemctl", "unshare", "nsenter", "pivot_root", "setpriv", "mount", "useradd")

_NEEDED = (REPOSITORY, Path(sys.prefix), Path(sys.base_prefix))


class Unavailable(Exception):
    """This machine cannot have a lab; the text says why."""


class Lab:
    """A booted lab. Paths in it are seen from outside by ``path``."""

    def __init__(self, unshare: subprocess.Popen[bytes], first: int) -> None:
        self._unshare = unshare
        self._first = first

    def run(self, *command: str, user: str | None = None, check: bool = True, stdin: str = "") -> Completed:
        """Run a command in the lab, as root or as ``user`` with the groups it has there."""
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
        done = subprocess.run(
            ["nsenter", "--target", str(self._first), "--all", "--", "env", "--chdir=/", *become, *command],
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": f"/home/{user}"}
            | ({"XDG_RUNTIME_DIR": f"/run/user/{user}"} if user else {"HOME": "/root"}),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def solvisor(
        self, *arguments: str, user: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """``solvisor`` of this checkout, in the lab."""
        return self.run(sys.executable, "-P", "-m", "solvisor_service.cli", *arguments, user=user, check=check)

    def path(self, inside: str) -> Path:
        """A file of the lab as this process can open it."""
        return Path(f"/proc/{self._first}/root{inside}")

    def write(self, inside: str, text: str) -> None:
        """Make a file, with the folders above it."""
        place = self.path(inside)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit."""
        printed = self.run("systemctl", "show", unit, f"--property={','.join(properties)}").stdout
        return dict(line.split("=", 1) for line in printed.splitlines())

    def main_pid(self, unit: str) -> int:
        """The unit's main process as it is numbered in the lab, 0 if there is none."""
        return int(self.show(unit, "MainPID")["MainPID"])

    def wait(self, condition: Callable[[], T], what: str, unit: str, deadline: float = 30) -> T:
        """``wait_until``, whose failure shows the log of ``unit``."""
        try:
            return wait_until(condition, what, deadline)
        except AssertionError as error:
            log = self.run("journalctl", "--no-pager", "-n", "40", "-u", unit, check=False).stdout
            raise AssertionError(f"{error}\n{log}") from None

    def processes(self) -> dict[int, str]:
        """Command lines by pid, as numbered in the lab; kernel threads and zombies are left out."""
        found = {}
        for entry in self.path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    if line:
                        found[int(entry.name)] = line
        return found


@contextmanager
def booted(folder: Path) -> Iterator[Lab]:
    """A lab that lives as long as the context. Raises ``Unavailable``."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0:
        raise Unavailable("only root can boot a systemd of its own")
    if missing:
        raise Unavailable(f"not installed: {', '.join(missing)}")
    cgroup = _cgroup()
    root = folder / "lab"
    root.mkdir()
    elsewhere = sorted({str(place) for place in _NEEDED if not _on_root(place)})
    log = folder / "lab.log"
    try:
        with log.open("wb") as output:
            # If this process is killed, so is the lab.
            unshare = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig=KILL", "unshare", "--fork", "--kill-child", "--propagation=private"),
                    *("--pid", "--mount", "--uts", "--ipc", "--net"),
                    *("sh", str(SCRIPT), str(root), str(cgroup), *elsewhere),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            lab = _wait_booted(unshare, log)
            _open_to_all(lab)
            yield lab
        finally:
            unshare.kill()
            unshare.wait()
    finally:
        wait_until(lambda: _remove(cgroup), f"{cgroup} is empty", 30)


def _wait_booted(unshare: subprocess.Popen[bytes], log: Path) -> Lab:
    children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")

    def is_booted() -> Lab | None:
        if unshare.poll() is not None:
            raise Unavailable(f"no systemd of its own can be booted here: {log.read_text(errors='replace').strip()}")
        first = children.read_text().split()
        if not first:
            return None
        lab = Lab(unshare, int(first[0]))
        state = lab.run("systemctl", "is-system-running", check=False).stdout.strip()
        return lab if state in ("running", "degraded") else None

    try:
        lab = wait_until(is_booted, "systemd is up", 60)
    except AssertionError as error:
        raise Unavailable(f"{error}: {log.read_text(errors='replace').strip()}") from None
    assert lab is not None
    return lab


def _open_to_all(lab: Lab) -> None:
    """Let every account of the lab run this checkout, which may lie below /root."""
    folders = {folder for place in _NEEDED for folder in (place, *place.parents)}
    lab.run("chmod", "o+rx", *(str(folder) for folder in sorted(folders) if _on_root(folder)))


def _cgroup() -> Path:
    """A new cgroup below ours, in version 2 of the hierarchy."""
    own = next(
        (line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), None
    )
    mounted = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    places = [fields[1] for fields in mounted if fields[2] == "cgroup2"]
    if own is None or not places:
        raise Unavailable("this machine has no cgroups of version 2")
    cgroup = Path(places[0] + own.rstrip("/")) / f"solvisor-lab-{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        raise Unavailable(f"no cgroup of its own can be made: {error}") from None
    return cgroup


def _remove(cgroup: Path) -> bool:
    """Remove a cgroup with all below it; false while a process dies in it."""
    for folder, _, _ in os.walk(cgroup, topdown=False):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def _on_root(place: Path) -> bool:
    return place.stat().st_dev == Path("/").stat().st_dev
