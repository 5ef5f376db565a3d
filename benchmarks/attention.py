"""Attention alone: bytes of KV cache per second in decode, operations per second in prefill, beside the limits here.

Calls `attend` of the CPU backend on caches of one layer. As in a model, consecutive calls read different layers: there
are as many caches as it takes to leave the processor's own caches behind (`--footprint`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine, write_result

from gallium.backends.cpu.backend import backend
from gallium.ops import costs
from gallium.ops.backend import open_ops
from gallium.ops.handles import AttentionSpec, FloatArray, KvCache, ModelFacts, RopeSpec, Step
from gallium.ops.interface import Ops

SHAPES = {"glm-edge-1.5b": (16, 4, 128), "glm-4-9b": (32, 2, 128)}  # heads, KV heads, width
BLOCK = 32


@dataclass(frozen=True)
class Case:
    """One cell: `rows` of (tokens in the step, context), and how many first blocks all sequences share."""

    name: str
    rows: list[tuple[int, int]]
    shared: int = 0


def cases(what: str, contexts: list[int], batches: list[int]) -> Iterator[Case]:
    """Decode: one token per sequence. Prefill: a chunk of 512 that ends the context."""
    if what == "decode":
        for batch in batches:
            for context in contexts:
                yield Case(f"decode {batch} x {context}", [(1, context)] * batch)
    if what == "prefill":
        for context in (512, 2048, 8192):
            yield Case(f"prefill, last 512 of {context}", [(512, context)])
    if what == "shared":
        for shared in (0, 2048):
            yield Case(f"decode 16 x 2176, {shared} shared", [(1, 2176)] * 16, shared // BLOCK)


def step_of(case: Case) -> tuple[Step, int]:
    """The step, with blocks in shuffled order, and how many blocks it needs."""
    needed = [-(-context // BLOCK) for _, context in case.rows]
    total = case.shared + sum(count - case.shared for count in needed)
    order = np.random.default_rng(0).permutation(total).astype(np.int32)
    tables = np.full((len(needed), max(needed)), -1, np.int32)
    at = case.shared
    for row, count in zip(tables, needed, strict=True):
        row[: case.shared] = order[: case.shared]
        row[case.shared : count] = order[at : at + count - case.shared]
        at += count - case.shared
    tokens = np.array([count for count, _ in case.rows])
    positions = np.concatenate([np.arange(context - count, context) for count, context in case.rows])
    lengths = np.array([context for _, context in case.rows], np.int32)
    starts = np.concatenate([[0], np.cumsum(tokens)]).astype(np.int32)
    zeros = np.zeros(len(positions), np.int32)
    return Step(zeros, positions.astype(np.int32), starts, lengths, tables, starts[1:] - 1), total


def fill(ops: Ops, cache: KvCache, spec: AttentionSpec, noise: FloatArray) -> None:
    """Every slot of the cache, from `noise` `[tokens, kv_heads, width]` again and again."""
    blocks = max(1, len(noise) // cache.block_size)
    for first in range(0, cache.num_blocks, blocks):
        table = np.arange(first, min(first + blocks, cache.num_blocks), dtype=np.int32)[None]
        n = table.size * cache.block_size
        places = np.arange(n, dtype=np.int32)
        step = Step(places, places, np.array([0, n], np.int32), np.array([n], np.int32), table, places[-1:])
        ops.kv_write(noise[:n], noise[:n], cache, ops.plan(step))


def timed(calls: list[Callable[[], Any]], seconds: float) -> float:
    """Median seconds of a call, over rounds through all calls, for about so long."""
    for call in calls:
        call()
    rounds, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(rounds) < 3:
        start = time.perf_counter()
        for call in calls:
            call()
        rounds.append((time.perf_counter() - start) / len(calls))
    return statistics.median(rounds)


def measure(case: Case, ops: Ops, spec: AttentionSpec, how: argparse.Namespace) -> dict[str, float]:
    """One cell."""
    step, blocks = step_of(case)
    size = ops.kv_block_bytes(spec, BLOCK)
    layers = max(1, min(64, -(-(how.footprint << 20) // (blocks * size))))
    noise = np.random.default_rng(1).standard_normal((512, spec.num_kv_heads, spec.head_dim)).astype(np.float32)
    caches = [ops.make_kv_cache(spec, blocks, BLOCK) for _ in range(layers)]
    for cache in caches:
        fill(ops, cache, spec, noise)
    plan = ops.plan(step)
    q = np.random.default_rng(2).standard_normal((len(step.positions), spec.num_heads * spec.head_dim))
    q = q.astype(np.float32)
    seconds = timed([lambda cache=cache: ops.attend(q, cache, plan, spec) for cache in caches], how.seconds)
    kv = int(step.context_lens.sum()) * size / BLOCK
    operations = 2 * costs.pairs(step) * spec.num_heads * 2 * spec.head_dim
    return {"microseconds": seconds * 1e6, "kv_bytes_per_s": kv / seconds, "operations_per_s": operations / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="glm-edge-1.5b")
    parser.add_argument("--what", nargs="+", choices=("decode", "prefill", "shared"), default=["decode", "prefill"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[128, 2048, 8192, 32768])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--kv-precision", choices=("float32", "bfloat16", "int8"), default="bfloat16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--footprint", type=int, default=160, help="MiB of cache that a round reads, if it can")
    parser.add_argument("--seconds", type=float, default=0.5, help="per cell")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    how = parser.parse_args()
    heads, kv_heads, width = SHAPES[how.shape]
    spec = AttentionSpec("gqa", heads, kv_heads, width, width, width**-0.5, RopeSpec(width // 2, 1e4, True))
    ops = open_ops(
        backend, ModelFacts("attention", 1, heads * width, 1, spec), "bfloat16", how.kv_precision, how.threads
    )
    limits = backend.measure(how.threads)
    read, peak = limits.read_bytes_per_s, limits.operations_per_s["float32"]
    print(f"{how.shape}, {how.kv_precision}: limits {read / 1e9:.1f} GB/s, {peak / 1e9:.0f} GOP/s in float32")
    found = {}
    for what in how.what:
        for case in cases(what, how.contexts, how.batches):
            cell = found[case.name] = measure(case, ops, spec, how)
            print(
                f"{case.name:32} {cell['microseconds']:10.0f} us {cell['kv_bytes_per_s'] / 1e9:7.2f} GB/s "
                f"{cell['kv_bytes_per_s'] / read:5.0%} {cell['operations_per_s'] / 1e9:7.1f} GOP/s "
                f"{cell['operations_per_s'] / peak:5.0%}", flush=True,
            )  # fmt: skip
    if how.out:
        shown = {
            "machine": machine(),
            "shape": how.shape,
            "kv_precision": how.kv_precision,
            "read": read,
            "peak": peak,
            "cells": found,
        }
        write_result(how.out, json.dumps(shown, indent=1))


if __name__ == "__main__":
    main()
