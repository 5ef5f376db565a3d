"""A program of two ranks with backend hccl: runs the checks of operators that compute and communicate in one call."""

from __future__ import annotations

import os
import sys
import traceback

import torch
import torch.distributed as dist
from tests.vnpu import communication_matmul_checks, communication_moe_checks  # noqa: F401
from tests.vnpu.communication_ranks import CHECKS, RANKS, rank


def main() -> int:
    torch.npu.set_device(rank_number := int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("hccl", rank=rank_number, world_size=RANKS)
    failures = 0
    for name, function in CHECKS.items():
        try:
            function()
            dist.barrier()
            if rank() == 0:
                print(f"ok {name}", flush=True)
        except Exception:
            failures += 1
            print(f"failed {name} on rank {rank()}\n{traceback.format_exc()}", flush=True)
            break  # the ranks are out of step
    return failures


if __name__ == "__main__":
    sys.exit(main())
