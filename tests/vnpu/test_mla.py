"""MlaPrologV2 and V3 against the formulas of their pages and the arithmetic of op-plugin's tests, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.attention_reference import close
from tests.vnpu.support import called
from torch import Tensor

BF16 = torch.bfloat16
WIDTH, LOW, HEADS, SIZE, LATENT, ROTATED = 1024, 1536, 2, 128, 512, 64
BLOCK = 16


@pytest.fixture(autouse=True)
def blocked_formats() -> Iterator[None]:
    """Let npu_format_cast make weights in blocked formats, as MlaProlog takes them."""
    torch.npu.config.allow_internal_format = True
    yield
    torch.npu.config.allow_internal_format = False


def weights(mode: int, size: int = SIZE) -> dict[str, Tensor]:
    """The operands of a weight_quant_mode, names as in torch_npu."""
    shapes = {
        "weight_dq": (WIDTH, LOW),
        "weight_uq_qr": (LOW, HEADS * (size + ROTATED)),
        "weight_dkv_kr": (WIDTH, LATENT + ROTATED),
    }
    given = {
        "weight_uk": (torch.randn(HEADS, size, LATENT) / 10).to(BF16),
        "rmsnorm_gamma_cq": (1 + torch.rand(LOW)).to(BF16),
        "rmsnorm_gamma_ckv": (1 + torch.rand(LATENT)).to(BF16),
    }
    for name, shape in shapes.items():
        if mode == 2 or (mode == 1 and name == "weight_uq_qr"):
            given[name] = torch.randint(-100, 100, shape, dtype=torch.int8)
            given[name.replace("weight", "dequant_scale_w")] = (0.5 + torch.rand(1, shape[1])) / 2000
        else:
            given[name] = (torch.randn(shape) / 30).to(BF16)
    if mode:
        given["smooth_scales_cq"] = 0.5 + torch.rand(1, LOW)
    return given


def tokens(shape: tuple[int, ...], mode: int) -> dict[str, Tensor]:
    given = {"rope_sin": torch.randn(*shape, ROTATED).to(BF16), "rope_cos": torch.randn(*shape, ROTATED).to(BF16)}
    if mode != 2:
        return given | {"token_x": torch.randn(*shape, WIDTH).to(BF16)}
    count = shape[0] if len(shape) == 1 else shape[0] * shape[1]
    given["token_x"] = torch.randint(-100, 100, (*shape, WIDTH), dtype=torch.int8)
    return given | {"dequant_scale_x": (0.5 + torch.rand(count, 1)) / 50}


def norm(x: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * gamma.double()


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.cat((even, odd), -1) * cos + torch.cat((-odd, even), -1) * sin


def by_row(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round(), scale


def bf16(x: Tensor) -> Tensor:
    return x.to(BF16).double()


def reference(given: dict[str, Any], query_scale: float = 1, key_scale: float = 1) -> dict[str, Tensor]:
    """Rows of tokens: query, query_rope, query_norm with scales, latent and rotated keys before they are stored."""
    x = {name: t.double() for name, t in given.items()}
    x["token_x"] = x["token_x"].flatten(0, -2)
    cos, sin = (x[name].reshape(-1, 1, ROTATED) for name in ("rope_cos", "rope_sin"))

    def product(name: str) -> Tensor:
        out = x["token_x"] @ x[f"weight_{name}"]
        return out * x["dequant_scale_x"] * x[f"dequant_scale_w_{name}"] if "dequant_scale_x" in x else out

    low = norm(product("dq"), x["rmsnorm_gamma_cq"], 1e-5) * query_scale
    out: dict[str, Tensor] = {}
    if "dequant_scale_w_uq_qr" in x:
        out["query_norm"], out["norm_scale"] = by_row(low * x["smooth_scales_cq"])
        up = out["query_norm"] @ x["weight_uq_qr"] * out["norm_scale"] * x["dequant_scale_w_uq_qr"]
    else:
        out["query_norm"] = bf16(low)
        up = out["query_norm"] @ x["weight_uq_qr"]
    up = up.unflatten(1, (HEADS, -1))
    size = up.shape[-1] - ROTATED
    out["query"] = torch.einsum("tnd,ndc->tnc", bf16(up[..., :size]), x["weight_uk"])
    out["query_rope"] = rope(up[..., size:], cos, sin)
    both = product("dkv_kr")
    out["latent"] = norm(both[:, :LATENT], x["rmsnorm_gamma_ckv"], 1e-5) * key_scale
    out["rotated"] = rope(both[:, LATENT:], cos[:, 0], sin[:, 0])
    return out


def prolog_v3(given: dict[str, Tensor], caches: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    device = {name: t.npu() for name, t in given.items()}
    for name in ("weight_dq", "weight_uq_qr", "weight_dkv_kr"):
        device[name] = torch_npu.npu_format_cast(device[name], 29)
    options = {name: t.npu() if isinstance(t, Tensor) else t for name, t in options.items()}
    with called() as names:
        out = torch_npu.npu_mla_prolog_v3(**device, kv_cache=caches[0], kr_cache=caches[1], **options)
    assert "MlaPrologV3WeightNz" in names
    return tuple(out)


def near(actual: Tensor, expected: Tensor) -> None:
    """Equal within bfloat16 of the largest value."""
    size = expected.abs().max()
    close(actual.cpu().double().reshape(expected.shape) / size, expected / size, BF16)


def same_numbers(actual: Tensor, expected: Tensor) -> None:
    """int8 numbers; a float32 sum near a half may round to the neighbour."""
    apart = (actual.cpu().double().reshape(expected.shape) - expected).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() < 0.02


def at_slots(cache: Tensor, slots: Tensor) -> Tensor:
    return cache.cpu().flatten(0, 1).flatten(1)[slots.flatten()]


def check_query(out: tuple[Tensor, ...], expected: dict[str, Tensor]) -> None:
    near(out[0], expected["query"])
    near(out[1], expected["query_rope"])
    if "norm_scale" in expected:
        same_numbers(out[3], expected["query_norm"])
        torch.testing.assert_close(out[4].cpu().double(), expected["norm_scale"], rtol=1e-4, atol=0)
    else:
        near(out[3], expected["query_norm"])


@pytest.mark.parametrize("shape", [(2, 3), (5,)])
@pytest.mark.parametrize(("mode", "cache_quant"), [(0, 0), (1, 0), (1, 2), (1, 3), (2, 0), (2, 1), (2, 3)])
def test_quantisation(mode: int, cache_quant: int, shape: tuple[int, ...]) -> None:
    given = weights(mode) | tokens(shape, mode)
    count = 5 if len(shape) == 1 else 6
    slots = torch.randperm(3 * BLOCK)[:count].view(shape)
    kinds = [torch.int8 if cache_quant else BF16, torch.int8 if cache_quant == 2 else BF16]
    widths = [656 if cache_quant == 3 else LATENT, ROTATED]
    caches = [torch.zeros(3, BLOCK, 1, w, dtype=t).npu() for w, t in zip(widths, kinds, strict=True)]
    options: dict[str, Any] = {"weight_quant_mode": mode, "kv_cache_quant_mode": cache_quant}
    if cache_quant == 1:
        options |= {"query_quant_mode": 1, "quant_scale_ckv": torch.tensor([40.0])}
    if cache_quant == 2:
        options |= {"quant_scale_ckv": 10 + 20 * torch.rand(1, LATENT), "quant_scale_ckr": 10 + torch.rand(1, ROTATED)}
    if cache_quant == 3:
        options |= {"ckvkr_repo_mode": 1, "quant_scale_repo_mode": 1}
        caches[1] = torch.empty(0, BLOCK, 1, ROTATED, dtype=BF16).npu()
    out = prolog_v3(given, caches, cache_index=slots, query_norm_flag=True, **options)
    expected = reference(given)
    latent = at_slots(caches[0], slots)
    if cache_quant == 1:
        numbers, scale = by_row(bf16(expected["query"]))
        torch.testing.assert_close(out[2].cpu().double(), scale, rtol=5e-3, atol=0)
        near(out[0].cpu().reshape(numbers.shape) * out[2].cpu(), expected["query"])
        expected |= {"query": numbers, "query_rope": expected["query_rope"] * 40 / scale}
    check_query(out, expected)
    if cache_quant in (0, 3):
        numbers = latent if cache_quant == 0 else latent[:, :LATENT].double().unflatten(1, (4, 128))
        if cache_quant == 3:
            wanted, scale = by_row(expected["latent"].unflatten(1, (4, 128)))
            same_numbers(numbers, wanted)
            stored = latent[:, 640:].contiguous().view(torch.float32)
            torch.testing.assert_close(stored.double(), scale[..., 0], rtol=1e-4, atol=0)
            near(latent[:, 512:640].contiguous().view(BF16), expected["rotated"])
            return
        near(latent, expected["latent"])
    else:
        same_numbers(latent, (expected["latent"] * options["quant_scale_ckv"]).round().clamp(-128, 127))
    key = at_slots(caches[1], slots)
    if cache_quant == 2:
        same_numbers(key, (expected["rotated"] * options["quant_scale_ckr"]).round().clamp(-128, 127))
    else:
        near(key, expected["rotated"])


@pytest.mark.parametrize("mode", ["PA_NZ", "PA_BLK_BSND", "PA_BLK_NZ", "BSND", "TND"])
def test_cache_modes(mode: str) -> None:
    """Blocks in NZ hold [width / 16, block, 16]; modes with BLK take pages, the others of BSND and TND no index."""
    shape = (18,) if mode == "TND" or mode == "PA_BLK_NZ" else (2, 18)
    given = weights(0, 192) | tokens(shape, 0)
    blocks = 5
    cache_shape: tuple[int, ...] = (blocks, BLOCK, 1) if mode.startswith("PA") else (*shape, 1)
    caches = [torch.zeros(*cache_shape, w).to(BF16).npu() for w in (LATENT, ROTATED)]
    options: dict[str, Any] = {}
    if mode == "PA_NZ":
        slots = torch.randperm(blocks * BLOCK)[:36]
        options["cache_index"] = slots.view(shape)
    elif mode == "PA_BLK_BSND":
        options["cache_index"] = torch.tensor([[3, 1], [0, 4]])
        slots = torch.tensor([[(3, 1), (0, 4)][b][i // BLOCK] * BLOCK + i % BLOCK for b in range(2) for i in range(18)])
    elif mode == "PA_BLK_NZ":
        options |= {"cache_index": torch.tensor([3, 1]), "actual_seq_len": torch.tensor([6, 18]).int()}
        slots = torch.tensor([3 * BLOCK + i for i in range(6)] + [BLOCK + i for i in range(12)])
    prolog_v3(given, caches, cache_mode=mode, qc_qr_scale=0.5, kc_scale=2.0, **options)
    expected = reference(given, 0.5, 2.0)
    for cache, name in zip(caches, ("latent", "rotated"), strict=True):
        rows = cache.cpu()
        if mode.endswith("NZ"):
            rows = rows.view(blocks, -1, BLOCK, 16).transpose(1, 2).reshape(blocks, BLOCK, 1, -1)
        near(at_slots(rows, slots) if mode.startswith("PA") else rows.reshape(-1, rows.shape[-1]), expected[name])


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_v2_tells_the_scene_from_types(mode: int) -> None:
    given = weights(mode) | tokens((2, 2), mode)
    slots = torch.randperm(3 * BLOCK)[:4].view(2, 2)
    kind = torch.int8 if mode == 2 else BF16
    caches = [torch.zeros(3, BLOCK, 1, w, dtype=t).npu() for w, t in ((LATENT, kind), (ROTATED, BF16))]
    device = {name: t.npu() for name, t in given.items()}
    for name in ("weight_dq", "weight_uq_qr", "weight_dkv_kr"):
        device[name] = torch_npu.npu_format_cast(device[name], 29)
    if mode == 2:
        device["quant_scale_ckv"] = torch.full((1, LATENT), 40.0).npu()
    with called() as names:
        out = torch_npu.npu_mla_prolog_v2(
            **device, cache_index=slots.npu(), kv_cache=caches[0], kr_cache=caches[1], cache_mode="PA_BSND"
        )
    assert "MlaPrologV2WeightNz" in names
    expected = reference(given)
    if mode == 2:
        near(out[0].cpu().view(4, HEADS, LATENT) * out[4].cpu(), expected["query"])
        near(out[1].cpu().view(4, HEADS, ROTATED) * out[4].cpu() / 40, expected["query_rope"])
        same_numbers(at_slots(caches[0], slots), (expected["latent"] * 40).round().clamp(-128, 127))
    else:
        near(out[0], expected["query"])
        near(out[1], expected["query_rope"])
        near(at_slots(caches[0], slots), expected["latent"])
    near(at_slots(caches[1], slots), expected["rotated"])


def test_refusals() -> None:
    given = weights(0) | tokens((2,), 0)
    caches = [torch.zeros(1, BLOCK, 1, w).to(BF16).npu() for w in (LATENT, ROTATED)]
    index = torch.tensor([0, 1])
    for options, named in (
        ({"k_nope_clip_alpha": torch.ones(1)}, "k_nope_clip_alpha"),
        ({"kv_cache_quant_mode": 2}, "kv_cache_quant_mode"),
        ({"cache_mode": "BNSD"}, "cache_mode"),
        ({"query_quant_mode": 1}, "query_quant_mode"),
        ({"quant_scale_ckv": torch.ones(1)}, "quant_scale_ckv"),
    ):
        with pytest.raises(RuntimeError, match=named):
            prolog_v3(given, caches, cache_index=index, **options)
    with pytest.raises(RuntimeError, match="cache_index"):
        prolog_v3(given, caches)
    with pytest.raises(RuntimeError, match="FRACTAL_NZ"):
        torch_npu.npu_mla_prolog_v3(
            **{name: t.npu() for name, t in given.items()},
            kv_cache=caches[0],
            kr_cache=caches[1],
            cache_index=index.npu(),
        )
