"""Packed projections on Ascend: floats, W8A8 with dynamic or static activations, W4A16 and W4A8, in NZ where it pays.

A `Linear` of this backend holds a Matrix in `data`, which knows its kernel; the bias is part of it, because its type
depends on the kernel. All matrices multiply on the device; none takes a detour over the host.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as nn
import torch_npu
from torch import Tensor

from gallium.backends.ascend.soc import Soc
from gallium.backends.ascend.weights import (
    INT4_GROUP,
    INT4_PER_WORD,
    eight_times_sums,
    float_bits,
    int4_rows,
    int8_rows,
    integer_rows,
    packed4,
    quantisation,
    sizes,
)
from gallium.backends.torch.packing import host_tensor, stacked
from gallium.errors import BackendError
from gallium.ops.handles import Precision, Role, Weight

NZ = 29  # the fractal format of the matrix unit, as npu_format_cast counts formats
LONGEST_SIDE = 65535  # of an operand of npu_quant_matmul (op-plugin's page)
WIDEST_INT8_PART = LONGEST_SIDE // 32 * 32  # blocks of int8 in NZ are 32 columns wide
PLAIN_ROLES = ("head", "embedding", "float", "router")
"""Roles that stay plain floats `[out, in]`: `embed` reads rows of the first two, which are "float" in a checkpoint of
integers, and a row of NZ would be in NZ; npu_quant_matmul's operands end at 65535, below the size of a GLM vocabulary;
a router is float32."""


@cache
def one(device: torch.device) -> Tensor:
    """The number 1 on the device."""
    return torch.ones(1, device=device)


@dataclass(frozen=True)
class Setup:
    """What packing depends on: chip, device, precision and the type of activations."""

    chip: Soc
    device: torch.device
    precision: Precision
    dtype: torch.dtype

    @property
    def quantised(self) -> bool:
        """Whether this model's linears are integers."""
        return self.precision in ("int8", "int4")


class Matrix(ABC):
    """A weight `[out, in]` with its bias: `x [tokens, in]` -> `[tokens, out]`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """`x @ W.T + bias`; x of any floating type."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, as they would be without the padding of NZ."""
        values = (getattr(self, name) for name in self.__dataclass_fields__)
        return sum(int(value.nbytes) for value in values if isinstance(value, Tensor))


@dataclass(frozen=True)
class FloatMatrix(Matrix):
    """A weight in the type of the activations: `[out, in]`."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """One matmul, which takes NZ weights as they are."""
        return nn.linear(x.to(self.weight.dtype), self.weight, self.bias)


@dataclass(frozen=True)
class DynamicInt8(Matrix):
    """W8A8: codes `[in, out]` with a scale per column; rows are quantised when they come."""

    codes: Tensor
    scale: Tensor  # [out], float32
    bias: Tensor | None  # [out], float32
    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        """A scale per token comes out of npu_dynamic_quant and goes into npu_quant_matmul."""
        if not x.shape[0]:  # which npu_quant_matmul refuses
            return x.new_empty((0, self.codes.shape[1]), dtype=self.dtype)
        return self.of_integers(*torch_npu.npu_dynamic_quant(x.to(self.dtype)))

    def of_integers(self, rows: Tensor, row_scale: Tensor) -> Tensor:
        """The product of rows that are quantised already."""
        y: Tensor = torch_npu.npu_quant_matmul(
            rows, self.codes, self.scale, pertoken_scale=row_scale, bias=self.bias, output_dtype=self.dtype
        )
        return y

    def sums(self, rows: Tensor) -> Tensor:
        """The int32 sums alone: the scale of one is there because the function wants one."""
        y: Tensor = torch_npu.npu_quant_matmul(rows, self.codes, one(rows.device), output_dtype=torch.int32)
        return y


@dataclass(frozen=True)
class StaticInt8(Matrix):
    """W8A8 whose activations have one calibrated scale and offset."""

    codes: Tensor  # [in, out]
    scale: Tensor  # [out], float32, of the sums
    shift: Tensor | None  # [out]: int32, added to the sums, or float32, added to the result
    input_scale: Tensor  # [1], float32
    input_offset: Tensor  # [1], int32
    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        """The division is in float32; the function's other mode would want the reciprocal in 16 bits."""
        if not x.shape[0]:
            return x.new_empty((0, self.codes.shape[1]), dtype=self.dtype)
        rows = torch_npu.npu_quantize(
            x.to(self.dtype), self.input_scale, self.input_offset, torch.qint8, axis=1, div_mode=True
        )
        y: Tensor = torch_npu.npu_quant_matmul(rows, self.codes, self.scale, bias=self.shift, output_dtype=self.dtype)
        return y


@dataclass(frozen=True)
class Int4Weights(Matrix):
    """W4A16: `(code + offset) * scale`, both per column and group of rows; activations stay floats.

    Rows and columns are filled up to whole groups and words.
    """

    words: Tensor  # [in, out / 8], int32 of eight codes each
    scale: Tensor  # [groups, out], of the activations' type, as the function wants it
    offset: Tensor
    bias: Tensor | None  # [out]: float16 for float16 activations, else float32
    group: int  # 0: one group
    out_features: int

    def __call__(self, x: Tensor) -> Tensor:
        """The weight becomes floats inside the kernel."""
        if not x.shape[0]:
            return x.new_empty((0, self.out_features), dtype=self.scale.dtype)
        rows, missing = x.to(self.scale.dtype), self.words.shape[0] - x.shape[1]
        y: Tensor = torch_npu.npu_weight_quant_batchmatmul(
            nn.pad(rows, (0, missing)) if missing else rows, self.words, self.scale, self.offset,
            bias=self.bias, antiquant_group_size=self.group,
        )  # fmt: skip
        return y if y.shape[1] == self.out_features else y[:, : self.out_features]


@dataclass(frozen=True)
class EightByFour(Matrix):
    """W4A8 in groups: the chip makes 4-bit halves of the rows, whose sum is 8 too small; `shift` gives that back."""

    words: Tensor  # [in, out / 8]
    scale: Tensor  # [groups, out], int64 holding the bits of a float32
    shift: Tensor  # [out], float32: 8 * the sum of a column's weights
    bias: Tensor | None  # [out], of dtype
    group: int
    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        """Rows are quantised to 8 bits when they come."""
        if not x.shape[0]:
            return x.new_empty((0, self.scale.shape[1]), dtype=self.dtype)
        rows, row_scale = torch_npu.npu_dynamic_quant(x.to(self.dtype))
        y: Tensor = torch_npu.npu_quant_matmul(
            rows, self.words, self.scale, offset=self.shift, pertoken_scale=row_scale.unsqueeze(1),
            output_dtype=self.dtype, group_sizes=[0, 0, self.group],
        )  # fmt: skip
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True)
class SideBySide(Matrix):
    """Matrices of different kinds, or slices of one that is too wide: their outputs one beside the other."""

    parts: tuple[Matrix, ...]

    @property
    def nbytes(self) -> int:
        """Of all parts."""
        return sum(part.nbytes for part in self.parts)

    def __call__(self, x: Tensor) -> Tensor:
        """Each part for itself."""
        return torch.cat([part(x) for part in self.parts], dim=-1)


@dataclass(frozen=True)
class Form:
    """How a part is packed; neighbours of one form become one matrix."""

    kind: str  # "float", "int8", "int4"; of the checkpoint's own integers "dynamic", "static", "grouped"
    bits: int = 8
    groups: int = 1
    input_scale: float = 1.0
    input_offset: int = 0


# -- packing ----------------------------------------------------------------------
def pack(parts: Sequence[Weight], bias: Sequence[Weight], role: Role, setup: Setup) -> Matrix:
    """One matrix of the rows of all parts, in order. Raises BackendError for parts that do not fit together."""
    if not parts or len({part.shape[1] for part in parts}) != 1:
        raise BackendError(f"the parts of a projection must have one width, not {[part.shape for part in parts]}.")
    height = sum(part.shape[0] for part in parts)
    biases = stacked(bias, torch.float32, setup.device) if bias else None
    if biases is not None and biases.shape != (height,):
        raise BackendError(f"a bias must have {height} elements, one per row, not {tuple(biases.shape)}.")
    if role in PLAIN_ROLES:
        dtype = torch.float32 if role == "router" else setup.dtype
        return FloatMatrix(stacked(parts, dtype, setup.device), None if biases is None else biases.to(dtype))
    forms = [form_of(part, part.shape[0], role, setup) for part in parts]
    matrices, row, at = [], 0, 0
    for form, members in groupby(forms):
        count = len(list(members))
        same = parts[at : at + count]
        rows = sum(part.shape[0] for part in same)
        own_bias = None if biases is None else biases[row : row + rows]
        matrices += list(_pack_form(form, same, own_bias, setup))
        at, row = at + count, row + rows
    return matrices[0] if len(matrices) == 1 else SideBySide(tuple(matrices))


def form_of(part: Weight, height: int, role: Role, setup: Setup) -> Form:
    """How a part is packed, of a matrix whose parts have `height` rows together."""
    if not setup.quantised or role == "float":
        return Form("float")
    how = part.quantisation
    if how is None:
        return Form("int4" if setup.precision == "int4" and role != "sensitive" else "int8")
    groups = how.scale.shape[1]
    if how.activations == "static":
        if groups > 1:
            raise BackendError(f"{part.name}: static activations with {groups} groups of columns are not supported.")
        return Form("static", input_scale=how.input_scale, input_offset=how.input_offset)
    if groups == 1:
        return Form("dynamic", how.bits)
    if how.bits == 8 or height % INT4_PER_WORD:
        raise BackendError(
            f"{part.name}: {how.bits}-bit weights {part.shape} in {groups} groups; npu_quant_matmul has groups for 4 "
            f"bits only, with a number of rows that is a multiple of {INT4_PER_WORD}."
        )
    return Form("grouped", how.bits, groups)


def _pack_form(form: Form, parts: Sequence[Weight], bias: Tensor | None, setup: Setup) -> Iterator[Matrix]:
    """The matrices of parts that have one form: one, or several slices of at most WIDEST_INT8_PART columns."""
    half = torch.float16 if setup.dtype == torch.float16 else torch.float32
    if form.kind == "float":
        weight = nz(stacked(parts, setup.dtype, setup.device), setup)
        yield FloatMatrix(weight, None if bias is None else bias.to(setup.dtype))
    elif form.kind == "int4":
        words, scale, offset = int4_rows(parts, setup.device, setup.dtype)
        group, height = INT4_GROUP if scale.shape[0] > 1 else 0, sizes(parts)[0]
        shift = None if bias is None else nn.pad(bias.to(half), (0, scale.shape[1] - height))
        yield Int4Weights(words, scale, offset, shift, group, height)
    elif form.kind == "grouped":
        codes, scale = integer_rows(parts, setup.device)
        yield EightByFour(
            packed4(codes), float_bits(scale.t()), eight_times_sums(codes, scale),
            None if bias is None else bias.to(setup.dtype), codes.shape[1] // scale.shape[1], setup.dtype,
        )  # fmt: skip
    else:
        codes, scale = int8_rows(parts, setup.device) if form.kind == "int8" else integer_rows(parts, setup.device)
        factor, correction = scale[:, 0], None
        if form.kind == "static":
            factor, correction = _output_scales(parts, setup.device), _corrections(parts, setup.device)
        for start in range(0, len(codes), WIDEST_INT8_PART):
            cut = slice(start, start + WIDEST_INT8_PART)
            yield _int8_matrix(
                form, codes[cut], factor[cut].contiguous(), None if correction is None else correction[cut],
                None if bias is None else bias[cut], setup,
            )  # fmt: skip


def _int8_matrix(
    form: Form, codes: Tensor, scale: Tensor, correction: Tensor | None, bias: Tensor | None, setup: Setup
) -> Matrix:
    stored = nz(codes.t().contiguous(), setup)
    if form.kind != "static":
        return DynamicInt8(stored, scale, bias, setup.dtype)
    shift = correction
    if bias is not None:  # the function takes one bias: the correction joins it, scaled
        shift = bias if correction is None else bias + correction * scale
    return StaticInt8(
        stored,
        scale,
        shift,
        torch.tensor([form.input_scale], device=setup.device),
        torch.tensor([form.input_offset], dtype=torch.int32, device=setup.device),
        setup.dtype,
    )


def _output_scales(parts: Sequence[Weight], device: torch.device) -> Tensor:
    """What the integer sums of static parts are multiplied with, as the checkpoint rounds it."""
    scales = [quantisation(part).output_scale for part in parts]
    return torch.cat([host_tensor(scale) for scale in scales if scale is not None]).to(device)


def _corrections(parts: Sequence[Weight], device: torch.device) -> Tensor | None:
    found = [quantisation(part).correction for part in parts]
    if all(correction is None for correction in found):
        return None
    zeros = [np.zeros(part.shape[0], np.int32) for part in parts]
    whole = [none if correction is None else correction for correction, none in zip(found, zeros, strict=True)]
    return torch.from_numpy(np.concatenate(whole)).to(device)


def nz(x: Tensor, setup: Setup) -> Tensor:
    """The matrix in the fractal format, if it pays on this chip."""
    if x.dtype == torch.float32 or not setup.chip.has("nz_weights"):
        return x
    y: Tensor = torch_npu.npu_format_cast(x, NZ)
    return y


# -- blocks -------------------------------------------------------------------------
def fused_mlp(x: Tensor, gate_up: DynamicInt8, down: DynamicInt8) -> Tensor:
    """`down(swiglu(gate_up(x)))` in integers: the sums of the first product are scaled, gated and quantised in one."""
    if not x.shape[0]:
        return x.new_empty((0, down.codes.shape[1]), dtype=down.dtype)
    rows, row_scale = torch_npu.npu_dynamic_quant(x.to(gate_up.dtype))
    hidden, hidden_scale = torch_npu.npu_dequant_swiglu_quant(
        gate_up.sums(rows), weight_scale=gate_up.scale.unsqueeze(0), activation_scale=row_scale.unsqueeze(1),
        activate_left=True, quant_mode=1,
    )  # fmt: skip
    return down.of_integers(hidden, hidden_scale)


def fuses(gate_up: Matrix, down: Matrix) -> bool:
    """Whether `fused_mlp` computes these two: a bias before the gate has no place in it."""
    return isinstance(gate_up, DynamicInt8) and isinstance(down, DynamicInt8) and gate_up.bias is None
