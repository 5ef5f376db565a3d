"""Matrix products, also with weights in the blocked format, against PyTorch's on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.against_cpu import agree, gradients, same, strided
from tests.vnpu.support import called
from torch import Tensor

from gallium.vnpu.formats import to_blocks
from gallium.vnpu.registry import operators
from gallium.vnpu.tensors import Blocked

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NZ = 29
Function = Callable[..., Any]

SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((3, 4), (4, 5)),
    ((4,), (4,)),
    ((3, 4), (4,)),
    ((4,), (4, 5)),
    ((2, 3, 4), (4, 5)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 4, 5)),
    ((3, 4), (2, 4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (3, 4, 5)),
    ((2, 3, 4), (1, 4, 5)),
    ((0, 4), (4, 5)),
    ((2, 3, 4), (2, 4, 0)),
]
SUMS: list[tuple[str, Function, tuple[tuple[int, ...], ...]]] = [
    ("Addmm", lambda c, a, b: torch.addmm(c, a, b), ((5,), (3, 4), (4, 5))),
    ("Addmm", lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2), ((3, 1), (3, 4), (4, 5))),
    ("Addmm", lambda c, a, b: torch.nn.functional.linear(a, b.t(), c), ((5,), (3, 4), (4, 5))),
    ("Baddbmm", lambda c, a, b: torch.baddbmm(c, a, b, beta=2, alpha=0.5), ((2, 3, 5), (2, 3, 4), (2, 4, 5))),
    ("Baddbmm", lambda c, a, b: torch.baddbmm(c, a, b), ((5,), (2, 3, 4), (2, 4, 5))),
    ("Addbmm", lambda c, a, b: torch.addbmm(c, a, b, beta=2, alpha=0.5), ((3, 5), (2, 3, 4), (2, 4, 5))),
    ("Addmv", lambda c, a, b: torch.addmv(c, a, b, beta=2, alpha=0.5), ((3,), (3, 4), (4,))),
    ("Addr", lambda c, a, b: torch.addr(c, a, b, beta=2, alpha=0.5), ((3, 4), (3,), (4,))),
    ("Mv", lambda c, a, b: torch.mv(a, b) + c, ((3,), (3, 4), (4,))),
    ("Mm", lambda c, a, b: torch.mm(a, b) + c, ((3, 5), (3, 4), (4, 5))),
    ("BatchMatMul", lambda c, a, b: torch.bmm(a, b) + c, ((3, 5), (2, 3, 4), (2, 4, 5))),
    ("Dot", lambda c, a, b: torch.dot(a, b) + c, ((1,), (4,), (4,))),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_products(left: tuple[int, ...], right: tuple[int, ...], dtype: torch.dtype) -> None:
    a, b = torch.randn(left).to(dtype), torch.randn(right).to(dtype)
    agree(torch.matmul, a, b, runs=() if len(left) == len(right) == 1 or 0 in left + right else "Matmul")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", range(len(SUMS)))
def test_sums_with_products(case: int, dtype: torch.dtype) -> None:
    name, function, shapes = SUMS[case]
    agree(function, *(torch.randn(shape).to(dtype) for shape in shapes), runs=name)


@pytest.mark.parametrize("size", [2, 3])
def test_outputs_that_are_given_with_strides(size: int) -> None:
    a, b = torch.randn(2, 3, 4)[:size] if size == 3 else torch.randn(3, 4), torch.randn(4, 5)
    out = strided(torch.zeros(*a.shape[:-1], 5))
    with called() as names:
        torch.matmul(a.npu(), b.npu(), out=out)
    assert names & {"Matmul", "Mm"}
    same(out, a @ b)


def test_a_sum_in_place() -> None:
    c, a, b = torch.randn(2, 3, 5), torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    agree(lambda c, a, b: c.baddbmm_(a, b, beta=0.5), c, a, b, runs="Baddbmm")
    agree(lambda c, a, b: c.addbmm_(a, b, alpha=0.5), c[0], a, b, runs="Addbmm")


@pytest.mark.parametrize(("left", "right"), [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5))])
def test_gradients(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    agree(lambda a, b: gradients(torch.matmul, a, b), torch.randn(left), torch.randn(right), runs="Matmul")


def test_a_linear_layer_of_torch_npu() -> None:
    x, weight, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)

    def layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch_npu.npu_linear(x, w, b) if x.device.type == "npu" else torch.nn.functional.linear(x, w, b)

    agree(lambda x, w, b: gradients(layer, x, w, b), x, weight, bias, runs={"Addmm", "Mm"})


def test_a_wide_product_of_narrow_numbers() -> None:
    a, b = torch.randn(2, 3, 4).bfloat16(), torch.randn(2, 4, 5).bfloat16()
    with called() as names:
        got = torch.bmm(a.npu(), b.npu(), out_dtype=torch.float32)
    assert "BatchMatMul" in names
    same(got, torch.bmm(a.float(), b.float()))


def test_the_matrix_unit_has_no_doubles() -> None:
    a = torch.randn(3, 3, dtype=torch.float64).npu()
    with pytest.raises(RuntimeError, match="float64"):
        torch.mm(a, a)


@pytest.fixture
def _internal_formats() -> Iterator[None]:
    torch.npu.config.allow_internal_format = True
    yield
    torch.npu.config.allow_internal_format = False


def blocked(x: Tensor) -> Tensor:
    got = torch_npu.npu_format_cast(x.npu(), NZ)
    assert torch_npu.get_npu_format(got) == NZ
    return got


@pytest.mark.usefixtures("_internal_formats")
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_weights_in_the_blocked_format(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(5, 32).to(dtype), torch.randn(32, 48).to(dtype), torch.randn(48).to(dtype)
    with called() as names:
        same(x.npu() @ blocked(weight), x @ weight)
        same(torch.addmm(bias.npu(), x.npu(), blocked(weight)), torch.addmm(bias, x, weight))
        same(x.npu() @ blocked(weight.t().contiguous()).t(), x @ weight)
    assert names >= {"MatmulWeightNz", "AddmmWeightNz"}, names


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("perm", [(0, 1, 2), (1, 0, 2)])
@pytest.mark.parametrize("split", [1, 4])
def test_a_product_whose_batch_moves(perm: tuple[int, ...], split: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(3, 5, 32).to(dtype), torch.randn(3, 32, 48).to(dtype)
    expected = torch.bmm(x, weight).transpose(0, 1)
    if split > 1:
        expected = expected.reshape(5, split, -1).transpose(0, 1)
    with called() as names:
        got = torch_npu.npu_transpose_batchmatmul(
            strided(x.permute(perm)), weight.npu(), perm_x1=perm, batch_split_factor=split
        )
    assert "TransposeBatchMatMul" in names
    same(got, expected.contiguous())


def test_changing_the_format() -> None:
    """On the 950 family torch_npu changes formats by this function: the body alone."""
    x = torch.randn(20, 30)
    storage = torch.empty(2, 2, 16, 16)
    held = Blocked(storage, x.shape, x.stride(), x.dtype, NZ)
    out = torch.empty(20, 30)
    operators()["NpuFormatCast"].body(x, held)
    torch.testing.assert_close(storage, to_blocks(x, (2, 2, 16, 16)))
    operators()["NpuFormatCast"].body(held, out)
    torch.testing.assert_close(out, x)


def test_a_batch_of_blocked_weights() -> None:
    """torch_npu makes this call on the 950 family only, where it does not give such weights either: the body alone."""
    x, weights = torch.randn(3, 5, 32), torch.randn(3, 32, 48)
    storage = to_blocks(weights, (3, 3, 2, 16, 16)).contiguous()
    held = Blocked(storage, weights.shape, weights.stride(), weights.dtype, NZ)
    out = torch.empty(3, 5, 48)
    operators()["BatchMatMulWeightNz"].body(x, held, out, 0)
    torch.testing.assert_close(out, torch.bmm(x, weights))


@pytest.mark.usefixtures("_internal_formats")
def test_a_blocked_product_whose_batch_moves() -> None:
    x, weight = torch.randn(3, 5, 32).half(), torch.randn(3, 32, 48).half()
    with called() as names:
        got = torch_npu.npu_transpose_batchmatmul(x.npu(), blocked(weight))
    assert "TransposeBatchMatMulWeightNz" in names
    same(got, torch.bmm(x, weight).transpose(0, 1).contiguous())


@pytest.mark.parametrize(
    ("message", "settings", "shape"),
    [
        ("bias", {"bias": (48,)}, (3, 32, 48)),
        ("perm_x1", {"perm_x1": (2, 1, 0)}, (3, 32, 48)),
        ("perm_x2", {"perm_x2": (1, 0, 2)}, (3, 32, 48)),
        ("perm_y", {"perm_y": (0, 1, 2)}, (3, 32, 48)),
        ("batch_split_factor", {"batch_split_factor": 5}, (3, 32, 48)),
        ("multiples of 16", {}, (3, 32, 40)),
    ],
)
def test_what_a_product_whose_batch_moves_refuses(
    message: str, settings: dict[str, Any], shape: tuple[int, ...]
) -> None:
    x, weight = torch.randn(3, 5, 32).half().npu(), torch.randn(shape).half().npu()
    given = {k: torch.zeros(v).half().npu() if k == "bias" else v for k, v in settings.items()}
    with pytest.raises(RuntimeError, match=message):
        torch_npu.npu_transpose_batchmatmul(x, weight, **given)


@pytest.mark.parametrize("kind", ["", "add", "mul", "gelu_erf", "gelu_tanh", "16cast32"])
def test_a_product_and_what_follows(kind: str) -> None:
    x, weight, more = torch.randn(2, 3, 16).half(), torch.randn(16, 8).half(), torch.randn(3, 8).half()
    product = x.float() @ weight.float()
    expected = {
        "add": lambda: product + more,
        "mul": lambda: product * more,
        "gelu_erf": lambda: product * 0.5 * (1 + torch.erf(product / 2**0.5)),
        "gelu_tanh": lambda: torch.nn.functional.gelu(product, approximate="tanh"),
    }.get(kind, lambda: product)()
    x3 = more.npu() if kind in ("add", "mul") else None
    with called() as names:
        got = torch_npu.npu_fused_matmul(x.npu(), weight.npu(), x3=x3, fused_op_type=kind)
    assert "FusedMatmul" in names
    same(got, expected if kind == "16cast32" else expected.half(), 1e-2)


def test_what_a_product_with_more_refuses() -> None:
    x, weight = torch.randn(3, 16).half().npu(), torch.randn(16, 8).half().npu()
    for message, settings in (
        ("fused_op_type", {"fused_op_type": "swish"}),
        ("x3", {"fused_op_type": "add"}),
        ("x3", {"fused_op_type": "gelu_erf", "x3": x}),
        ("bias", {"bias": weight[0]}),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch_npu.npu_fused_matmul(x, weight, **settings)
