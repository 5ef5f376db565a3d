"""How stored bytes become float32: plain floats and the GGUF block formats, one decoder each.

Block layouts follow the GGUF specification (ggml `ggml-common.h`: block_q8_0, block_q4_0, block_q4_1, block_q4_K,
block_q5_K, block_q6_K); the tests hold every decoder against the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Format(NamedTuple):
    """A storage coding: `block` values take `size` bytes; `decode`: bytes `[blocks, size]` -> `[blocks, block]`."""

    name: str
    block: int
    size: int
    decode: Callable[[Bytes], Floats]

    def num_bytes(self, values: int) -> int:
        """Bytes of `values` values, which must be a multiple of `block`."""
        return values // self.block * self.size

    def values(self, data: Bytes) -> Floats:
        """Whole blocks, 1-D, decoded to float32, 1-D, in memory of their own."""
        with np.errstate(all="ignore"):  # a damaged scale may be NaN or infinite: that is for the model to notice
            return self.decode(data.reshape(-1, self.size)).reshape(-1)


def _f32(b: Bytes) -> Floats:
    return b.view("<f4").astype(np.float32)


def _f16(b: Bytes) -> Floats:
    return b.view("<f2").astype(np.float32)


def _bf16(b: Bytes) -> Floats:
    return (b.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _half(b: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of every block, as a column."""
    return np.ascontiguousarray(b[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(b: Bytes) -> NDArray[np.uint8]:
    """`[blocks, n]` bytes -> `[blocks, 2n]`: all low nibbles, then all high nibbles."""
    return np.concatenate([b & 15, b >> 4], axis=1)


def _q8_0(b: Bytes) -> Floats:
    return _half(b, 0) * b[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(b: Bytes) -> Floats:
    return _half(b, 0) * (_nibbles(b[:, 2:]).astype(np.float32) - 8.0)


def _q4_1(b: Bytes) -> Floats:
    return _half(b, 0) * _nibbles(b[:, 4:]).astype(np.float32) + _half(b, 2)


def _k_scales(packed: Bytes) -> tuple[Floats, Floats]:
    """The eight 6-bit scales and eight 6-bit mins of a Q4_K or Q5_K super-block, from 12 bytes."""
    low, mid, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    mins = np.concatenate([mid & 63, (high >> 4) | ((mid >> 6) << 4)], axis=1)
    return scales.astype(np.float32), mins.astype(np.float32)


def _k_values(b: Bytes, quants: NDArray[np.uint8]) -> Floats:
    """`quants [blocks, 8, 32]` of a Q4_K or Q5_K super-block with its scales and mins applied."""
    scales, mins = _k_scales(b[:, 4:16])
    d = (_half(b, 0) * scales)[:, :, None]
    m = (_half(b, 2) * mins)[:, :, None]
    return (d * quants.astype(np.float32) - m).reshape(len(b), 256)


def _q4_k_quants(packed: Bytes) -> NDArray[np.uint8]:
    """128 bytes -> `[blocks, 8, 32]`: each 32 bytes hold two groups, low nibbles first."""
    four = packed.reshape(len(packed), 4, 1, 32)
    halves: Bytes = four >> np.array([0, 4], np.uint8)[None, None, :, None] & np.uint8(15)
    return halves.reshape(len(packed), 8, 32)


def _q4_k(b: Bytes) -> Floats:
    return _k_values(b, _q4_k_quants(b[:, 16:144]))


def _q5_k(b: Bytes) -> Floats:
    fifth: Bytes = b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[None, :, None] & np.uint8(1)
    return _k_values(b, _q4_k_quants(b[:, 48:176]) | fifth << np.uint8(4))


def _q6_k(b: Bytes) -> Floats:
    low = b[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8)[None, None, :, None] & 15
    high = b[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[None, None, :, None] & 3
    quants = low.reshape(-1, 256) | high.reshape(-1, 256) << 4
    scales = b[:, 192:208].view(np.int8).astype(np.float32) * _half(b, 208)
    centred = quants.astype(np.float32) - 32.0
    return (scales[:, :, None] * centred.reshape(-1, 16, 16)).reshape(-1, 256)


FORMATS = {
    f.name: f
    for f in (
        Format("F32", 1, 4, _f32),
        Format("F16", 1, 2, _f16),
        Format("BF16", 1, 2, _bf16),
        Format("Q8_0", 32, 34, _q8_0),
        Format("Q4_0", 32, 18, _q4_0),
        Format("Q4_1", 32, 20, _q4_1),
        Format("Q4_K", 256, 144, _q4_k),
        Format("Q5_K", 256, 176, _q5_k),
        Format("Q6_K", 256, 210, _q6_k),
    )
}
"""Every coding that Gallium reads, by the name that `Weight.storage` gives."""
