"""EngineSettings: how many ranks there are, and what cannot be."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gallium.errors import UsageError
from gallium.settings import EngineSettings


@pytest.mark.parametrize(
    ("given_ranks", "tp", "groups"),
    [
        ({}, 1, 1),
        ({"tp": 4}, 4, 1),
        ({"dp": 2}, 1, 2),
        ({"ep": 4}, 1, 4),  # data-parallel attention: each rank has sequences of its own
        ({"tp": 2, "ep": 4}, 2, 2),
        ({"tp": 4, "ep": 4}, 4, 1),
        ({"tp": 2, "dp": 3}, 2, 3),
        ({"tp": 2, "dp": 3, "ep": 6}, 2, 3),
    ],
)
def test_ranks(given_ranks: dict[str, int], tp: int, groups: int) -> None:
    settings = EngineSettings(**given_ranks)  # type: ignore[arg-type]
    assert (settings.tp, settings.groups, settings.world) == (tp, groups, tp * groups)


@pytest.mark.parametrize("name", ["threads", "tp", "dp", "ep", "block_size", "max_batch", "max_step_tokens"])
def test_nothing_is_less_than_1(name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} must be at least 1, not 0"):
        EngineSettings(**{name: 0})  # type: ignore[arg-type]


@given(tp=st.integers(1, 9), dp=st.none() | st.integers(1, 9), ep=st.integers(1, 40))
def test_a_refusal_names_what_would_work(tp: int, dp: int | None, ep: int) -> None:
    try:
        settings = EngineSettings(tp=tp, dp=dp, ep=ep)
    except UsageError as refusal:
        good = re.findall(r"--ep (\d+)", refusal.message)[1:]
        assert good
        for number in good:
            EngineSettings(tp=tp, dp=dp, ep=int(number))
    else:
        assert settings.ep in (1, settings.world)
        assert dp is None or settings.groups == dp
