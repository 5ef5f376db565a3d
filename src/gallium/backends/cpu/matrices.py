"""Packed: matrices in the layout of panels, in memory or in a mapped file. Struct formats mirror gallium/linear.h."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from struct import Struct
from typing import Any

from numpy.typing import NDArray

from gallium.backends.cpu.arrays import address, require, weight_memory
from gallium.backends.cpu.integers import Integers
from gallium.ops.handles import FloatArray, Precision, Quantisation

_MATRIX = Struct("@2Q3qQ")  # ga_matrix
KINDS: dict[Precision, int] = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
"""ga_matrix.kind"""
PRECISIONS: dict[int, Precision] = {kind: precision for precision, kind in KINDS.items()}


class Packed:
    """Matrices of one shape and kind in one piece of memory; `structs` is the array of ga_matrix that kernels read.

    `how` is given when a checkpoint's own integers are packed; their scales are then in `integers`. The memory is zeros
    to be filled, or the `stored` arrays of a packed file.
    """

    __slots__ = ("bias", "cols", "count", "first", "integers", "kind", "memory", "rows", "struct_address", "structs")

    def __init__(
        self,
        library: Any,
        count: int,
        rows: int,
        cols: int,
        kind: int,
        bias: FloatArray | None,
        how: Quantisation | None = None,
        stored: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        size = int(library.ga_matrix_bytes(rows, cols, kind))
        self.count, self.rows, self.cols, self.kind, self.bias = count, rows, cols, kind, bias
        self.integers = None if how is None else Integers(count, rows, how, stored)
        self.memory: NDArray[Any] = weight_memory(count * size) if stored is None else stored["panels"]
        require(self.memory.size == count * size, f"packed matrices [{rows}, {cols}] are damaged: another size.")
        start = address(self.memory) if self.memory.size else 0
        self.structs = ctypes.create_string_buffer(_MATRIX.size * count)
        for index in range(count):
            _MATRIX.pack_into(
                self.structs, index * _MATRIX.size, start + index * size, 0 if bias is None else address(bias),
                rows, cols, kind, 0 if self.integers is None else self.integers.address_of(index),
            )  # fmt: skip
        self.struct_address = ctypes.addressof(self.structs)
        self.first = self.structs.raw[: _MATRIX.size]

    @property
    def nbytes(self) -> int:
        """Of all matrices, their scales included."""
        return self.memory.nbytes + (0 if self.integers is None else self.integers.nbytes)

    @property
    def facts(self) -> dict[str, Any]:
        """What a packed file notes of them besides their arrays."""
        integers = {} if self.integers is None else {"integers": self.integers.facts}
        sizes = {"count": self.count, "rows": self.rows, "cols": self.cols}
        return {"kind": PRECISIONS[self.kind], **sizes, **integers}

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a packed file stores."""
        return {"panels": self.memory} | ({} if self.integers is None else self.integers.arrays)

    def struct(self, index: int = 0) -> bytes:
        """The ga_matrix of one of them."""
        return self.first if index == 0 else self.structs.raw[index * _MATRIX.size : (index + 1) * _MATRIX.size]
