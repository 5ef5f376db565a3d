"""One rank: a process that loads its part of a model and runs the steps that the engine sends. `python -m` runs it."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from gallium.checkpoints import open_checkpoint
from gallium.engine.loading import load
from gallium.engine.memory import device_bytes
from gallium.engine.rank_messages import Failed, Loaded, MakeCaches, Order, Progress, Ready
from gallium.engine.runner import ModelRunner, decode_sizes
from gallium.models.config import read_spec
from gallium.ops.backend import installed, named
from gallium.ops.handles import Step


class EngineGoneError(Exception):
    """The engine has closed the connection: there is nothing more to do."""


def main(arguments: list[str]) -> int:
    """Serve the engine at the other end of a socket; `arguments` are its number and that of the lifeline."""
    faulthandler.enable()
    socket, lifeline = (int(argument) for argument in arguments)
    for descriptor in (socket, lifeline):
        os.set_inheritable(descriptor, False)
    threading.Thread(target=_end_with_engine, args=(lifeline,), name="gallium-lifeline", daemon=True).start()
    with Connection(socket) as engine:
        try:
            serve(engine)
        except EngineGoneError:
            return 0
        except Exception as error:
            with suppress(EngineGoneError):
                _tell(engine, Failed.of(error, traceback.format_exc()))
                engine.poll(None)  # until the engine has heard it and closes
            return 1
    return 0


def serve(engine: Connection) -> None:
    """Load, then run steps until the engine closes the connection. Raises EngineGoneError then."""
    order: Order = _next(engine)
    settings, placement = order.settings, order.placement
    checkpoint = open_checkpoint(Path(order.path))
    spec = read_spec(checkpoint.config, checkpoint.generation_config)
    found = load(
        checkpoint,
        spec,
        named(order.backend, installed()),
        settings,
        lambda done, total: _tell(engine, Progress(done, total)),
        placement,
    )
    model, ops = found.model, found.model.ops
    block_size = settings.block_size or ops.block_size
    block_bytes = model.kv_block_bytes(block_size)
    _tell(engine, Loaded(found.precision, found.support, block_size, block_bytes, device_bytes(ops), ops.kv_precision))
    size: MakeCaches = _next(engine)
    sizes = decode_sizes(settings.max_batch) if settings.graphs else ()
    runner = ModelRunner(model, ops, model.make_caches(size.num_blocks, size.block_size), sizes)
    _tell(engine, Ready())
    while True:
        lane = _next(engine)
        if lane is None:
            runner.take_part(EMPTY)
        elif placement.tp_rank == 0:
            _tell(engine, runner.run_lane(lane))
        else:
            runner.take_part(lane.step)


def _next(engine: Connection) -> Any:
    try:
        return engine.recv()
    except (EOFError, ConnectionError):
        raise EngineGoneError from None


def _tell(engine: Connection, message: object) -> None:
    try:
        engine.send(message)
    except ConnectionError:
        raise EngineGoneError from None


def _end_with_engine(lifeline: int) -> None:
    """When the engine is gone, however it ended, there is nobody to work for."""
    os.read(lifeline, 1)
    os._exit(1)


_NONE = np.zeros(0, np.int32)
EMPTY = Step(
    token_ids=_NONE,
    positions=_NONE,
    query_start=np.zeros(1, np.int32),
    context_lens=_NONE,
    block_tables=np.zeros((0, 0), np.int32),
    logit_rows=_NONE,
)
"""A step without a sequence: what is left of it is the exchange of experts."""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
