"""PyTorch's operator database on the virtual NPU: nothing wrong, and as many matches as docs/npu-coverage.md says."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("torch_npu")

from tools.npu_coverage.__main__ import PASSES, Pass, found_faults, verdicts, wanted_entries, worse_than_the_page

FORWARD = PASSES[0]
# Entries whose gradients go through functions of their own: one for each family.
GRADIENTS = (
    "nn.functional.scaled_dot_product_attention nn.functional.layer_norm nn.functional.batch_norm nn.functional.conv2d "
    "nn.functional.conv_transpose2d nn.functional.embedding nn.functional.cross_entropy nn.functional.silu "
    "nn.functional.gelu nn.functional.max_pool2d nn.functional.avg_pool2d nn.functional.interpolate.bicubic "
    "nn.functional.grid_sample nn.functional.group_norm nn.functional.prelu nn.functional.pad.reflect "
    "nn.functional.nll_loss nn.functional.binary_cross_entropy nn.functional.smooth_l1_loss matmul addmm index_put "
    "gather scatter_add index_select cumsum sort topk softmax log_softmax sigmoid tanh var std norm max.binary "
    "linalg.qr linalg.svd linalg.cross repeat_interleave unfold"
)
HALVES = "add matmul softmax nn.functional.layer_norm nn.functional.conv2d sum mean sort index_put exp"


def faults(one: Pass, names: list[str]) -> list[str]:
    return found_faults({one.name: list(verdicts(one, names, workers()))})


def workers() -> int:
    return min(os.cpu_count() or 1, 4)


def test_forward_in_float32_is_as_the_page_says() -> None:
    found = list(verdicts(FORWARD, wanted_entries(FORWARD), workers()))
    assert worse_than_the_page({FORWARD.name: found}) == []


def test_gradients_agree() -> None:
    assert faults(PASSES[-1], GRADIENTS.split()) == []


@pytest.mark.parametrize("one", PASSES[1:3], ids=lambda one: one.dtype)
def test_halves_agree(one: Pass) -> None:
    assert faults(one, HALVES.split()) == []
