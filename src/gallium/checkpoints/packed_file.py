"""Reads packed folders: weights as a backend keeps them in memory, in one safetensors file that is mapped and not read.

docs/packed.md describes the file. Its header has a checksum that is always compared; those of the data are compared by
`check_contents`, on request. Whether a layout can be used is for the backend to say, when it takes the weights over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

from gallium.checkpoints.checkpoint import Checkpoint
from gallium.checkpoints.mapping import prefetch
from gallium.checkpoints.opening import PACKED_FILE
from gallium.checkpoints.safetensors_file import read_with_metadata
from gallium.checkpoints.tensor import StoredTensor
from gallium.errors import CheckpointError, UnsupportedFormat
from gallium.ops.handles import FloatArray, Precision
from gallium.ops.packed import STORAGE, PackedHandle

VERSION = 1
ABOUT, CHECKSUM = "gallium.packed", "gallium.checksum"
"""Keys of the header's `__metadata__`: About as JSON, and the checksum of the header."""
PADDING = "padding."
_TYPES = {"U8": np.uint8, "F32": np.float32, "I32": np.int32}
_INDEXED = re.compile(r"(?P<name>.+)\[(?P<index>\d+)\]")


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A weight of the model that was packed into a handle."""

    name: str  # "x.experts.down_proj[3]" for a matrix of a 3-D tensor
    shape: tuple[int, int]


class Handle(msgspec.Struct, frozen=True):
    """One packed handle: its parts in order, the backend's facts, and which tensors of the file are its arrays."""

    parts: list[Part]
    facts: dict[str, Any]
    arrays: dict[str, str]


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a packed file says of itself."""

    version: int
    backend: str  # that packed it and can take it over
    layout: str  # the backend's word for how the bytes lie
    precision: Precision
    made_by: str
    source: str  # the model that was packed, as it was named
    fingerprint: str  # of that model
    handles: list[Handle]
    checksums: dict[str, int]  # CRC-32 of each tensor's bytes, padding aside


NOTHING = PackedHandle("", "float32", (), {}, {})


@dataclass(frozen=True, slots=True)
class PackedTensor(StoredTensor):
    """A part of a handle. It has a name and a shape; what it holds is only there within the handle."""

    handle: PackedHandle = NOTHING
    backend: str = ""

    @property
    def decodable(self) -> bool:
        """True: it is what its backend computes with."""
        return True

    def raw(self) -> NDArray[np.uint8]:
        """Raises UnsupportedFormat."""
        raise self._unreadable()

    def float32(self, start: int = 0, stop: int | None = None) -> FloatArray:
        """Raises UnsupportedFormat."""
        raise self._unreadable()

    def rows(self, start: int, stop: int) -> StoredTensor:
        """Raises UnsupportedFormat."""
        raise self._unreadable()

    def index(self, i: int) -> PackedTensor:
        """Matrix `i` of packed experts."""
        if len(self.shape) != 3 or not 0 <= i < self.shape[0]:
            raise CheckpointError(f"tensor {self.name!r} of shape {list(self.shape)} has no matrix {i}.")
        return replace(self, name=f"{self.name}[{i}]", shape=self.shape[1:])

    def _unreadable(self) -> UnsupportedFormat:
        return UnsupportedFormat(
            f"the model is packed for the backend {self.backend!r}, which alone can run it. For another one, and to "
            f"convert or compare it, use the model that it was packed from: {self.handle.source}."
        )


@dataclass(frozen=True, slots=True)
class PackedCheckpoint(Checkpoint):
    """A packed model. Its weights stay in the mapped file for as long as a model uses them."""

    about: About | None = None
    stored: tuple[StoredTensor, ...] = ()  # the file's own tensors

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.data.nbytes for tensor in self.stored)

    @property
    def stored_precision(self) -> Precision:
        """The one in which it was packed."""
        assert self.about is not None  # open_packed gives it
        return self.about.precision

    @property
    def only_backend(self) -> str | None:
        """The one that packed it."""
        return None if self.about is None else self.about.backend

    def prefetch(self) -> None:
        """Bring the file in, in the background."""
        if self.stored:
            prefetch(self.stored[0].data)

    def release_memory(self) -> None:
        """Nothing: the pages are the model's memory."""


def open_packed(folder: Path, config: dict[str, Any], generation_config: dict[str, Any]) -> PackedCheckpoint:
    """The model in a packed folder; nothing but the header is read. Raises CheckpointError when it is damaged."""
    about, stored = read_packed(folder / PACKED_FILE)
    tensors = {t.name: t for name, t in stored.items() if name in about.checksums}
    for handle in about.handles:
        arrays = {name: _array(folder, stored, tensor) for name, tensor in handle.arrays.items()}
        for tensor in handle.arrays.values():
            tensors.pop(tensor, None)
        packed = PackedHandle(
            about.layout, about.precision, tuple(p.name for p in handle.parts), handle.facts, arrays, about.source
        )
        for name, shape in _whole(handle.parts).items():
            tensors[name] = PackedTensor(name, shape, STORAGE, np.empty(0, np.uint8), packed, about.backend)
    return PackedCheckpoint(
        folder, "packed", config, generation_config, tensors, about=about, stored=tuple(stored.values())
    )


def read_packed(path: Path) -> tuple[About, dict[str, StoredTensor]]:
    """What the file says of itself, and its tensors. Raises CheckpointError unless header and lengths are in order."""
    stored, metadata = read_with_metadata(path)
    text = metadata.get(ABOUT)
    if text is None:
        raise CheckpointError(f"{path} is not a packed model: its header has no {ABOUT!r}.")
    if metadata.get(CHECKSUM) != header_checksum(text, stored.values()):
        raise _damaged(path, "its header does not fit its checksum")
    try:
        version = msgspec.json.decode(text, type=dict[str, Any]).get("version")
        if version != VERSION:
            raise CheckpointError(
                f"{path} is a packed model of version {version}, and this Gallium reads version {VERSION}: convert the "
                "model again, with this Gallium."
            )
        return msgspec.json.decode(text, type=About), stored
    except msgspec.DecodeError as cause:
        raise _damaged(path, str(cause)) from cause


def check_contents(path: Path, progress: Callable[[int, int], None] | None = None) -> int:
    """Compare every byte with its checksum, of a packed folder. Returns the bytes; raises CheckpointError."""
    about, stored = read_packed(path / PACKED_FILE)
    total, done = sum(t.data.nbytes for t in stored.values()), 0
    wrong = []
    for name, tensor in stored.items():
        wanted = about.checksums.get(name)
        if crc32(tensor.data.data) != wanted if wanted is not None else tensor.data.any():
            wrong.append(name)
        done += tensor.data.nbytes
        if progress is not None:
            progress(done, total)
    if wrong:
        raise _damaged(path / PACKED_FILE, f"{len(wrong)} of its tensors do not fit their checksums ({wrong[0]})")
    return done


def header_checksum(about: str, tensors: Collection[StoredTensor]) -> str:
    """CRC-32 over `about` and over name, coding, shape and length of every tensor, in the order of their bytes."""
    table = [[t.name, t.storage, list(t.shape), t.data.nbytes] for t in tensors]
    return f"{crc32(msgspec.json.encode(table), crc32(about.encode())):08x}"


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {what}. Convert the model again, or copy the file again.")


def _array(folder: Path, stored: Mapping[str, StoredTensor], name: str) -> NDArray[Any]:
    """A tensor of the file as an array over its mapped bytes."""
    tensor = stored.get(name)
    if tensor is None or tensor.storage not in _TYPES:
        raise _damaged(folder / PACKED_FILE, f"it has no array {name!r}")
    return tensor.data.view(_TYPES[tensor.storage])


def _whole(parts: Sequence[Part]) -> dict[str, tuple[int, ...]]:
    """Names and shapes as a model asks for them: the matrices of a 3-D tensor as one."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part in parts:
        match = _INDEXED.fullmatch(part.name)
        if match is None:
            shapes[part.name] = part.shape
        else:
            shapes[match["name"]] = (int(match["index"]) + 1, *part.shape)
    return shapes
