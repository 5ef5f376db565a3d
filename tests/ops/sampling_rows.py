"""Builds SamplerInputs row by row, with everything off unless said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gallium.ops.handles import SamplerInputs


class Adjust(NamedTuple):
    """What happens to one token's logit."""

    token: int
    scale: float = 1.0
    bias: float = 0.0


@dataclass(frozen=True)
class Row:
    """How one row is drawn."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    position: int = 0
    adjust: Sequence[Adjust] = field(default_factory=tuple)


def inputs(rows: Sequence[Row], vocab_size: int) -> SamplerInputs:
    """The rows in arrays."""
    adjustments = [one for row in rows for one in row.adjust]
    return SamplerInputs(
        temperature=np.array([r.temperature for r in rows], np.float32),
        top_k=np.array([r.top_k for r in rows], np.int32),
        top_p=np.array([r.top_p for r in rows], np.float32),
        min_p=np.array([r.min_p for r in rows], np.float32),
        seed=np.array([r.seed for r in rows], np.uint64),
        position=np.array([r.position for r in rows], np.int32),
        adjust_start=np.cumsum([0, *(len(r.adjust) for r in rows)], dtype=np.int32),
        adjust_ids=np.array([a.token for a in adjustments], np.int32),
        adjust_scale=np.array([a.scale for a in adjustments], np.float32),
        adjust_bias=np.array([a.bias for a in adjustments], np.float32),
        vocab_size=vocab_size,
    )
