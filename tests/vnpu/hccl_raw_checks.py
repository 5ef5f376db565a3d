"""What HCCL's C functions compute and refuse between ranks that are well."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import ml_dtypes
import numpy as np
from tests.vnpu.hccl_ranks import (
    FLOAT8_E4M3,
    FLOAT32,
    INTERNAL,
    MAXIMUM,
    MINIMUM,
    NUMPY,
    PARAMETER,
    PRODUCT,
    SUM,
    UNSUPPORTED,
    HcclError,
    Rank,
    call,
    core,
)

JOIN = {SUM: np.add, PRODUCT: np.multiply, MAXIMUM: np.maximum, MINIMUM: np.minimum}
# With a buffer of 1 MiB per rank: nothing, one, small, two rounds, several chunks.
SIZES = (0, 1, 1000, 40_000, 700_001)


def data_of(rank: int, size: int, kind: type, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng((seed, rank, size))
    if np.issubdtype(kind, np.integer):
        return random.integers(0, 100, size).astype(kind)
    return random.standard_normal(size).astype(np.float32).astype(kind)


def joined(parts: list[np.ndarray], op: int) -> np.ndarray:
    """In rank order; 16-bit floats in float32, rounded once."""
    kind = parts[0].dtype
    wide = np.float32 if kind in (np.float16, ml_dtypes.bfloat16) else kind
    total = parts[0].astype(wide)
    with np.errstate(over="ignore"):
        for part in parts[1:]:
            total = JOIN[op](total, part.astype(wide)).astype(wide)
        return total.astype(kind)


def same(actual: np.ndarray, expected: np.ndarray, what: str) -> None:
    assert actual.dtype == expected.dtype and actual.tobytes() == expected.tobytes(), what


def refused(code: int, *words: str, action: Callable[[], object]) -> str:
    try:
        action()
    except HcclError as error:
        assert error.code == code, f"code {error.code}, not {code}: {error.text}"
        for word in words:
            assert word in error.text, f"{word!r} is not in: {error.text}"
        return error.text
    raise AssertionError(f"not refused: {words}")


def collectives(comm: Rank) -> None:
    for kind in NUMPY.values():
        for size in SIZES if kind is np.float32 else (1000,):
            for op in JOIN:
                parts = [data_of(r, size, kind) for r in range(comm.ranks)]
                expected, what = joined(parts, op), f"{np.dtype(kind)} {size} {op}"
                mine = parts[comm.rank].copy()
                same(comm.all_reduce(mine, op), expected, f"all_reduce {what}")
                same(comm.all_reduce(mine, op, out=mine), expected, f"all_reduce in place {what}")
                got = comm.reduce(parts[comm.rank], op, 1)
                same(got, expected if comm.rank == 1 else np.zeros_like(expected), f"reduce {what}")


def parts_of_all(comm: Rank) -> None:
    for kind in (np.float32, np.int8, ml_dtypes.bfloat16):
        for size in SIZES:
            all_parts = np.stack([data_of(r, size * comm.ranks, kind) for r in range(comm.ranks)])
            mine, block = all_parts[comm.rank], slice(comm.rank * size, (comm.rank + 1) * size)
            total, what = joined(list(all_parts), SUM)[block], f"{np.dtype(kind)} {size}"
            same(comm.reduce_scatter(mine, SUM), total, f"reduce_scatter {what}")
            inside = mine.copy()
            same(comm.reduce_scatter(inside, SUM, out=inside[block]), total, f"reduce_scatter in place {what}")
            same(comm.scatter(all_parts[2], 2), all_parts[2][block], f"scatter {what}")
            received = np.concatenate([part[block] for part in all_parts])
            same(comm.all_to_all(mine), received, f"all_to_all {what}")
            same(comm.all_gather(mine[:size].copy()), all_parts[:, :size], f"all_gather {what}")
            sent = data_of(3, size, kind) if comm.rank == 3 else np.zeros(size, kind)
            comm.broadcast(sent, 3)
            same(sent, data_of(3, size, kind), f"broadcast {what}")


def uneven(comm: Rank) -> None:
    for scale in (0, 1, 7, 100_003):
        counts = [scale * r for r in range(comm.ranks)]  # rank 0 has nothing
        whole = [data_of(r, sum(counts), np.float32) for r in range(comm.ranks)]
        start = sum(counts[: comm.rank])
        mine = slice(start, start + counts[comm.rank])
        parts = [data_of(r, counts[r], np.float32) for r in range(comm.ranks)]
        same(comm.all_gather_v(parts[comm.rank], counts), np.concatenate(parts), f"all_gather_v {scale}")
        same(
            comm.reduce_scatter_v(whole[comm.rank], counts, SUM), joined(whole, SUM)[mine], f"reduce_scatter_v {scale}"
        )
        sends = [scale * ((comm.rank + 2 * r) % 3) for r in range(comm.ranks)]
        receives = [scale * ((r + 2 * comm.rank) % 3) for r in range(comm.ranks)]
        message = [data_of(r, receives[r], np.int32, seed=comm.rank) for r in range(comm.ranks)]
        sent = np.concatenate([data_of(comm.rank, count, np.int32, seed=r) for r, count in enumerate(sends)])
        same(comm.all_to_all_v(sent, sends, receives), np.concatenate(message), f"all_to_all_v {scale}")


def special_numbers(comm: Rank) -> None:
    """Rounding, overflow, subnormal numbers and not-a-number of 16-bit floats, against numpy's conversions."""
    every = np.arange(1 << 16, dtype=np.uint16)
    for kind in (np.float16, ml_dtypes.bfloat16):
        parts = [np.roll(every, r * 12345).view(kind) for r in range(comm.ranks)]
        for op in (SUM, PRODUCT):
            with np.errstate(all="ignore"):
                expected = joined(parts, op).astype(np.float32)
            np.testing.assert_array_equal(comm.all_reduce(parts[comm.rank].copy(), op).astype(np.float32), expected)
    hole = np.array([np.nan if comm.rank == 1 else 1.0], np.float32)
    assert np.isnan(comm.all_reduce(hole, MAXIMUM)).all() and np.isnan(comm.all_reduce(hole, MINIMUM)).all()


def messages(comm: Rank) -> None:
    right, left = (comm.rank + 1) % comm.ranks, (comm.rank - 1) % comm.ranks
    for number in range(2000):  # nobody receives yet: sends do not wait
        comm.send(np.full(number % 50, number, np.int64), right)
    big = data_of(comm.rank, 5_000_000, np.float32)
    comm.send(big, right)
    comm.send(big, comm.rank)
    for number in range(2000):
        same(comm.receive(np.zeros(number % 50, np.int64), left), np.full(number % 50, number, np.int64), str(number))
    same(comm.receive(np.empty_like(big), left), data_of(left, 5_000_000, np.float32), "a large message")
    same(comm.receive(np.empty_like(big), comm.rank), big, "a message to itself")
    mine, got = np.array([comm.rank], np.int32), np.zeros(1, np.int32)
    comm.batch([("receive", got, left), ("send", mine, right)])
    assert got[0] == left
    call("HcclGroupStart")
    call("HcclGroupStart")
    got[0] = -1
    comm.receive(got, right)
    comm.send(mine, left)
    call("HcclGroupEnd")
    assert got[0] == -1, "a group runs at its end"
    call("HcclGroupEnd")
    assert got[0] == right


def sub_communicators(comm: Rank) -> None:
    odd = [r for r in range(comm.ranks) if r % 2]
    if comm.rank in odd:
        both = [comm.sub(odd, 11), comm.sub(odd, 12)]
        assert both[0].name() != both[1].name()
        for part in both:
            total = part.all_reduce(np.array([comm.rank], np.int64))
            assert total[0] == sum(odd) and part.ranks == len(odd)
            part.destroy()
    others = [r for r in range(comm.ranks) if r != comm.rank]
    refused(PARAMETER, "is not member 0", action=lambda: comm.sub(others, 13, mine=0))


def names(comm: Rank) -> None:
    library = core()
    library.ga_vnpu_hccl_find.restype = ctypes.c_void_p
    library.ga_vnpu_hccl_find.argtypes = [ctypes.c_char_p]
    assert library.ga_vnpu_hccl_find(comm.name().encode()) == comm.handle
    assert library.ga_vnpu_hccl_find(b"no such name") is None
    assert library.ga_vnpu_hccl_rank(ctypes.c_void_p(comm.handle)) == comm.rank
    assert library.ga_vnpu_hccl_size(ctypes.c_void_p(comm.handle)) == comm.ranks
    assert comm.error() == 0


def fork_is_harmless(comm: Rank) -> None:
    child = os.fork()
    if child == 0:
        refused(INTERNAL, "forked", action=lambda: comm.all_reduce(np.ones(1, np.float32)))
        comm.destroy()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert comm.all_reduce(np.ones(1, np.float32))[0] == comm.ranks


def refusals(comm: Rank) -> None:
    data = np.ones(4, np.float32)
    for code, words, action in (
        (
            UNSUPPORTED,
            "sum of float8_e4m3",
            lambda: call("HcclAllReduce", data, data, 4, FLOAT8_E4M3, SUM, comm.handle, None),
        ),
        (UNSUPPORTED, "reduction 7", lambda: call("HcclAllReduce", data, data, 4, FLOAT32, 7, comm.handle, None)),
        (UNSUPPORTED, "data type 99", lambda: call("HcclBroadcast", data, 4, 99, 0, comm.handle, None)),
        (PARAMETER, "root 9", lambda: call("HcclBroadcast", data, 4, FLOAT32, 9, comm.handle, None)),
        (PARAMETER, "null", lambda: call("HcclAllReduce", None, data, 4, FLOAT32, SUM, comm.handle, None)),
        (PARAMETER, "does not exist", lambda: call("HcclBroadcast", data, 4, FLOAT32, 0, 12345, None)),
        (PARAMETER, "rank 9", lambda: comm.send(data, 9)),
        (PARAMETER, "the counts say 3", lambda: comm.all_gather_v(data, [3] * comm.ranks)),
        (PARAMETER, "HcclGroupStart", lambda: call("HcclGroupEnd")),
    ):
        refused(code, words, action=action)
    assert comm.all_reduce(data)[0] == comm.ranks, "a refused call does no harm"


HEALTHY = (
    collectives,
    parts_of_all,
    uneven,
    special_numbers,
    messages,
    sub_communicators,
    names,
    fork_is_harmless,
    refusals,
)


def healthy(comm: Rank) -> None:
    for check in HEALTHY:
        check(comm)
        comm.all_reduce(np.zeros(1, np.float32))
    assert comm.error() == 0
