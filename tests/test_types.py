"""Sampling parameters: what is refused, so that no request can make a logit that is not a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gallium.errors import InvalidRequest
from gallium.types import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", 1e39), ("temperature", float("nan")), ("temperature", True),
        ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1), ("min_p", -0.1), ("min_p", 1.1),
        ("repetition_penalty", 0.0), ("repetition_penalty", 1e-45), ("repetition_penalty", 1e39),
        ("presence_penalty", 2.1), ("frequency_penalty", -2.1), ("logit_bias", {3: float("inf")}),
        ("seed", 2**64), ("max_tokens", 0), ("min_tokens", -1), ("logprobs", 21), ("n", 0), ("stop", ("",)),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field


@pytest.mark.parametrize("field", ["temperature", "repetition_penalty"])
@pytest.mark.parametrize("value", [0.001, 1000.0])
def test_the_largest_and_smallest_stay_finite_in_float32(field: str, value: float) -> None:
    assert getattr(SamplingParams(**{field: value}), field) == value
    logits = np.array([100.0, 0.0, -100.0], np.float32)
    assert np.isfinite(logits / np.float32(value)).all() and np.isfinite(logits * np.float32(value)).all()
