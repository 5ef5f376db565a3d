"""How much memory there is, and how many KV blocks it holds."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from gallium.errors import OutOfMemory, UsageError
from gallium.ops.handles import Precision
from gallium.ops.interface import Ops
from gallium.ops.machine import KnowsFreeMemory

KV_SHARE = 0.25  # of the free memory, unless told otherwise: room for other programs and for the page cache
SMALLEST_CONTEXT = 256  # tokens; a model that can hold less is of no use
UNITS = {"": 1, "B": 1} | {
    unit + end: 1 << (10 * power)
    for power, unit in enumerate("KMGT", 1)
    for end in ("", "IB")
} | {unit + "B": 1000**power for power, unit in enumerate("KMGT", 1)}  # fmt: skip
BITS: dict[Precision, float] = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "int8": 8.5,
    "int4": 5,
}  # of a weight, with its scales


def parse_bytes(text: str | int) -> int:
    """`"2GiB"`, `"512M"` (binary), `"1.5GB"` (decimal), `"4096"` or a number, as bytes. Raises UsageError."""
    if isinstance(text, int):
        return text
    from fractions import Fraction

    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise UsageError(f"{text!r} is not an amount of memory: write it like 2GiB, 512MiB or 1.5GB.")
    return int(Fraction(match[1]) * UNITS[match[2].upper()])


def show_bytes(count: float) -> str:
    """`1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that this process can still get: what the system and every control group above it have left.

    Linux: MemAvailable of /proc/meminfo, and limit minus use of cgroup v1 or v2 (page cache that can be dropped
    does not count as use). Elsewhere: half of the physical memory.
    """
    meminfo = _keyed(root / "proc/meminfo")
    if "MemAvailable:" not in meminfo:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min([meminfo["MemAvailable:"] * 1024, *_cgroup_rooms(root)])


def device_bytes(ops: Ops) -> int | None:
    """What the device has left, if it has memory of its own."""
    return ops.free_bytes() if isinstance(ops, KnowsFreeMemory) else None


def room(device: int | None, host: int, *, emulated: bool) -> int:
    """Memory for weights and KV cache, given what the device has left and this process's share of the host's.

    A device without memory of its own (None) uses the host's, and so does an emulated one, whatever it says.
    """
    if device is None:
        return host
    return min(device, host) if emulated else device


def _cgroup_rooms(root: Path) -> list[int]:
    """What each control group that holds this process has left."""
    rooms = []
    base = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            top, limit, usage, droppable = base, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, usage = base / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            droppable = "total_inactive_file"
        else:
            continue
        # In a container the path may be the host's and not be mounted; the mount's top is then the own group.
        folder = top / path.strip("/")
        while True:
            most, used = _text(folder / limit).strip(), _text(folder / usage).strip()
            if most.isdigit() and used.isdigit():
                rooms.append(max(0, int(most) - int(used) + _keyed(folder / "memory.stat").get(droppable, 0)))
            if folder == top:
                break
            folder = folder.parent
    return rooms


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _keyed(path: Path) -> dict[str, int]:
    """Lines `name number …` of a file in /proc or /sys; {} if there is none."""
    pairs = (line.split()[:2] for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def check_fits(num_weights: int, precision: Precision, kv_memory: int | None, available: int) -> None:
    """Refuse, before anything is read, what cannot fit: packed weights, and the KV memory that was asked for.

    A lower bound: a backend may keep some weights more precise than asked.
    """
    weights = num_weights * BITS[precision] / 8
    if weights > available:
        raise OutOfMemory(
            f"the weights need at least {show_bytes(weights)} in {precision}, but {show_bytes(available)} are "
            "free: choose a smaller precision or a smaller model."
        )
    if kv_memory is not None and weights + kv_memory > available:
        raise OutOfMemory(
            f"{show_bytes(kv_memory)} of KV memory were asked for, but beside {show_bytes(weights)} of weights only "
            f"{show_bytes(available - weights)} are free: ask for less KV memory."
        )


class KvPlan(NamedTuple):
    """The size of the KV cache."""

    num_blocks: int
    num_bytes: int
    max_context: int  # tokens of prompt and answer together


def plan_kv(
    *,
    block_bytes: int,
    block_size: int,
    max_positions: int,
    max_context: int | None,
    max_batch: int,
    kv_memory: int | None,
    available: int,
) -> KvPlan:
    """Size the cache; `block_bytes` is one block in all layers.

    `kv_memory` None takes KV_SHARE of what is available, but no less than the context needs that `max_context` asks
    for (None: SMALLEST_CONTEXT) and no more than `max_batch` full contexts. Raises UsageError or OutOfMemory, which
    names both amounts.
    """
    if max_context is not None and max_context > max_positions:
        raise UsageError(f"max_context is {max_context}, but the model's limit is {max_positions} tokens.")
    if kv_memory is not None and kv_memory > available:
        raise OutOfMemory(
            f"{show_bytes(kv_memory)} of KV memory were asked for, but only {show_bytes(available)} are free: "
            "ask for less KV memory."
        )
    wanted = max_context or max_positions
    least = max_context or min(wanted, SMALLEST_CONTEXT)
    least_blocks = -(-least // block_size)
    if least_blocks * block_bytes > (available if kv_memory is None else kv_memory):
        amount, advice = (
            (f"{show_bytes(available)} are free", "choose a shorter context or a smaller model")
            if kv_memory is None
            else (f"{show_bytes(kv_memory)} were given", "give more KV memory or choose a shorter context")
        )
        need = show_bytes(least_blocks * block_bytes)
        raise OutOfMemory(f"a context of {least} tokens needs {need} of KV memory, but {amount}: {advice}.")
    if kv_memory is None:
        share = int(available * KV_SHARE) // block_bytes
        num_blocks = min(max(share, least_blocks), -(-wanted // block_size) * max_batch)
    else:
        num_blocks = kv_memory // block_bytes
    return KvPlan(num_blocks, num_blocks * block_bytes, min(wanted, num_blocks * block_size))
