"""StoredTensor: one tensor of a mapped file, decoded only where somebody looks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gallium.checkpoints.formats import FORMATS, Format
from gallium.errors import CheckpointError, UnsupportedFormat
from gallium.ops.handles import Quantisation


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A `Weight` (see ops/handles.py): shape, coding and the bytes, which are a view of the mapped file.

    `shape` may have three dimensions (packed experts); `index` gives one of its matrices. The readers guarantee that
    `data` has exactly the bytes that shape and coding ask for. A coding that is not in FORMATS (an integer tensor that
    some file carries) can be listed but not decoded.
    """

    name: str
    shape: tuple[int, ...]
    storage: str
    data: NDArray[np.uint8]  # 1-D, row after row

    @property
    def form(self) -> Format:
        """The decoder of `storage`. Raises UnsupportedFormat if there is none."""
        if self.storage not in FORMATS:
            raise UnsupportedFormat(
                f"tensor {self.name!r} is stored as {self.storage}, which Gallium cannot compute with; it reads "
                f"{', '.join(FORMATS)}."
            )
        return FORMATS[self.storage]

    @property
    def decodable(self) -> bool:
        """Whether `float32` can be called."""
        return self.storage in FORMATS

    @property
    def quantisation(self) -> Quantisation | None:
        """None: these codings are complete in themselves."""
        return None

    def raw(self) -> NDArray[np.uint8]:
        """The stored bytes, 1-D, without a copy."""
        return self.data

    def float32(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows (elements of a vector) `start:stop` as float32, in memory of their own."""
        form = self.form
        if len(self.shape) < 2 and form.block > 1:  # a vector of blocks: no element has bytes of its own
            return form.values(self.data)[start:stop]
        if not self.shape:
            return form.values(self.data).reshape(())
        part = self.rows(start, self.shape[0] if stop is None else stop)
        return form.values(part.data).reshape(part.shape)

    def rows(self, start: int, stop: int) -> StoredTensor:
        """Rows `start:stop` of the first dimension, without a copy."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        form, width = self.form, math.prod(self.shape[1:])
        if start * width % form.block or stop * width % form.block:
            raise UnsupportedFormat(
                f"{self.name!r} cannot be cut at {start}:{stop}: its {self.storage} blocks are longer."
            )
        return replace(
            self,
            name=f"{self.name}[{start}:{stop}]",
            shape=(max(stop - start, 0), *self.shape[1:]),
            data=self.data[form.num_bytes(start * width) : form.num_bytes(stop * width)],
        )

    def index(self, i: int) -> StoredTensor:
        """Matrix `i` of a 3-D tensor, without a copy."""
        if len(self.shape) != 3 or not 0 <= i < self.shape[0]:
            raise CheckpointError(f"tensor {self.name!r} of shape {list(self.shape)} has no matrix {i}.")
        return replace(self.rows(i, i + 1), name=f"{self.name}[{i}]", shape=self.shape[1:])
