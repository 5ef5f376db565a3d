"""Packed matrices as files keep them: the very bytes that the kernels read, which are mapped and not copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallium.backends.cpu.arrays import address, require
from gallium.backends.cpu.integers import TYPES, scheme_of
from gallium.backends.cpu.matrices import KINDS, Packed
from gallium.errors import BackendError
from gallium.ops.handles import Experts, FloatArray, Linear, Precision
from gallium.ops.packed import Exported, PackedHandle

LAYOUT = "cpu-panels-1"
"""The layout of panels in native/include/gallium/linear.h, the same at every level. It must change when that does."""
ALIGNMENT = 64
_TYPES = {"panels": np.uint8, **TYPES}


def export(handle: Linear | Experts) -> Exported:
    """The panels and scales of a handle; array "panels.1" is that of an experts' down projections."""
    packed: tuple[Packed, ...] = handle.data if isinstance(handle, Experts) else (handle.data,)
    arrays = {f"{name}.{i}": array for i, one in enumerate(packed) for name, array in one.arrays.items()}
    return Exported({"matrices": [one.facts for one in packed]}, arrays)


def take_over(
    library: Any,
    precision: Precision,
    stored: PackedHandle,
    index: int,
    sizes: tuple[int, int, int],
    bias: FloatArray | None,
) -> Packed:
    """The matrices number `index` of a handle, `sizes` (count, rows, cols), as they lie in their file.

    Raises BackendError when they are of another layout or precision, or do not fit what they should be.
    """
    check_layout(stored, precision)
    facts, arrays = _matrices(stored, index)
    if sizes != (facts.get("count"), facts.get("rows"), facts.get("cols")) or facts.get("kind") not in KINDS:
        raise _damaged(stored, f"it is {dict(facts)}, where {list(sizes)} is needed")
    try:
        how = scheme_of(facts["integers"], sizes[2]) if "integers" in facts else None
        return Packed(library, *sizes, KINDS[facts["kind"]], bias, how, arrays)
    except (KeyError, TypeError, ValueError) as cause:
        raise _damaged(stored, f"{facts}") from cause


def check_layout(stored: PackedHandle, precision: Precision) -> None:
    """Raise BackendError unless this version of the backend, opened in `precision`, can take the handle over."""
    if stored.layout != LAYOUT:
        raise BackendError(
            f"the model was packed in the layout {stored.layout!r}, and this version of Gallium has {LAYOUT!r}: pack "
            f"{stored.source} again with `gallium convert --packed`."
        )
    if stored.precision != precision:
        raise BackendError(
            f"the model was packed in {stored.precision} and cannot run in {precision}: leave out --precision, or pack "
            f"{stored.source} again with `gallium convert --packed --precision {precision}`."
        )


def _matrices(stored: PackedHandle, index: int) -> tuple[Mapping[str, Any], dict[str, NDArray[Any]]]:
    """Facts and arrays, aligned and of the types that kernels read."""
    try:
        facts: Mapping[str, Any] = stored.facts["matrices"][index]
        names = [name for name in _TYPES if name == "panels" or f"{name}.{index}" in stored.arrays]
        arrays = {name: stored.arrays[f"{name}.{index}"] for name in names}
    except (KeyError, IndexError, TypeError) as cause:
        raise _damaged(stored, f"{cause} is missing") from cause
    for name, array in arrays.items():
        if array.dtype != _TYPES[name] or (array.size and address(array) % ALIGNMENT):
            raise _damaged(stored, f"its {name} are {array.dtype}, or do not begin on a cache line")
    require(isinstance(facts, Mapping), f"the packed {stored.parts[0]} has no facts.")
    return facts, arrays


def _damaged(stored: PackedHandle, what: str) -> BackendError:
    return BackendError(f"the packed {stored.parts[0]} is damaged: {what}. Pack {stored.source} again.")
