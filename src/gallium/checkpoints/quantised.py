"""QuantisedTensor: a matrix of integers with the tensors that make numbers of them, as msModelSlim stores it.

Formulas and layouts: msModelSlim's description of its format "AscendV1", and `quantization/methods` of vllm-ascend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gallium.checkpoints.formats import FORMATS
from gallium.checkpoints.tensor import StoredTensor
from gallium.errors import CheckpointError, UnsupportedFormat
from gallium.ops.handles import FloatArray, Quantisation

WHOLE_NUMBERS = {"I8": "<i1", "I32": "<i4", "I64": "<i8"}


def numbers(tensor: StoredTensor) -> NDArray[Any]:
    """A float or integer tensor as an array of its shape. Raises UnsupportedFormat for anything else."""
    if tensor.storage in WHOLE_NUMBERS:
        return tensor.data.view(WHOLE_NUMBERS[tensor.storage]).reshape(tensor.shape)
    if tensor.storage not in FORMATS:
        raise UnsupportedFormat(f"tensor {tensor.name!r} is stored as {tensor.storage}, not as numbers.")
    return tensor.float32()


def unpacked(pairs: NDArray[np.int8]) -> NDArray[np.int8]:
    """`[out / 2, in]` bytes -> `[out, in]`: the low four bits are the even row, the high four the odd one."""
    rows = np.empty((len(pairs), 2, pairs.shape[1]), np.int8)
    np.left_shift(pairs, 4, out=rows[:, 0])
    np.right_shift(rows[:, 0], 4, out=rows[:, 0])
    np.right_shift(pairs, 4, out=rows[:, 1])
    return rows.reshape(-1, pairs.shape[1])


@dataclass(frozen=True, slots=True)
class QuantisedTensor(StoredTensor):
    """A `Weight` `[out, in]` of storage I8 or I4; see `Quantisation` for what it means.

    `companions` has the module's other tensors, by the last part of their names. `data` stays that of the whole matrix
    when rows are cut off; `first` is then the first row that counts.
    """

    companions: Mapping[str, StoredTensor] = field(default_factory=dict)
    activations: Literal["dynamic", "static"] = "dynamic"
    packed: bool = False  # two rows of int4 in one row of bytes
    first: int = 0

    @property
    def decodable(self) -> bool:
        """Always: the companions are complete."""
        return True

    def raw(self) -> NDArray[np.uint8]:
        """The integers as int8, row after row; a view of the file unless two share a byte."""
        codes = self._codes(0, self.shape[0])
        return codes.reshape(-1).view(np.uint8)

    def float32(self, start: int = 0, stop: int | None = None) -> FloatArray:
        """Rows `start:stop`: codes times scales."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        scale = self._scale()[start:stop]
        groups = scale.shape[1]
        codes = self._codes(start, max(stop, start)).reshape(len(scale), groups, self.shape[1] // groups)
        decoded: FloatArray = (codes * scale[:, :, None]).reshape(len(scale), self.shape[1])
        return decoded

    def rows(self, start: int, stop: int) -> QuantisedTensor:
        """Rows `start:stop`, without a copy."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        shape = (max(stop - start, 0), self.shape[1])
        return replace(self, name=f"{self.name}[{start}:{stop}]", shape=shape, first=self.first + start)

    @property
    def quantisation(self) -> Quantisation:
        """The scales of these rows. Raises UnsupportedFormat for offsets other than 0 of the weights."""
        scale = self._scale()
        bits: Literal[4, 8] = 4 if self.storage == "I4" else 8
        if self.activations == "dynamic":
            return Quantisation(bits, scale, "dynamic")
        output_scale = self._output_scale()
        correction = self._of_rows("quant_bias").reshape(-1).astype(np.int32)
        if "bias" in self.companions:
            # The file has the bias twice: as it is, and rounded to whole steps among the integers.
            folded = np.rint(self._of_rows("bias") / output_scale)
            correction = correction - folded.astype(np.int32)
        return Quantisation(bits, scale, "static", self._input_scale(), self._input_offset(), output_scale, correction)

    def _codes(self, start: int, stop: int) -> NDArray[np.int8]:
        start, stop = self.first + start, self.first + stop
        table = self.data.view(np.int8).reshape(-1, self.shape[1])
        if self.packed:
            return unpacked(table[start // 2 : -(-stop // 2)])[start % 2 : start % 2 + stop - start]
        codes = table[start:stop]
        if self.storage == "I4" and codes.size and (codes.min() < -8 or codes.max() > 7):
            raise CheckpointError(f"{self.name!r} has integers outside -8 to 7, which its type cannot have.")
        return codes

    def _scale(self) -> FloatArray:
        """`[out, groups]`; the two levels of a grouped W4A8 multiplied."""
        if self.activations == "static" and "weight_scale" not in self.companions:
            return (self._output_scale() / np.float32(self._input_scale()))[:, None]
        for name in ("weight_offset", "weight_offset_second"):
            if name in self.companions and self._of_rows(name).any():
                raise UnsupportedFormat(
                    f"{self.name!r} was quantised with {name} other than 0 (asymmetric), which Gallium does not "
                    "compute: quantise it with `symmetric: True`."
                )
        scale = self._of_rows("weight_scale").astype(np.float32)
        scale = scale.reshape(len(scale), math.prod(scale.shape[1:]))
        if "weight_scale_second" in self.companions:
            scale = scale * self._of_rows("weight_scale_second").astype(np.float32)
        return scale

    def _output_scale(self) -> FloatArray:
        """deq_scale: float32, or its bits as int64 (what files for float16 have)."""
        values = self._of_rows("deq_scale").reshape(-1)
        if self.companions["deq_scale"].storage == "I64":
            return values.astype(np.uint32).view(np.float32)
        return values.astype(np.float32)

    def _input_scale(self) -> float:
        scale = self._one("input_scale")
        if not 0 < scale < math.inf:
            raise CheckpointError(f"{self.name!r} has the input_scale {scale}; it must be a positive number.")
        return scale

    def _input_offset(self) -> int:
        offset = self._one("input_offset")
        if not offset.is_integer() or not -128 <= offset <= 127:
            raise CheckpointError(f"{self.name!r} has the input_offset {offset}; it must be a whole number of 8 bits.")
        return int(offset)

    def _one(self, name: str) -> float:
        return float(numbers(self.companions[name]).reshape(-1)[0])

    def _of_rows(self, name: str) -> NDArray[Any]:
        """These rows of a companion."""
        return numbers(self.companions[name])[self.first : self.first + self.shape[0]]
