"""Reading and writing by index against PyTorch's on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.against_cpu import agree, gradients, same, strided
from tests.vnpu.support import called
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
Function = Callable[..., Any]

EMPTY = torch.tensor([], dtype=torch.int64)
ONE, PAIR = torch.tensor([2]), torch.tensor([[0, 1], [2, -1]])
READS: list[tuple[str, Function, tuple[Tensor, ...]]] = [
    ("Index", lambda x, i: x[i], (ONE,)),
    ("Index", lambda x, i: x[i], (PAIR,)),
    ("Index", lambda x, i: x[:, i], (PAIR,)),
    ("Index", lambda x, i: x[..., i], (PAIR.int(),)),
    ("Index", lambda x, i, j: x[i, j], (PAIR, ONE)),
    ("Index", lambda x, i, j: x[i, :, j], (PAIR, PAIR.t())),
    ("Index", lambda x, i, j: x[:, i, j], (PAIR.int(), PAIR)),
    ("Index", lambda x, m: x[m], (torch.tensor([True, False, True]),)),
    ("NonzeroV2", lambda x, m: x[m], (torch.tensor([[True, False, True, True]] * 3),)),
    ("Index", lambda x, m: x[:, m], (torch.tensor([True, False, True, False]),)),
    ("Index", lambda x, m: x[m], (torch.rand(3, 4, 5) > 0.5,)),
    ("Index", lambda x, m: x[m], (torch.zeros(3, dtype=torch.bool),)),
    ("Index", lambda x, i: x[i], (EMPTY,)),
    ("Index", lambda x, i: x[:, i], (EMPTY,)),
    ("Index", lambda x, i, j: x[i, :, j], (EMPTY, EMPTY)),
    ("Gather", lambda x, i: torch.gather(x, 1, i), (torch.tensor([[[0, 1], [2, 3]]]),)),
    ("Gather", lambda x, i: torch.gather(x, -1, i), (torch.randint(0, 5, (3, 4, 7)),)),
    ("IndexSelect", lambda x, i: torch.index_select(x, -2, i), (torch.tensor([3, 0, 0]),)),
    ("IndexSelect", lambda x, i: torch.index_select(x, 0, i), (torch.tensor([1], dtype=torch.int32),)),
    ("Take", lambda x, i: torch.take(x, i), (torch.tensor([[0, 59], [7, -1]]),)),
    ("MaskedSelect", lambda x, m: torch.masked_select(x, m), (torch.rand(3, 4, 5) > 0.5,)),
    ("MaskedSelect", lambda x, m: torch.masked_select(x, m), (torch.tensor([True, False, True, True, False]),)),
    ("MaskedSelect", lambda x, m: torch.masked_select(x, m), (torch.zeros(1, dtype=torch.bool),)),
    ("Nonzero", lambda x: torch.nonzero(x), ()),
    ("SWhere", lambda x, m: torch.where(m, x, x.flip(0)), (torch.rand(4, 1) > 0.5,)),
    ("SWhere", lambda x, m: torch.where(m, x, torch.zeros((), device=x.device, dtype=x.dtype)), (torch.rand(5) > 0.5,)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", range(len(READS)))
def test_reading(case: int, dtype: torch.dtype) -> None:
    name, function, indices = READS[case]
    agree(function, torch.randint(0, 3, (3, 4, 5)).to(dtype), *indices, runs=name)


def put(x: Tensor, indices: tuple[Any, ...], values: Tensor, accumulate: bool = False) -> Tensor:
    # A view of a whole keeps the tensor's layout, and clone() would not.
    return torch.ops.aten.index_put_(x, indices, values, accumulate)


WRITES: list[tuple[Function, tuple[Tensor, ...], tuple[int, ...]]] = [
    (lambda x, v, i: put(x, (i,), v), (ONE,), (1, 4, 5)),
    (lambda x, v, i: put(x, (i,), v), (torch.tensor([0, 2]),), (2, 4, 5)),
    (lambda x, v, i: put(x, (None, i), v), (torch.tensor([0, 2]),), (3, 2, 5)),
    (lambda x, v, i: put(x, (None, i), v), (torch.tensor([3]),), (3, 1, 5)),
    (lambda x, v, i: put(x, (None, None, i), v), (torch.tensor([1, 0]).int(),), (2,)),
    (lambda x, v, i, j: put(x, (i, None, j), v), (torch.tensor([0, 1]), torch.tensor([2, 4])), (2, 4)),
    (lambda x, v, i, j: put(x, (None, i, j), v), (torch.tensor([[0], [1]]), torch.tensor([2, 4, 0])), (3, 2, 3)),
    (lambda x, v, i: put(x, (i,), v, True), (torch.tensor([0, 0, 2]),), (3, 4, 5)),
    (lambda x, v, i: put(x, (None, i), v, True), (torch.tensor([1, 1, 1]),), (5,)),
    (lambda x, v, m: put(x, (m,), v), (torch.tensor([True, False, True]),), (2, 4, 5)),
    (lambda x, v, i: put(x, (i,), v), (EMPTY,), (1, 4, 5)),
    (lambda x, v, i: put(x, (None, i), v), (EMPTY,), (3, 1, 5)),
    (lambda x, v, i, j: put(x, (i, j), v), (EMPTY, EMPTY), (1, 5)),
]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.int64, torch.int32))
@pytest.mark.parametrize("case", range(len(WRITES)))
def test_writing(case: int, dtype: torch.dtype) -> None:
    function, indices, shape = WRITES[case]
    x, values = torch.randint(0, 9, (3, 4, 5)).to(dtype), torch.randint(10, 19, shape).to(dtype)
    agree(function, x, values, *indices, runs="IndexPutImpl")


@pytest.mark.parametrize("dtype", (torch.float32, torch.int64))
def test_an_empty_index_next_to_another(dtype: torch.dtype) -> None:
    """Where the tensor holds floats, an empty index is told from a missing one by its type."""
    x, values = torch.zeros(3, 4).to(dtype), torch.ones(1).to(dtype)
    got = put(x.npu(), (torch.tensor([[0], [1]]).npu(), EMPTY.npu()), values.npu())
    if dtype == torch.float32:
        same(got, x)
    else:  # CANN gets the same two empty vectors for both
        assert got.cpu().tolist() == [[1] * 4, [1] * 4, [0] * 4]


def test_the_gradient_of_an_index() -> None:
    def loss(x: Tensor) -> list[Tensor]:
        return gradients(lambda x: x[:, torch.tensor([0, 2, 2], device=x.device)], x)

    agree(loss, torch.randn(3, 4), runs={"Index", "IndexPutImpl"})


def test_an_index_out_of_range_is_refused() -> None:
    x = torch.randn(3, 4).npu()
    with pytest.raises(RuntimeError, match="out of bounds"):
        torch.gather(x, 1, torch.tensor([[7]]).npu())
    with pytest.raises(RuntimeError, match="out of"):
        torch.index_select(x, 0, torch.tensor([3]).npu())


def scattered(x: Tensor, source: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    return (
        torch.scatter(x, 1, index, source),
        torch.scatter(x, -1, index, 7),
        torch.scatter_add(x, 1, index, source),
        torch.ops.aten.scatter.reduce(x, 1, index, source, reduce="multiply"),
        torch.ops.aten.scatter.value_reduce(x, 1, index, 3, reduce="add"),
    )


@pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter")
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32))
@pytest.mark.parametrize("shape", [(3, 4), (2, 3), (0, 2)])
def test_scattering(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, source = torch.randint(0, 9, (3, 4)).to(dtype), torch.randint(0, 9, shape).to(dtype)
    index = torch.rand(3, 4).argsort(1)[: shape[0], : shape[1]]
    agree(scattered, x, source, index, runs={"Scatter", "ScatterValue", "ScatterAdd"} if shape[0] else ())


@pytest.mark.parametrize("reduce", ["sum", "prod", "amax", "amin", "mean"])
@pytest.mark.parametrize("include_self", [True, False])
def test_scattering_with_a_reduction(reduce: str, include_self: bool) -> None:
    def into_given(x: Tensor, source: Tensor, index: Tensor) -> Tensor:
        out = torch.empty_like(x)
        return torch.scatter_reduce(x, 0, index, source, reduce, include_self=include_self, out=out)

    args = (torch.randn(3, 4), torch.randn(5, 4), torch.randint(0, 3, (5, 4)))
    agree(into_given, *args, runs="ScatterReduce")
    if reduce == "sum" and include_self:
        agree(lambda x, s, i: torch.scatter_reduce(x, 0, i, s, "sum"), *args, runs="ScatterReduce")


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.int32))
def test_writing_slices(dtype: torch.dtype) -> None:
    x, source = torch.randint(0, 9, (3, 4, 5)).to(dtype), torch.randint(10, 19, (3, 2, 5)).to(dtype)
    index = torch.tensor([3, 1])
    agree(lambda x, i, s: torch.index_add(x, 1, i, s), x, index, source, runs="IndexAdd")
    agree(lambda x, i, s: torch.index_add(x, -2, i, s, alpha=2), x, torch.tensor([0, 0]), source, runs="IndexAdd")
    agree(lambda x, i, s: torch.index_copy(x, 1, i, s), x, index, source, runs="IndexCopy")
    agree(lambda x, i: torch.index_fill(x, 1, i, 7), x, index, runs="IndexFill")
    agree(lambda x, i: torch.index_fill(x, -1, i, 7), x, index.int().long(), runs="IndexFill")


def test_adding_rows_by_the_private_function() -> None:
    x, index, source = torch.randn(4, 3), torch.tensor([1, 1, 3]), torch.randn(3, 3)
    with called() as names:
        got = torch.ops.npu._npu_index_add(strided(x), index.npu(), strided(source), alpha=2)
    same(got, x.index_add(0, index, source, alpha=2))
    assert "IndexAddV2" in names


def test_gathering_rows_by_an_index_of_any_shape() -> None:
    x, index = torch.randn(5, 3), torch.tensor([[4, 0, 0], [1, 2, 2]])
    with called() as names:
        got = torch_npu.npu_gather_sparse_index(strided(x), index.npu())
    assert "GatherV3" in names
    same(got, x[index])
    with pytest.raises(RuntimeError, match=r"index = -1"):
        torch_npu.npu_gather_sparse_index(x.npu(), torch.tensor([-1]).npu())


def test_writing_at_places_given_as_rows() -> None:
    x, places = torch.zeros(4, 5, 6), torch.tensor([[0, 1], [3, 4]], dtype=torch.int32)
    updates = torch.randn(2, 6)
    expected = x.clone()
    for place, update in zip(places.tolist(), updates, strict=True):
        expected[tuple(place)] = update
    with called() as names:
        same(torch_npu.npu_scatter_nd_update(strided(x), places.npu(), updates.npu()), expected)
    assert "ScatterNdUpdate" in names
    target = strided(x)
    torch_npu.npu_scatter_nd_update_(target, places.npu(), strided(updates))
    same(target, expected)
    for wrong, message in (
        (places.npu()[:, :1], "updates"),
        (places.npu() + 4, "indices"),
        (places.npu()[0], "indices"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch_npu.npu_scatter_nd_update(x.npu(), wrong, updates.npu())


@pytest.mark.parametrize("axis", [-1, -2])
def test_writing_into_each_of_a_list(axis: int) -> None:
    targets = [torch.zeros(2, 6, 4) for _ in range(3)]
    places, mask = torch.tensor([0, 3, 1], dtype=torch.int32), torch.tensor([1, 0, 1], dtype=torch.uint8)
    updates = torch.randn(3, 2, 1, 4) if axis == -2 else torch.randn(3, 2, 6, 1)
    expected = [x.clone() for x in targets]
    for i in (0, 2):
        expected[i].select(axis, int(places[i])).copy_(updates[i].squeeze(axis))
    device = [x.npu() for x in targets]
    with called() as names:
        got = torch_npu.npu_scatter_list(device, places.npu(), updates.npu(), mask.npu(), "update", axis)
        torch_npu.npu_scatter_list_(device, places.npu(), updates.npu(), mask.npu(), "update", axis)
    assert "ScatterList" in names
    for i in range(3):
        same(got[i], expected[i])
        same(device[i], expected[i])
    with pytest.raises(RuntimeError, match="reduce"):
        torch_npu.npu_scatter_list(device, places.npu(), updates.npu(), None, "add", axis)
    with pytest.raises(RuntimeError, match="indice"):
        torch_npu.npu_scatter_list(device, places.npu() + 6, updates.npu(), None, "update", axis)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_sparse_tensor_with_double_entries() -> None:
    places, values = torch.tensor([[0, 2, 0, 1], [1, 0, 1, 3]]), torch.randn(4, 2)
    expected = torch.sparse_coo_tensor(places, values, (3, 4, 2)).coalesce()
    with called() as names:
        got = torch.sparse_coo_tensor(places.npu(), values.npu(), (3, 4, 2)).coalesce()
    assert "CoalesceSparse" in names
    same(got.indices(), expected.indices())
    same(got.values(), expected.values())


def test_a_mask_with_a_scale() -> None:
    x, mask = torch.randn(3, 4), torch.randint(0, 2, (3, 4), dtype=torch.uint8)
    with called() as names:
        got = torch.ops.aten._masked_scale(strided(x), strided(mask), 2.5)
    assert "MaskedScale" in names
    same(got, x * mask * 2.5)
