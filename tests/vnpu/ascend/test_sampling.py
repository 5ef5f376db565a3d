"""Sampling on the device: the tokens of the definition over a whole GLM vocabulary, and why it is composed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch_npu
from tests.ops.sampling_rows import Adjust, Row, inputs
from tests.vnpu.support import called

from gallium.backends.torch import sampling
from gallium.ops import reference_sampling

DEVICE = torch.device("npu", 0)
VOCAB = 151_552


def rows(count: int) -> list[Row]:
    """Limits as requests have them, each with a seed, a position and a penalty of its own."""
    limits = [(0.0, 0, 1.0, 0.0), (1.0, 0, 0.95, 0.0), (0.6, 40, 0.9, 0.0), (1.3, 0, 1.0, 0.02), (0.8, 5, 1.0, 0.0)]
    adjust = [Adjust(i, 1.2, -0.5) for i in (3, 1000, 151_000)]
    return [Row(*limits[i % 5], 17 * i + 2**40, 1000 + i, adjust) for i in range(count)]


@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_tokens_of_a_whole_vocabulary_are_those_of_the_definition(spread: float) -> None:
    logits = (np.random.default_rng(int(spread)).standard_normal((20, VOCAB + 128)) * spread).astype(np.float32)
    how = inputs(rows(20), VOCAB)
    tokens = sampling.sample(torch.from_numpy(logits).to(DEVICE), how, torch.float32)
    assert tokens.device == DEVICE
    assert tokens.tolist() == reference_sampling.sample(logits, how).tolist()


def test_what_the_fused_filter_keeps_is_not_what_is_defined() -> None:
    """npu_top_k_top_p keeps all that equal the k-th, the definition the first of them: sample() does not use it.

    Should this fail, the filter has changed, and it may serve after all.
    """
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    with called() as names:
        kept = torch_npu.npu_top_k_top_p(
            logits.to(DEVICE), torch.ones(1, device=DEVICE), torch.tensor([2], dtype=torch.int32, device=DEVICE)
        )
    assert "ApplyTopKTopP" in names
    assert torch.isfinite(kept[0]).tolist() == [False, True, True, True, False]
    defined = reference_sampling.survivors(logits[0].double().numpy(), 2, 1.0, 0.0)
    assert defined.tolist() == [1, 2]
