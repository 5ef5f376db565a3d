"""Starts one process per rank and gathers what they print."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run_ranks(module: str, world: int, meeting: Path, *more: str, limit: int = 300, **variables: str) -> str:
    """What `python -m module world rank rendezvous more…` printed on all ranks, and how each ended.

    `meeting` is a file that is not there yet; the ranks find each other by it. `variables` join the environment.
    """
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"} | variables
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(world), str(rank), f"file://{meeting}", *more],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        texts = [process.communicate(timeout=limit)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    ends = [f"rank {rank} ended with {process.returncode}\n" for rank, process in enumerate(ranks)]
    return "\n".join(texts) + "\n" + "".join(ends)
