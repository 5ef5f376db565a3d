"""Amounts of memory in words, what the machine and its control groups have left, and how many KV blocks that makes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gallium.engine.memory import KvPlan, available_bytes, check_fits, parse_bytes, plan_kv, room, show_bytes
from gallium.errors import OutOfMemory, UsageError

GIB = 1 << 30
NO_LIMIT = 2**63 - 4096  # how cgroup v1 writes "none"


# -- words -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4096", 4096), ("7B", 7), ("1K", 1024), ("1KiB", 1024), ("1KB", 1000), ("512M", 512 << 20),
        ("2GiB", 2 << 30), ("2gib", 2 << 30), (" 2 G ", 2 << 30), ("1.5GB", 1_500_000_000), ("1.5GiB", 3 << 29),
        ("0.25T", 1 << 38), ("3TB", 3 * 10**12), ("0", 0), (77, 77),
    ],
)  # fmt: skip
def test_amounts(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "lots", "GiB", "-1GiB", "1.GiB", ".5GiB", "1e9", "2PiB", "2 G iB", "nan", "inf", "٣GiB", "9" * 400]
)
def test_what_is_no_amount_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not an amount of memory: write it like 2GiB"):
        parse_bytes(text)


@given(st.integers(0, 10**18 - 1))
def test_every_number_of_bytes_is_read_exactly(count: int) -> None:
    assert parse_bytes(str(count)) == parse_bytes(f"{count}B") == count


@given(st.integers(0, 1 << 50))
def test_what_is_shown_can_be_read_again(count: int) -> None:
    shown = show_bytes(count)
    unit = parse_bytes("1" + shown.split()[1])
    assert abs(parse_bytes(shown) - count) <= unit / 20  # one digit after the point
    assert count < 1024 * unit or unit == 1 << 40


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB"), (3 << 50, "3072.0 TiB")]
)
def test_shown(count: int, shown: str) -> None:
    assert show_bytes(count) == shown


# -- what there is ---------------------------------------------------------------------


def machine(root: Path, own_groups: str, **files: str | int) -> Path:
    """A root folder with 64 GiB available, this process in `own_groups`, and files below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {128 << 20} kB\nMemAvailable:   {64 << 20} kB\nHugePages: 0\n")
    (root / "proc/self/cgroup").write_text(own_groups)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def group_v2(path: str, limit: str | int, used: int, droppable: int = 0) -> dict[str, str | int]:
    stat = f"anon 5\ninactive_file {droppable}\nactive_file 7"
    return {f"{path}memory.max": limit, f"{path}memory.current": used, f"{path}memory.stat": stat}


def group_v1(path: str, limit: int, used: int, droppable: int = 0) -> dict[str, str | int]:
    stat = f"inactive_file 3\ntotal_inactive_file {droppable}"
    return {
        f"memory/{path}memory.limit_in_bytes": limit,
        f"memory/{path}memory.usage_in_bytes": used,
        f"memory/{path}memory.stat": stat,
    }


def test_without_control_groups_it_is_what_the_system_has(tmp_path: Path) -> None:
    assert available_bytes(machine(tmp_path, "")) == 64 * GIB


def test_an_unlimited_group_changes_nothing(tmp_path: Path) -> None:
    assert available_bytes(machine(tmp_path, "0::/app\n", **group_v2("app/", "max", GIB))) == 64 * GIB


def test_a_group_counts_without_the_page_cache_that_can_be_dropped(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/app\n", **group_v2("app/", 8 * GIB, 3 * GIB, droppable=GIB))
    assert available_bytes(root) == 6 * GIB


def test_every_group_above_counts(tmp_path: Path) -> None:
    groups = group_v2("a/b/", "max", GIB) | group_v2("a/", 4 * GIB, 3 * GIB) | group_v2("", 32 * GIB, 4 * GIB)
    assert available_bytes(machine(tmp_path, "0::/a/b\n", **groups)) == GIB


@pytest.mark.parametrize("path", ["/docker/0123/not-mounted-here", "/../elsewhere", "/"])
def test_in_a_container_the_mounts_top_is_the_own_group(tmp_path: Path, path: str) -> None:
    assert available_bytes(machine(tmp_path, f"0::{path}\n", **group_v2("", 2 * GIB, GIB))) == GIB


def test_a_group_over_its_limit_has_nothing(tmp_path: Path) -> None:
    assert available_bytes(machine(tmp_path, "0::/\n", **group_v2("", GIB, 2 * GIB))) == 0


def test_version_1(tmp_path: Path) -> None:
    groups = group_v1("app/", 8 * GIB, 3 * GIB, droppable=GIB) | group_v1("", NO_LIMIT, 60 * GIB)
    own = "11:cpu,cpuacct:/app\n9:memory,hugetlb:/app\n1:name=systemd:/app\n0::/app\n"
    assert available_bytes(machine(tmp_path, own, **groups)) == 6 * GIB


def test_a_group_of_another_controller_does_not_count(tmp_path: Path) -> None:
    assert available_bytes(machine(tmp_path, "3:cpu:/app\n", **group_v1("app/", GIB, 0))) == 64 * GIB


def test_elsewhere_it_is_half_of_the_memory(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def test_of_this_machine() -> None:
    assert 0 < available_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# -- what fits -------------------------------------------------------------------------


def test_weights_that_cannot_fit_are_refused_with_both_amounts() -> None:
    check_fits(GIB, "float32", None, 4 * GIB)
    check_fits(GIB, "int4", None, GIB)
    with pytest.raises(OutOfMemory, match=r"at least 4\.0 GiB in float32, but 3\.9 GiB are free: choose a smaller"):
        check_fits(GIB, "float32", None, 4 * GIB - (100 << 20))


def test_kv_memory_that_cannot_fit_beside_the_weights_is_refused() -> None:
    check_fits(GIB, "bfloat16", 3 * GIB, 5 * GIB)
    words = r"3\.1 GiB of KV memory were asked for, but beside 2\.0 GiB of weights only 3\.0 GiB are free: ask for less"
    with pytest.raises(OutOfMemory, match=words):
        check_fits(GIB, "bfloat16", 3 * GIB + (100 << 20), 5 * GIB)


def plan(**changes: Any) -> KvPlan:
    """64 blocks of 16 tokens are available, of which 16 are the usual share."""
    usual = {
        "block_bytes": 1000, "block_size": 16, "max_positions": 8192, "max_context": None, "max_batch": 4,
        "kv_memory": None, "available": 64_000,
    }  # fmt: skip
    return plan_kv(**(usual | changes))


def test_the_share_of_what_is_free() -> None:
    assert plan() == KvPlan(16, 16_000, 256)
    assert plan(available=640_000) == KvPlan(160, 160_000, 2560)


def test_no_more_than_the_batch_can_use() -> None:
    assert plan(available=10**9, max_positions=100) == KvPlan(7 * 4, 28_000, 100)
    assert plan(available=10**9, max_context=40, max_batch=2) == KvPlan(3 * 2, 6_000, 40)


def test_more_than_the_share_if_the_context_needs_it() -> None:
    assert plan(max_context=1000) == KvPlan(63, 63_000, 1000)
    assert plan(available=20_000) == KvPlan(16, 16_000, 256)  # no smaller context is of use
    assert plan(available=20_000, max_positions=100) == KvPlan(7, 7_000, 100)


def test_what_was_asked_for() -> None:
    assert plan(kv_memory=40_999) == KvPlan(40, 40_000, 640)
    assert plan(kv_memory=40_000, max_positions=500) == KvPlan(40, 40_000, 500)
    assert plan(kv_memory=64_000, max_context=1000) == KvPlan(64, 64_000, 1000)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_context": 1025}, r"context of 1025 tokens needs 63\.5 KiB of KV memory, but 62\.5 KiB are free: choose"),
        ({"available": 15_999}, r"context of 256 tokens needs 15\.6 KiB of KV memory, but 15\.6 KiB are free"),
        ({"available": 0}, r"needs 15\.6 KiB of KV memory, but 0 B are free"),
        ({"kv_memory": 10_000}, r"context of 256 tokens needs 15\.6 KiB of KV memory, but 9\.8 KiB were given: give"),
        ({"kv_memory": 10_000, "max_context": 200}, r"context of 200 tokens needs 12\.7 KiB .* 9\.8 KiB were given"),
        ({"kv_memory": 64_001}, r"62\.5 KiB of KV memory were asked for, but only 62\.5 KiB are free: ask for less"),
        ({"kv_memory": 900 * GIB}, r"900\.0 GiB of KV memory were asked for, but only 62\.5 KiB are free"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_amounts(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(OutOfMemory, match=words):
        plan(**changes)


def test_a_context_beyond_the_models_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="max_context is 8193, but the model's limit is 8192 tokens"):
        plan(max_context=8193)


amounts = st.integers(1, 1 << 40)
numbers = st.fixed_dictionaries(
    {
        "block_bytes": st.integers(1, 1 << 22), "block_size": st.integers(1, 256), "max_batch": st.integers(1, 512),
        "max_positions": st.integers(1, 1 << 20), "max_context": st.none() | st.integers(1, 1 << 20),
        "kv_memory": st.none() | amounts, "available": amounts,
    }
)  # fmt: skip


@given(numbers)
def test_every_plan_keeps_its_promises(asked: dict[str, Any]) -> None:
    """Or says no: then the smallest useful plan would break them."""
    least = asked["max_context"] or min(asked["max_positions"], 256)
    budget = asked["available"] if asked["kv_memory"] is None else asked["kv_memory"]
    needed = -(-least // asked["block_size"]) * asked["block_bytes"]
    try:
        found = plan_kv(**asked)
    except UsageError:
        assert asked["max_context"] > asked["max_positions"]
    except OutOfMemory:
        assert needed > budget or budget > asked["available"]
    else:
        assert needed <= found.num_bytes <= budget <= asked["available"]
        assert found.num_bytes == found.num_blocks * asked["block_bytes"]
        assert least <= found.max_context <= (asked["max_context"] or asked["max_positions"])
        assert found.max_context <= found.num_blocks * asked["block_size"]


@pytest.mark.parametrize(
    ("device", "host", "emulated", "expected"),
    [
        (None, 2 * GIB, False, 2 * GIB),
        (64 * GIB, 2 * GIB, False, 64 * GIB),
        (1 * GIB, 2 * GIB, False, 1 * GIB),
        (64 * GIB, 2 * GIB, True, 2 * GIB),  # an emulated device keeps its tensors in the host's memory
        (1 * GIB, 2 * GIB, True, 1 * GIB),
    ],
)
def test_the_room_is_that_of_the_memory_in_use(device: int | None, host: int, emulated: bool, expected: int) -> None:
    assert room(device, host, emulated=emulated) == expected
