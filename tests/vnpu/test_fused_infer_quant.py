"""Attention for inference with quantised keys, values, queries and outputs against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.attention_reference import attention, close, seen_by, triangle
from tests.vnpu.fused_infer_calls import HALF, fused, operands, pages, second
from torch import Tensor


def quantise(x: Tensor, bits: int = 8) -> Tensor:
    return torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), x.shape, dtype=torch.int8)


SCALES: dict[int, Any] = {
    0: [(1, 2, 1, 64), (1, 2, 64), (1, 128), (1,)],
    1: [(1, 2, 10), (2, 10)],
    2: [(2,)],
    3: [(2, 2, 10)],
}
SCALE_VIEWS = {
    0: lambda s: s.reshape(1, 2, 1, 64) if s.numel() > 1 else s,
    1: lambda s: s.reshape(2, 1, 10, 1),
    2: lambda s: s.view(1, 2, 1, 1),
    3: lambda s: s[..., None],
}


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize(
    ("mode", "shape", "bits"),
    [(m, s, bits) for m, shapes in SCALES.items() for s in shapes for bits in (8, 4) if (m, bits) != (2, 4)],
)
def test_quantised_keys_and_values(mode: int, shape: tuple[int, ...], bits: int, offsets: bool) -> None:
    """x = (q + offset) * scale; 4-bit numbers come eight in an int32, the lowest first."""
    x = operands(queries=1, size=64)
    raw = [quantise(t, bits) for t in x[1:]]
    dtype = HALF if mode in (0, 2) else torch.float32
    scales = [(torch.rand(shape) / 2**bits).to(dtype) for _ in range(2)]
    shifts = [torch.randn(shape).to(dtype) for _ in range(2)] if offsets else [None, None]
    view = SCALE_VIEWS[mode]
    numbers = [
        (r.double() + (0 if o is None else view(o.double()))) * view(s.double())
        for r, s, o in zip(raw, scales, shifts, strict=True)
    ]
    if bits == 4:
        raw = [sum((r[..., i::8].to(torch.int32) & 15) << (4 * i) for i in range(8)) for r in raw]
    out, _ = fused(
        [x[0], *raw],
        num_key_value_heads=2,
        key_antiquant_scale=scales[0],
        value_antiquant_scale=scales[1],
        key_antiquant_offset=shifts[0],
        value_antiquant_offset=shifts[1],
        key_antiquant_mode=mode,
        value_antiquant_mode=mode,
        inner_precise=1,
    )
    close(out, attention(x[0], *numbers, 0.2).out, HALF)


@pytest.mark.parametrize("mode", [0, 4, 5])
def test_quantised_pages(mode: int) -> None:
    """Modes 4 and 5 keep scales in pages too."""
    x = operands(queries=1, keys=150, size=32)
    raw = [quantise(t) for t in x[1:]]
    shape = {0: (1, 2, 1, 32), 4: (2, 1, 150, 1), 5: (2, 2, 150, 1)}[mode]
    scales = [torch.rand(shape) / 256 for _ in range(2)]
    caches = []
    for t in raw:
        torch.manual_seed(3)
        caches.append(pages(t, 64, "BnNBsD"))
    given = []
    if mode >= 4:
        for s in scales:
            torch.manual_seed(3)
            cache = pages(s, 64, "BnNBsD")[0][..., 0]
            given.append(cache[:, 0].contiguous() if mode == 4 else cache)
    else:
        scales = [s.half() for s in scales]
        given = [s.reshape(1, 2, 32) for s in scales]
    out, _ = torch_npu.npu_fused_infer_attention_score(
        x[0].npu(),
        caches[0][0].npu(),
        caches[1][0].npu(),
        num_heads=4,
        num_key_value_heads=2,
        scale=0.2,
        input_layout="BNSD",
        block_table=caches[0][1].npu(),
        block_size=64,
        actual_seq_lengths_kv=[150, 70],
        key_antiquant_scale=given[0].npu(),
        value_antiquant_scale=given[1].npu(),
        key_antiquant_mode=mode,
        value_antiquant_mode=mode,
    )
    numbers = [r.double() * s.double() for r, s in zip(raw, scales, strict=True)]
    for b, n in enumerate((150, 70)):
        part = [x[0][b : b + 1], *(t[b : b + 1, :, :n] for t in numbers)]
        close(out[b : b + 1], attention(*part, 0.2).out, HALF)


@pytest.mark.parametrize("shape", [(2,), (2, 2, 1, 32), (2, 64)])
def test_common_scales_of_keys_and_values(shape: tuple[int, ...]) -> None:
    x = operands(queries=1)
    raw, scale, shift = [quantise(t) for t in x[1:]], (torch.rand(shape) / 256).half(), torch.randn(shape).half()
    out, _ = fused([x[0], *raw], antiquant_scale=scale, antiquant_offset=shift)

    def numbers(i: int) -> Tensor:
        s, o = (t[i].double().reshape((1, 2, 1, 32) if t[i].numel() > 1 else ()) for t in (scale, shift))
        return (raw[i].double() + o) * s

    close(out, attention(x[0], numbers(0), numbers(1), 0.2).out, HALF)


@pytest.mark.parametrize("shape", [(1,), (1, 4, 1, 32), (4, 32)])
def test_rounded_outputs(shape: tuple[int, ...]) -> None:
    x, scale = operands(), torch.rand(shape) * 90 + 10
    offset = torch.randn(shape)
    out, _ = fused(x, quant_scale2=scale, quant_offset2=offset)
    view = (1, 4, 1, 32) if scale.numel() > 1 else (1,)
    exact = attention(*x, 0.2).out * scale.double().view(view) + offset.double().view(view)
    assert out.dtype == torch.int8
    assert (out.double() - exact.round().clamp(-128, 127)).abs().max() <= 1
    assert (out.double() - exact.clamp(-128, 127)).abs().max() < 0.51


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("encoded", [False, True])
def test_int8_throughout(rounded: bool, encoded: bool) -> None:
    """dequant_scale may be a float32 in the low half of a uint64."""
    x = [quantise(t) for t in operands()]
    d1, q1, d2, q2 = 1e-4, 127.0, 2e-4, 20.0
    scales = [torch.tensor([s]) for s in (d1, q1, d2)]
    if encoded:
        scales[0], scales[2] = (s.view(torch.int32).to(torch.int64).view(torch.uint64) for s in (scales[0], scales[2]))
    after = {"quant_scale2": torch.tensor([q2])} if rounded else {}
    out, _ = fused(x, dequant_scale1=scales[0], quant_scale1=scales[1], dequant_scale2=scales[2], **after)
    key, value = (t.double().repeat_interleave(2, 1) for t in x[1:])
    scores = x[0].double() @ key.transpose(-1, -2) * d1 * 0.2
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    exact = (weights * q1).round() @ value * d2 / weights.sum(-1, keepdim=True)
    if rounded:
        assert (out.double() - (exact * q2).clamp(-128, 127)).abs().max() < 0.6
    else:
        close(out, exact, HALF)


def test_int8_latent_attention() -> None:
    """The scales hold for the rotated parts too, as MlaProlog writes them."""
    x = [torch.randint(-9, 9, (2, n, 3, 512), dtype=torch.int8) for n in (4, 1, 1)]
    ropes = [torch.randn(2, n, 3, 64).bfloat16() for n in (4, 1)]
    per_row, k, v = torch.rand(2, 4, 3) / 9, torch.tensor([0.02]), torch.tensor([0.03])
    out = second(
        [x[0], x[1], x[1]],
        query_rope=ropes[0],
        key_rope=ropes[1],
        dequant_scale_query=per_row,
        dequant_scale_key=k,
        dequant_scale_value=v,
        query_quant_mode=3,
        sparse_mode=3,
        atten_mask=triangle(),
    )
    query = torch.cat((x[0].double(), ropes[0].double()), -1) * per_row.double()[..., None]
    key = torch.cat((x[1].double(), ropes[1].double()), -1) * k.double()
    close(out, attention(query, key, x[1].double() * v.double(), 0.2, seen_by(3, 3, 3)).out, torch.bfloat16)
