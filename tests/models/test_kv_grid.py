"""The grid of an 8-bit KV cache on its way from the file to the cache: whole, and one rank's heads of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.models.memory_checkpoint import MemoryCheckpoint, random_checkpoint
from tests.models.small_specs import spec_of

from gallium.errors import CheckpointError
from gallium.models.catalog import load_model
from gallium.models.weights import KV_SCALES, Packer
from gallium.ops.handles import Placement
from gallium.ops.reference import ReferenceOps


def with_grid(layer: int = 1) -> tuple[Any, MemoryCheckpoint]:
    spec = spec_of("glm-tied-even")
    tensors = random_checkpoint(spec).tensors
    a = spec.attention
    for number, name in enumerate(KV_SCALES):
        dim = a.head_dim if name.startswith("k") else a.v_head_dim
        values = np.arange(1, a.num_kv_heads * dim + 1, dtype=np.float32) + number
        tensors[f"model.layers.{layer}.self_attn.{name}"] = values
    return spec, MemoryCheckpoint(tensors)


def test_the_layer_that_has_one_gets_a_cache_with_it() -> None:
    spec, checkpoint = with_grid()
    model = load_model(checkpoint, spec, ReferenceOps())
    caches = model.make_caches(2, 4)
    assert [cache.data.grid is not None for cache in caches] == [index == 1 for index in range(spec.num_layers)]
    a, grid = spec.attention, caches[1].data.grid
    assert grid.k_scale.shape == (a.num_kv_heads, a.head_dim) and grid.v_scale.shape == (a.num_kv_heads, a.v_head_dim)
    assert [values[0, 0] for values in (grid.k_scale, grid.k_offset, grid.v_scale, grid.v_offset)] == [1, 2, 3, 4]


@pytest.mark.parametrize("lost", KV_SCALES)
def test_a_part_that_is_missing_is_named(lost: str) -> None:
    spec, checkpoint = with_grid()
    del checkpoint.tensors[f"model.layers.1.self_attn.{lost}"]
    with pytest.raises(CheckpointError, match=lost):
        load_model(checkpoint, spec, ReferenceOps())


def test_a_rank_reads_the_heads_that_it_holds() -> None:
    spec, checkpoint = with_grid()
    a, at = spec.attention, "model.layers.1.self_attn."
    packer = Packer(checkpoint, ReferenceOps(), lambda weights, role: role)
    whole = packer.kv_grid(at, a.num_kv_heads, a.head_dim, a.v_head_dim)
    assert whole is not None
    for rank in range(a.num_kv_heads):
        place = Placement(rank=rank, tp=a.num_kv_heads)
        packer = Packer(checkpoint, ReferenceOps(), lambda weights, role: role, place)
        part = packer.kv_grid(at, a.num_kv_heads, a.head_dim, a.v_head_dim)
        assert part is not None
        np.testing.assert_array_equal(part.k_scale, whole.k_scale[rank : rank + 1])
        np.testing.assert_array_equal(part.v_offset, whole.v_offset[rank : rank + 1])
