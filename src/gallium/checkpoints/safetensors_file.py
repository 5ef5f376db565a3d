"""Reads the safetensors format, strictly: every byte range is checked before a tensor is offered.

Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data, which
the tensors cover without gaps or overlaps (https://github.com/huggingface/safetensors).

Gallium's own quantised folders (checkpoints/writing.py) are the same format: a matrix of GGUF blocks is a U8 tensor of
the blocks' bytes, and the header's `__metadata__` names its coding and logical shape under "gallium.<tensor name>",
for example {"gallium.lm_head.weight": "Q8_0 151552x4096"}.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from gallium.checkpoints.formats import FORMATS
from gallium.checkpoints.mapping import PICKLE_DANGER, is_pickle, map_file
from gallium.checkpoints.tensor import StoredTensor
from gallium.errors import CheckpointError, UnsupportedFormat

MAX_HEADER = 100 << 20  # as the safetensors library has it
MAX_DIMS = 8
MAX_SIZE = 1 << 48
CODED_PREFIX = "gallium."
SIZES = {
    "F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2,
    "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


class _Entry(NamedTuple):
    """One checked entry of a header."""

    start: int
    stop: int
    name: str
    dtype: str
    shape: tuple[int, ...]


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """All tensors of one file by name; nothing but the header is read.

    Raises CheckpointError on anything that is not exactly in order, UnsupportedFormat for a pickle or unknown dtype.
    """
    return read_with_metadata(path)[0]


def read_with_metadata(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """As read_safetensors, with the header's `__metadata__`."""
    mapped = map_file(path)
    length = _header_length(path, mapped[:8], len(mapped))
    header = _json(path, mapped[8 : 8 + length])
    body = np.frombuffer(mapped, np.uint8)[8 + length :]
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "its __metadata__ is not a map of strings")
    entries = sorted(_entry(path, name, entry) for name, entry in header.items())
    _check_cover(path, entries, len(body))
    coded = metadata.get
    tensors = {e.name: _tensor(path, e, body[e.start : e.stop], coded(CODED_PREFIX + e.name)) for e in entries}
    return tensors, metadata


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a valid safetensors file: {what}. It may be truncated or damaged; fetch it again."
    )


def _header_length(path: Path, head: bytes, file_size: int) -> int:
    length = int.from_bytes(head, "little")
    if len(head) == 8 and length <= min(MAX_HEADER, file_size - 8):
        return length  # asked first: an honest length such as 0x380 begins like a pickle
    if is_pickle(head):
        raise UnsupportedFormat(f"{path} is a pickle: {PICKLE_DANGER}. Use safetensors or GGUF files.")
    if len(head) < 8:
        raise _damaged(path, f"it has only {file_size} bytes")
    raise _damaged(path, f"its header claims {length} bytes, the file has {file_size}")


def _json(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, ValueError) as cause:
        raise _damaged(path, f"its header is not JSON ({cause})") from cause
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    return header


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_SIZE


def _entry(path: Path, name: str, entry: Any) -> _Entry:
    """One header entry, its dtype, shape and bytes checked against each other."""
    if not isinstance(entry, dict):
        raise _damaged(path, f"the entry of {name!r} is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(_is_size(n) for n in shape):
        raise _damaged(path, f"{name!r} has an impossible shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
        raise _damaged(path, f"{name!r} has impossible offsets")
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise UnsupportedFormat(f"{path}: tensor {name!r} has the unknown dtype {dtype!r}.")
    start, stop = offsets
    if math.prod(shape) * SIZES[dtype] != stop - start:
        raise _damaged(path, f"{name!r} is {dtype} {shape}, but bytes {start} to {stop} are stored")
    return _Entry(start, stop, name, dtype, tuple(shape))


def _check_cover(path: Path, entries: list[_Entry], available: int) -> None:
    """Tensors follow each other without gap or overlap, to the last byte of the file."""
    end = 0
    for entry in entries:
        if entry.start < end:
            raise _damaged(path, f"{entry.name!r} overlaps another tensor")
        if entry.start > end:
            raise _damaged(path, f"bytes {end} to {entry.start} belong to no tensor")
        end = entry.stop
    if end != available:
        raise _damaged(path, f"its tensors end at byte {end}, the data has {available}")


def _tensor(path: Path, entry: _Entry, data: NDArray[np.uint8], coded: str | None) -> StoredTensor:
    if coded is None:
        return StoredTensor(entry.name, entry.shape, entry.dtype, data)
    storage, _, dims = coded.partition(" ")
    form = FORMATS.get(storage)
    if (
        entry.dtype != "U8"
        or form is None
        or not all(d.isascii() and d.isdigit() and len(d) < 16 for d in dims.split("x"))
    ):
        raise _damaged(path, f"{entry.name!r} is said to be coded as {coded!r}")
    shape = tuple(int(d) for d in dims.split("x"))
    if len(shape) > MAX_DIMS or shape[-1] % form.block or form.num_bytes(math.prod(shape)) != len(data):
        raise _damaged(path, f"{entry.name!r} is said to hold {coded}, but {len(data)} bytes are stored")
    return StoredTensor(entry.name, shape, storage, data)
