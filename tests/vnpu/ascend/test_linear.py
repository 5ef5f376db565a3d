"""Projections of the Ascend backend: formats, kernels, and quantised checkpoints against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch_npu
from tests.models.memory_checkpoint import weight
from tests.vnpu.ascend.weights import IntegerWeight, integers, product, static
from tests.vnpu.support import called

from gallium.backends.ascend import heads, linear, soc
from gallium.errors import BackendError
from gallium.ops.handles import FloatArray, Precision, Role

DEVICE = torch.device("npu", 0)
LAST_BIT = 2.0**-7  # of bfloat16
NZ = 29


def setup(precision: Precision, dtype: torch.dtype = torch.bfloat16) -> linear.Setup:
    return linear.Setup(soc.find("Ascend910B2"), DEVICE, precision, dtype)


def rows(seed: int, tokens: int, width: int) -> FloatArray:
    """Activations that bfloat16 holds."""
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((tokens, width)).astype(np.float32))
    x[0] = 0  # a row whose scale is zero
    return x.bfloat16().float().numpy()


def multiplied(matrix: linear.Matrix, x: FloatArray) -> FloatArray:
    y: FloatArray = matrix(torch.from_numpy(x).to(DEVICE, torch.bfloat16)).float().cpu().numpy()
    return y


def check(matrix: linear.Matrix, x: FloatArray, expected: object) -> None:
    np.testing.assert_allclose(multiplied(matrix, x), np.asarray(expected), rtol=LAST_BIT, atol=1e-5)


def floats(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# -- formats and kernels --------------------------------------------------------------
def test_float_weights_are_stored_in_nz_and_read_so() -> None:
    matrix = linear.pack([weight(floats(1, 48, 64))], [weight(floats(2, 48))], "linear", setup("bfloat16"))
    assert isinstance(matrix, linear.FloatMatrix)
    assert torch_npu.get_npu_format(matrix.weight) == NZ
    x = torch.zeros(3, 64, dtype=torch.bfloat16, device=DEVICE)
    with called() as names:
        matrix(x)
    assert names == {"AddmmWeightNz"}
    assert matrix.nbytes == 2 * (48 * 64 + 48)


@pytest.mark.parametrize("role", linear.PLAIN_ROLES)
@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4"])
def test_heads_embeddings_and_routers_stay_plain_floats(role: Role, precision: Precision) -> None:
    matrix = linear.pack([weight(floats(1, 48, 64))], [], role, setup(precision))
    assert isinstance(matrix, linear.FloatMatrix)
    assert torch_npu.get_npu_format(matrix.weight) != NZ
    assert matrix.weight.dtype == (torch.float32 if role == "router" else torch.bfloat16)


def test_float32_weights_are_not_blocked() -> None:
    matrix = linear.pack([weight(floats(1, 48, 64))], [], "linear", setup("float32", torch.float32))
    assert isinstance(matrix, linear.FloatMatrix)
    assert torch_npu.get_npu_format(matrix.weight) != NZ


def test_int8_weights_are_stored_in_nz_and_multiplied_by_the_quantised_kernel() -> None:
    matrix = linear.pack([weight(floats(1, 48, 64))], [], "linear", setup("int8"))
    assert isinstance(matrix, linear.DynamicInt8)
    assert torch_npu.get_npu_format(matrix.codes) == NZ
    with called() as names:
        matrix(torch.ones(3, 64, dtype=torch.bfloat16, device=DEVICE))
    assert names >= {"QuantMatmulWeightNz"}
    assert any(name.startswith("DynamicQuant") for name in names)
    assert matrix.nbytes == 48 * 64 + 4 * 48


def test_int4_weights_are_packed_eight_to_a_word() -> None:
    matrix = linear.pack([weight(floats(1, 48, 64))], [weight(floats(2, 48))], "linear", setup("int4"))
    assert isinstance(matrix, linear.Int4Weights)
    assert (matrix.words.shape, matrix.words.dtype) == ((64, 6), torch.int32)
    assert matrix.scale.shape == (2, 48)
    with called() as names:
        matrix(torch.ones(3, 64, dtype=torch.bfloat16, device=DEVICE))
    assert any(name.startswith("WeightQuantBatchMatmul") for name in names)


def test_sensitive_weights_of_an_int4_model_are_int8() -> None:
    assert isinstance(linear.pack([weight(floats(1, 48, 64))], [], "sensitive", setup("int4")), linear.DynamicInt8)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (8, 32), (44, 64), (48, 40)])
def test_int4_of_any_size(height: int, width: int) -> None:
    w = np.random.default_rng(1).integers(-8, 8, (height, width)).astype(np.float32)
    w[:, 0::32] = 7
    w[:, 1::32] = -8
    bias, x = floats(2, height), rows(3, 4, width)
    matrix = linear.pack([weight(w)], [weight(bias)], "linear", setup("int4"))
    assert isinstance(matrix, linear.Int4Weights)
    np.testing.assert_allclose(multiplied(matrix, x), x @ w.T + bias, rtol=LAST_BIT, atol=0.02)


def test_what_the_maker_left_in_floats_is_not_quantised() -> None:
    assert isinstance(linear.pack([weight(floats(1, 48, 64))], [], "float", setup("int8")), linear.FloatMatrix)


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4"])
def test_no_tokens(precision: Precision) -> None:
    matrix = linear.pack([weight(floats(1, 48, 64))], [weight(floats(2, 48))], "linear", setup(precision))
    y = matrix(torch.zeros(0, 64, dtype=torch.bfloat16, device=DEVICE))
    assert (tuple(y.shape), y.dtype) == ((0, 48), torch.bfloat16)


def test_a_matrix_wider_than_the_kernel_is_cut() -> None:
    height = linear.WIDEST_INT8_PART + 40
    w = integers(1, height, 8)
    matrix = linear.pack([w], [], "linear", setup("int8"))
    assert isinstance(matrix, linear.SideBySide)
    x = rows(2, 2, 8)
    check(matrix, x, product(x, w))


# -- the backend's own quantisation -----------------------------------------------------
def test_own_int8_codes_are_the_largest_magnitude_over_127() -> None:
    w = floats(1, 24, 64)
    matrix = linear.pack([weight(w)], [], "linear", setup("int8"))
    assert isinstance(matrix, linear.DynamicInt8)
    scale = np.abs(w).max(1) / np.float32(127)
    np.testing.assert_allclose(matrix.scale.cpu().numpy(), scale, rtol=1e-6)
    codes = torch_npu.npu_format_cast(matrix.codes, 2).cpu().numpy()
    difference = np.abs(codes - np.rint(w / scale[:, None]).T)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01  # a few lie between two integers


def test_own_int4_is_within_half_a_step_of_each_group_s_range() -> None:
    w = floats(1, 16, 96)
    matrix = linear.pack([weight(w)], [], "linear", setup("int4"))
    restored = multiplied(matrix, np.eye(96, dtype=np.float32)).T
    groups = w.reshape(16, 3, 32)
    step = (groups.max(2) - groups.min(2)) / 15
    assert (np.abs(restored - w).reshape(groups.shape) <= 0.55 * step[..., None] + 0.01).all()


def test_weights_that_lie_on_a_grid_of_four_bits_keep_it() -> None:
    """As those of Q4_K and Q4_1 do: 16 steps per group of 32, from any number on."""
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 16, (16, 3, 32))
    codes[..., 0], codes[..., 1] = 0, 15
    start, step = rng.uniform(-2, 1, (16, 3, 1)), rng.uniform(0.01, 0.2, (16, 3, 1))
    w = (start + step * codes).astype(np.float32).reshape(16, 96)
    restored = multiplied(linear.pack([weight(w)], [], "linear", setup("int4")), np.eye(96, dtype=np.float32)).T
    np.testing.assert_allclose(restored, w, rtol=0, atol=3 * 2.0**-8 * np.abs(w).max())


# -- checkpoints that bring their integers ------------------------------------------------
@pytest.mark.parametrize("with_bias", [False, True])
def test_w8a8_dynamic(with_bias: bool) -> None:
    w, bias, x = integers(1, 48, 96), floats(2, 48), rows(3, 7, 96)
    matrix = linear.pack([w], [weight(bias)] if with_bias else [], "linear", setup("int8"))
    check(matrix, x, product(x, w) + (bias if with_bias else 0))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("corrects", [False, True])
def test_w8a8_static(with_bias: bool, corrects: bool) -> None:
    w, bias, x = static(1, 48, 96, corrects=corrects), floats(2, 48), rows(3, 7, 96)
    matrix = linear.pack([w], [weight(bias)] if with_bias else [], "linear", setup("int8"))
    assert isinstance(matrix, linear.StaticInt8)
    with called() as names:
        check(matrix, x, product(x, w) + (bias if with_bias else 0))
    assert names >= {"Quantize", "QuantMatmulWeightNz"}


def test_w8a8_static_saturates() -> None:
    w = static(1, 16, 32, input_scale=0.01, input_offset=100)
    x = rows(2, 3, 32) * 4
    check(linear.pack([w], [], "linear", setup("int8")), x, product(x, w))


def test_w4a8_dynamic() -> None:
    w, x = integers(1, 48, 96, bits=4), rows(3, 7, 96)
    check(linear.pack([w], [], "linear", setup("int4")), x, product(x, w))


@pytest.mark.parametrize("with_bias", [False, True])
def test_w4a8_dynamic_with_groups(with_bias: bool) -> None:
    w, bias, x = integers(1, 48, 128, bits=4, groups=4), floats(2, 48), rows(3, 7, 128)
    matrix = linear.pack([w], [weight(bias)] if with_bias else [], "linear", setup("int4"))
    assert isinstance(matrix, linear.EightByFour)
    expected = product(x, w)
    slack = LAST_BIT * np.abs(expected).max()  # rounded before the bias is added
    got = multiplied(matrix, x)
    np.testing.assert_allclose(got, expected + (bias if with_bias else 0), rtol=LAST_BIT, atol=slack)


def test_parts_of_several_kinds_stand_side_by_side_in_their_order() -> None:
    parts: list[IntegerWeight] = [integers(1, 16, 64), integers(2, 8, 64), static(3, 24, 64)]
    whole = weight(floats(4, 8, 64))
    bias = floats(5, 56)
    matrix = linear.pack(
        [*parts, whole], [weight(bias[:24]), weight(bias[24:])], "linear", setup("int8")
    )  # fmt: skip
    assert isinstance(matrix, linear.SideBySide)
    assert [type(part).__name__ for part in matrix.parts] == ["DynamicInt8", "StaticInt8", "DynamicInt8"]
    x = rows(6, 5, 64)
    expected = np.concatenate([product(x, part) for part in parts], 1) + bias[:48]
    np.testing.assert_allclose(multiplied(matrix, x)[:, :48], expected, rtol=LAST_BIT, atol=1e-5)


def test_static_parts_with_different_grids_are_not_joined() -> None:
    parts = [static(1, 16, 64, 0.04, 3), static(2, 16, 64, 0.02, -5)]
    matrix, x = linear.pack(parts, [], "linear", setup("int8")), rows(3, 4, 64)
    check(matrix, x, np.concatenate([product(x, part) for part in parts], 1))


def test_integers_are_decoded_where_floats_were_asked_for() -> None:
    w, x = integers(1, 16, 64), rows(2, 3, 64)
    matrix = linear.pack([w], [], "linear", setup("bfloat16"))
    assert isinstance(matrix, linear.FloatMatrix)
    np.testing.assert_allclose(multiplied(matrix, x), x @ w.float32().T, rtol=0.02, atol=0.02)


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    with pytest.raises(BackendError, match="one width"):
        linear.pack([weight(floats(1, 8, 64)), weight(floats(2, 8, 32))], [], "linear", setup("int8"))
    with pytest.raises(BackendError, match="a bias must have 8 elements"):
        linear.pack([weight(floats(1, 8, 64))], [weight(floats(2, 7))], "linear", setup("int8"))
    with pytest.raises(BackendError, match=r"8-bit weights .* in 2 groups"):
        linear.pack([integers(1, 16, 64, groups=2)], [], "linear", setup("int8"))


# -- heads and the gated MLP ----------------------------------------------------------------
def test_heads_are_one_kernel_where_sizes_are_aligned() -> None:
    x, w = torch.from_numpy(floats(1, 5, 3, 32)), torch.from_numpy(floats(2, 3, 16, 32))
    matrix = heads.pack([weight(head) for head in w.numpy()], setup("float32", torch.float32))
    ours = x.to(DEVICE)
    with called() as names:
        y = matrix(ours)
    assert names == {"TransposeBatchMatMul"}
    torch.testing.assert_close(y.cpu(), torch.einsum("nhi,hoi->nho", x, w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "height", "width", "reason"),
    [(3, 16, 32, ""), (3, 18, 32, "multiples of 16"), (3, 16, 24, "multiples of 16"), (2048, 16, 32, "65535")],
)
def test_heads_that_the_kernel_does_not_take(count: int, height: int, width: int, reason: str) -> None:
    matrices = [weight(np.zeros((height, width), np.float32))] * count
    found = heads.refusal(matrices, setup("float32"))
    assert (reason in found) if reason else not found
    old = linear.Setup(soc.find("Ascend310P3"), DEVICE, "float16", torch.float16)
    assert "no npu_transpose_batchmatmul" in heads.refusal(matrices, old)


@pytest.mark.parametrize("with_bias", [False, True])
def test_gated_mlp_in_integers(with_bias: bool) -> None:
    up, down, bias, x = integers(1, 2 * 40, 64), integers(2, 48, 40), floats(3, 48), rows(4, 6, 64)
    first = linear.pack([up], [], "linear", setup("int8"))
    second = linear.pack([down], [weight(bias)] if with_bias else [], "linear", setup("int8"))
    assert linear.fuses(first, second)
    assert isinstance(first, linear.DynamicInt8)
    assert isinstance(second, linear.DynamicInt8)
    with called() as names:
        y = linear.fused_mlp(torch.from_numpy(x).to(DEVICE, torch.bfloat16), first, second)
    assert any(name.startswith("DequantSwigluQuant") for name in names)
    gate, value = np.split(product(x, up).astype(np.float32), 2, 1)
    expected = product((gate / (1 + np.exp(-gate)) * value).astype(np.float32), down) + (bias if with_bias else 0)
    np.testing.assert_allclose(y.float().cpu().numpy(), expected, rtol=0.02, atol=0.02 * np.abs(expected).max())


def test_a_bias_before_the_gate_keeps_the_mlp_apart() -> None:
    biased = linear.pack([integers(1, 80, 64)], [weight(floats(2, 80))], "linear", setup("int8"))
    down = linear.pack([integers(3, 48, 40)], [], "linear", setup("int8"))
    assert not linear.fuses(biased, down)
    assert not linear.fuses(down, linear.pack([weight(floats(4, 48, 64))], [], "float", setup("int8")))
