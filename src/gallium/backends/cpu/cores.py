"""Which processors this process may use: affinity, cgroup quotas, hyperthreads and NUMA nodes, read from the system."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Cores:
    """What there is to compute on."""

    cpus: tuple[int, ...]
    """Logical CPUs that the affinity allows."""
    physical: tuple[int, ...]
    """The first of them on each physical core: two hyperthreads share the units that kernels keep busy."""
    quota: float | None
    """CPUs' worth of time that the cgroups allow, None without a limit."""
    nodes: tuple[tuple[int, ...], ...]
    """`cpus` by NUMA node; nodes without any are left out."""

    @property
    def threads(self) -> int:
        """How many threads suit: one per physical core, no more than the quota feeds."""
        return max(1, len(self.physical) if self.quota is None else min(len(self.physical), round(self.quota)))

    def pinned(self, how: str) -> tuple[int, ...]:
        """The CPU of each thread, one per physical core first; empty if they are left to the system.

        `how` is a value of GALLIUM_PIN. "auto" pins where there are several NUMA nodes and no quota says that the
        machine is shared: elsewhere a pinned thread only waits behind whoever else wants its core.
        """
        if how == "off" or (how == "auto" and (len(self.nodes) < 2 or self.quota is not None)):
            return ()
        return self.physical + tuple(cpu for cpu in self.cpus if cpu not in self.physical)

    def describe(self) -> str:
        """For reports."""
        parts = [f"{len(self.physical)} usable of {os.cpu_count()}"]
        if len(self.physical) < len(self.cpus):
            parts.append(f"{len(self.cpus)} hyperthreads")
        if self.quota is not None:
            parts.append(f"cgroup quota {self.quota:g}")
        if len(self.nodes) > 1:
            parts.append(f"{len(self.nodes)} NUMA nodes of " + ", ".join(str(len(node)) for node in self.nodes))
        return "; ".join(parts)


def find_cores(root: Path = ROOT, allowed: Collection[int] | None = None) -> Cores:
    """The processors of this process. `root` holds `proc` and `sys`, `allowed` is the affinity: for tests."""
    if allowed is None:
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cpus = tuple(sorted(allowed))
    return Cores(cpus, _first_of_each_core(root, cpus), cgroup_quota(root), _nodes(root, cpus))


def parse_list(text: str) -> list[int]:
    """The system's notation for sets of CPUs: `0-3,8`."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            found += range(int(first), int(last or first) + 1)
    return found


def _first_of_each_core(root: Path, cpus: tuple[int, ...]) -> tuple[int, ...]:
    taken: set[int] = set()
    first = []
    for cpu in cpus:
        if cpu in taken:
            continue
        first.append(cpu)
        taken.add(cpu)
        taken.update(parse_list(_read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")))
    return tuple(first)


def _nodes(root: Path, cpus: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    base = root / "sys/devices/system/node"
    numbers = parse_list(_read(base / "online"))
    nodes = (tuple(c for c in parse_list(_read(base / f"node{n}/cpulist")) if c in cpus) for n in numbers)
    return tuple(node for node in nodes if node)


# -- cgroups ----------------------------------------------------------------------
def cgroup_quota(root: Path = ROOT) -> float | None:
    """The tightest CPU quota of this process's cgroups and of all above them, versions 1 and 2; None without one."""
    found = []
    for directory in _cgroups(root):
        limit = _quota_of(directory)
        if limit is not None:
            found.append(limit)
    return min(found, default=None)


def _quota_of(directory: Path) -> float | None:
    """The quota set in one directory of a hierarchy: cpu.max of version 2, cpu.cfs_quota_us of version 1."""
    limit, _, period = _read(directory / "cpu.max").partition(" ")
    if not limit:
        limit, period = _read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")
    try:
        return int(limit) / int(period) if int(limit) > 0 and int(period) > 0 else None
    except ValueError:  # "max", or no such file
        return None


def _cgroups(root: Path) -> Iterator[Path]:
    """The directories of this process's CPU cgroups, from its own up to where the hierarchy is mounted."""
    mounts = dict(_mounts(root))
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, own = [*line.split(":", 2), "", ""][:3]
        version = 1 if "cpu" in controllers.split(",") else 2 if not controllers else 0
        if version not in mounts:
            continue
        top, mounted_root = mounts[version]
        inside = _below(PurePosixPath(own), mounted_root)
        yield from (top / part for part in (inside, *inside.parents))


def _below(own: PurePosixPath, mounted_root: PurePosixPath) -> PurePosixPath:
    """A cgroup's path within what is mounted. In a container the path may be that of the host: then the mount's top."""
    if ".." in own.parts or not own.is_relative_to(mounted_root):
        return PurePosixPath()
    return own.relative_to(mounted_root)


def _mounts(root: Path) -> Iterator[tuple[int, tuple[Path, PurePosixPath]]]:
    """(version, (mount point, what of the hierarchy is mounted there)) of the CPU controller and of version 2."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, _, options) = left.split(), [*right.split(), "", "", ""][:3]
        version = 2 if kind == "cgroup2" else 1 if kind == "cgroup" and "cpu" in options.split(",") else 0
        if version and len(fields) > 4:
            yield version, (root / fields[4].lstrip("/"), PurePosixPath(fields[3]))


def _read(path: Path) -> str:
    """A small file of the system, empty if there is none or it may not be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
