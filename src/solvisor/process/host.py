"""What this machine grants the daemon: its boot, its processors, its memory.

Rules: plain readings of the kernel, taken when asked and never cached; a container's limits count. This module
must not know processes, jobs or the configuration.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from solvisor.processors import granted_cpus

if sys.platform == "win32":
    raise ImportError("solvisor.process.host reads Linux kernel files and cannot be used on Windows")

_NO_LIMIT = ("max", "-1")


def boot_id() -> str:
    """The kernel's name for this boot; with it a pid and a start time name one process for ever."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def usable_cpus() -> int:
    """Whole processors this process may use: its affinity, cut by the cgroup CPU quota; at least 1."""
    return usable_cpus_under(len(granted_cpus()), read_text("/proc/self/mountinfo"), read_text("/proc/self/cgroup"))


def total_memory_bytes() -> int:
    """Memory this process may use: the machine's, cut by the cgroup limit."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total_memory_under(machine, read_text("/proc/self/mountinfo"), read_text("/proc/self/cgroup"))


def own_cgroup(controller: str) -> str | None:
    """The folder of the cgroup this process is in: of version 1 for a controller, of version 2 for ``""``."""
    folders = _cgroup_folders(controller, read_text("/proc/self/mountinfo"), read_text("/proc/self/cgroup"))
    return next((folder for folder, unified in folders if unified is not bool(controller)), None)


def usable_cpus_under(affinity: int, mountinfo: str, cgroup: str) -> int:
    """``affinity`` processors cut by the quotas of the cgroups that the two ``/proc/self`` texts describe."""
    cpus = float(affinity)
    for folder, unified in _cgroup_folders("cpu", mountinfo, cgroup):
        if unified:
            quota, _, period = read_text(f"{folder}/cpu.max").strip().partition(" ")
        else:
            quota = read_text(f"{folder}/cpu.cfs_quota_us").strip()
            period = read_text(f"{folder}/cpu.cfs_period_us").strip()
        if quota and period and quota not in _NO_LIMIT:
            cpus = min(cpus, int(quota) / int(period))
    return max(1, int(cpus))


def total_memory_under(machine: int, mountinfo: str, cgroup: str) -> int:
    """``machine`` bytes cut by the limits of the cgroups that the two ``/proc/self`` texts describe."""
    total = machine
    for folder, unified in _cgroup_folders("memory", mountinfo, cgroup):
        limit = read_text(f"{folder}/{'memory.max' if unified else 'memory.limit_in_bytes'}").strip()
        if limit and limit not in _NO_LIMIT:
            total = min(total, int(limit))
    return total


def _cgroup_folders(controller: str, mountinfo: str, cgroup: str) -> Iterator[tuple[str, bool]]:
    """Every visible cgroup folder from ours up to its mount point, and whether it is of cgroup v2.

    Formats: proc_pid_mountinfo(5) and cgroups(7).
    """
    ours: dict[str, str] = {}
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            ours[name] = path
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        root, mount_point = left.split()[3:5]
        kind, _, options = right.split(" ", 2)
        unified = kind == "cgroup2"
        if not unified and not (kind == "cgroup" and controller in options.split(",")):
            continue
        path = ours.get("" if unified else controller, "")
        # Inside a container the mount may show only our own subtree: its root is then a prefix of our path.
        inside = path[len(root.rstrip("/")) :] if path.startswith(root.rstrip("/")) else ""
        parts = [part for part in inside.split("/") if part]
        for depth in range(len(parts), -1, -1):
            yield "/".join([mount_point, *parts[:depth]]), unified


def read_text(path: str) -> str:
    """The text of ``path``, or ``""`` where the kernel or the container does not offer it."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
