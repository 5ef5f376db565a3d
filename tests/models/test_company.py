"""A sequence gives the same logits however it is fed: whole, in pieces, beside others, again, from shared blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import pytest
from tests.models.driving import Driver
from tests.models.memory_checkpoint import MemoryCheckpoint, random_checkpoint
from tests.models.small_specs import CONFIGS, spec_of
from tests.models.targets import CPU, REFERENCE, TORCH, Target

from gallium.models.catalog import load_model
from gallium.models.decoder import Model
from gallium.ops.handles import FloatArray

LENGTH = 70
CHUNKS = (1, 2, 5, 16, 17, 29)
BLOCK_SIZES = {"odd": 4, "even": 16}


@cache
def checkpoint_of(name: str) -> MemoryCheckpoint:
    return random_checkpoint(spec_of(name))


def load(name: str, target: Target) -> Model:
    return target.load(checkpoint_of(name), spec_of(name))


def driver_of(model: Model, name: str) -> Driver:
    block_size = BLOCK_SIZES[name.rpartition("-")[2]]
    return Driver(model, num_blocks=5 * LENGTH // block_size, block_size=block_size)


def tokens(seed: int, count: int = LENGTH) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, 211, count)]


def pieces(sequence: Sequence[int], sizes: Sequence[int]) -> Iterator[Sequence[int]]:
    assert sum(sizes) == len(sequence)
    ends = np.cumsum(sizes)
    return (sequence[end - size : end] for end, size in zip(ends, sizes, strict=True))


def in_pieces(driver: Driver, sizes: Sequence[int]) -> FloatArray:
    return np.concatenate([driver.step({"a": piece})["a"] for piece in pieces(tokens(0), sizes)])


def beside_others(driver: Driver) -> FloatArray:
    """Four sequences that grow at random, each by nothing, one token or a chunk per step, until "a" is whole."""
    rng = np.random.default_rng(1)
    left = {name: tokens(seed) for seed, name in enumerate("abcd")}
    out = []
    while left["a"]:
        sizes = {name: int(rng.choice([0, 1, 1, 3, 9])) for name in left}
        chunks = {name: left[name][:size] for name, size in sizes.items() if left[name][:size]}
        left = {name: rest[sizes[name] :] for name, rest in left.items()}
        if chunks:
            logits = driver.step(dict(sorted(chunks.items(), key=lambda _: rng.random())))
            out += [logits["a"]] if "a" in chunks else []
    return np.concatenate(out)


def in_a_large_batch(driver: Driver) -> FloatArray:
    """Decoded beside twelve others, which begin one after the other: steps of 1 to 13 rows."""
    out = [driver.step({"a": tokens(0)[:50]})["a"]]
    for i, token in enumerate(tokens(0)[50:]):
        others = {f"other {n}": tokens(20 + n)[i - n : i - n + 1] for n in range(min(i, 12))}
        out.append(driver.step({**others, "a": [token]})["a"])
    return np.concatenate(out)


def again_after_preemption(driver: Driver) -> FloatArray:
    """Computed half, dropped, its blocks filled by another, computed anew."""
    driver.step({"a": tokens(0)[: LENGTH // 2]})
    driver.drop("a")
    driver.step({"b": tokens(5, 30)})
    return driver.step({"a": tokens(0)})["a"]


def from_shared_blocks(driver: Driver) -> FloatArray:
    """The first part from another sequence's blocks, which go on in another way."""
    blocks = LENGTH // 2 // driver.block_size
    shared = blocks * driver.block_size
    first = driver.step({"other": tokens(0)[:shared]})["other"]
    driver.step({"other": tokens(6, 11)})
    driver.share("a", "other", blocks)
    return np.concatenate([first, driver.step({"a": tokens(0)[shared:], "other": tokens(7, 1)})["a"]])


WAYS = {
    "token by token": lambda driver: in_pieces(driver, [1] * LENGTH),
    "in chunks": lambda driver: in_pieces(driver, CHUNKS),
    "beside others": beside_others,
    "again after preemption": again_after_preemption,
    "from shared blocks": from_shared_blocks,
}
CPU_WAYS = WAYS | {"in a large batch": in_a_large_batch}


@pytest.mark.parametrize("target", [REFERENCE, TORCH[0], *CPU], indirect=True, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_way_gives_the_same(target: Target, name: str) -> None:
    model = load(name, target)
    whole = driver_of(model, name).step({"a": tokens(0)})["a"]
    assert np.isfinite(whole).all()
    for way, feed in (CPU_WAYS if target.backend == "cpu" else WAYS).items():
        logits = feed(driver_of(model, name))
        if target.backend != "cpu":  # NumPy and PyTorch choose the order of a sum by the number of rows
            np.testing.assert_allclose(logits, whole, atol=1e-4, rtol=0, err_msg=way)
        else:
            assert np.array_equal(logits, whole), f"{way}: off by {np.abs(logits - whole).max()}"


@pytest.mark.parametrize("target", [t for t in CPU if t.precision == "int4"], indirect=True, ids=str)
@pytest.mark.parametrize("name", ["glm-tied-even", "glm4_moe-even"])
def test_every_way_gives_the_same_over_an_int8_cache(target: Target, name: str) -> None:
    from gallium.backends.cpu import backend

    spec = spec_of(name)
    model = load_model(checkpoint_of(name), spec, backend.open_with_kv(spec.facts, target.precision, "int8"))
    whole = driver_of(model, name).step({"a": tokens(0)})["a"]
    for way, feed in CPU_WAYS.items():
        logits = feed(driver_of(model, name))
        assert np.array_equal(logits, whole), f"{way}: off by {np.abs(logits - whole).max()}"


@pytest.mark.parametrize("target", CPU, indirect=True, ids=str)
@pytest.mark.parametrize("name", ["glm-odd", "glm4_moe-even"])
def test_the_number_of_threads_makes_no_difference(target: Target, name: str) -> None:
    from gallium.backends.cpu import library

    model = load(name, target)
    before = library.threads()
    try:
        logits = []
        for count in (1, 2, 5):
            library.set_threads(count)
            logits.append(driver_of(model, name).step({"a": tokens(0)})["a"])
    finally:
        library.set_threads(before)
    assert np.array_equal(logits[0], logits[1]) and np.array_equal(logits[0], logits[2])


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_sequence_reads_is_its_own(name: str) -> None:
    """The control: another first token changes every later row, and no row of a neighbour."""
    model = load(name, REFERENCE)
    one, two = tokens(0), [*tokens(0)]
    two[0] = (two[0] + 1) % 211
    a, b = (driver_of(model, name).step({"a": t, "b": tokens(9)}) for t in (one, two))
    assert (np.abs(a["a"] - b["a"]).max(axis=1) > 1e-4).all()
    np.testing.assert_array_equal(a["b"], b["b"])
