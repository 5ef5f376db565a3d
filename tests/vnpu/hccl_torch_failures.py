"""A program of two ranks in which one is late and then dies. Prints what the other one sees."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch_npu  # noqa: F401


def seen(action: Callable[[], object]) -> str:
    """The text of the error that the action ends with, on one line."""
    try:
        action()
    except RuntimeError as error:
        return " ".join(str(error).split())
    return "no error"


def main() -> None:
    rank = int(os.environ["RANK"])
    torch.npu.set_device(rank)
    dist.init_process_group("hccl")
    data = torch.ones(4).npu()
    dist.all_reduce(data)
    slow = dist.new_group([0, 1])
    dist.all_reduce(data, group=slow)
    store = dist.distributed_c10d._get_default_store()
    if rank == 1:
        store.wait(["late 0"])  # until the other one has given up, after 2 seconds
    print(f"late {rank}", seen(lambda: dist.all_reduce(data, group=slow)), flush=True)
    store.set(f"late {rank}", "")
    store.wait([f"late {1 - rank}"])
    dist.all_reduce(data)  # the other communicator is unharmed
    print(f"value {rank}", data.cpu().tolist(), flush=True)
    wrong = torch.ones(4 + rank).npu()
    unequal = dist.new_group([0, 1])
    print(f"unequal {rank}", seen(lambda: dist.all_reduce(wrong, group=unequal)), flush=True)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    print(f"dead {rank}", seen(lambda: dist.all_reduce(data)), flush=True)
    print(f"again {rank}", seen(lambda: dist.broadcast(data, 0)), flush=True)


if __name__ == "__main__":
    main()
