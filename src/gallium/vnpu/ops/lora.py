"""Low-rank additions to the output of a layer, another one for each row."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import check_dims, check_dtype, check_not_empty, check_shape
from gallium.vnpu.registry import Illegal, op
from gallium.vnpu.writing import write

_PAGE = "torch_npu's own text on npu_batch_gather_matmul"


@op("AddLora", cube=True)
def add_lora(
    self: Tensor,
    x: Tensor,
    weight_b: Tensor,
    indices: Tensor,
    weight_a: Tensor | None,
    layer_idx: int,
    scale: float,
    y_offset: int,
    y_slice_size: int,
    out: Tensor,
) -> None:
    """self, plus `scale * B[i] @ A[i] @ x` in a slice of the columns of each row; i is its index, -1 adds nothing."""
    _check(self, x, weight_b, indices, weight_a, layer_idx)
    outputs = weight_b.shape[2]
    if y_slice_size != outputs:
        raise Illegal("y_slice_size", y_slice_size, f"the third size of weight_b, {outputs} ({_PAGE})")
    if not 0 <= y_offset <= self.shape[1] - outputs:
        raise Illegal("y_offset", y_offset, f"0 to {self.shape[1] - outputs}, so that the slice lies inside")
    result = self.float()
    columns = result[:, y_offset : y_offset + outputs]
    for adapter in sorted(set(indices.tolist())):
        if adapter == -1:
            continue
        rows = indices == adapter
        term = x[rows].float()
        if weight_a is not None:
            term = term @ weight_a[adapter, layer_idx].float().t()
        columns[rows] += scale * (term @ weight_b[adapter, layer_idx].float().t())
    write(out, result)


def _check(self: Tensor, x: Tensor, weight_b: Tensor, indices: Tensor, weight_a: Tensor | None, layer_idx: int) -> None:
    floats = {"input": self, "x": x, "weight_b": weight_b, "weight_a": weight_a}
    for name, tensor in floats.items():
        check_dtype(name, tensor, [torch.float16])
        check_not_empty(name, tensor)
    check_dtype("indices", indices, [torch.int32])
    check_dims("weight_b", weight_b, 4, 4)
    adapters, layers, outputs, inner = weight_b.shape
    check_shape("indices", indices, self.shape[:1])
    check_shape("x", x, (self.shape[0], x.shape[1]))
    check_shape("weight_a", weight_a, (adapters, layers, inner, x.shape[1]))
    for name, size in (("H1", x.shape[1]), ("H2", outputs), ("R", inner)):
        if size % 16:
            raise Illegal(name, size, f"a multiple of 16 ({_PAGE})")
    if weight_a is None and inner != x.shape[1]:
        raise Illegal("weight_b", weight_b, f"of last size {x.shape[1]}, that of x, without weight_a")
    if weight_a is not None and inner > 128:
        raise Illegal("R", inner, f"16 to 128 ({_PAGE})")
    if not 0 <= layer_idx < layers:
        raise Illegal("layer_idx", layer_idx, f"0 to {layers - 1}")
    if not -1 <= int(indices.min()) <= int(indices.max()) < adapters:
        raise Illegal("indices", indices.tolist(), f"-1 to {adapters - 1}")
