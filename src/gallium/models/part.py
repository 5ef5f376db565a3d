"""Part: the rows and columns of a Weight that one rank holds; the rest of the file is not read."""

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
class Part:
    """A Weight `[rows, columns]` (of a vector: `[rows]`) cut out of another one.

    A cut of columns copies the bytes of these columns only. Where it goes through the middle of a coding's blocks, the
    part is decoded to F32. Rows, of whatever coding, stay a view of the file. `corrects` says whether this part
    carries the correction of statically quantised activations: of the parts whose products are added up, one does.
    """

    whole: Weight
    rows: range
    columns: range | None = None  # None: all, or a vector
    corrects: bool = True

    @property
    def name(self) -> str:
        """The tensor's name and the cut: "w[0:8]", "w[0:8, 16:32]"."""
        columns = "" if self.columns is None else f", {self.columns.start}:{self.columns.stop}"
        return f"{self.whole.name}[{self.rows.start}:{self.rows.stop}{columns}]"

    @property
    def shape(self) -> tuple[int, ...]:
        """`[rows, columns]` or `[rows]`."""
        return (len(self.rows), *(() if len(self.whole.shape) == 1 else (len(self._columns),)))

    @property
    def storage(self) -> str:
        """That of the whole, or F32 where the cut goes through blocks."""
        return self.whole.storage if self._on_blocks else "F32"

    @property
    def quantisation(self) -> Quantisation | None:
        """The scales of these rows and columns. Groups of columns become smaller where the cut goes through them."""
        how = self.whole.quantisation
        if how is None:
            return None
        width, groups = self.whole.shape[1], how.scale.shape[1]
        rows = slice(self.rows.start, self.rows.stop)
        scale = how.scale[rows]
        if groups > 1 and self.columns is not None:
            group = width // groups
            fine = math.gcd(group, self.columns.start, self.columns.stop)
            scale = np.repeat(scale, group // fine, axis=1)[:, self.columns.start // fine : self.columns.stop // fine]
        output_scale = None if how.output_scale is None else how.output_scale[self.rows.start : self.rows.stop]
        correction = how.correction
        if correction is not None:
            correction = correction[self.rows.start : self.rows.stop]
            correction = correction if self.corrects else np.zeros_like(correction)
        return replace(how, scale=scale, output_scale=output_scale, correction=correction)

    def raw(self) -> NDArray[np.uint8]:
        """The bytes of the part: a view if all columns are taken."""
        if not self._on_blocks:
            return self.float32().view(np.uint8).reshape(-1)
        return self._bytes(self.rows).reshape(-1)

    def float32(self, start: int = 0, stop: int | None = None) -> FloatArray:
        """Rows `start:stop` of the part, decoded."""
        rows = self.rows[start:stop]
        if self.columns is None:
            return self.whole.float32(rows.start, rows.stop)
        values = self._decoded(rows)
        first = self._block_columns.start
        return np.ascontiguousarray(values[:, self.columns.start - first : self.columns.stop - first])

    def _decoded(self, rows: range) -> FloatArray:
        """These rows, with all columns of the blocks that the cut touches."""
        how, data = self.whole.quantisation, self._bytes(rows)
        if how is None:
            return FORMATS[self.whole.storage].values(data).reshape(len(rows), len(self._block_columns))
        width = self.whole.shape[1]
        scale = np.repeat(how.scale[rows.start : rows.stop], width // how.scale.shape[1], axis=1)
        return data.view(np.int8).astype(np.float32) * scale[:, self._columns.start : self._columns.stop]

    def _bytes(self, rows: range) -> NDArray[np.uint8]:
        """`[rows, bytes]` of the blocks that the columns touch."""
        width = self.whole.shape[1] if len(self.whole.shape) > 1 else 1
        block, size = self._coding
        table = self.whole.raw().reshape(self.whole.shape[0], width // block * size)[rows.start : rows.stop]
        columns = self._block_columns
        return np.ascontiguousarray(table[:, columns.start // block * size : columns.stop // block * size])

    @property
    def _columns(self) -> range:
        width = self.whole.shape[1] if len(self.whole.shape) > 1 else 1
        return range(width) if self.columns is None else self.columns

    @property
    def _block_columns(self) -> range:
        """The columns, widened to whole blocks."""
        block, _ = self._coding
        return range(self._columns.start // block * block, -(-self._columns.stop // block) * block)

    @property
    def _on_blocks(self) -> bool:
        return self._block_columns == self._columns

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
