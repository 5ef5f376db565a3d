"""Reads the GGUF container, strictly: no count or offset of the file is believed before it is checked.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian; a model may be split
over files NAME-00001-of-0000N.gguf, of which the first has the metadata.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gallium.checkpoints.formats import FORMATS
from gallium.checkpoints.mapping import PICKLE_DANGER, is_pickle, map_file
from gallium.checkpoints.tensor import StoredTensor
from gallium.errors import CheckpointError, UnsupportedFormat

SCALARS = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<?"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
STRING, ARRAY = 8, 9
U64 = struct.Struct("<Q")
MAX_DIMS = 4
MAX_KEY = 1 << 16
MAX_SIZE = 1 << 40
MAX_ALIGNMENT = 1 << 20
SMALLEST_VALUE = 8 + 4 + 1  # bytes of a metadata entry: key length, type, a one-byte value
SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8  # name length, number of dimensions, one of them, type, offset
SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


class GgufFile(NamedTuple):
    """What one model's GGUF file or files hold."""

    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]  # by GGUF name; shapes in row-major order, the reverse of the file's


class _Entry(NamedTuple):
    """One line of the tensor table."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int  # from the start of the data


class _Cursor:
    """Reads forward through the bytes; running over the end is a CheckpointError."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is not a valid GGUF file: {what}. It may be truncated or damaged; fetch it again."
        )

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise self.damaged(f"it ends within its header (byte {self.at})")
        piece = self.data[self.at : self.at + size]
        self.at += size
        return piece

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def text(self, limit: int = 1 << 26) -> str:
        size = self.u64()
        if size > limit:
            raise self.damaged(f"a text of {size} bytes at byte {self.at}")
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError as cause:
            raise self.damaged(f"a text at byte {self.at} is not UTF-8") from cause

    def texts(self, count: int) -> list[str]:
        """A tight loop: a vocabulary and its merges are hundreds of thousands of texts, read at every start."""
        data, at, end, unpack = self.data, self.at, len(self.data), U64.unpack_from
        out: list[str] = []
        append = out.append
        try:
            for _ in range(count):
                (size,) = unpack(data, at)
                start = at + 8
                at = start + size
                if at > end:
                    raise self.damaged(f"a text at byte {start} runs over the end")
                append(data[start:at].decode())
        except (struct.error, UnicodeDecodeError) as cause:
            raise self.damaged(f"a list of texts is broken at byte {at}") from cause
        self.at = at
        return out

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self.array()
        if kind not in SCALARS:
            raise self.damaged(f"a metadata value of unknown type {kind}")
        return SCALARS[kind].unpack(self.take(SCALARS[kind].size))[0]

    def array(self) -> list[Any]:
        kind, count = self.u32(), self.u64()
        if kind != STRING and kind not in SCALARS:
            raise self.damaged(f"a list of values of type {kind}")
        smallest = U64.size if kind == STRING else SCALARS[kind].size
        if count * smallest > self.left:
            raise self.damaged(f"a list claims {count} entries, more than the file can hold")
        if kind == STRING:
            return self.texts(count)
        values: list[Any] = np.frombuffer(self.take(count * smallest), SCALARS[kind].format).tolist()
        return values


def read_gguf(path: Path) -> GgufFile:
    """Metadata and unread tensors of a model in one GGUF file, or in split files of which `path` is any.

    Raises CheckpointError when a file is damaged or missing, UnsupportedFormat for a kind of tensor that Gallium does
    not compute with.
    """
    first = _first_of_split(path)
    files = [_read_one(first)]
    count = files[0].metadata.get("split.count", 1)
    if count not in (0, 1):
        files += [_read_one(part) for part in split_parts(first, count)[1:]]
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            if name in tensors:
                raise CheckpointError(f"{path}: tensor {name!r} stands in more than one of the split files.")
            tensors[name] = tensor
    return GgufFile(files[0].metadata, tensors)


def _first_of_split(path: Path) -> Path:
    match = SPLIT_NAME.fullmatch(path.name)
    return path if match is None else path.with_name(f"{match['stem']}-00001-of-{match['count']}.gguf")


def split_parts(path: Path, count: Any) -> list[Path]:
    """All files of a split model; `count` is what the first one claims. CheckpointError if some are not there."""
    match = SPLIT_NAME.fullmatch(path.name)
    if match is None or count != int(match["count"]):
        raise CheckpointError(
            f"{path} says that it is one of {count} files, but its name does not: split files must keep their names, "
            "NAME-00001-of-0000N.gguf."
        )
    parts = [
        path.with_name(f"{match['stem']}-{n:05d}-of-{match['count']}.gguf") for n in range(1, int(match["count"]) + 1)
    ]
    absent = [part.name for part in parts if not part.exists()]
    if absent:
        shown = ", ".join(absent[:4]) + (", …" if len(absent) > 4 else "")
        raise CheckpointError(f"{path} lacks {len(absent)} of its {count} parts: {shown}. Put all into one folder.")
    return parts


def _read_one(path: Path) -> GgufFile:
    mapped = map_file(path)
    cursor = _Cursor(path, mapped)
    _read_version(cursor)
    num_tensors, num_values = cursor.u64(), cursor.u64()
    if num_tensors * SMALLEST_TENSOR + num_values * SMALLEST_VALUE > cursor.left:
        raise cursor.damaged(f"it claims {num_tensors} tensors and {num_values} values, more than it can hold")
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        key = cursor.text(MAX_KEY)
        if key in metadata:
            raise cursor.damaged(f"it has {key!r} twice")
        metadata[key] = cursor.value(cursor.u32())
    entries = [_entry(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= MAX_ALIGNMENT or alignment % 8:
        raise cursor.damaged(f"its alignment is {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    data = np.frombuffer(mapped, np.uint8)[start:]
    tensors = {e.name: _tensor(cursor, data, e, alignment) for e in entries}
    _check_apart(cursor, entries, tensors)
    return GgufFile(metadata, tensors)


def _read_version(cursor: _Cursor) -> None:
    head = cursor.data[:8]
    if is_pickle(head):
        raise UnsupportedFormat(f"{cursor.path} is a pickle, not a GGUF file: {PICKLE_DANGER}.")
    if head[:4] != b"GGUF":
        raise cursor.damaged(f"it begins with {head[:4]!r}, not with b'GGUF'")
    cursor.at = 4
    version = cursor.u32()
    if version not in (2, 3):
        kind = "big-endian" if version in (2 << 24, 3 << 24) else f"version {version}"
        raise UnsupportedFormat(f"{cursor.path} is a {kind} GGUF file; Gallium reads little-endian versions 2 and 3.")


def _entry(cursor: _Cursor) -> _Entry:
    name, dims = cursor.text(MAX_KEY), cursor.u32()
    if not 1 <= dims <= MAX_DIMS:
        raise cursor.damaged(f"tensor {name!r} has {dims} dimensions")
    shape = tuple(cursor.u64() for _ in range(dims))[::-1]
    if any(not 0 < n < MAX_SIZE for n in shape):
        raise cursor.damaged(f"tensor {name!r} has the shape {list(shape)}")
    return _Entry(name, shape, cursor.u32(), cursor.u64())


def _tensor(cursor: _Cursor, data: NDArray[np.uint8], entry: _Entry, alignment: int) -> StoredTensor:
    name, shape, kind, offset = entry
    storage = TENSOR_TYPES.get(kind, f"type {kind}")
    if storage not in FORMATS:
        raise UnsupportedFormat(
            f"{cursor.path}: tensor {name!r} is stored as {storage}, which Gallium does not compute with; it reads "
            f"{', '.join(FORMATS)}. Look for a file of one of these kinds, such as Q4_K_M or Q8_0."
        )
    form = FORMATS[storage]
    if shape[-1] % form.block:
        raise cursor.damaged(f"tensor {name!r} has rows of {shape[-1]} values in blocks of {form.block}")
    size = form.num_bytes(math.prod(shape))
    if offset % alignment or offset + size > len(data):
        raise cursor.damaged(f"tensor {name!r} lies at bytes {offset} to {offset + size} of {len(data)}")
    return StoredTensor(name, shape, storage, data[offset : offset + size])


def _check_apart(cursor: _Cursor, entries: list[_Entry], tensors: dict[str, StoredTensor]) -> None:
    """No name twice, no byte in two tensors."""
    if len(tensors) != len(entries):
        raise cursor.damaged("it names a tensor twice")
    end, previous = 0, ""
    for offset, name in sorted((e.offset, e.name) for e in entries):
        if offset < end:
            raise cursor.damaged(f"tensors {previous!r} and {name!r} overlap")
        end, previous = offset + len(tensors[name].data), name
