"""What ops cost: each formula against an example that was computed by hand, and calls of real backends against them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.models.driving import Driver
from tests.models.memory_checkpoint import random_checkpoint
from tests.models.small_specs import spec_of

from gallium.backends.cpu import backend as cpu
from gallium.models.catalog import load_model
from gallium.ops import costs
from gallium.ops.call_costs import CallCosts
from gallium.ops.costs import Cost, Roof, Sizes
from gallium.ops.handles import AttentionSpec, Experts, Linear, RopeSpec, Step
from gallium.ops.interface import Ops
from gallium.ops.machine import Limits, Stored
from gallium.ops.reference import ReferenceOps
from gallium.ops.wrappers import OpCall, traced

SIZES = Sizes(value=4, kv_value=2)
ROPE = RopeSpec(64, 10000.0, interleaved=True)
GQA = AttentionSpec("gqa", num_heads=16, num_kv_heads=4, head_dim=128, v_head_dim=128, scale=1.0, rope=ROPE)
MLA = AttentionSpec(
    "mla", num_heads=8, num_kv_heads=1, head_dim=128, v_head_dim=128, scale=1.0, rope=ROPE, latent_dim=512
)


def step(*sequences: tuple[int, int]) -> Step:
    """Of each sequence the new tokens, and its length after them."""
    starts = np.cumsum([0, *(new for new, _ in sequences)], dtype=np.int32)
    return Step(
        token_ids=np.zeros(starts[-1], np.int32),
        positions=np.concatenate([np.arange(length - new, length) for new, length in sequences]).astype(np.int32),
        query_start=starts,
        context_lens=np.array([length for _, length in sequences], np.int32),
        block_tables=np.zeros((len(sequences), 9), np.int32),
        logit_rows=(starts[1:] - 1).astype(np.int32),
    )


def test_linear() -> None:
    # 3 tokens from 100 to 40: 3 * 140 floats go in and out, 2 * 3 * 100 * 40 operations.
    found = costs.linear(3, Linear(100, 40, None), Stored(2500, "int4"), SIZES)
    assert found == Cost(weights=2500, activations=3 * 140 * 4, operations={"int4": 24_000})
    assert (found.num_bytes, found.num_operations) == (2500 + 1680, 24_000)


def test_a_weight_is_not_read_for_no_token() -> None:
    assert costs.linear(0, Linear(100, 40, None), Stored(2500, "int4"), SIZES).num_bytes == 0


def test_a_matrix_per_head() -> None:
    found = costs.linear(3, Linear(100, 40, None), Stored(80_000, "bfloat16"), SIZES, heads=10)
    assert found == Cost(weights=80_000, activations=3 * 1400 * 4, operations={"bfloat16": 240_000})


def test_experts_read_only_what_tokens_have_met() -> None:
    # 5 tokens that choose 2 each of 8 experts, 3 of which are met: 3/8 of all weights.
    w = Experts(8, hidden=64, width=32, data=None)
    found = costs.experts(5, 2, 3, w, Stored(8 * 1000, "int8"), SIZES)
    assert (found.weights, found.activations) == (3000, 2 * 5 * 64 * 4)
    assert found.operations == {"int8": 2 * 10 * 3 * 64 * 32, "float32": 10 * (4 * 32 + 2 * 64)}


def test_how_many_experts_are_met() -> None:
    assert costs.experts_met(64, 8, 1) == 8
    assert costs.experts_met(4, 2, 2) == 3  # the second token meets 2 * (1 - 2/4) new ones
    assert costs.experts_met(64, 8, 10_000) == pytest.approx(64)


def test_attention_reads_keys_once_per_group() -> None:
    # One token at position 99: 100 keys and values of 4 * 256, not 16 * 256; each head multiplies both with all.
    found = costs.attend(step((1, 100)), GQA, SIZES)
    assert found.kv == 100 * 4 * 256 * 2
    assert found.activations == 16 * 256 * 4
    assert found.operations == {"bfloat16": 2 * 100 * 16 * 256}


def test_attention_is_causal_over_chunks() -> None:
    # 3 new tokens after 7 see 8 + 9 + 10 keys, but 10 are read; another sequence sees and reads 2.
    found = costs.attend(step((3, 10), (1, 2)), GQA, SIZES)
    assert found.kv == 12 * 4 * 256 * 2
    assert found.operations == {"bfloat16": 2 * (27 + 2) * 16 * 256}


def test_attention_over_a_float32_cache() -> None:
    assert costs.attend(step((1, 1)), GQA, Sizes(4, 4.0)).operations == {"float32": 2 * 16 * 256}


def test_attention_over_latents() -> None:
    found = costs.attend_latent(step((1, 100)), MLA, None, SIZES)
    assert (found.kv, found.operations) == (100 * 576 * 2, {"bfloat16": 2 * 100 * 8 * (576 + 512)})
    chosen = costs.attend_latent(step((2, 100)), MLA, 30, SIZES)
    assert (chosen.kv, chosen.operations) == (60 * 576 * 2, {"bfloat16": 2 * 60 * 8 * (576 + 512)})


def test_choosing_positions() -> None:
    found = costs.index_topk(step((1, 100)), 4, 128, 30, SIZES)
    assert (found.kv, found.operations) == (100 * 128 * 2, {"bfloat16": 2 * 100 * 4 * 129})


def test_kv_write() -> None:
    assert costs.kv_values(GQA) == 1024 and costs.kv_values(MLA) == 576
    assert costs.kv_write(3, 1024, SIZES) == Cost(kv=3 * 1024 * 2, activations=3 * 1024 * 4)


def test_embed_reads_the_rows_of_its_tokens() -> None:
    found = costs.embed(3, Linear(100, 1000, None), Stored(110_000, "int8"), SIZES)
    assert found == Cost(weights=330, activations=1200)


@pytest.mark.parametrize(
    ("found", "values", "operations"),
    [
        (costs.rms_norm(100, SIZES), 200, 400),
        (costs.add(100, SIZES), 300, 100),
        (costs.add_rms_norm(100, SIZES), 400, 500),
        (costs.rope(100, 50, SIZES), 200, 150),
        (costs.swiglu(100, SIZES), 300, 400),
        (costs.route(10, 8, 2, SIZES), 120, 160),
        (costs.take_rows(100, SIZES), 200, 0),
        (costs.sample(2, 50, SIZES), 102, 100),
    ],
)
def test_what_lies_between(found: Cost, values: int, operations: int) -> None:
    assert found == Cost(activations=4 * values, operations={"float32": operations})


def test_half_as_wide_activations_are_half_the_bytes() -> None:
    assert costs.rms_norm(100, Sizes(2)).activations == costs.rms_norm(100, SIZES).activations // 2


def test_of_a_fused_block_only_the_ends_move() -> None:
    parts = [Cost(10, 20, 30, {"int8": 5, "float32": 1}), Cost(1, 2, 3, {"int8": 7})]
    assert costs.fused(parts, 100, SIZES) == Cost(11, 22, 400, {"int8": 12, "float32": 1})


# -- the roof --------------------------------------------------------------------------------

LIMITS = Limits(10e9, {"float32": 100e9, "int4": 400e9})


def test_the_tighter_limit_counts() -> None:
    assert costs.roof(Cost(weights=10**9, operations={"int4": 4 * 10**9}), LIMITS) == Roof(0.1, "memory")
    assert costs.roof(Cost(weights=10**9, operations={"int4": 80 * 10**9}), LIMITS) == Roof(0.2, "int4")


def test_operations_of_several_precisions_follow_each_other() -> None:
    both = Cost(operations={"int4": 40 * 10**9, "float32": 20 * 10**9})
    assert costs.roof(both, LIMITS) == Roof(pytest.approx(0.3), "float32")


def test_an_unknown_peak_is_no_limit() -> None:
    assert costs.roof(Cost(weights=1, operations={"int8": 1}), LIMITS) is None
    assert costs.roof(Cost(weights=10, operations={"int8": 0}), LIMITS) == Roof(1e-9, "memory")


def test_bits_of_a_precision() -> None:
    assert costs.stored(1001, "int4") == Stored(501, "int4")
    assert costs.stored(1000, "bfloat16") == Stored(2000, "bfloat16")


# -- calls -----------------------------------------------------------------------------------


def costs_of(ops: Ops, name: str, precision: Any) -> list[tuple[str, Cost]]:
    """One prefill of 5 tokens of a small model."""
    spec = spec_of(name)
    seen: list[OpCall] = []
    driver = Driver(load_model(random_checkpoint(spec), spec, traced(ops, seen.append)))
    chunk = {"a": [5, 7, 11, 13, 17]}
    driver.step(chunk)
    of = CallCosts(ops, spec.attention, precision, 4)
    at = step((5, 5))
    at = Step(at.token_ids, at.positions, at.query_start, at.context_lens, at.block_tables, np.arange(5))
    return [(call.op, of.of(call.op, call.args, at)) for call in seen if call.depth == 0]


@pytest.mark.parametrize("name", ["glm-odd", "glm-tied-even", "glm4-odd", "glm4_moe-odd", "glm4_moe-even"])
def test_fused_blocks_compute_as_much_as_their_parts(name: str) -> None:
    spec = spec_of(name)
    plain = costs_of(ReferenceOps(), name, "float32")
    blocks = costs_of(cpu.open(spec.facts, "float32", 1), name, "float32")
    assert {"gqa", "gated_mlp" if spec.moe is None else "moe"} <= {op for op, _ in blocks}

    def total(seen: list[tuple[str, Cost]]) -> Cost:
        return sum((cost for _, cost in seen), Cost())

    assert total(plain).num_operations == total(blocks).num_operations
    # Rows are packed to panels of 16, keys to whole vectors: the CPU's bytes are its own.
    assert total(plain).weights <= total(blocks).weights
    assert total(plain).activations > total(blocks).activations


def test_a_packed_weight_takes_what_was_packed() -> None:
    spec = spec_of("glm4_moe-even")
    ops = cpu.open(spec.facts, "int4", 1)
    model = load_model(random_checkpoint(spec), spec, ops)
    of = CallCosts(ops, spec.attention, "int4", 32)
    handles = [model.embedding, model.head]
    for layer in model.layers:
        mlp: Any = layer.mlp
        named = ("gate_up", "down", "router", "experts", "shared_gate_up", "shared_down")
        handles += [layer.attention.qkv, layer.attention.out, *(getattr(mlp, n) for n in named if hasattr(mlp, n))]
    assert sum(of.stored(handle).num_bytes for handle in handles) == ops.weight_bytes
    moe: Any = model.layers[-1].mlp
    assert of.stored(moe.router).precision == "float32"
    assert of.stored(moe.experts).precision == "int4"
    assert of.stored(model.head).precision == "int8"
    # 4 bits, and a scale of 16 bits per 32 columns or two
    assert 0.5 < of.stored(moe.experts).num_bytes / (3 * moe.experts.num_experts * 128 * moe.experts.width) < 0.8


def test_a_backend_that_tells_nothing_is_taken_by_its_precision() -> None:
    spec = spec_of("glm-odd")
    half = CallCosts(ReferenceOps(), spec.attention, "bfloat16", 4)
    assert half.sizes.value == 2
    assert half.stored(Linear(10, 20, None)) == Stored(400, "bfloat16")
    assert half.stored(Experts(3, 10, 20, None)) == Stored(3 * 3 * 200 * 2, "bfloat16")
    one = np.zeros((2, 3, 10), np.float32)
    assert half.of("head_linear", (one, Linear(10, 20, None)), step((2, 2))).weights == 3 * 400


def test_experts_are_counted_by_their_ids() -> None:
    spec = spec_of("glm4_moe-odd")
    of = CallCosts(ReferenceOps(), spec.attention, "float32", 4)
    x, ids = np.zeros((4, 10), np.float32), np.array([[0, 5], [5, 0], [0, 3], [3, 5]], np.int32)
    w = Experts(16, 10, 20, None)
    found = of.of("experts", (x, ids.astype(np.float32), ids, w), step((4, 4)))
    assert found.weights == 3 * of.stored(w).num_bytes // 16


def test_a_fused_mixture_meets_as_many_as_chance() -> None:
    spec = spec_of("glm4_moe-odd")
    of = CallCosts(ReferenceOps(), spec.attention, "float32", 4)
    w = Experts(4, 10, 20, None)
    weights = SimpleNamespace(router=Linear(10, 4, None), experts=w, shared_gate_up=None, shared_down=None)
    moe = SimpleNamespace(num_experts=4, top_k=2)
    found = of.of("moe", (np.zeros((2, 10)), weights, moe), step((2, 2)))
    assert found.weights == 4 * 10 * 4 + 3 * of.stored(w).num_bytes // 4


def test_what_only_passes_through_costs_nothing() -> None:
    of = CallCosts(ReferenceOps(), GQA, "float32", 4)
    assert of.of("all_reduce", (np.zeros((2, 3)),), step((2, 2))) == Cost()
