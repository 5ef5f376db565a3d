"""What a decode step costs op by op and as a recorded program, and how much of it is outside of native code."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gallium.checkpoints import open_checkpoint, resolve_model
from gallium.engine.loading import load
from gallium.models.config import read_spec
from gallium.models.decoder import Model
from gallium.ops.backend import installed, named
from gallium.ops.handles import Step
from gallium.settings import EngineSettings

BLOCK = 32
FIRST = 64  # positions of a run: FIRST to FIRST + SPREAD
SPREAD = 100
ROUNDS = 3


def main() -> None:
    """Print a line per batch and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="a folder, a file or a hub name; none: the embedded default")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=100, help="of each way in each of three rounds")
    args = parser.parse_args()
    model = load_cpu(args.model, args.precision)
    for batch in args.batch:
        report(model, batch, args.steps)


def load_cpu(name: str | None, precision: Any) -> Model:
    """A model on the CPU backend."""
    checkpoint = open_checkpoint(resolve_model(name).path)
    spec = read_spec(checkpoint.config, checkpoint.generation_config)
    return load(checkpoint, spec, named("cpu", installed()), EngineSettings(precision=precision)).model


def report(model: Model, batch: int, steps: int) -> None:
    """Both ways in turn, then each once more with a clock around native calls."""
    width = -(-(FIRST + SPREAD) // BLOCK)
    caches = model.make_caches(width * batch, BLOCK)

    def forward(plan: Any) -> Any:
        return model.forward(plan, caches)

    ops: Any = model.ops
    ways = {"op by op": ops.compile_step(forward), "as a program": ops.compile_step(forward, (batch,))}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, run in ways.items():
            seconds[way] += timed(run, batch, width, steps)[1:]  # the first may record
    clock = Clock()
    kernels = [ops._rows, ops._attention, ops._linear, *ways["as a program"].programs.values()]
    undo = [clock.around(one, name) for one in kernels for name in native_functions(one)]
    for way, run in ways.items():
        clock.seconds = 0.0
        whole = sum(timed(run, batch, width, steps))
        outside = (whole - clock.seconds) / whole
        median = statistics.median(seconds[way])
        print(
            f"batch {batch}, {way}: {median * 1e3:.2f} ms, {batch / median:.1f} tokens/s, "
            f"{outside:.1%} outside of native code ({outside * whole / (steps + 1) * 1e6:.0f} us)",
            flush=True,
        )
    for restore in undo:
        restore()


def timed(run: Callable[[Step], Any], batch: int, width: int, steps: int) -> list[float]:
    """Seconds of each of `steps` steps, and of one before them."""
    found = []
    for number in range(-1, steps):
        step = decode_step(batch, width, FIRST + max(0, number) % SPREAD)
        start = time.perf_counter()
        run(step)
        found.append(time.perf_counter() - start)
    return found


def decode_step(batch: int, width: int, position: int) -> Step:
    """One token for each of `batch` sequences."""
    blocks = position // BLOCK + 1
    return Step(
        token_ids=np.arange(100, 100 + batch, dtype=np.int32),
        positions=np.full(batch, position, np.int32),
        query_start=np.arange(batch + 1, dtype=np.int32),
        context_lens=np.full(batch, position + 1, np.int32),
        block_tables=np.arange(batch * width, dtype=np.int32).reshape(batch, width)[:, :blocks],
        logit_rows=np.arange(batch, dtype=np.int32),
    )


def native_functions(kernels: Any) -> list[str]:
    """The attributes that are functions of the library."""
    names = getattr(type(kernels), "__slots__", None) or vars(kernels)
    return [name for name in names if getattr(getattr(kernels, name), "__name__", "").startswith("ga_")]


class Clock:
    """Adds up the time within native calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, kernels: Any, name: str) -> Callable[[], None]:
        """Put the clock around one function; the result takes it away."""
        function = getattr(kernels, name)

        def call(args: Any) -> Any:
            start = time.perf_counter()
            result = function(args)
            self.seconds += time.perf_counter() - start
            return result

        setattr(kernels, name, call)
        return lambda: setattr(kernels, name, function)


if __name__ == "__main__":
    main()
