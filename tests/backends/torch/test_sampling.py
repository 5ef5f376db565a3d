"""The noise on the device, word for word that of ops/philox, and nothing that waits for the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.ops.sampling_rows import Row, inputs

from gallium.backends.torch import sampling
from gallium.ops.philox import gumbel, token_words

SEEDS = (0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 0x123456789ABCDEF0)


@pytest.mark.parametrize("vocab", [1, 4, 5, 4099])
@pytest.mark.parametrize("position", [0, 1, 70000, 2**31 - 1])
def test_words_are_those_of_the_definition(vocab: int, position: int) -> None:
    seeds = torch.from_numpy(np.array(SEEDS, np.uint64).view(np.int64))
    words = sampling.noise_words(seeds, torch.full((len(SEEDS),), position), vocab)
    for seed, row in zip(SEEDS, words, strict=True):
        np.testing.assert_array_equal(row.numpy(), token_words(seed, position, np.arange(vocab)))


def test_noise_is_that_of_the_definition() -> None:
    words = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 2**8, 2**32 - 2, 2**32 - 1], np.uint32)
    exact = gumbel(words)
    np.testing.assert_allclose(sampling.gumbel(torch.from_numpy(words.astype(np.int64)), torch.float64), exact, 1e-12)
    single = sampling.gumbel(torch.from_numpy(words.astype(np.int64)), torch.float32).numpy()
    np.testing.assert_allclose(single, exact, rtol=2e-7, atol=2e-7)


def test_nothing_is_read_back_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking a tensor for a number, or for its shape after a filter, would stop a device until it has computed it."""

    def waits(*args: object, **named: object) -> None:
        raise AssertionError("the host waits for the device")

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    rows = [Row(0.0), Row(0.7, 5, 0.9, 0.1, 3, 4), Row(1.0)]
    tokens = sampling.sample(torch.zeros(3, 50), inputs(rows, 45), torch.float64)
    monkeypatch.undo()
    assert tokens.dtype == torch.int32 and tokens.tolist()[0] == 0
