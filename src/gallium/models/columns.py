"""Columns: the columns of a matrix that one rank holds; the bytes of the others are not copied."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gallium.checkpoints.formats import FORMATS
from gallium.errors import UnsupportedFormat
from gallium.ops.handles import FloatArray, Quantisation, Weight

INTEGERS = ("I8", "I4")  # codings whose `raw` has one byte per value


@dataclass(frozen=True, slots=True)
class Columns:
    """A Weight `[rows, columns]` cut out of another one.

    Where the cut goes through the middle of a coding's blocks, it is decoded to F32. `corrects` says whether these
    columns carry the correction of statically quantised activations: of those whose products are added up, one does.
    """

    whole: Weight
    columns: range
    corrects: bool = True

    @property
    def name(self) -> str:
        """The tensor's name and the cut: "w[:, 16:32]"."""
        return f"{self.whole.name}[:, {self.columns.start}:{self.columns.stop}]"

    @property
    def shape(self) -> tuple[int, ...]:
        """`[rows, columns]`."""
        return self.whole.shape[0], len(self.columns)

    @property
    def storage(self) -> str:
        """That of the whole, or F32 where the cut goes through blocks."""
        return self.whole.storage if self._blocks == self.columns else "F32"

    @property
    def quantisation(self) -> Quantisation | None:
        """The scales of these columns. Groups of columns become smaller where the cut goes through them."""
        how = self.whole.quantisation
        if how is None:
            return None
        scale, group = how.scale, self.whole.shape[1] // how.scale.shape[1]
        if scale.shape[1] > 1:
            fine = math.gcd(group, self.columns.start, self.columns.stop)
            scale = np.repeat(scale, group // fine, axis=1)[:, self.columns.start // fine : self.columns.stop // fine]
        correction = how.correction
        if correction is not None and not self.corrects:
            correction = np.zeros_like(correction)
        return replace(how, scale=scale, correction=correction)

    def raw(self) -> NDArray[np.uint8]:
        """A copy of their bytes."""
        if self._blocks != self.columns:
            return self.float32().view(np.uint8).reshape(-1)
        return self._bytes(self.whole).reshape(-1)

    def float32(self, start: int = 0, stop: int | None = None) -> FloatArray:
        """Rows `start:stop` of them, decoded."""
        rows = self.whole.rows(start, self.shape[0] if stop is None else stop)
        data, how, blocks = self._bytes(rows), rows.quantisation, self._blocks
        if how is None:
            values = FORMATS[rows.storage].values(data).reshape(rows.shape[0], len(blocks))
        else:
            scale = np.repeat(how.scale, rows.shape[1] // how.scale.shape[1], axis=1)
            values = data.view(np.int8).astype(np.float32) * scale[:, blocks.start : blocks.stop]
        return np.ascontiguousarray(values[:, self.columns.start - blocks.start : self.columns.stop - blocks.start])

    def rows(self, start: int, stop: int) -> Columns:
        """Rows `start:stop` of them."""
        return replace(self, whole=self.whole.rows(start, stop))

    def _bytes(self, rows: Weight) -> NDArray[np.uint8]:
        """`[rows, bytes]` of the blocks that the columns touch."""
        block, size = self._coding
        table = rows.raw().reshape(rows.shape[0], rows.shape[1] // block * size)
        return np.ascontiguousarray(table[:, self._blocks.start // block * size : self._blocks.stop // block * size])

    @property
    def _blocks(self) -> range:
        """The columns, widened to whole blocks."""
        block, _ = self._coding
        return range(self.columns.start // block * block, -(-self.columns.stop // block) * block)

    @property
    def _coding(self) -> tuple[int, int]:
        """Values and bytes of one block."""
        if self.whole.storage in INTEGERS:
            return 1, 1
        if self.whole.storage not in FORMATS:
            raise UnsupportedFormat(
                f"tensor {self.whole.name!r} is stored as {self.whole.storage}, which cannot be cut over ranks; what "
                f"can are {', '.join((*FORMATS, *INTEGERS))}."
            )
        form = FORMATS[self.whole.storage]
        return form.block, form.size
