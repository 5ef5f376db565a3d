"""Low-rank additions, dequantised sums and pauses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.support import called
from torch import Tensor

B, H1, H2, R, WIDTH = 6, 32, 48, 16, 80


def inputs() -> dict[str, Tensor]:
    return {
        "x": torch.randn(B, H1).half(),
        "weight_b": torch.randn(3, 2, H2, R).half(),
        "indices": torch.tensor([0, 2, -1, 1, 2, 0], dtype=torch.int32),
        "weight_a": torch.randn(3, 2, R, H1).half(),
    }


def moved(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: x.npu() if isinstance(x, Tensor) else x for name, x in arguments.items()}


@pytest.mark.parametrize("with_a", [True, False])
@pytest.mark.parametrize("offset", [0, 32])
def test_add_lora(with_a: bool, offset: int) -> None:
    arguments, y = inputs(), torch.randn(B, WIDTH).half()
    if not with_a:
        arguments |= {"weight_a": None, "weight_b": torch.randn(3, 2, H2, H1).half()}
    expected = y.double()
    for row, i in enumerate(arguments["indices"].tolist()):
        if i >= 0:
            inner = arguments["x"][row].double()
            inner = arguments["weight_a"][i, 1].double() @ inner if with_a else inner
            expected[row, offset : offset + H2] += 0.5 * (arguments["weight_b"][i, 1].double() @ inner)
    options = {"layer_idx": 1, "scale": 0.5, "y_offset": offset, "y_slice_size": H2}
    target = y.npu()
    with called() as names:
        torch_npu.npu_batch_gather_matmul_(target, **moved(arguments), **options)
    assert names == {"AddLora"}
    torch.testing.assert_close(target.cpu().double(), expected, rtol=2e-3, atol=1e-2)
    view = torch.zeros(WIDTH, B, dtype=torch.float16, device="npu").t().copy_(y.npu())
    torch_npu.npu_batch_gather_matmul_(view, **moved(arguments), **options)
    assert view.equal(target)


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "y_slice_size": lambda a: a.update(y_slice_size=16),
    "y_offset": lambda a: a.update(y_offset=33),
    "layer_idx": lambda a: a.update(layer_idx=2),
    "indices": lambda a: a.update(indices=torch.full((B,), 3, dtype=torch.int32)),
    "dtype of x": lambda a: a.update(x=torch.zeros(B, H1)),
    "shape of weight_a": lambda a: a.update(weight_a=torch.zeros(3, 2, R, 16).half()),
}


@pytest.mark.parametrize("match", WRONG)
def test_add_lora_refuses(match: str) -> None:
    arguments: dict[str, Any] = inputs() | {"y_slice_size": H2}
    WRONG[match](arguments)
    with pytest.raises(RuntimeError, match=match):
        torch_npu.npu_batch_gather_matmul_(torch.zeros(B, WIDTH).half().npu(), **moved(arguments))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_dequant_bias(dtype: torch.dtype) -> None:
    x = torch.randint(-100, 100, (4, 5), dtype=torch.int32)
    columns, rows = torch.rand(5), torch.rand(4)
    with called() as names:
        got = torch_npu.npu_dequant_bias(x.npu(), columns.npu(), rows.npu(), None, output_dtype=dtype)
        plain = torch_npu.npu_dequant_bias(x.t().contiguous().npu().t(), columns.npu(), None, None, output_dtype=dtype)
    assert "DequantBias" in names
    torch.testing.assert_close(got.cpu(), (x * columns * rows.unsqueeze(1)).to(dtype))
    torch.testing.assert_close(plain.cpu(), (x * columns).to(dtype))
    with pytest.raises(RuntimeError, match="bias"):
        torch_npu.npu_dequant_bias(x.npu(), columns.npu(), None, columns.npu(), output_dtype=dtype)


def test_sleep() -> None:
    with called() as names:
        torch.npu._sleep(1000)
    assert names == {"Sleep"}
