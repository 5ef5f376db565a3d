"""Tensors over device memory: what operator bodies get for a tensor handle."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu import soc
from gallium.vnpu.library import core
from gallium.vnpu.refusals import Illegal, Unsupported

DTYPES: dict[int, torch.dtype] = {
    0: torch.float32,
    1: torch.float16,
    2: torch.int8,
    3: torch.int32,
    4: torch.uint8,
    6: torch.int16,
    7: torch.uint16,
    8: torch.uint32,
    9: torch.int64,
    10: torch.uint64,
    11: torch.float64,
    12: torch.bool,
    16: torch.complex64,
    17: torch.complex128,
    27: torch.bfloat16,
    33: torch.complex32,
    35: torch.float8_e5m2,
    36: torch.float8_e4m3fn,
    37: torch.float8_e8m0fnu,
}
INT4 = 29
OTHER_TYPES = {
    29: "int4",
    30: "uint1",
    34: "hifloat8",
    38: "float6_e3m2",
    39: "float6_e2m3",
    40: "float4_e2m1",
    41: "float4_e1m2",
}
MAX_DIMS = 8
NZ_FORMATS = (29, 50, 51, 52, 53, 54)
HOST, UNKNOWN_MEMORY = -1, -2


@dataclass(frozen=True)
class Blocked:
    """A matrix in a blocked format (FRACTAL_NZ). `dense(x)` gives the ordinary tensor."""

    storage: Tensor  # [..., N1, M1, M0, N0]
    shape: torch.Size  # of the view
    strides: tuple[int, ...]
    dtype: torch.dtype
    format: int


@dataclass(frozen=True)
class Packed4:
    """A tensor of 4-bit integers, two to a byte, the first in the low half. `dense(x)` gives int8 values -8 to 7."""

    storage: Tensor  # uint8, flat
    shape: torch.Size
    strides: tuple[int, ...]
    offset: int
    blocked: tuple[int, ...] | None = None  # the storage's shape in 4-bit elements, if it is in a blocked format


@dataclass(frozen=True)
class Opaque:
    """A tensor of a type that torch does not have."""

    type_name: str
    storage: Tensor  # uint8, flat
    shape: torch.Size


def make(
    dtype: int,
    format: int,
    dims: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    storage_dims: tuple[int, ...],
    address: int,
    room: int,
    device: int,
) -> Tensor | Blocked | Packed4 | Opaque:
    """The object for a tensor handle. `room`: bytes that may be read from `address`. Raises Illegal, Unsupported."""
    if len(dims) > MAX_DIMS:
        raise Illegal("the number of dimensions", len(dims), f"at most {MAX_DIMS}")
    if any(size < 0 for size in dims):
        raise Illegal("a tensor's shape", dims, "without negative sizes")
    if dtype in OTHER_TYPES:
        return _sub_byte(dtype, format, dims, strides, offset, storage_dims, address, room)
    if dtype not in DTYPES:
        raise Unsupported("dtype code", dtype, ", ".join(map(str, DTYPES)))
    _check_dtype(DTYPES[dtype])
    if format in NZ_FORMATS:
        steps = _contiguous(storage_dims)
        storage = _view(DTYPES[dtype], storage_dims, steps, 0, address, room, device)
        return Blocked(storage, torch.Size(dims), strides, DTYPES[dtype], format)
    return _view(DTYPES[dtype], dims, strides, offset, address, room, device)


def dense(x: Tensor | Blocked | Packed4) -> Tensor:
    """An ordinary tensor of the same values: `x` itself if it is one."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, Blocked):
        return _from_blocks(x.storage, x.shape, x.strides)
    if isinstance(x, Packed4):
        values = unpack4(x.storage)
        if x.blocked is not None:
            return _from_blocks(values[: math.prod(x.blocked)].reshape(x.blocked), x.shape, x.strides)
        return values.as_strided(x.shape, x.strides, x.offset)
    raise Unsupported("a tensor's type", getattr(x, "type_name", type(x).__name__), "types that torch has, and int4")


def unpack4(packed: Tensor) -> Tensor:
    """int8 values of packed signed 4-bit integers, `[n]` bytes to `[2 n]` values; the low half comes first."""
    low = (packed << 4).view(torch.int8) >> 4
    high = packed.view(torch.int8) >> 4
    return torch.stack((low, high), dim=-1).flatten()


class DynamicOutput:
    """An output whose shape is known only after running; it arrives with room for the largest possible result."""

    def __init__(self, address: int, room: Tensor) -> None:
        self._address = address
        self.room = room
        self.dtype = room.dtype

    def settle(self, result: Tensor) -> None:
        """Write the data and tell torch_npu the real shape."""
        flat = self.room.as_strided((self.room.numel(),), (1,))
        flat[: result.numel()].copy_(result.reshape(-1))
        dims = (ctypes.c_int64 * max(result.dim(), 1))(*result.shape)
        core().ga_vnpu_set_view_shape(ctypes.c_void_p(self._address), dims, result.dim())


def _view(
    dtype: torch.dtype,
    dims: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    address: int,
    room: int,
    device: int,
) -> Tensor:
    if 0 in dims:
        return torch.empty(dims, dtype=dtype)
    size = dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(dims, strides, strict=True))
    if device == UNKNOWN_MEMORY:
        raise Illegal("a tensor's address", hex(address), "in device memory (is it a CPU tensor?)")
    if offset < 0 or (last + 1) * size > room:
        raise Illegal("a tensor's extent", f"{(last + 1) * size} bytes", f"inside its allocation of {room} bytes")
    if address % size:
        raise Illegal("a tensor's address", hex(address), f"a multiple of {size} bytes")
    # A storage of exactly these bytes, which torch can neither leave nor resize. It owns nothing and copies nothing.
    # This is the only use of a private function of torch; tests/vnpu/test_tensors.py holds it.
    with torch.inference_mode(False), torch._C.DisableTorchFunction():
        storage: Any = torch._C._construct_storage_from_data_pointer(address, torch.device("cpu"), (last + 1) * size)
        return torch.empty(0, dtype=dtype, device="cpu").set_(storage, offset, dims, strides)


def _contiguous(dims: tuple[int, ...]) -> tuple[int, ...]:
    steps, step = [], 1
    for size in reversed(dims):
        steps.append(step)
        step *= size
    return tuple(reversed(steps))


def _sub_byte(
    dtype: int,
    format: int,
    dims: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    storage_dims: tuple[int, ...],
    address: int,
    room: int,
) -> Packed4 | Opaque:
    size = room if dtype != INT4 else min(room, (math.prod(storage_dims) + 1) // 2)
    storage = _view(torch.uint8, (size,), (1,), 0, address, room, HOST)
    if dtype == INT4:
        blocked = storage_dims if format in NZ_FORMATS else None
        return Packed4(storage, torch.Size(dims), strides, offset, blocked)
    return Opaque(OTHER_TYPES[dtype], storage, torch.Size(dims))


def _from_blocks(storage: Tensor, shape: torch.Size, strides: tuple[int, ...]) -> Tensor:
    """[..., N1, M1, M0, N0] to [..., M, N]; a handle whose last stride is not 1 is the transpose of such a matrix."""
    *batch, n1, m1, m0, n0 = storage.shape
    flipped = len(shape) >= 2 and strides[-1] != 1 and shape[-2] != 1
    rows, cols = (shape[-1], shape[-2]) if flipped else (shape[-2], shape[-1])
    order = [*range(len(batch)), *(len(batch) + i for i in (1, 2, 0, 3))]
    matrix = storage.permute(order).reshape(*batch, m1 * m0, n1 * n0)[..., :rows, :cols]
    return matrix.transpose(-1, -2) if flipped else matrix


def _check_dtype(dtype: torch.dtype) -> None:
    chip = soc.current()
    if dtype == torch.bfloat16 and not chip.bfloat16:
        raise Illegal("dtype", dtype, f"another one: {chip.name} has no bfloat16 (family {chip.family})")
    if "float8" in str(dtype) and not chip.float8:
        raise Illegal("dtype", dtype, f"another one: 8-bit floats exist on the 950 family only, not on {chip.name}")
