"""The three ways to compute experts agree, and those for accelerators do not wait."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gallium.backends.torch import routing

WAYS = (routing.by_gathering, routing.by_all)


def case(tokens: int) -> tuple[torch.Tensor, ...]:
    """x, ids, gate_up, down for 6 experts of which 2 are chosen."""
    torch.manual_seed(tokens)
    ids = torch.stack([torch.randperm(6)[:2] for _ in range(tokens)]).int()
    return torch.randn(tokens, 12), ids, torch.randn(6, 16, 12), torch.randn(6, 12, 8)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_each_way_gives_the_same(way: Callable[..., torch.Tensor], tokens: int) -> None:
    x, ids, gate_up, down = case(tokens)
    torch.testing.assert_close(way(x, ids, gate_up, down), routing.by_group(x, ids, gate_up, down))


@pytest.mark.parametrize("way", WAYS)
def test_the_ways_of_accelerators_do_not_wait(
    way: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, ids, gate_up, down = case(3)

    def waits(*args: object) -> None:
        raise AssertionError("the host waits for the device")

    for name in ("item", "tolist", "nonzero", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    assert way(x, ids, gate_up, down).shape == (3, 2, 12)
    with pytest.raises(AssertionError, match="waits"):  # the control
        routing.by_group(x, ids, gate_up, down)
