"""The summands of experts that are spread over ranks, in one process: with and without waiting for the device."""

from __future__ import annotations

import pytest
import torch

from gallium.backends.torch import ranks, routing
from gallium.backends.torch.collectives import Collectives
from gallium.ops.handles import Experts, Linear, Placement

EXPERTS, HIDDEN, WIDTH, TOP_K = 8, 6, 4, 3


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def packed(experts: range) -> Experts:
    """Some of the eight experts, as a rank holds them."""
    gate_up, down = drawn(EXPERTS, 2 * WIDTH, HIDDEN), drawn(EXPERTS, HIDDEN, WIDTH)
    held = slice(experts.start, experts.stop)
    return Experts(len(experts), HIDDEN, WIDTH, (gate_up[held], down[held]))


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("ep", [1, 2, 4, 8])
def test_summands_add_up(monkeypatch: pytest.MonkeyPatch, tokens: int, waits: bool, ep: int) -> None:
    x, weights = drawn(tokens, HIDDEN), drawn(tokens, TOP_K).abs()
    ids = torch.argsort(drawn(tokens, EXPERTS), dim=1)[:, :TOP_K].int()
    whole = routing.experts(x, weights, ids, packed(range(EXPERTS)))
    monkeypatch.setattr(routing, "may_wait", lambda _: waits)
    total, held = torch.zeros_like(whole), EXPERTS // ep
    for rank in range(ep):
        part = packed(range(rank * held, (rank + 1) * held))
        total += ranks.experts(x, weights, ids, part, Collectives(Placement(rank, tp=ep, ep=ep)))
    torch.testing.assert_close(total, whole, atol=1e-5, rtol=1e-5)


def test_what_other_ranks_compute_cannot_spoil_a_summand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting, experts of other ranks are stood in for; whatever comes of that is dropped, not weighed by 0."""
    monkeypatch.setattr(routing, "may_wait", lambda _: False)
    part = packed(range(4))
    part.data[1][:] = torch.inf
    ids, x = torch.tensor([[5, 6, 7]], dtype=torch.int32), drawn(1, HIDDEN)
    found = ranks.experts(x, torch.ones(1, 3), ids, part, Collectives(Placement(0, tp=2, ep=2)))
    assert torch.equal(found, torch.zeros(1, HIDDEN))


def test_a_row_of_the_vocabulary_comes_from_the_rank_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    table, ids = drawn(12, HIDDEN), torch.tensor([0, 11, 4, 3, 4])
    monkeypatch.setattr(Collectives, "all_reduce", lambda self, x: x)  # one rank's summand
    total = torch.zeros(5, HIDDEN)
    for rank in range(3):
        part = Linear(HIDDEN, 4, table[4 * rank : 4 * rank + 4])
        total += ranks.embed(ids, part, Collectives(Placement(rank, tp=3)))
    assert torch.equal(total, table[ids])
