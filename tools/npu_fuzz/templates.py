"""Legal calls of torch_npu's own operators, small: what the fuzzer starts from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Call = tuple[tuple[Any, ...], dict[str, Any]]
half = torch.float16


def _rand(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def _ints(high: int, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.randint(0, high, shape, dtype=dtype)


def _int8(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def _call(*args: Any, **keywords: Any) -> Call:
    return args, keywords


# Name of the function of torch_npu: the arguments, on the CPU.
TEMPLATES: dict[str, Callable[[], Call]] = {
    "npu_rms_norm": lambda: _call(_rand(3, 4, 16), _rand(16), 1e-6),
    "npu_add_rms_norm": lambda: _call(_rand(3, 16), _rand(3, 16), _rand(16), 1e-6),
    "npu_gemma_rms_norm": lambda: _call(_rand(3, 16), _rand(16)),
    "npu_deep_norm": lambda: _call(_rand(3, 16), _rand(3, 16), _rand(16), _rand(16)),
    "npu_add_layer_norm": lambda: _call(_rand(3, 16), _rand(3, 16), _rand(16), _rand(16)),
    "npu_group_norm_silu": lambda: _call(_rand(2, 6, 4, 4), _rand(6), _rand(6), 3),
    "npu_swiglu": lambda: _call(_rand(3, 16), -1),
    "npu_geglu": lambda: _call(_rand(3, 16, dtype=half), -1, 1),
    "npu_fast_gelu": lambda: _call(_rand(3, 16)),
    "npu_gelu": lambda: _call(_rand(3, 16), approximate="tanh"),
    "npu_rotary_mul": lambda: _call(_rand(2, 3, 4, 16), _rand(1, 3, 1, 16), _rand(1, 3, 1, 16)),
    "npu_interleave_rope": lambda: _call(
        _rand(2, 4, 1, 64, dtype=half), _rand(2, 1, 1, 64, dtype=half), _rand(2, 1, 1, 64, dtype=half)
    ),
    "npu_apply_rotary_pos_emb": lambda: _call(
        *(_rand(2, 3, heads, 128, dtype=half) for heads in (4, 2)), *(_rand(2, 3, 1, 128, dtype=half) for _ in "cs")
    ),
    "npu_fusion_attention": lambda: _call(
        *(_rand(1, 2, 8, 16, dtype=half) for _ in "qkv"), 2, "BNSD", scale=0.25, sparse_mode=0
    ),
    "npu_fused_infer_attention_score": lambda: _call(
        *(_rand(1, 2, 8, 16, dtype=half) for _ in "qkv"), num_heads=2, input_layout="BNSD", scale=0.25
    ),
    "npu_prompt_flash_attention": lambda: _call(
        *(_rand(1, 2, 16, 16, dtype=half) for _ in "qkv"), num_heads=2, input_layout="BNSD", scale_value=0.25
    ),
    "npu_incre_flash_attention": lambda: _call(
        _rand(1, 2, 1, 16, dtype=half),
        *(_rand(1, 2, 8, 16, dtype=half) for _ in "kv"),
        num_heads=2,
        input_layout="BNSD",
        scale_value=0.25,
    ),
    "npu_scaled_masked_softmax": lambda: _call(
        _rand(2, 2, 32, 32, dtype=half), torch.zeros(2, 2, 32, 32, dtype=torch.bool), 1.0, False
    ),
    "npu_dynamic_quant": lambda: _call(_rand(3, 16, dtype=half)),
    "npu_quantize": lambda: _call(_rand(3, 16), _rand(16), None, torch.qint8, -1),
    "npu_anti_quant": lambda: _call(_int8(3, 16), _rand(16)),
    "npu_quant_matmul": lambda: _call(_int8(4, 16), _int8(16, 8), _rand(8), output_dtype=torch.bfloat16),
    "npu_weight_quant_batchmatmul": lambda: _call(_rand(4, 16, dtype=half), _int8(16, 8), _rand(8, dtype=half)),
    "npu_grouped_matmul": lambda: _call(
        [_rand(6, 16, dtype=half)],
        [_rand(2, 16, 8, dtype=half)],
        group_list=torch.tensor([2, 6]),
        split_item=3,
        group_type=0,
        group_list_type=0,
    ),
    "npu_transpose_batchmatmul": lambda: _call(_rand(2, 4, 16, dtype=half), _rand(2, 16, 8, dtype=half)),
    "npu_linear": lambda: _call(_rand(4, 16), _rand(8, 16), _rand(8)),
    "npu_moe_gating_top_k_softmax": lambda: _call(_rand(4, 8), k=2),
    "npu_moe_gating_top_k": lambda: _call(_rand(4, 8), 2),
    "npu_moe_compute_expert_tokens": lambda: _call(torch.sort(_ints(4, 12)).values, 4),
    "npu_moe_token_permute": lambda: _call(_rand(4, 16, dtype=torch.bfloat16), _ints(3, 4, 2, dtype=torch.int64)),
    "npu_moe_token_unpermute": lambda: _call(_rand(4, 16, dtype=torch.bfloat16), torch.arange(4, dtype=torch.int32)),
    "npu_moe_init_routing_v2": lambda: _call(
        _rand(4, 16),
        _ints(4, 4, 2),
        active_num=8,
        expert_capacity=-1,
        expert_num=4,
        drop_pad_mode=0,
        expert_tokens_num_type=1,
        expert_tokens_num_flag=True,
        quant_mode=-1,
        active_expert_range=[0, 4],
        row_idx_type=0,
    ),
    "npu_top_k_top_p": lambda: _call(_rand(3, 16), torch.full((3,), 0.8), torch.full((3,), 4, dtype=torch.int32)),
    "npu_cross_entropy_loss": lambda: _call(_rand(4, 16), _ints(16, 4, dtype=torch.int64)),
    "npu_scatter_nd_update": lambda: _call(_rand(8, 4), _ints(8, 3, 1, dtype=torch.int64), _rand(3, 4)),
    "npu_scatter_nd_update_": lambda: _call(_rand(8, 4), _ints(8, 3, 1, dtype=torch.int64), _rand(3, 4)),
    "npu_gather_sparse_index": lambda: _call(_rand(8, 4), _ints(8, 3, 2, dtype=torch.int64)),
    "npu_trans_quant_param": lambda: _call(_rand(8)),
    "npu_dtype_cast": lambda: _call(_rand(3, 4), half),
    "npu_confusion_transpose": lambda: _call(_rand(2, 3, 4), [0, 2, 1], [2, 12], True),
}
