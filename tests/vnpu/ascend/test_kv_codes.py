"""An 8-bit KV cache is kept in 8 bits: its size, the kernels that read it, and graphs over it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from tests.models.driving import Driver
from tests.models.integer_checkpoint import integer_checkpoint
from tests.vnpu.ascend import models
from tests.vnpu.support import called

from gallium.backends.ascend import plan, soc
from gallium.backends.ascend.cache import fused_for
from gallium.backends.torch.plan import FIRST_PAGE
from gallium.models.catalog import load_model
from gallium.models.decoder import Model
from gallium.ops.handles import FloatArray

PROMPTS = {"a": [3, 1, 4, 1, 5], "b": list(range(40, 77)), "c": [9, 2, 6]}
FUSED = "FusedInferAttentionScoreV3"
B2 = soc.find("Ascend910B2")


@cache
def load(offset: int = 0) -> Model:
    """A dense model in integers with a grid in every layer."""
    spec = models.wide_spec("glm")
    checkpoint = integer_checkpoint(spec, "dynamic")
    for name, values in checkpoint.tensors.items():
        if name.endswith("kv_cache_offset"):
            values[:] = offset
    return load_model(checkpoint, spec, models.open_ops(spec, "int8"))


def decode(driver: Driver, steps: int = 8) -> list[FloatArray]:
    """Prefill, then so many greedy steps; contexts cross blocks on the way."""
    rows = driver.step(PROMPTS)
    found = []
    for _ in range(steps):
        rows = driver.step({name: [int(rows[name][-1].argmax())] for name in PROMPTS})
        found.append(np.stack([rows[name][-1] for name in PROMPTS]))
    return found


@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_a_block_takes_half_the_memory_and_is_counted_so(block_size: int) -> None:
    coded, plain = load(), models.load("glm", "int8")
    pages = [cache.data for cache in coded.make_caches(6, block_size)]
    assert {(page.k.dtype, page.v.dtype) for page in pages} == {(torch.int8, torch.int8)}
    held = sum(page.k.nbytes + page.v.nbytes + page.index.nbytes for page in pages)
    assert held == coded.kv_block_bytes(block_size) * (6 + FIRST_PAGE)
    assert 2 * coded.kv_block_bytes(block_size) == plain.kv_block_bytes(block_size)


@pytest.mark.parametrize("offset", [0, 17])
@pytest.mark.parametrize(("size", "near"), [(3, 0.0), (4, 0.15)])
def test_captured_steps_are_eager_steps(size: int, near: float, offset: int) -> None:
    """By the kernel that reads codes, without and with padding, which the CPU beneath adds up otherwise.

    `test_quantised_steps.py` holds smaller blocks, which plain PyTorch reads.
    """
    model = load(offset)
    captured = Driver(model, 32, 32)
    captured.run = model.ops.compile_step(lambda plan: model.forward(plan, captured.caches), (size,))
    for ours, theirs in zip(decode(captured), decode(Driver(model, 32, 32)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=near)
        np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))


def test_decoding_reads_codes_in_one_kernel_and_other_steps_make_numbers_of_them_before() -> None:
    driver = Driver(load(), 32, 32)
    with called() as prefill:
        driver.step(PROMPTS)
    with called() as decoding:
        driver.step({name: [7] for name in PROMPTS})
    assert FUSED in prefill and FUSED in decoding
    assert "InplaceMul" in prefill - decoding  # by the scales
    assert FUSED not in _decoding(16)  # int8 wants blocks of 32


def _decoding(block_size: int) -> set[str]:
    driver = Driver(load(), 32, block_size)
    driver.step(PROMPTS)
    with called() as names:
        driver.step({name: [7] for name in PROMPTS})
    return names


def test_pages_become_numbers_a_few_sequences_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one as all together; "b" alone has more pages than the limit."""
    model = load(17)
    together = Driver(model, 32, 16)
    wanted = [together.step(PROMPTS), together.step({"a": [1, 2], "b": [3], "c": [4, 5, 6]})]
    monkeypatch.setattr(plan, "GATHERED_SLOTS", 32)
    apart = Driver(model, 32, 16)
    got = [apart.step(PROMPTS), apart.step({"a": [1, 2], "b": [3], "c": [4, 5, 6]})]
    step = apart.describe({"a": [1], "b": [2, 3], "c": [4]})
    parts = model.ops.plan(step).parts(16)
    assert [part.rows for part in parts] == [slice(0, 1), slice(1, 3), slice(3, 4)]
    for ours, theirs in zip(got, wanted, strict=True):
        for name, row in theirs.items():
            np.testing.assert_array_equal(ours[name], row)


@pytest.mark.parametrize(
    ("dtype", "block_size", "offset", "decoding", "mixed"),
    [
        (torch.bfloat16, 128, 0.0, "", ""),
        (torch.bfloat16, 48, 0.0, "a multiple of 32 tokens, not 48", ""),
        (torch.bfloat16, 128, 129.0, "within 128", "within 128"),
        (torch.float16, 128, 0.0, "too narrow", "too narrow"),
    ],
)
def test_what_kernels_cannot_read_is_told(
    dtype: torch.dtype, block_size: int, offset: float, decoding: str, mixed: str
) -> None:
    fused = fused_for(B2, dtype, models.wide_spec("glm").attention, block_size, offset)
    for reason, told in ((fused.decode, decoding), (fused.packed, mixed)):
        assert told in reason and bool(told) == bool(reason)
