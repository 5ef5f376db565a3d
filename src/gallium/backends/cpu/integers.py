"""A checkpoint's own integers: when they are computed as they are, and their scales as ga_integers (linear.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallium.backends.cpu.arrays import address, aligned_zeros, require
from gallium.errors import BackendError
from gallium.ops.handles import Precision, Quantisation, Role, Weight

_INTEGERS = Struct("@2Q2q2d")  # ga_integers
INTEGER_STORAGES = {"I8": 9, "I4": 10}
"""Codings of one integer per byte, by their number in linear.h."""
TYPES = {"scale": np.float32, "correction": np.int32}
LANES = 16  # rows of a panel
GROUP = 32  # columns that the kernels take together
MOST_COLUMNS = 1 << 16  # beyond, 32 bits might not hold a sum
INTEGER_PRECISION: dict[int, Precision] = {8: "int8", 4: "int4"}


def integer_scheme(parts: Sequence[Weight], precision: Precision, role: Role) -> Quantisation | None:
    """How the integers of one projection's parts are computed, or None: they have none, or `precision` wants others.

    A matrix that rows are read from (embedding, head) takes integers only with a scale that is its own. Raises
    BackendError when the parts do not agree, or have groups that the kernels do not know.
    """
    found = [part.quantisation for part in parts]
    fitting = [how for how in found if how is not None and INTEGER_PRECISION[how.bits] == precision]
    if not fitting or (fitting[0].activations == "static" and role in ("head", "embedding")):
        return None
    first, width = fitting[0], parts[0].shape[1]
    if any(how is None or _scheme(how) != _scheme(first) for how in found):
        raise BackendError(
            f"{', '.join(part.name for part in parts)} are one projection, but their integers were made in different "
            "ways, so that they cannot be computed together: use --precision bfloat16."
        )
    groups = first.scale.shape[1]
    if width > MOST_COLUMNS or width % groups or (groups > 1 and width // groups % GROUP):
        raise BackendError(
            f"{parts[0].name} has {width} columns in {groups} groups; what is computed in integers is up to "
            f"{MOST_COLUMNS} columns in groups of a multiple of {GROUP}: use --precision bfloat16."
        )
    return first


def _scheme(how: Quantisation) -> tuple[object, ...]:
    """All that the parts of a projection must share."""
    return how.bits, how.scale.shape[1], how.activations, how.input_scale, how.input_offset


def scheme_of(facts: Mapping[str, Any], cols: int) -> Quantisation:
    """The scheme of stored integers, without their scales. Raises BackendError if there is none such."""
    groups, how = facts["groups"], facts["activations"]
    require(
        facts["bits"] in INTEGER_PRECISION and how in ("dynamic", "static") and 0 < groups <= cols
        and cols % groups == 0 and (groups == 1 or (how == "dynamic" and cols // groups % GROUP == 0))
        and cols <= MOST_COLUMNS,
        f"packed integers of an unknown kind: {dict(facts)}.",
    )  # fmt: skip
    none = np.empty((0, groups), np.float32)
    return Quantisation(facts["bits"], none, how, float(facts["input_scale"]), int(facts["input_offset"]))


class Integers:
    """The scales of matrices of one shape and scheme; `address_of` gives the ga_integers of one.

    They are zeros to be filled, or the `stored` arrays of a packed file.
    """

    __slots__ = ("_correction", "_how", "_scale", "_structs", "nbytes", "static")

    def __init__(
        self, count: int, rows: int, how: Quantisation, stored: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        lanes, groups = -(-rows // LANES) * LANES, how.scale.shape[1]
        self._how = how
        self.static = how.activations == "static"
        sizes = {"scale": count * groups * lanes} | ({"correction": count * lanes} if self.static else {})
        if stored is None:
            stored = {name: aligned_zeros(size, TYPES[name]) for name, size in sizes.items()}
        require(
            all(name in stored and stored[name].size == size for name, size in sizes.items()),
            f"the scales of {count} packed matrices of {rows} rows in {groups} groups are damaged.",
        )
        self._scale = stored["scale"].reshape(count, groups, lanes)
        self._correction = stored["correction"].reshape(count, lanes) if self.static else None
        self.nbytes = self._scale.nbytes + (0 if self._correction is None else self._correction.nbytes)
        self._structs = ctypes.create_string_buffer(_INTEGERS.size * max(count, 1))
        factor = np.float32(1) / np.float32(how.input_scale)
        for index in range(count):
            _INTEGERS.pack_into(
                self._structs, index * _INTEGERS.size, address(self._scale[index]),
                0 if self._correction is None else address(self._correction[index]), groups, self.static,
                factor, how.input_offset,
            )  # fmt: skip

    @property
    def facts(self) -> dict[str, Any]:
        """The scheme, as JSON has it; `scheme_of` reads it."""
        how = self._how
        return {
            "bits": how.bits, "groups": how.scale.shape[1], "activations": how.activations,
            "input_scale": how.input_scale, "input_offset": how.input_offset,
        }  # fmt: skip

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a packed file stores."""
        return {"scale": self._scale} | ({} if self._correction is None else {"correction": self._correction})

    def fill(self, index: int, at: int, part: Weight) -> None:
        """The scales of one part, whose rows begin at row `at` of matrix `index`."""
        how = part.quantisation
        assert how is not None  # integer_scheme has looked
        rows = slice(at, at + part.shape[0])
        if self._correction is None:
            self._scale[index, :, rows] = how.scale.T
            return
        self._scale[index, 0, rows] = how.output_scale
        if how.correction is not None:
            self._correction[index, rows] = how.correction

    def address_of(self, index: int) -> int:
        """Where the struct of one matrix is."""
        return ctypes.addressof(self._structs) + index * _INTEGERS.size
