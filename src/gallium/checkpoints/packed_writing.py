"""Writes the file of a packed folder as the handles come: data in the order in which a step reads it, header last.

The header's place is kept free, since lengths are known only when all is written; what it does not need is spaces. Data
goes to the file in pieces of whole huge pages, at whole huge pages, so that the system's file cache can hold it in such
pages: a model that is run afterwards is then mapped by 2 MiB and not by 4 KiB.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, BinaryIO
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

from gallium.checkpoints.checkpoint import Checkpoint
from gallium.checkpoints.formats import FORMATS
from gallium.checkpoints.packed_file import ABOUT, CHECKSUM, PADDING, About, Handle, Part, header_checksum
from gallium.checkpoints.tensor import StoredTensor
from gallium.errors import CheckpointError
from gallium.ops.handles import Weight
from gallium.ops.packed import Exported

PAGE = 4096  # where every array begins
PIECE = 8 << 20  # bytes written at a time: whole huge pages
HEADER_PER_TENSOR = 512  # bytes of header kept free for each tensor of the model
HEADER_FIXED = 64 << 10
SAMPLED = 4096  # bytes of each tensor that its model's fingerprint covers
_CODES = {"u": "U8", "f": "F32", "i": "I32"}


class PackedWriter:
    """One file being written; `finish` makes it whole."""

    def __init__(self, file: BinaryIO, tensors: int) -> None:
        """`file` is unbuffered; `tensors` is how many the model has, for the size of the header."""
        self._file = file
        self._buffer = bytearray()
        self._data_start = -(-(HEADER_FIXED + HEADER_PER_TENSOR * tensors) // PAGE) * PAGE
        self._at = 0  # in the data
        self._written: list[StoredTensor] = []
        self._checksums: dict[str, int] = {}
        self._handles: list[Handle] = []
        self._put(b" " * self._data_start)

    @property
    def parts(self) -> set[str]:
        """Names of the weights that are in handles so far."""
        return {part.name for handle in self._handles for part in handle.parts}

    def handle(self, weights: Sequence[Weight], exported: Exported) -> None:
        """One packed handle."""
        parts = [Part(weight.name, (weight.shape[0], weight.shape[1])) for weight in weights]
        names = {}
        for name, array in exported.arrays.items():
            names[name] = f"{parts[0].name}:{name}" if len(parts) == 1 else f"{parts[0].name}+{len(parts) - 1}:{name}"
            self._array(names[name], _CODES[array.dtype.kind], array.shape, array)
        self._handles.append(Handle(parts, exported.facts, names))

    def tensor(self, tensor: StoredTensor) -> None:
        """A vector as it is stored; decoded if its coding is one of blocks."""
        if tensor.storage in FORMATS and FORMATS[tensor.storage].block == 1:
            self._array(tensor.name, tensor.storage, tensor.shape, tensor.raw())
        else:
            self._array(tensor.name, "F32", tensor.shape, tensor.float32())

    def finish(
        self, *, backend: str, layout: str, precision: Any, made_by: str, source: str, model: Checkpoint
    ) -> None:
        """Write the header and have all of it on the disk."""
        about = msgspec.json.encode(About(
            version=1, backend=backend, layout=layout, precision=precision, made_by=made_by, source=source,
            fingerprint=fingerprint(model), handles=self._handles, checksums=self._checksums,
        )).decode()  # fmt: skip
        metadata = {ABOUT: about, CHECKSUM: header_checksum(about, self._written)}
        entries: dict[str, Any] = {"__metadata__": metadata}
        at = 0
        for tensor in self._written:
            end = at + tensor.data.nbytes
            entries[tensor.name] = {"dtype": tensor.storage, "shape": list(tensor.shape), "data_offsets": [at, end]}
            at = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        size = self._data_start - 8
        if len(text) > size:
            raise CheckpointError(f"the header takes {len(text)} bytes, more than the {size} that were kept for it.")
        self._write(memoryview(self._buffer))
        self._file.seek(0)
        self._write(memoryview(size.to_bytes(8, "little") + text))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _array(self, name: str, storage: str, shape: Sequence[int], array: NDArray[Any]) -> None:
        if name in self._checksums:
            raise CheckpointError(f"{name!r} would be written twice.")
        gap = -self._at % PAGE
        if gap:
            self._note(f"{PADDING}{len(self._written)}", "U8", (gap,), np.zeros(gap, np.uint8))
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._checksums[name] = crc32(data.data)
        self._note(name, storage, tuple(shape), data)

    def _note(self, name: str, storage: str, shape: tuple[int, ...], data: NDArray[np.uint8]) -> None:
        length = np.broadcast_to(np.uint8(0), data.shape)  # only its length is needed from now on
        self._written.append(StoredTensor(name, shape, storage, length))
        self._put(data.data)
        self._at += data.nbytes

    def _put(self, data: bytes | memoryview) -> None:
        """Into the file, by whole pieces."""
        for start in range(0, len(data), PIECE):
            self._buffer += data[start : start + PIECE]
            if len(self._buffer) >= PIECE:
                self._write(memoryview(bytes(self._buffer[:PIECE])))
                del self._buffer[:PIECE]

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]


def fingerprint(model: Checkpoint) -> str:
    """SHA-256 over each tensor's name, coding, shape and some bytes from its middle: tells apart what shapes do not."""
    digest = sha256()
    for name in sorted(model.names()):
        tensor = model.weight(name)
        middle = max(0, tensor.data.nbytes // 2 - SAMPLED // 2)
        digest.update(f"{name} {tensor.storage} {list(tensor.shape)}\n".encode())
        digest.update(tensor.data[middle : middle + SAMPLED].data)
    return digest.hexdigest()
