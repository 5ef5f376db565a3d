"""Lightning indexers, their gradients and losses, and what joins partial attention, against naive formulas."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.attention_reference import attention, close
from tests.vnpu.support import called
from torch import Tensor

BF16 = torch.bfloat16


def operands(rows: int, keys: int, heads: int = 8) -> list[Tensor]:
    """query [S1, N, D], key [S2, 1, D], weights [S1, N]."""
    return [torch.randn(s).to(BF16) for s in ((rows, heads, 128), (keys, 1, 128), (rows, heads))]


def scores_of(query: Tensor, key: Tensor, weights: Tensor) -> Tensor:
    products = torch.relu(torch.einsum("snd,kd->snk", query.double(), key[:, 0].double()))
    return (products * weights.double()[..., None]).sum(1)


def later(rows: int, keys: int) -> Tensor:
    return torch.tensor([[j > i + keys - rows for j in range(keys)] for i in range(rows)])


def check_order(actual: Tensor, scores: Tensor, count: int, values: Tensor | None = None) -> None:
    """The best visible keys in falling order, then -1; keys whose float32 scores tie may change places."""
    for i, row in enumerate(actual.cpu().reshape(len(scores), -1)):
        visible = int((scores[i] > -torch.inf).sum())
        n = min(count, visible)
        assert (row[n:] == -1).all() and len(set(row[:n].tolist())) == n
        best = scores[i].sort(descending=True).values[:n]
        torch.testing.assert_close(scores[i][row[:n].long()], best, rtol=1e-4, atol=1e-3)
        if values is not None:
            close(values.reshape(len(scores), -1)[i, :n], best, BF16)


@pytest.mark.parametrize("mode", [0, 3])
@pytest.mark.parametrize("layout", ["BSND", "TND", "PA_BSND"])
def test_lightning_indexer(layout: str, mode: int) -> None:
    rows, keys, count = [4, 2], [20, 33], 16
    sequences = [operands(r, k) for r, k in zip(rows, keys, strict=True)]
    packed = layout != "BSND"
    options: dict[str, Any] = {"layout_query": "TND" if packed else "BSND", "layout_key": layout, "return_value": True}
    lengths = [list(accumulate(rows)) if packed else rows, list(accumulate(keys)) if layout == "TND" else keys]
    if packed:
        query, key, weights = (torch.cat([s[i] for s in sequences]) for i in range(3))
    else:
        query, key, weights = (
            torch.nn.utils.rnn.pad_sequence([s[i] for s in sequences], batch_first=True) for i in range(3)
        )
    if layout == "PA_BSND":
        cache, table = torch.zeros(6, 16, 1, 128).to(BF16), torch.tensor([[4, 1, 0], [2, 0, 5]]).int()
        for b, (_, k, _) in enumerate(sequences):
            for token in range(len(k)):
                cache[table[b, token // 16], token % 16] = k[token]
        key, options["block_table"] = cache, table.npu()
    with called() as names:
        index, values = torch_npu.npu_lightning_indexer(
            query.npu(),
            key.npu(),
            weights.npu(),
            sparse_count=count,
            sparse_mode=mode,
            actual_seq_lengths_query=torch.tensor(lengths[0]).int().npu(),
            actual_seq_lengths_key=torch.tensor(lengths[1]).int().npu(),
            **options,
        )
    assert "LightningIndexer" in names
    first = 0
    for b, parts in enumerate(sequences):
        scores = scores_of(*parts)
        if mode == 3:
            scores = scores.masked_fill(later(*scores.shape), -torch.inf)
        own = [t[first : first + rows[b]] if packed else t[b, : rows[b]] for t in (index, values)]
        check_order(own[0], scores, count, own[1].cpu())
        first += rows[b]
    if not packed:
        assert (index[1, 2:].cpu() == -1).all()


def test_quant_lightning_indexer() -> None:
    rows, keys = 3, 20
    query, key = (torch.randint(-99, 99, s, dtype=torch.int8) for s in ((1, rows, 8, 128), (1, keys, 1, 128)))
    scales = [(torch.rand(s) / 50).half() for s in ((1, rows, 8), (1, keys, 1))]
    weights = torch.randn(1, rows, 8).half()
    with called() as names:
        index = torch_npu.npu_quant_lightning_indexer(
            query.npu(), key.npu(), weights.npu(), *[s.npu() for s in scales], 0, 0, sparse_count=9
        )
    assert "QuantLightningIndexer" in names
    numbers = [x[0].double() * s[0].double()[..., None] for x, s in zip((query, key), scales, strict=True)]
    scores = scores_of(*numbers, weights[0]).masked_fill(later(rows, keys), -torch.inf)
    check_order(index, scores, 9)


@pytest.mark.parametrize("layout", ["BSND", "TND"])
def test_the_gradient_of_the_chosen_values(layout: str) -> None:
    rows, keys, count = 5, 12, 6
    sequences = [operands(rows, keys) for _ in range(2)]
    indices = torch.stack(
        [torch.stack([torch.randperm(keys - rows + i + 1)[:count] for i in range(rows)]) for _ in "ab"]
    )
    indices[0, 0, 4:] = -1
    dy = torch.randn(2, rows, count).to(BF16)
    stacked = [torch.stack([s[i] for s in sequences]) for i in range(3)]
    ends = None
    given = [*stacked, dy[:, :, None], indices[:, :, None].int()]
    if layout == "TND":
        given = [t.flatten(0, 1) for t in given]
        ends = [torch.tensor([n, 2 * n]).int().npu() for n in (rows, keys)]
    query, key, weights, grad, index = (t.npu() for t in given)
    with called() as names:
        out = torch_npu.npu_lightning_indexer_grad(
            query, key, grad, index, weights, *(ends or [None, None]), layout=layout, sparse_mode=3
        )
    assert "LightningIndexerGrad" in names
    for b, parts in enumerate(sequences):
        exact = [t.double().requires_grad_() for t in parts]
        scores, valid = scores_of(*exact), indices[b] >= 0
        chosen = scores.gather(1, indices[b].clamp(min=0))
        (chosen * dy[b].double() * valid).sum().backward()
        for actual, t in zip(out, exact, strict=True):
            own = actual.view(2, *t.shape)[b]
            size = t.grad.abs().max()
            close(own.cpu().double() / size, t.grad / size, BF16)


def attention_stats(query: Tensor, key: Tensor, hidden: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean probabilities over heads, and maximum and sum as [1, N2, S1, G]."""
    q, k = (t.transpose(0, 1)[None] for t in (query, key))
    result = attention(q, k, k, scale, ~hidden)
    scores = q.double() @ k.double().repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2) * scale
    target = scores.masked_fill(hidden, -torch.inf).softmax(-1).mean(1)[0]
    stats = [s.view(1, k.shape[1], -1, len(query)).transpose(2, 3).float() for s in (result.maximum, result.total)]
    return target, stats[0], stats[1]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
def test_the_loss_towards_attention(rotated: bool, sparse: bool) -> None:
    rows, keys, scale = 6, 10, 0.1
    query, key = torch.randn(rows, 4, 128).to(BF16), torch.randn(keys, 4, 128).to(BF16)
    ropes = [torch.randn(rows, 4, 64).to(BF16), torch.randn(keys, 4, 64).to(BF16)]
    index_parts = operands(rows, keys)
    index_parts[0] *= 0.05  # small scores keep the softmax away from the smallest probability
    hidden = later(rows, keys)
    options: dict[str, Any] = {}
    if sparse:
        indices = torch.full((rows, 1, 7), -1, dtype=torch.int32)
        chosen = torch.ones(rows, keys, dtype=torch.bool)
        for i in range(rows):
            found = torch.randperm(keys - rows + i + 1)[:4]
            indices[i, 0, : len(found)] = found
            chosen[i, found] = False
        hidden = hidden | chosen
    joined = [torch.cat((a, b), -1) for a, b in zip((query, key), ropes, strict=True)] if rotated else [query, key]
    target, top, total = attention_stats(*joined, hidden, scale)
    if rotated:
        options = {"query_rope": ropes[0][None].npu(), "key_rope": ropes[1][None].npu()}
    exact = [t.double().requires_grad_() for t in index_parts]
    own = scores_of(*exact).masked_fill(hidden, -torch.inf).softmax(1)
    loss = (target * (target.clamp(min=1e-8).log() - own.clamp(min=1e-8).log())).sum()
    loss.backward()
    device = [t[None].npu() for t in (query, key, *index_parts)]
    with called() as names:
        if sparse:
            out = torch_npu.npu_sparse_lightning_indexer_grad_kl_loss(
                *device, indices[None].npu(), top.npu(), total.npu(), scale, **options
            )
        else:
            stats = torch_npu.npu_dense_lightning_indexer_softmax_lse(*device[2:])
            out = torch_npu.npu_dense_lightning_indexer_grad_kl_loss(
                *device, top.npu(), total.npu(), *stats, scale, **options
            )
    wanted = {"SparseLightningIndexerGradKLLoss"} if sparse else {"DenseLightningIndexerSoftmaxLse"}
    assert wanted <= names
    close(out[3][0], loss, torch.float32)
    for actual, t in zip(out, exact, strict=False):
        size = t.grad.abs().max()
        close(actual[0].cpu().double() / size, t.grad / size, BF16)


@pytest.mark.parametrize("kind", [0, 1])
def test_attention_update(kind: int) -> None:
    lse = [torch.randn(6) for _ in range(3)]
    lse[1][2] = lse[0][2] = lse[2][2] = -torch.inf
    lse[1][4] = -torch.inf
    out = [torch.randn(6, 16).half() for _ in range(3)]
    out = [x.masked_fill(w.isneginf()[:, None], 0) for x, w in zip(out, lse, strict=True)]
    with called() as names:
        joined, lse_out = torch_npu.npu_attention_update([t.npu() for t in lse], [t.npu() for t in out], kind)
    assert "AttentionUpdate" in names
    parts = torch.stack(lse).double()
    weights = torch.nan_to_num((parts - parts.logsumexp(0)).exp())
    close(joined, (weights[..., None] * torch.stack(out).double()).sum(0), torch.float16)
    if kind:
        close(lse_out, parts.logsumexp(0), torch.float32)


@pytest.mark.parametrize("layout", ["SBH", "TND", "TND by sequence"])
def test_ring_attention_update(layout: str) -> None:
    """Two halves of the keys give, joined, what all keys give at once."""
    query, key, value = (torch.randn(1, 2, s, 16) for s in (5, 12, 12))
    halves = [attention(query, key[:, :, part], value[:, :, part], 0.3) for part in (slice(0, 7), slice(7, 12))]
    whole = attention(query, key, value, 0.3)
    lengths = [2, 3]

    def laid_out(x: Tensor) -> Tensor:
        return x.permute(2, 0, 1, 3).flatten(2) if layout == "SBH" else x[0].transpose(0, 1)

    def stats(x: Tensor) -> Tensor:
        wide = x.expand(*x.shape[:3], 8)
        if layout == "SBH":
            return wide.contiguous()
        if layout == "TND":
            return wide[0].transpose(0, 1).contiguous()
        return torch.cat([part.reshape(-1, 8) for part in wide[0].split(lengths, 1)]).view(5, 2, 8)

    args = [f(t).float().npu() for r in halves for f, t in ((laid_out, r.out), (stats, r.maximum), (stats, r.total))]
    options: dict[str, Any] = {}
    if layout != "SBH":
        options = {"actual_seq_qlen": torch.tensor([2, 5]).npu(), "input_layout": "TND"}
        options["input_softmax_layout"] = "TND" if layout == "TND" else ""
    with called() as names:
        out, top, total = torch_npu.npu_ring_attention_update(*args, **options)
    assert "RingAttentionUpdateV2" in names
    close(out, laid_out(whole.out), torch.float32)
    close(top, stats(whole.maximum), torch.float32)
    close(total, stats(whole.total), torch.float32)


def gated(state: Tensor, q: Tensor, k: Tensor, v: Tensor, b: float, a: Tensor) -> tuple[Tensor, Tensor]:
    """One head: S a + b (v - S a k) k^T, and its product with q."""
    state = state * a
    state = state + b * torch.outer(v - state @ k, k)
    return state, state @ q


@pytest.mark.parametrize("gates", [("g",), ("gk",), ("g", "gk"), ()])
@pytest.mark.parametrize("accepted", [False, True])
def test_recurrent_gated_delta_rule(gates: tuple[str, ...], accepted: bool) -> None:
    lengths, nk, nv, size = [3, 2], 2, 4, 16
    tokens = sum(lengths)
    unit = torch.nn.functional.normalize
    query, key = (unit(torch.randn(tokens, nk, size), dim=-1).to(BF16) for _ in range(2))
    value, beta = torch.randn(tokens, nv, size).to(BF16), torch.rand(tokens, nv).to(BF16)
    state, slots = torch.randn(7, nv, size, size).to(BF16), torch.tensor([4, 0, 6, 2, 5]).int()
    given = {"g": -torch.rand(tokens, nv), "gk": -torch.rand(tokens, nv, size)}
    counts = [2, 1] if accepted else [1, 1]
    device_state = state.npu()
    with called() as names:
        out = torch_npu.npu_recurrent_gated_delta_rule(
            query.npu(),
            key.npu(),
            value.npu(),
            device_state,
            beta=beta.npu(),
            scale=0.25,
            actual_seq_lengths=torch.tensor(lengths).int().npu(),
            ssm_state_indices=slots.npu(),
            num_accepted_tokens=torch.tensor(counts).int().npu() if accepted else None,
            **{name: given[name].npu() for name in gates},
        )
    assert "RecurrentGatedDeltaRule" in names
    first = 0
    for length, count in zip(lengths, counts, strict=True):
        for n in range(nv):
            memory = state[slots[first + count - 1], n].double()
            for t in range(first, first + length):
                a = torch.ones(size).double()
                for name in gates:
                    a = a * given[name][t, n].double().exp()
                q, k = (x[t, n // 2].double() for x in (query, key))
                memory, y = gated(memory, q, k, value[t, n].double(), float(beta[t, n]), a)
                close(out[t, n], y * 0.25, BF16)
                close(device_state[slots[t], n], memory, BF16)
        first += length


def test_chunk_gated_delta_rule() -> None:
    lengths, nk, nv, size = [5, 70], 1, 2, 16
    tokens = sum(lengths)
    unit = torch.nn.functional.normalize
    query, key = (unit(torch.randn(tokens, nk, size), dim=-1).to(BF16) for _ in range(2))
    value, beta = torch.randn(tokens, nv, size).to(BF16), torch.rand(tokens, nv).to(BF16)
    state, g = torch.randn(2, nv, size, size).to(BF16), -torch.rand(tokens, nv)
    with called() as names:
        out, final = torch_npu.npu_chunk_gated_delta_rule(
            query.npu(),
            key.npu(),
            value.npu(),
            beta=beta.npu(),
            initial_state=state.npu(),
            scale=0.25,
            g=g.npu(),
            actual_seq_lengths=torch.tensor(lengths).int().npu(),
        )
    assert "ChunkGatedDeltaRule" in names
    first = 0
    for b, length in enumerate(lengths):
        for n in range(nv):
            memory = state[b, n].double()
            for t in range(first, first + length):
                a = g[t, n].double().exp().expand(size)
                q, k = (x[t, 0].double() for x in (query, key))
                memory, y = gated(memory, q, k, value[t, n].double(), float(beta[t, n]), a)
                close(out[t, n], y * 0.25, BF16)
            close(final[b, n], memory, BF16)
        first += length


def test_refusals() -> None:
    query, key, weights = (t[None].npu() for t in operands(2, 8))
    for options, named in (
        ({"sparse_count": 2050}, "sparse_count"),
        ({"sparse_mode": 1}, "sparse_mode"),
        ({"layout_key": "TND"}, "layout of the key"),
        ({"pre_tokens": 3}, "pre_tokens"),
    ):
        with pytest.raises(RuntimeError, match=named):
            torch_npu.npu_lightning_indexer(query, key, weights, **options)
    with pytest.raises(RuntimeError, match="of size 128"):
        torch_npu.npu_lightning_indexer(query[..., :64].contiguous(), key[..., :64].contiguous(), weights)
    with pytest.raises(RuntimeError, match="update_type"):
        torch_npu.npu_attention_update([torch.zeros(2).npu()], [torch.zeros(2, 8).npu()], 2)
    with pytest.raises(RuntimeError, match="head size"):
        torch_npu.npu_attention_update([torch.zeros(2).npu()], [torch.zeros(2, 9).npu()], 0)
