"""Ranks that disagree, die or are late. Runs all raw checks: python -m tests.vnpu.hccl_raw_failures [CHECK...]."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tests.vnpu.hccl_ranks import INTERNAL, MAXIMUM, PARAMETER, TIMED_OUT, UNSUPPORTED, Rank, new_root, run_ranks
from tests.vnpu.hccl_raw_checks import healthy, refused


def mismatch(wrong: Callable[[Rank], object], *words: str) -> Callable[[Rank], None]:
    """Rank 1 does something else than an all_reduce of 8 float32: all ranks say so, then and later."""

    def check(comm: Rank) -> None:
        usual = lambda: comm.all_reduce(np.ones(8, np.float32))  # noqa: E731
        refused(
            PARAMETER, "ranks disagree", "rank 1", *words, action=(lambda: wrong(comm)) if comm.rank == 1 else usual
        )
        refused(PARAMETER, "ranks disagree", action=usual)
        assert comm.error() == PARAMETER

    return check


def uneven_mismatch(comm: Rank) -> None:
    sends = [1] * comm.ranks
    receives = [2] * comm.ranks if comm.rank == 1 else sends
    action = lambda: comm.all_to_all_v(np.zeros(sum(sends), np.int8), sends, receives)  # noqa: E731
    refused(PARAMETER, "rank 0 sends 1 elements to rank 1, which expects 2", action=action)


def message_mismatch(comm: Rank) -> None:
    if comm.rank == 0:
        comm.send(np.zeros(3, np.float32), 1)
    elif comm.rank == 1:
        refused(
            PARAMETER,
            "sends 3 of float32",
            "receives 4 of float32",
            action=lambda: comm.receive(np.zeros(4, np.float32), 0),
        )
    else:
        refused(PARAMETER, "receives 4 of float32", action=lambda: comm.all_reduce(np.zeros(1, np.float32)))


def killed(comm: Rank) -> None:
    """Rank 2 is killed: the others hear of it, whatever they wait in, long before the limit of 600 seconds."""
    comm.all_reduce(np.zeros(1, np.float32))
    if comm.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    actions: tuple[Callable[[], object], ...] = (
        lambda: comm.all_reduce(np.zeros(1, np.float32)), lambda: comm.receive(np.zeros(1, np.float32), 2),
    )  # fmt: skip
    refused(INTERNAL, "rank 2 (process ", "is dead", action=actions[comm.rank])
    assert time.monotonic() - start < 60
    refused(INTERNAL, "rank 2 (process ", "is dead", action=actions[0])
    assert comm.error() == INTERNAL


def left(comm: Rank) -> None:
    note = np.ones(2, np.float32)
    comm.all_reduce(note)
    if comm.rank == 1:
        comm.send(note, 0)
        return
    if comm.rank == 0:
        time.sleep(0.4)
        assert comm.receive(np.zeros(2, np.float32), 1)[0] == 1, "what was sent before is not lost"
        comm.send(note, 2)
    else:
        comm.receive(note, 0)
    refused(INTERNAL, "rank 1 (process ", "has left", action=lambda: comm.all_reduce(note))


def await_failure(comm: Rank) -> None:
    """Until another rank has met it."""
    while comm.error() == 0:
        time.sleep(0.05)


def late(comm: Rank) -> None:
    """The error says who is waited for, and where that rank is; and the late rank gets it too."""
    comm.all_reduce(np.zeros(1, np.float32))
    if comm.rank == 1:
        await_failure(comm)
    words = ("timed out after 2 s", "waits for", "rank 1 (process ", "last entered HcclAllReduce, call 1")
    refused(TIMED_OUT, *words, action=lambda: comm.broadcast(np.zeros(1, np.float32), 0))


def late_message(comm: Rank) -> None:
    words = ("timed out after 2 s", "waiting for a message of rank 2")
    if comm.rank == 0:
        refused(TIMED_OUT, *words, action=lambda: comm.receive(np.zeros(1), 2))
    else:
        await_failure(comm)


def absent(comm: Rank) -> None:
    """With a limit of one second to connect: rank 1 never comes."""
    if comm.rank != 1:
        root = bytes.fromhex(os.environ["HCCL_TEST_ROOT"])
        refused(TIMED_OUT, "within 1 s", "did not come: 1", action=lambda: Rank.join(root, comm.ranks, comm.rank))


def taken_twice(comm: Rank) -> None:
    root = bytes.fromhex(os.environ["HCCL_TEST_ROOT"])
    if comm.rank == 0:
        refused(PARAMETER, "rank 5 of 3", action=lambda: Rank.join(root, comm.ranks, 5))
        refused(PARAMETER, "not made by HcclGetRootInfo", action=lambda: Rank.join(bytes(4108), comm.ranks, 0))
        other = root[:24] + b"another machine".ljust(40, b"\0") + root[64:]
        refused(UNSUPPORTED, "another machine", action=lambda: Rank.join(other, comm.ranks, 0))
    mine = Rank.join(root, comm.ranks, comm.rank)
    refused(PARAMETER, f"rank {comm.rank}", "is taken", action=lambda: Rank.join(root, comm.ranks, comm.rank))
    refused(PARAMETER, "disagree about the size", action=lambda: Rank.join(root, comm.ranks + 1, comm.rank))
    mine.all_reduce(np.zeros(1, np.float32))


def interrupt(comm: Rank) -> None:
    """Ctrl-C ends a wait: Python gets its KeyboardInterrupt, and the other ranks an error."""
    comm.all_reduce(np.zeros(1, np.float32))
    if comm.rank != 0:
        await_failure(comm)
        refused(INTERNAL, "rank 0 was interrupted", action=lambda: comm.all_reduce(np.zeros(1, np.float32)))
        return
    child = os.fork()
    if child == 0:
        _interrupt_when_asleep(os.getppid())
        os._exit(0)
    try:
        refused(INTERNAL, "was interrupted", action=lambda: comm.all_reduce(np.zeros(1, np.float32)))
        time.sleep(5)
    except KeyboardInterrupt:
        os.waitpid(child, 0)
        return
    raise AssertionError("no KeyboardInterrupt")


def _interrupt_when_asleep(process: int) -> None:
    """Sends SIGINT once the process has slept for half a second."""
    asleep = 0
    while asleep < 10:
        time.sleep(0.05)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        asleep = asleep + 1 if state == "S" else 0
    os.kill(process, signal.SIGINT)


FAILURES: dict[str, Callable[[Rank], None]] = {
    "another count": mismatch(lambda comm: comm.all_reduce(np.ones(9, np.float32)), "8 of float32", "9 of float32"),
    "another type": mismatch(lambda comm: comm.all_reduce(np.ones(8, np.int32)), "8 of float32", "8 of int32"),
    "another reduction": mismatch(lambda comm: comm.all_reduce(np.ones(8, np.float32), MAXIMUM), "sum", "maximum"),
    "another operation": mismatch(lambda comm: comm.broadcast(np.ones(8, np.float32), 2), "HcclBroadcast", "root 2"),
    "uneven mismatch": uneven_mismatch,
    "message mismatch": message_mismatch,
    "killed": killed,
    "left": left,
    "interrupt": interrupt,
}  # fmt: skip
IMPATIENT = {"late": late, "late message": late_message}
UNJOINED = {"absent": absent, "taken twice": taken_twice}


def run(name: str) -> bool:
    join, ranks, check, killed_ranks = True, 3, FAILURES.get(name), 1 if name == "killed" else 0
    if name == "healthy":
        ranks, check = 4, healthy
        os.environ["GALLIUM_VNPU_HCCL_BUFFER_MB"] = "1"
    elif name in IMPATIENT:
        check = IMPATIENT[name]
        os.environ["GALLIUM_VNPU_HCCL_TIMEOUT"] = "2"
    elif name in UNJOINED:
        join, check = False, UNJOINED[name]
        os.environ["HCCL_TEST_ROOT"], os.environ["HCCL_CONNECT_TIMEOUT"] = (
            new_root().hex(),
            "1" if name == "absent" else "60",
        )
    assert check is not None, name
    codes = run_ranks(ranks, check, join=join)
    for variable in ("GALLIUM_VNPU_HCCL_BUFFER_MB", "GALLIUM_VNPU_HCCL_TIMEOUT", "HCCL_CONNECT_TIMEOUT"):
        os.environ.pop(variable, None)
    good = sorted(codes) == [-9] * killed_ranks + [0] * (ranks - killed_ranks)
    print(f"{'ok' if good else 'FAILED'} {name} {codes if not good else ''}", flush=True)
    return good


ALL = ("healthy", *FAILURES, *IMPATIENT, *UNJOINED)

if __name__ == "__main__":
    verdicts = [run(name) for name in sys.argv[1:] or ALL]
    sys.exit(0 if all(verdicts) else 1)
