"""A pretend rank: speaks the protocol of gallium.engine.rank over the pretend model, and misbehaves to order.

The order's path is a folder. `faults.json` there says what goes wrong while loading, by rank: "refuse", "crash",
"hang" or "exit"; tokens in a step say what goes wrong there. Each rank writes what it does to `rank-N.log`.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.engine.fakes import PretendRunner

from gallium.engine.rank_messages import Failed, Loaded, MakeCaches, Order, Progress, Ready
from gallium.errors import OutOfMemory

BLOCK_SIZE = 4
DIES, FAILS, HANGS = 250, 251, 252  # tokens; the one after it is the rank that it happens to


def load(order: Order, engine: Connection, note: Any) -> None:
    rank = order.placement.rank
    faults = Path(order.path) / "faults.json"
    fault = json.loads(faults.read_text()).get(str(rank)) if faults.exists() else None
    note(f"pid {os.getpid()}")
    for done in range(1, 4):
        engine.send(Progress(done, 3))
        if fault == "exit" and done == 2:
            sys.exit(7)
        if fault == "hang" and done == 2:
            time.sleep(600)
    if fault == "refuse":
        raise OutOfMemory("the weights need 2 GiB, but 1 GiB are free.")
    if fault == "crash":
        raise ValueError("a bad driver")
    engine.send(Loaded("float32", [], BLOCK_SIZE, 1000, 64_000 + rank))


def misbehave(tokens: list[int], rank: int) -> None:
    """A fault's token is followed by the rank that it is for."""
    for token, victim in itertools.pairwise(tokens):
        if victim == rank:
            if token == DIES:
                os.kill(os.getpid(), signal.SIGKILL)
            if token == FAILS:
                raise RuntimeError("the device caught fire")
            if token == HANGS:
                time.sleep(600)


def serve(engine: Connection) -> None:
    order: Order = engine.recv()
    rank = order.placement.rank
    log = (Path(order.path) / f"rank-{rank}.log").open("a", buffering=1)
    load(order, engine, lambda line: print(line, file=log))
    size: MakeCaches = engine.recv()
    print(f"blocks {size.num_blocks}", file=log)
    engine.send(Ready())
    runner = PretendRunner(BLOCK_SIZE)
    while True:
        lane = engine.recv()
        print("idle" if lane is None else f"step of {len(lane.step.token_ids)}", file=log)
        if lane is not None:
            misbehave(lane.step.token_ids.tolist(), rank)
            if order.placement.tp_rank == 0:
                engine.send(runner.run([lane])[0])


def main() -> None:
    socket, lifeline = (int(argument) for argument in sys.argv[1:])

    def wait_for_the_end() -> None:
        os.read(lifeline, 1)
        os._exit(1)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    with Connection(socket) as engine:
        try:
            serve(engine)
        except (EOFError, ConnectionError):
            pass
        except Exception as error:
            engine.send(Failed.of(error, "the trace"))
            engine.poll(None)


if __name__ == "__main__":
    main()
