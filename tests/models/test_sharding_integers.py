"""Quantised models over ranks: integers, scales, corrections and grids of all ranks together are those of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tests.models.integer_checkpoint import Kind, integer_checkpoint
from tests.models.small_specs import spec_of

from gallium.models.catalog import load_model
from gallium.models.decoder import Model
from gallium.ops.handles import ALONE, Experts, Linear, Placement, Quantisation, Role, Weight
from gallium.ops.reference import ReferenceOps


class Keeping(ReferenceOps):
    """Keeps the weights as they are handed over."""

    def pack_linear(self, parts: Sequence[Weight], bias: Sequence[Weight] = (), role: Role = "linear") -> Linear:
        return Linear(parts[0].shape[1], sum(part.shape[0] for part in parts), list(parts), list(bias))

    def pack_experts(
        self,
        gate_up: Sequence[Sequence[Weight]],
        down: Sequence[Weight],
        roles: tuple[Role, Role] = ("linear", "linear"),
    ) -> Experts:
        return Experts(len(down), *down[0].shape, ([list(parts) for parts in gate_up], list(down)))


def of(weight: Weight) -> tuple[Any, Quantisation]:
    """Codes `[out, in]` and how they are meant."""
    assert weight.quantisation is not None and weight.storage == f"I{weight.quantisation.bits}"
    return weight.raw().view(np.int8).reshape(weight.shape), weight.quantisation


def check_rows(whole: Weight, parts: Sequence[Weight]) -> None:
    """Parts stacked are the whole, everything with its rows."""
    codes, how = of(whole)
    held = [of(part) for part in parts]
    np.testing.assert_array_equal(np.concatenate([c for c, _ in held]), codes)
    for name in ("scale", "output_scale", "correction"):
        if getattr(how, name) is not None:
            joined = np.concatenate([getattr(h, name) for _, h in held])
            np.testing.assert_array_equal(joined, getattr(how, name))


def check_columns(whole: Weight, parts: Sequence[Weight]) -> None:
    """Parts side by side are the whole; the corrections add up to it."""
    codes, how = of(whole)
    held = [of(part) for part in parts]
    np.testing.assert_array_equal(np.concatenate([c for c, _ in held], axis=1), codes)
    np.testing.assert_array_equal(np.concatenate([part.float32() for part in parts], axis=1), whole.float32())
    if how.correction is not None:
        np.testing.assert_array_equal(sum(h.correction for _, h in held if h.correction is not None), how.correction)
        assert all(np.array_equal(h.output_scale, how.output_scale) for _, h in held)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["static", "dynamic", "groups"])
@pytest.mark.parametrize("tp", [2, 4])
def test_integers_of_all_ranks_are_those_of_the_whole(kind: Kind, tp: int) -> None:
    spec = spec_of("glm4_moe-even", num_key_value_heads=4, moe_intermediate_size=128)
    checkpoint = integer_checkpoint(spec, kind)

    def load(placement: Placement) -> Model:
        return load_model(checkpoint, spec, Keeping(), placement=placement)

    whole, ranks = load(ALONE), [load(Placement(rank, tp)) for rank in range(tp)]
    for index, layer in enumerate(whole.layers):
        parts = [rank.layers[index] for rank in ranks]
        for i, weight in enumerate(layer.attention.qkv.data):
            check_rows(weight, [part.attention.qkv.data[i] for part in parts])
        check_columns(layer.attention.out.data[0], [part.attention.out.data[0] for part in parts])
        for name in ("k_scale", "k_offset", "v_scale", "v_offset"):
            joined = np.concatenate([getattr(part.attention.kv_grid, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(layer.attention.kv_grid, name))
    gate_up, down = whole.layers[-1].mlp.experts.data  # type: ignore[union-attr]
    held = [rank.layers[-1].mlp.experts.data for rank in ranks]  # type: ignore[union-attr]
    for e in range(len(down)):
        check_columns(down[e], [part[1][e] for part in held])
        for i in range(2):
            check_rows(gate_up[e][i], [part[0][e][i] for part in held])
