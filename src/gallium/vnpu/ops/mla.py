"""MlaPrologV2 and V3: from tokens to absorbed queries and to the caches of latent and rotated keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gallium.vnpu.attention import slots
from gallium.vnpu.attention.limits import need_chip
from gallium.vnpu.attention.rotary import INTERLEAVED_TO_HALF, rotated
from gallium.vnpu.named import register_named
from gallium.vnpu.registry import Illegal, Unsupported, only, refuse_given
from gallium.vnpu.tensors import Blocked, dense

PAGE = "npu_mla_prolog_v3"
WIDTHS = (1024, 2048, 3072, 4096, 5120, 6144, 7168, 7680, 8192)
LATENT, ROTATED, TILE, COMBINED = 512, 64, 128, 656
PLAIN, QUERY_UP, ALL_INT8 = 0, 1, 2  # weight_quant_mode
NO_QUANT, PER_TENSOR, PER_CHANNEL, PER_TILE = 0, 1, 2, 3  # kv_cache_quant_mode
SCENES = {(PLAIN, NO_QUANT), (QUERY_UP, NO_QUANT), (QUERY_UP, PER_CHANNEL), (QUERY_UP, PER_TILE), (ALL_INT8, NO_QUANT)}
SCENES |= {(ALL_INT8, PER_TENSOR), (ALL_INT8, PER_TILE)}
CACHE_MODES = ("PA_BSND", "PA_NZ", "PA_BLK_BSND", "PA_BLK_NZ", "BSND", "TND")


@dataclass(frozen=True, kw_only=True)
class MlaProlog:
    """c = RMSNorm(x Wdq); queries c Wuq Wuk, rotated part c Wqr; the latent key RMSNorm(x Wdkv), rotated part x Wkr.

    The arithmetic of the quantised scenes is that of op-plugin's tests.
    """

    token_x: Tensor
    weight_dq: Tensor | Blocked
    weight_uq_qr: Tensor | Blocked
    weight_uk: Tensor
    weight_dkv_kr: Tensor | Blocked
    rmsnorm_gamma_cq: Tensor
    rmsnorm_gamma_ckv: Tensor
    rope_sin: Tensor
    rope_cos: Tensor
    cache_index: Tensor | None
    kv_cache: Tensor
    kr_cache: Tensor
    dequant_scale_x: Tensor | None
    dequant_scale_w_dq: Tensor | None
    dequant_scale_w_uq_qr: Tensor | None
    dequant_scale_w_dkv_kr: Tensor | None
    quant_scale_ckv: Tensor | None
    quant_scale_ckr: Tensor | None
    smooth_scales_cq: Tensor | None
    actual_seq_len: Tensor | None = None
    k_nope_clip_alpha: Tensor | None = None
    rmsnorm_epsilon_cq: float
    rmsnorm_epsilon_ckv: float
    cache_mode: str
    weight_quant_mode: int | None = None
    kv_cache_quant_mode: int | None = None
    query_quant_mode: int | None = None
    ckvkr_repo_mode: int = 0
    quant_scale_repo_mode: int = 0
    tile_size: int = TILE
    qc_qr_scale: float = 1.0
    kc_scale: float = 1.0
    query: Tensor
    query_rope: Tensor
    dequant_scale_q_nope: Tensor | None
    query_norm: Tensor | None = None
    dequant_scale_q_norm: Tensor | None = None

    def run(self) -> None:
        """Compute and write all outputs."""
        self._check()
        tokens = self.token_x.reshape(-1, self.token_x.shape[-1])
        if tokens.shape[0] == 0:
            return
        low = self._product(tokens, self.weight_dq, self.dequant_scale_w_dq)
        low = slots.normalised(low, self.rmsnorm_gamma_cq, self.rmsnorm_epsilon_cq) * self.qc_qr_scale
        heads = torch.unflatten(self._up(low), 1, (self.weight_uk.shape[0], -1))
        size = self.weight_uk.shape[1]
        nope = heads[..., :size].to(torch.bfloat16).to(torch.float32)
        query = torch.einsum("tnd,ndc->tnc", nope, self.weight_uk.to(torch.float32))
        cos, sin = (t.reshape(-1, 1, ROTATED) for t in (self.rope_cos, self.rope_sin))
        self._write_query(query, rotated(heads[..., size:], cos, sin, INTERLEAVED_TO_HALF))
        both = self._product(tokens, self.weight_dkv_kr, self.dequant_scale_w_dkv_kr)
        latent = slots.normalised(both[:, :LATENT], self.rmsnorm_gamma_ckv, self.rmsnorm_epsilon_ckv) * self.kc_scale
        self._store(latent, rotated(both[:, LATENT:], cos[:, 0], sin[:, 0], INTERLEAVED_TO_HALF))

    @cached_property
    def scene(self) -> tuple[int, int]:
        """How weights and caches are quantised. V2 tells it by types and scales."""
        if self.weight_quant_mode is not None and self.kv_cache_quant_mode is not None:
            return self.weight_quant_mode, self.kv_cache_quant_mode
        if self.token_x.dtype == torch.int8:
            return ALL_INT8, NO_QUANT if self.quant_scale_ckv is None else PER_TENSOR
        if self.weight_uq_qr.dtype == torch.int8:
            return QUERY_UP, NO_QUANT if self.quant_scale_ckv is None else PER_CHANNEL
        return PLAIN, NO_QUANT

    def _product(self, tokens: Tensor, weight: Tensor | Blocked, scale: Tensor | None) -> Tensor:
        """[T, width] in float32."""
        matrix = dense(weight)
        if self.scene[0] != ALL_INT8:
            return tokens.to(torch.float32) @ matrix.to(torch.float32)
        assert self.dequant_scale_x is not None and scale is not None
        exact = (tokens.to(torch.float64) @ matrix.to(torch.float64)).to(torch.float32)
        return exact * self.dequant_scale_x.reshape(-1, 1) * scale.reshape(1, -1)

    def _up(self, low: Tensor) -> Tensor:
        """The queries of all heads from the low-rank one, which is rounded to int8 per token if the weight is int8."""
        matrix = dense(self.weight_uq_qr)
        if self.scene[0] == PLAIN:
            low = low.to(torch.bfloat16)
            _copy_rows(self.query_norm, low)
            return low.to(torch.float32) @ matrix.to(torch.float32)
        assert self.dequant_scale_w_uq_qr is not None
        if self.smooth_scales_cq is not None:
            low = low * self.smooth_scales_cq.reshape(1, -1)
        numbers, scale = _per_row(low)
        _copy_rows(self.query_norm, numbers)
        _copy_rows(self.dequant_scale_q_norm, scale)
        exact = (numbers.to(torch.float64) @ matrix.to(torch.float64)).to(torch.float32)
        return exact * scale * self.dequant_scale_w_uq_qr.reshape(1, -1)

    def _write_query(self, query: Tensor, rope: Tensor) -> None:
        if self.scene != (ALL_INT8, PER_TENSOR):
            _copy_rows(self.query, query)
            _copy_rows(self.query_rope, rope)
            if self.dequant_scale_q_nope is not None:
                self.dequant_scale_q_nope.zero_()
            return
        assert self.quant_scale_ckv is not None and self.dequant_scale_q_nope is not None
        numbers, scale = _per_row(query.to(torch.bfloat16).to(torch.float32))
        _copy_rows(self.query, numbers)
        _copy_rows(self.dequant_scale_q_nope, scale)
        rope = rope.to(torch.bfloat16).to(torch.float32)
        _copy_rows(self.query_rope, rope * self.quant_scale_ckv.reshape(-1)[0] / scale)

    def _store(self, latent: Tensor, rope: Tensor) -> None:
        """Both parts of the key to their caches, or both and the scales of tiles to one cache of bytes."""
        if self.scene[1] == PER_TILE:
            tiles = torch.unflatten(latent, 1, (-1, TILE))
            numbers, tile_scales = _per_row(tiles)
            parts = (
                numbers.flatten(1),
                rope.to(torch.bfloat16).view(torch.int8),
                tile_scales[..., 0].contiguous().view(torch.int8),
            )
            self._put(self.kv_cache, torch.cat([p.to(torch.int8) for p in parts], 1))
            return
        scales: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.scene[1] == PER_TENSOR and self.quant_scale_ckv is not None:
            scales = (self.quant_scale_ckv.reshape(-1)[:1], None)
        elif self.scene[1] == PER_CHANNEL:
            scales = (self.quant_scale_ckv, self.quant_scale_ckr)
        for cache, rows, scale in ((self.kv_cache, latent, scales[0]), (self.kr_cache, rope, scales[1])):
            self._put(cache, slots.rounded(rows, scale))

    def _put(self, cache: Tensor, rows: Tensor) -> None:
        if cache.numel() == 0:
            return
        if self.cache_mode in ("BSND", "TND"):
            _copy_rows(cache, rows)
            return
        assert self.cache_index is not None
        size, index = cache.shape[1], self.cache_index
        places = self._pages(index, len(rows), size) if "BLK" in self.cache_mode else index.reshape(-1)
        if places.numel() != len(rows):
            raise Illegal("cache_index", index, f"one place per token, {len(rows)} ({PAGE} page of op-plugin)")
        slots.put(cache, places, rows, size, nz=self.cache_mode.endswith("NZ"))

    def _pages(self, index: Tensor, tokens: int, size: int) -> Tensor:
        """Slots of tokens from the numbers of their pages, sequence by sequence."""
        if self.token_x.dim() == 3:
            lengths = [self.token_x.shape[1]] * self.token_x.shape[0]
        else:
            if self.actual_seq_len is None:
                raise Illegal(
                    "actual_seq_len", None, f"given in mode {self.cache_mode} for tokens [T, He] ({PAGE} page)"
                )
            ends = self.actual_seq_len.tolist()
            lengths = [b - a for a, b in zip((0, *ends), ends, strict=False)]
        pages, found, first = index.reshape(-1), [], 0
        for length in lengths:
            step = torch.arange(length)
            found.append(pages[first + step // size] * size + step % size)
            first += -(-length // size)
        return torch.cat(found)[:tokens]

    def _check(self) -> None:
        end = f"({PAGE} page of op-plugin)"
        need_chip(PAGE, "910B", "910_93", "950")
        refuse_given(k_nope_clip_alpha=self.k_nope_clip_alpha)
        if self.scene not in SCENES:
            raise Unsupported("weight_quant_mode and kv_cache_quant_mode", self.scene, f"{sorted(SCENES)}")
        tiles = int(self.scene[1] == PER_TILE)
        only(
            "ckvkr_repo_mode and quant_scale_repo_mode",
            (self.ckvkr_repo_mode, self.quant_scale_repo_mode),
            (tiles, tiles),
        )
        only("tile_size", self.tile_size, TILE)
        if self.query_quant_mode is not None:
            only("query_quant_mode", self.query_quant_mode, int(self.scene == (ALL_INT8, PER_TENSOR)))
        for name in ("weight_dq", "weight_uq_qr", "weight_dkv_kr"):
            if not isinstance(getattr(self, name), Blocked):
                raise Illegal(name, getattr(self, name), f"in format FRACTAL_NZ (29) {end}")
        width, low = self.weight_dq.shape
        heads, size, latent = self.weight_uk.shape
        good = width in WIDTHS and low in (1536, 2048) and size in (128, 192) and latent == LATENT
        if not good or heads not in (1, 2, 4, 8, 16, 32, 64, 128) or self.token_x.shape[-1] != width:
            sizes = (width, low, heads, size, latent)
            raise Illegal(
                "He, Hcq, N, D and Hckv", sizes, f"He in {WIDTHS}, Hcq 1536 or 2048, D 128 or 192, Hckv 512 {end}"
            )
        for name, shape in (
            ("weight_uq_qr", (low, heads * (size + ROTATED))),
            ("weight_dkv_kr", (width, latent + ROTATED)),
        ):
            if tuple(getattr(self, name).shape) != shape:
                raise Illegal(name, getattr(self, name), f"{list(shape)} {end}")
        if self.cache_mode not in CACHE_MODES or (self.cache_index is None and self.cache_mode.startswith("PA")):
            raise Illegal(
                "cache_mode", self.cache_mode, f"one of {', '.join(CACHE_MODES)}, in pages with cache_index {end}"
            )
        if self.cache_mode.startswith("PA") and self.kv_cache.numel() and not self.kv_cache.shape[1] % 16 == 0:
            raise Illegal(
                "the block size of the cache", self.kv_cache.shape[1], f"a multiple of 16, at most 1024 {end}"
            )
        self._check_scales(end)

    def _check_scales(self, end: str) -> None:
        weights, cache = self.scene
        needed = {
            "dequant_scale_x": weights == ALL_INT8,
            "dequant_scale_w_dq": weights == ALL_INT8,
            "dequant_scale_w_dkv_kr": weights == ALL_INT8,
            "dequant_scale_w_uq_qr": weights != PLAIN,
            "quant_scale_ckv": cache in (PER_TENSOR, PER_CHANNEL),
            "quant_scale_ckr": cache == PER_CHANNEL,
        }
        for name, need in needed.items():
            if (getattr(self, name) is not None) != need:
                raise Illegal(
                    name, "given" if not need else None, f"{'given' if need else 'left out'} in this scene {end}"
                )
        kinds = {"token_x": weights == ALL_INT8, "weight_dq": weights == ALL_INT8, "weight_uq_qr": weights != PLAIN}
        kinds |= {"weight_dkv_kr": weights == ALL_INT8, "kv_cache": cache != NO_QUANT, "kr_cache": cache == PER_CHANNEL}
        for name, quantised in kinds.items():
            wanted = torch.int8 if quantised else torch.bfloat16
            if getattr(self, name).dtype != wanted:
                raise Illegal(name, getattr(self, name), f"of type {wanted} in this scene {end}")
        width = COMBINED if cache == PER_TILE else LATENT
        if self.kv_cache.shape[-1] != width:
            raise Illegal("kv_cache", self.kv_cache, f"of width {width} in this scene {end}")


def _per_row(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 numbers and the scale of each row, its largest magnitude / 127."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return torch.round(x / torch.where(scale == 0, 1.0, scale)).clamp_(-128, 127), scale


def _copy_rows(out: Tensor | None, rows: Tensor) -> None:
    """Rows [T, ..] into an output that may have the batch's two dimensions."""
    if out is not None:
        out.copy_(rows.reshape(out.shape))


for _name in ("MlaPrologV2WeightNz", "MlaPrologV3WeightNz"):
    register_named(_name, MlaProlog)
