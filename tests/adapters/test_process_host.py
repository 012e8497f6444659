"""What the machine grants: affinity, quotas and limits of both cgroup versions, in and out of containers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from solvisor.process.host import total_memory_under, usable_cpus_under
from solvisor.process.posix import boot_id, total_memory_bytes, usable_cpus

if sys.platform == "win32":
    pytest.skip("cgroups of Linux", allow_module_level=True)


def mount(point: Path, kind: str, options: str, root: str = "/") -> str:
    return f"31 23 0:27 {root} {point} rw,nosuid shared:9 - {kind} cgroup {options}\n"


def group(path: Path, **files: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text + "\n")


def test_this_machine() -> None:
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))
    assert 0 < total_memory_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert len(boot_id()) == 36


def test_affinity_counts() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 8), ("", 8)],
)
def test_quota_of_cgroup_v2(tmp_path: Path, quota: str, cpus: int) -> None:
    group(tmp_path / "system.slice" / "solvisor.service", cpu__max=quota)
    mounts = mount(tmp_path, "cgroup2", "rw,nsdelegate")
    assert usable_cpus_under(8, mounts, "0::/system.slice/solvisor.service\n") == cpus


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    group(tmp_path / "a", cpu__max="300000 100000", memory__max="4096")
    group(tmp_path / "a" / "b", cpu__max="600000 100000", memory__max="8192")
    mounts = mount(tmp_path, "cgroup2", "rw")
    assert usable_cpus_under(8, mounts, "0::/a/b\n") == 3
    assert total_memory_under(1 << 30, mounts, "0::/a/b\n") == 4096
    assert total_memory_under(1 << 30, mounts, "0::/\n") == 1 << 30


def test_quota_and_limit_of_cgroup_v1(tmp_path: Path) -> None:
    cpu, memory = tmp_path / "cpu,cpuacct", tmp_path / "memory"
    group(cpu / "jobs", cpu__cfs_quota_us="400000", cpu__cfs_period_us="100000")
    group(cpu, cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    group(memory / "jobs", memory__limit_in_bytes="65536")
    group(memory, memory__limit_in_bytes="9223372036854771712")
    mounts = mount(cpu, "cgroup", "rw,cpu,cpuacct") + mount(memory, "cgroup", "rw,memory")
    ours = "5:cpu,cpuacct:/jobs\n4:memory:/jobs\n1:name=systemd:/\n0::/\n"
    assert usable_cpus_under(8, mounts, ours) == 4
    assert total_memory_under(1 << 30, mounts, ours) == 65536


def test_a_container_that_sees_only_its_own_subtree(tmp_path: Path) -> None:
    group(tmp_path, cpu__max="200000 100000")
    mounts = mount(tmp_path, "cgroup2", "rw", root="/docker/abc")
    assert usable_cpus_under(8, mounts, "0::/docker/abc\n") == 2


def test_no_cgroups_at_all() -> None:
    assert usable_cpus_under(8, "", "") == 8
    assert total_memory_under(1 << 30, "", "") == 1 << 30
