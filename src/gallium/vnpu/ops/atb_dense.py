"""ATB's linear layer, quantisation, RMS norm and rotary embedding, in the forms that torch_npu calls.

Meaning of the arguments: Ascend/op-plugin 517f2e7, op_plugin/third_party/atb/inc/infer_op_params.h, the calls in
op_plugin/ops/atb and the tests test_atb_linear.py, test_atb_quant_per_tensor.py, test_atb_rope.py and
test_base_ops/test__npu_quant_rms_norm.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import HALVES, check_family
from gallium.vnpu.ops.atb_attention import A2_AND_A3, NO_TYPE, Lengths, lengths
from gallium.vnpu.registry import Illegal, Unsupported, only, op, refuse_given
from gallium.vnpu.writing import write

QUANT_PER_CHANNEL = 17  # elewise_type
NORM, INT8 = 1, 2  # layer_type and quant_type of the RMS norm
PAIRED_HALVES = 2  # rotary_coeff


@op("atb.Linear", cube=True)
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    accumulator: Tensor | None,
    transpose_a: bool,
    transpose_b: bool,
    has_bias: bool,
    out_data_type: int,
    accumulate: bool,
    out: Tensor,
) -> None:
    """Add the product of `x` and `weight` (each transposed or not) to a float32 matrix, in place."""
    check_family("accumulation in float32", *A2_AND_A3)
    only("has_bias", has_bias, False)
    refuse_given(bias=bias)
    only("out_data_type", out_data_type, NO_TYPE)
    only("accumulate", accumulate, True)
    if accumulator is None or accumulator.data_ptr() != out.data_ptr() or out.dtype != torch.float32:
        raise Illegal("C", accumulator, "float32 and contiguous: it is updated in place")
    if x.dim() != 2 or weight.dim() != 2 or x.dtype not in HALVES or weight.dtype != x.dtype:
        raise Illegal("x", x, "a matrix of float16 or bfloat16, as weight")
    a, b = x.t() if transpose_a else x, weight.t() if transpose_b else weight
    if a.shape[1] != b.shape[0] or out.shape != (a.shape[0], b.shape[1]):
        raise Illegal("weight", weight, f"a factor of {list(a.shape)} in a product of the shape {list(out.shape)}")
    out.addmm_(a.float(), b.float())


@op("atb.Elewise")
def elewise(
    x: Tensor,
    other: Tensor | None,
    offset: Tensor | None,
    elewise_type: int,
    input_scale: float,
    asymmetric: bool,
    input_offset: int,
    var_attr: float,
    out_data_type: int,
    out: Tensor,
) -> None:
    """Quantise to int8: round(x / other) + offset, where an empty offset is none."""
    check_family("quantisation", *A2_AND_A3)
    only("elewise_type", elewise_type, QUANT_PER_CHANNEL)
    only("input_scale", input_scale, 1)
    only("asymmetric", asymmetric, False)
    only("input_offset", input_offset, 0)
    only("var_attr", var_attr, 0)
    only("out_data_type", out_data_type, NO_TYPE)
    if other is None or x.dtype not in HALVES or other.dtype != x.dtype:
        raise Illegal("x", x, "float16 or bfloat16, as scale")
    if offset is None or offset.dtype != torch.int8 or out.dtype != torch.int8:
        raise Illegal("zero_point", offset, "int8, as the output")
    values = (x.float() / other.float()).round_()
    if offset.numel():
        values = values + offset.float()
    write(out, values.clamp_(-128, 127))


@op(
    "atb.RmsNorm",
    unused={"layer_norm_epsilon": "not used by ATB either (infer_op_params.h)"},
)
def rms_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor | None,
    scale: Tensor | None,
    offset: Tensor | None,
    layer_type: int,
    quant_type: int,
    epsilon: float,
    layer_norm_epsilon: float,
    rstd: bool,
    precision_mode: int,
    model_type: int,
    dynamic_quant_type: int,
    out: Tensor,
) -> None:
    """Norm and quantise to int8: round((x / rms(x) * gamma + beta) / scale + offset)."""
    only("layer_type", layer_type, NORM)
    only("quant_type", quant_type, INT8)
    only("rstd", rstd, False)
    only("precision_mode", precision_mode, 0)
    only("model_type", model_type, 0)
    only("dynamic_quant_type", dynamic_quant_type, 0)
    if x.dim() == 0:
        raise Illegal("x", x, "[..., size]")
    size = x.shape[-1]
    for name, tensor, count in (("gamma", gamma, size), ("beta", beta, size), ("scale", scale, 1)):
        if tensor is None or tensor.dtype != x.dtype or x.dtype not in HALVES or tensor.numel() != count:
            raise Illegal(name, tensor, f"[{count}] of x's type, which is float16 or bfloat16")
    if offset is None or offset.dtype != torch.int8 or offset.numel() != 1 or out.dtype != torch.int8:
        raise Illegal("offset", offset, "[1] of int8, as the output")
    if beta is None or scale is None:
        raise Illegal("beta", beta, "given, as scale")
    values = x.float()
    values = values * (values.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    values = (values * gamma.float().view(size) + beta.float().view(size)) / scale.float().view(
        1
    ) + offset.float().view(1)
    write(out, values.round_().clamp_(-128, 127))


@op("atb.Rope")
def rope(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    seq_len: Lengths,
    rotary_coeff: int,
    cos_format: int,
    query_out: Tensor,
    key_out: Tensor,
) -> None:
    """Rotate every head by its token's angles. rotary_coeff: 2 pairs the halves, the head's size pairs neighbours."""
    only("cos_format", cos_format, 0)
    size = cos.shape[-1]
    if rotary_coeff not in (PAIRED_HALVES, size):
        raise Unsupported("rotary_coeff", rotary_coeff, f"2 (halves) or the size of cos, {size} (neighbours)")
    tokens = cos.shape[0]
    if cos.dim() != 2 or sin.shape != cos.shape or sin.dtype != cos.dtype or size % 2:
        raise Illegal("cos", cos, "[tokens, an even size], as sin")
    if sum(lengths("seq_len", seq_len)) != tokens:
        raise Illegal("seq_len", seq_len, f"{tokens} together, the tokens")
    for name, x, out in (("query", query, query_out), ("key", key, key_out)):
        if x.dim() < 2 or x.shape[0] != tokens or x[0].numel() % size or out.data_ptr() != x.data_ptr():
            raise Illegal(name, x, f"[{tokens}, a multiple of {size}] and contiguous: it is updated in place")
        heads = x.reshape(tokens, -1, size).float()
        turned = _turned_halves(heads) if rotary_coeff == PAIRED_HALVES else _turned_neighbours(heads)
        rotated = heads * cos.float().unsqueeze(1) + turned * sin.float().unsqueeze(1)
        write(out, rotated.view(out.shape))


def _turned_halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _turned_neighbours(x: Tensor) -> Tensor:
    pairs = x.view(*x.shape[:-1], x.shape[-1] // 2, 2)
    return torch.stack((-pairs[..., 1], pairs[..., 0]), dim=-1).flatten(-2)
