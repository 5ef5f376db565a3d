"""npu_fusion_attention with layout TND: packed sequences, against float64 one sequence at a time."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.attention_reference import Result, attention, close, seen_by, triangle
from tests.vnpu.support import called
from torch import Tensor

QUERIES, KEYS = [5, 3, 9], [5, 8, 7]
ENDS = {"actual_seq_qlen": list(accumulate(QUERIES)), "actual_seq_kvlen": list(accumulate(KEYS))}


def operands(size: int = 16, value_size: int = 8, extra: int = 0) -> list[Tensor]:
    q, k = sum(QUERIES) + extra, sum(KEYS)
    return [torch.randn(q, 4, size), torch.randn(k, 2, size), torch.randn(k, 2, value_size)]


def per_sequence(x: list[Tensor], rows: list[Tensor | None] | None = None, **options: Any) -> list[Result]:
    """The reference for each sequence; `rows` gives what each one sees."""
    results, q0, k0 = [], 0, 0
    for i, (q, k) in enumerate(zip(QUERIES, KEYS, strict=True)):
        parts = (x[0][q0 : q0 + q], x[1][k0 : k0 + k], x[2][k0 : k0 + k])
        own = {name: value[i] if isinstance(value, list) else value for name, value in options.items()}
        results.append(attention(*[p.transpose(0, 1)[None] for p in parts], seen=rows[i] if rows else None, **own))
        q0, k0 = q0 + q, k0 + k
    return results


def check(x: list[Tensor], result: Any, expected: list[Result], as_input: bool = False) -> None:
    close(result[0][: sum(QUERIES)], torch.cat([r.out[0].transpose(0, 1) for r in expected]), torch.float32)
    for actual, stats in ((result[1], [r.maximum for r in expected]), (result[2], [r.total for r in expected])):
        blocks = [s[0].transpose(0, 1).reshape(-1, 1) if as_input else s[0].reshape(-1, 1) for s in stats]
        flat = torch.cat(blocks).expand(-1, 8)
        close(actual.reshape(-1, 8)[: len(flat)], flat, torch.float32)


@pytest.mark.parametrize("as_input", [False, True])
@pytest.mark.parametrize("mode", [0, 2, 3, 4, 6, 7, 8])
def test_modes_and_gradients(mode: int, as_input: bool) -> None:
    """In mode 7 the last sequence has a band, in mode 8 the first; their other sequences are causal."""
    x, pre, after, prefix = operands(), 9, 1, [3, 5, 2]
    masks = {0: torch.zeros(9, 8, dtype=torch.bool), 6: triangle(with_prefix=True)}
    modes = {7: [3, 3, 4], 8: [4, 2, 2]}.get(mode, [mode] * 3)
    seen = [seen_by(m, q, k, pre, after, prefix=p) for m, q, k, p in zip(modes, QUERIES, KEYS, prefix, strict=True)]
    options = {"atten_mask": masks.get(mode, triangle()).npu(), "sparse_mode": mode, "prefix": prefix, "scale": 0.25}
    layout = {"softmax_layout": "TND"} if as_input else {}
    device = [t.npu().requires_grad_() for t in x]
    with called() as names:
        result = torch_npu.npu_fusion_attention(
            *device, 4, "TND", pre_tockens=pre, next_tockens=after, **ENDS, **options, **layout
        )
        result[0].sin().sum().backward()
    version = "V4" if as_input else ""
    assert {f"FlashAttentionVarLenScore{version}", f"FlashAttentionUnpaddingScoreGrad{version}"} <= names
    exact = [t.double().requires_grad_() for t in x]
    expected = per_sequence(exact, list(seen), scale=0.25)
    check(x, result, expected, as_input)
    torch.cat([r.out.flatten() for r in expected]).sin().sum().backward()
    for actual, t in zip(device, exact, strict=True):
        close(actual.grad, t.grad, torch.float32)


def test_a_mask_in_mode_0_begins_anew_in_each_sequence() -> None:
    x, mask = operands(), torch.rand(9, 8) < 0.3
    result = torch_npu.npu_fusion_attention(*[t.npu() for t in x], 4, "TND", atten_mask=mask.npu(), scale=0.25, **ENDS)
    check(x, result, per_sequence(x, [~mask[:q, :k] for q, k in zip(QUERIES, KEYS, strict=True)], scale=0.25))


def test_rotated_parts() -> None:
    x = operands()
    ropes = [torch.randn(sum(QUERIES), 4, 8), torch.randn(sum(KEYS), 2, 8)]
    device = [t.npu().requires_grad_() for t in (*x, *ropes)]
    with called() as names:
        result = torch_npu.npu_fusion_attention_v2(
            *device[:3], 4, "TND", query_rope=device[3], key_rope=device[4], scale=0.25, **ENDS
        )
        result[0].sin().sum().backward()
    assert {"FlashAttentionVarLenScoreV3", "FlashAttentionUnpaddingScoreGradV3"} <= names
    exact = [t.double().requires_grad_() for t in (*x, *ropes)]
    joined = [torch.cat((exact[0], exact[3]), -1), torch.cat((exact[1], exact[4]), -1), exact[2]]
    expected = per_sequence(joined, scale=0.25)
    check(x, result, expected)
    torch.cat([r.out.flatten() for r in expected]).sin().sum().backward()
    for actual, t in zip(device, exact, strict=True):
        close(actual.grad, t.grad, torch.float32)


@pytest.mark.parametrize("version", ["V2", "V5"])
def test_alibi_and_sink(version: str) -> None:
    x, slopes = operands(), torch.rand(4)
    sink = torch.randn(4) if version == "V5" else None
    device = [t.npu().requires_grad_() for t in x]
    options = {"pse": slopes.npu(), "pse_type": 2, "sink": None if sink is None else sink.npu()}
    with called() as names:
        result = torch_npu.npu_fusion_attention_v2(*device, 4, "TND", scale=0.25, **ENDS, **options)
        result[0].sin().sum().backward()
    assert {f"FlashAttentionVarLenScore{version}", f"FlashAttentionUnpaddingScoreGrad{version}"} <= names
    biases = [
        -slopes.view(4, 1, 1) * (torch.arange(q)[:, None] - torch.arange(k)).abs()
        for q, k in zip(QUERIES, KEYS, strict=True)
    ]
    exact = [t.double().requires_grad_() for t in x]
    expected = per_sequence(exact, scale=0.25, bias=biases, sink=sink)
    check(x, result, expected)
    torch.cat([r.out.flatten() for r in expected]).sin().sum().backward()
    for actual, t in zip(device, exact, strict=True):
        close(actual.grad, t.grad, torch.float32)


def test_dropout_bits_follow_the_sequences() -> None:
    x, sizes = operands(), [4 * q * k for q, k in zip(QUERIES, KEYS, strict=True)]
    flat = torch.rand(sum(sizes)) < 0.7
    padded = torch.nn.functional.pad(flat.to(torch.uint8), (0, -len(flat) % 128)).view(-1, 8)
    packed = (padded * torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)).sum(1).to(torch.uint8)
    keep = [part.view(4, q, k) for part, q, k in zip(flat.split(sizes), QUERIES, KEYS, strict=True)]
    device = [t.npu() for t in x]
    result = torch_npu.npu_fusion_attention(
        *device, 4, "TND", scale=0.25, keep_prob=0.7, dropout_mask=packed.npu(), **ENDS
    )
    check(x, result, per_sequence(x, scale=0.25, keep=keep, keep_prob=0.7))


def test_empty_sequences_and_rows_of_none() -> None:
    """A length of 0 within the batch, zeros at its tail, and rows after the last sequence, which become zeros."""
    x = operands(extra=2)
    ends = {"actual_seq_qlen": [5, 5, 8, 17, 0], "actual_seq_kvlen": [5, 5, 13, 20, 0]}
    result = torch_npu.npu_fusion_attention(*[t.npu() for t in x], 4, "TND", scale=0.25, **ends)
    check(x, result, per_sequence(x, scale=0.25))
    assert result[0][sum(QUERIES) :].cpu().abs().max() == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"actual_seq_qlen": [5, 4, 17]}, "actual_seq_qlen"),
        ({"actual_seq_kvlen": [5, 13, 40]}, "actual_seq_kvlen"),
        ({"sparse_mode": 6, "prefix": [1], "atten_mask": triangle(with_prefix=True)}, "prefix"),
        ({"sparse_mode": 7, "pse": torch.zeros(1, 4, 1024, 16), "atten_mask": triangle()}, "pse"),
        ({"atten_mask": torch.zeros(8, 8, dtype=torch.bool)}, "atten_mask"),
        ({"pse": torch.zeros(1, 4, 9, 9)}, "pse"),
    ],
)
def test_refusals(options: dict[str, Any], named: str) -> None:
    device = {k: v.npu() if isinstance(v, Tensor) else v for k, v in options.items()}
    with pytest.raises(RuntimeError, match=named):
        torch_npu.npu_fusion_attention(*[t.npu() for t in operands()], 4, "TND", **{**ENDS, **device})
