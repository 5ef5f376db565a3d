"""Threads from affinity, hyperthreads and cgroup quotas, on made-up trees of /proc and /sys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gallium.backends.cpu.cores import Cores, cgroup_quota, find_cores, parse_list

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
CONTAINER = "/docker/0123"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return root


def topology(siblings: dict[int, str], nodes: dict[int, str]) -> dict[str, str]:
    cpus = {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": text for n, text in siblings.items()}
    cpu_lists = {f"sys/devices/system/node/node{n}/cpulist": text for n, text in nodes.items()}
    return cpus | cpu_lists | {"sys/devices/system/node/online": ",".join(map(str, nodes))}


@pytest.mark.parametrize(
    ("text", "expected"), [("0-3,8", [0, 1, 2, 3, 8]), ("5", [5]), ("", []), ("0,2-3\n", [0, 2, 3])]
)
def test_lists_of_cpus(text: str, expected: list[int]) -> None:
    assert parse_list(text) == expected


def test_hyperthreads_count_once_and_nodes_keep_what_is_allowed(tmp_path: Path) -> None:
    siblings = {n: f"{n % 4},{n % 4 + 4}" for n in range(8)}
    root = tree(tmp_path, topology(siblings, {0: "0-1,4-5", 1: "2-3,6-7", 2: ""}))
    cores = find_cores(root, range(8))
    assert cores.physical == (0, 1, 2, 3) and cores.threads == 4
    assert cores.nodes == ((0, 1, 4, 5), (2, 3, 6, 7))
    assert "8 hyperthreads" in cores.describe() and "2 NUMA nodes of 4, 4" in cores.describe()
    pinned = find_cores(root, {1, 5, 6})  # both hyperthreads of one core, one of another
    assert pinned.physical == (1, 6) and pinned.threads == 2 and pinned.nodes == ((1, 5), (6,))


def test_where_threads_are_pinned(tmp_path: Path) -> None:
    files = topology({n: f"{n % 2},{n % 2 + 2}" for n in range(4)}, {0: "0,2", 1: "1,3"})
    two = find_cores(tree(tmp_path, files), range(4))
    assert two.pinned("auto") == two.pinned("on") == (0, 1, 2, 3) and two.pinned("off") == ()
    shared = replace(two, quota=2.0)
    assert shared.pinned("auto") == () and shared.pinned("on") == (0, 1, 2, 3)
    one = replace(two, nodes=two.nodes[:1])
    assert one.pinned("auto") == ()


def test_without_a_topology_each_cpu_is_a_core(tmp_path: Path) -> None:
    cores = find_cores(tmp_path, {3, 4})
    assert cores.physical == (3, 4) and cores.quota is None and cores.nodes == ()


QUOTAS: dict[str, tuple[dict[str, str], float | None]] = {
    "no cgroups": ({}, None),
    "v2, none set": ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "max 100000"}, None),
    "v2, own": ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "150000 100000"}, 1.5),
    "v2, a tighter one above": (
        {
            "proc/self/cgroup": "0::/a/b",
            "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
            "sys/fs/cgroup/a/cpu.max": "200000 100000",
        },
        2.0,
    ),
    "v2, a namespace of its own": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3.0),
    "v2, a cgroup outside the namespace": (
        {"proc/self/cgroup": "0::/../elsewhere", "sys/fs/cgroup/cpu.max": "300000 100000"},
        3.0,
    ),
    "v1": (
        {
            "proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/a/b\n0::/",
            "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "250000",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
        },
        2.5,
    ),
    "v1, the cpuset controller is another": (
        {"proc/self/cgroup": "3:cpuset:/a", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000"},
        None,
    ),
}


@pytest.mark.parametrize("name", QUOTAS)
def test_the_tightest_quota_counts(tmp_path: Path, name: str) -> None:
    files, expected = QUOTAS[name]
    mount = V1_MOUNT if name.startswith("v1") else V2_MOUNT
    root = tree(tmp_path, {"proc/self/mountinfo": mount, **files})
    assert cgroup_quota(root) == expected


def test_a_container_that_sees_only_its_own_part(tmp_path: Path) -> None:
    """The path is the host's, and what is mounted begins there."""
    mount = V1_MOUNT.replace("0:29 / ", f"0:29 {CONTAINER} ")
    files = {
        "proc/self/mountinfo": mount,
        "proc/self/cgroup": f"3:cpu,cpuacct:{CONTAINER}/job",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
    }
    assert cgroup_quota(tree(tmp_path, files)) == 2.0


@pytest.mark.parametrize(("quota", "threads"), [(0.3, 1), (1.5, 2), (2.4, 2), (64.0, 4)])
def test_a_quota_lowers_the_threads_and_leaves_one(quota: float, threads: int) -> None:
    assert Cores((0, 1, 2, 3), (0, 1, 2, 3), quota, ()).threads == threads
