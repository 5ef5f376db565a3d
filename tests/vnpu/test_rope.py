"""Rotary embeddings against the formulas of op-plugin's pages."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from tests.vnpu.attention_reference import close
from tests.vnpu.support import called
from torch import Tensor

from gallium.vnpu.registry import operators

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def turn(x: Tensor, mode: str) -> Tensor:
    if mode == "half":
        a, b = x.chunk(2, -1)
        return torch.cat((-b, a), -1)
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).reshape(x.shape)


SHAPES = {
    "BNSD": ((2, 3, 5, 16), [(1, 1, 5, 16), (2, 1, 5, 16), (2, 3, 5, 16)]),
    "BSND": ((2, 5, 3, 16), [(1, 5, 1, 16), (2, 5, 1, 16)]),
    "SBND": ((5, 2, 3, 16), [(5, 1, 1, 16)]),
    "TND": ((5, 3, 16), [(5, 1, 16), (5, 3, 16)]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["half", "interleave"])
@pytest.mark.parametrize(("shape", "angle"), [(s, a) for s, angles in SHAPES.values() for a in angles])
def test_rotary_mul_and_its_gradient(
    shape: tuple[int, ...], angle: tuple[int, ...], mode: str, dtype: torch.dtype
) -> None:
    x, cos, sin = (torch.randn(s).to(dtype) for s in (shape, angle, angle))
    device = [t.npu().requires_grad_() for t in (x, cos, sin)]
    with called() as names:
        out = torch_npu.npu_rotary_mul(*device, mode)
        out.sum().backward()
    assert {"RotaryPositionEmbeddingV2", "RotaryPositionEmbeddingGrad"} <= names
    exact = [t.double().requires_grad_() for t in (x, cos, sin)]
    expected = exact[0] * exact[1] + turn(exact[0], mode) * exact[2]
    expected.sum().backward()
    close(out, expected, dtype)
    for a, b in zip(device, exact, strict=True):
        close(a.grad, b.grad, dtype)


def test_a_gradient_of_x_alone() -> None:
    x, cos, sin = (torch.randn(2, 3, 5, 16) for _ in range(3))
    device = x.npu().requires_grad_()
    torch_npu.npu_rotary_mul(device, cos.npu(), sin.npu()).sum().backward()
    exact = x.double().requires_grad_()
    (exact * cos + turn(exact, "half") * sin).sum().backward()
    close(device.grad, exact.grad, torch.float32)


def test_a_matrix_that_turns() -> None:
    x, cos, sin, matrix = torch.randn(2, 3, 5, 16), *(torch.randn(1, 1, 5, 16) for _ in range(2)), torch.randn(16, 16)
    out = torch_npu.npu_rotary_mul(x.npu(), cos.npu(), sin.npu(), "half", matrix.npu())
    close(out, x.double() * cos + x.double() @ matrix.double() * sin, torch.float32)


def test_the_older_versions_by_their_bodies() -> None:
    """torch_npu prefers the second versions if they exist."""
    x, cos, sin = (torch.randn(2, 3, 5, 64) for _ in range(3))
    out = torch.empty_like(x)
    operators()["RotaryPositionEmbedding"].body(x, cos, sin, 0, out)
    close(out, x.double() * cos + turn(x.double(), "half") * sin, torch.float32)
    query, key, angles = torch.randn(2, 3, 4, 64), torch.randn(2, 3, 2, 64), torch.randn(2, 2, 3, 1, 64)
    expected = [t.double() * angles[0] + turn(t.double(), "half") * angles[1] for t in (query, key)]
    operators()["ApplyRotaryPosEmb"].body(query, key, angles[0], angles[1], 1)
    close(query, expected[0], torch.float32)
    close(key, expected[1], torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["BSND", "TND"])
def test_apply_rotary_in_place(layout: str, dtype: torch.dtype) -> None:
    lead = (2, 3) if layout == "BSND" else (5,)
    query, key = torch.randn(*lead, 4, 64).to(dtype), torch.randn(*lead, 2, 64).to(dtype)
    cos, sin = (torch.randn(*lead, 1, 64).to(dtype) for _ in range(2))
    device = [t.npu() for t in (query, key)]
    with called() as names:
        out = torch_npu.npu_apply_rotary_pos_emb(*device, cos.npu(), sin.npu(), layout=layout)
    assert "ApplyRotaryPosEmbV2" in names and out[0].data_ptr() == device[0].data_ptr()
    for actual, t in zip(device, (query, key), strict=True):
        close(actual, t.double() * cos.double() + turn(t.double(), "half") * sin.double(), dtype)


@pytest.mark.parametrize("length", [1, 5])
def test_interleave_rope(length: int) -> None:
    x = torch.randn(2, 3, 5, 64).half()
    cos, sin = (torch.randn(2, 1, length, 64).half() for _ in range(2))
    with called() as names:
        out = torch_npu.npu_interleave_rope(x.npu(), cos.npu(), sin.npu())
    assert "InterleaveRope" in names
    q = x.double().reshape(2, 3, 5, 32, 2).transpose(-1, -2).reshape(2, 3, 5, 64)
    close(out, q * cos.double() + turn(q, "half") * sin.double(), torch.float16)


@pytest.mark.parametrize("width", [16, 12])
@pytest.mark.parametrize("mode", ["half", "interleave"])
@pytest.mark.parametrize(
    ("sections", "cache_mode"), [(None, "default"), (3, "default"), (4, "default"), (3, "interleave")]
)
def test_mrope(sections: int | None, cache_mode: str, mode: str, width: int) -> None:
    """Positions of text, or of several parts of which each section of the angles takes its own."""
    tokens, size, half = 7, 16, width // 2
    query, key, cache = torch.randn(tokens, 3 * size), torch.randn(tokens, size), torch.randn(20, width)
    parts = {None: [0, 0, 0], 3: [half - 4, 2, 2], 4: [half - 3, 1, 1, 1]}[sections]
    positions = torch.randint(0, 20, (tokens,) if sections is None else (sections, tokens))
    with called() as names:
        out = torch_npu.npu_mrope(
            positions.npu(),
            query.npu(),
            key.npu(),
            cache.npu(),
            size,
            mrope_section=parts,
            rotary_mode=mode,
            cache_mode=cache_mode,
        )
    assert "RopeWithSinCosCacheV2" in names
    rows = cache.double()[positions]
    cos, sin = rows.chunk(2, -1)
    if sections is not None and cache_mode == "default":
        cos, sin = (torch.cat([m[i] for i, m in enumerate(t.split(parts, -1))], -1) for t in (cos, sin))
    elif sections is not None:
        mixed = []
        for t in (cos, sin):
            own = t[0].clone()
            own[:, 1 : parts[1] * 3 : 3] = t[1][:, 1 : parts[1] * 3 : 3]
            own[:, 2 : parts[1] * 3 : 3] = t[2][:, 2 : parts[1] * 3 : 3]
            mixed.append(own)
        cos, sin = mixed
    for actual, x in zip(out, (query, key), strict=True):
        heads = x.double().view(tokens, -1, size)
        front, rest = heads[..., :width], heads[..., width:]
        a, b = front.chunk(2, -1) if mode == "half" else (front[..., ::2], front[..., 1::2])
        c, s = cos[:, None], sin[:, None]
        pair = (a * c - b * s, b * c + a * s)
        done = torch.cat(pair, -1) if mode == "half" else torch.stack(pair, -1).flatten(-2)
        close(actual, torch.cat((done, rest), -1).reshape(x.shape), torch.float32)


def test_mrope_v1_by_its_body() -> None:
    query, key, cache = torch.randn(4, 16), torch.randn(4, 16), torch.randn(9, 16)
    out = [torch.empty(4, 16), torch.empty(4, 16)]
    operators()["RopeWithSinCosCache"].body(torch.tensor([0, 3, 8, 1]), query, key, cache, (0, 0, 0), 16, True, *out)
    rows = cache[[0, 3, 8, 1]].double()
    cos, sin = (torch.cat((t, t), -1) for t in rows.chunk(2, -1))
    close(out[0], query.double() * cos + turn(query.double(), "half") * sin, torch.float32)


def test_refusals() -> None:
    x, angle = torch.randn(2, 3, 5, 64).npu(), torch.randn(1, 1, 5, 64).npu()
    with pytest.raises(RuntimeError, match="r1"):
        torch_npu.npu_rotary_mul(x, angle[:, :, :2].contiguous(), angle[:, :, :2].contiguous())
    with pytest.raises(RuntimeError, match="below 896"):
        wide = torch.randn(1, 1, 2, 896).npu()
        torch_npu.npu_rotary_mul(wide, wide, wide)
    with pytest.raises(RuntimeError, match="size of a head"):
        odd = torch.randn(1, 1, 2, 15).npu()
        torch_npu.npu_rotary_mul(odd, odd, odd)
    with pytest.raises(RuntimeError, match="layout"):
        torch_npu.npu_apply_rotary_pos_emb(x, x, angle, angle, layout="BNSD")
    with pytest.raises(RuntimeError, match="rotary_mode"):
        torch_npu.npu_apply_rotary_pos_emb(x, x, angle, angle, rotary_mode="quarter")
    with pytest.raises(RuntimeError, match="float16 or bfloat16"):
        torch_npu.npu_interleave_rope(x, angle, angle)
    with pytest.raises(RuntimeError, match="positions"):
        rows = torch.randn(2, 16).npu()
        torch_npu.npu_mrope(torch.tensor([1, 9]).npu(), rows, rows, torch.randn(9, 16).npu(), 16)
