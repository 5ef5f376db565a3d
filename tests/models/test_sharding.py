"""How sizes divide, what is refused and suggested, and that the ranks' parts make up the whole, each read once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.models.hf_tiny import MOE, SMALL
from tests.models.memory_checkpoint import MemoryCheckpoint, random_checkpoint
from tests.models.small_specs import spec_of

from gallium.errors import CheckpointError, UnsupportedModel, UsageError
from gallium.models.catalog import expected_tensors, load_model
from gallium.models.config import read_spec
from gallium.models.sharding import check_divides, local_experts, local_spec, share
from gallium.models.spec import ModelSpec
from gallium.ops.handles import ALONE, Experts, FloatArray, Linear, Placement, Role, Weight
from gallium.ops.reference import ReferenceOps

NINE = SMALL | {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "intermediate_size": 1536}


def refusal(spec: ModelSpec, placement: Placement) -> str:
    with pytest.raises(UsageError) as caught:
        check_divides(spec, placement)
    return str(caught.value)


# -- what is refused ----------------------------------------------------------------


def test_a_size_that_does_not_divide_is_named_with_what_would_work() -> None:
    spec = read_spec(NINE | {"model_type": "glm"})
    check_divides(spec, Placement(0, tp=3))
    message = refusal(spec, Placement(0, tp=2))
    assert "--tp 2" in message and "9 attention heads" in message and "3 key/value heads" in message
    assert "rows of the vocabulary" not in message and "What works is --tp 1 or 3." in message


def test_key_value_heads_are_repeated_when_there_are_fewer_than_ranks() -> None:
    spec = spec_of("glm-tied-even")  # 8 heads, 2 key/value heads
    for tp in (1, 2, 4, 8):
        check_divides(spec, Placement(0, tp=tp))
    assert local_spec(spec, Placement(5, tp=8)).attention.num_kv_heads == 1
    odd = replace(spec, attention=replace(spec.attention, num_heads=12, num_kv_heads=3), vocab_size=24, ffn=24)
    check_divides(odd, Placement(0, tp=6))
    assert "3 key/value heads" in refusal(odd, Placement(0, tp=4)) and "1, 3, 6 or 12" in refusal(
        odd, Placement(0, tp=4)
    )


def test_experts_go_to_all_ranks_or_to_none() -> None:
    spec = spec_of("glm4_moe-even")  # 16 experts
    check_divides(spec, Placement(0, tp=2, dp=2, ep=4))
    assert "must be 1, or 4" in refusal(spec, Placement(0, tp=2, dp=2, ep=2))
    assert "1, 2, 4, 8 or 16" in refusal(spec, Placement(0, dp=3, ep=3))
    assert "no routed experts" in refusal(spec_of("glm-odd"), Placement(0, dp=2, ep=2))
    assert "--tp 1 --ep 2, --tp 2 --ep 4, --tp 4 --ep 8 or --tp 8 --ep 16" in refusal(spec, Placement(0, 3, 2, 6))


def test_the_width_of_experts_matters_only_when_they_are_cut() -> None:
    spec = replace(spec_of("glm4_moe-even"), moe_ffn=63)
    assert "63 columns of a routed expert" in refusal(spec, Placement(0, tp=2))
    check_divides(spec, Placement(0, tp=2, ep=2))


@pytest.mark.parametrize("wrong", [Placement(0, tp=0), Placement(0, dp=0), Placement(0, ep=0), Placement(2, tp=2)])
def test_numbers_that_make_no_sense(wrong: Placement) -> None:
    refusal(spec_of("glm4_moe-even"), wrong)


def test_latent_attention_is_not_cut() -> None:
    spec = spec_of("glm-tied-even")
    latent = replace(spec, attention=replace(spec.attention, kind="mla", latent_dim=8))
    check_divides(latent, Placement(0, dp=2))
    with pytest.raises(UnsupportedModel, match="mla"):
        check_divides(latent, Placement(0, tp=2))


def test_nothing_is_read_when_it_does_not_divide_or_does_not_fit() -> None:
    spec = spec_of("glm-tied-even")
    checkpoint = random_checkpoint(spec)
    with pytest.raises(UsageError):
        load_model(checkpoint, spec, ReferenceOps(), placement=Placement(0, tp=3))
    del checkpoint.tensors["model.layers.1.mlp.down_proj.weight"]
    with pytest.raises(CheckpointError, match="down_proj"):
        load_model(checkpoint, spec, ReferenceOps(), placement=Placement(1, tp=2))
    assert checkpoint.reads == []


# -- the ranks' parts ---------------------------------------------------------------


@given(units=st.integers(1, 60), ranks=st.integers(1, 12))
def test_shares_are_equal_and_make_up_the_whole(units: int, ranks: int) -> None:
    held = [unit for rank in range(ranks) for unit in share(units, ranks, rank)]
    if units % ranks == 0:
        assert held == list(range(units))
    elif ranks % units == 0:
        assert held == [unit for unit in range(units) for _ in range(ranks // units)]


class Noting(ReferenceOps):
    """Counts how often each number of the checkpoint is packed."""

    def __init__(self, size: int) -> None:
        self.counts = np.zeros(size, np.int64)

    def note(self, values: FloatArray) -> None:
        np.add.at(self.counts, values.astype(np.int64), 1)

    def upload(self, array: FloatArray) -> Any:
        self.note(array)
        return array

    def pack_linear(self, parts: Sequence[Weight], bias: Sequence[Weight] = (), role: Role = "linear") -> Linear:
        for part in (*parts, *bias):
            self.note(part.float32())
        return super().pack_linear(parts, bias, role)

    def pack_experts(
        self,
        gate_up: Sequence[Sequence[Weight]],
        down: Sequence[Weight],
        roles: tuple[Role, Role] = ("linear", "linear"),
    ) -> Experts:
        for part in (*(part for parts in gate_up for part in parts), *down):
            self.note(part.float32())
        return super().pack_experts(gate_up, down, roles)


def numbered(expected: Mapping[str, tuple[int, ...]]) -> tuple[MemoryCheckpoint, dict[str, slice]]:
    """A checkpoint whose every number is another one, and which numbers each tensor has."""
    tensors, where, start = {}, {}, 0
    for name, shape in expected.items():
        stop = start + int(np.prod(shape))
        tensors[name], where[name] = np.arange(start, stop, dtype=np.float32).reshape(shape), slice(start, stop)
        start = stop
    assert start < 1 << 24  # float32 still tells them apart
    return MemoryCheckpoint(tensors), where


def times(name: str, placement: Placement, spec: ModelSpec) -> int:
    """How many ranks should hold each number of a tensor."""
    if "norm" in name or name.endswith(("mlp.gate.weight", "e_score_correction_bias")):
        return placement.world
    if ".experts." in name:
        return 1 if placement.ep > 1 else placement.dp
    if "k_proj" in name or "v_proj" in name:
        return placement.dp * max(1, placement.tp // spec.attention.num_kv_heads)
    return placement.dp


@st.composite
def spread(draw: st.DrawFn) -> tuple[ModelSpec, Placement, frozenset[str]]:
    """A small model, a placement that fits it, and the names by which a file chooses its form."""
    tp, dp = draw(st.sampled_from([1, 2, 3, 4, 6])), draw(st.sampled_from([1, 2]))
    kv = draw(st.sampled_from([tp, 2 * tp] + [n for n in (1, 2, 3) if tp % n == 0]))
    heads = max(kv, tp) * draw(st.integers(1, 2))
    config = SMALL | {
        "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": 4, "hidden_size": 5, "vocab_size": 7 * tp,
        "intermediate_size": 2 * tp, "num_hidden_layers": 2, "tie_word_embeddings": draw(st.booleans()),
    }  # fmt: skip
    kind = draw(st.sampled_from(["glm", "llama", "glm4_moe"]))
    if kind == "llama":
        config |= {"attention_bias": True, "mlp_bias": True}  # the family whose cut columns have biases
    ep, names = 1, set()
    if kind == "glm4_moe":
        ep = draw(st.sampled_from([1, tp * dp]))
        config |= MOE | {
            "n_routed_experts": 2 * tp * dp, "num_experts_per_tok": 2, "moe_intermediate_size": 3 * tp,
            "n_shared_experts": draw(st.integers(0, 2)), "use_qk_norm": True,
        }  # fmt: skip
        if draw(st.booleans()):
            names.add("model.layers.1.mlp.experts.gate_up_proj")
    if draw(st.booleans()):
        names.add("model.layers.0.mlp.gate_up_proj.weight")
    return read_spec(config | {"model_type": kind}), Placement(0, tp, dp, ep), frozenset(names)


@settings(deadline=None, max_examples=60)
@given(spread())
def test_all_ranks_parts_together_are_the_whole(case: tuple[ModelSpec, Placement, Collection[str]]) -> None:
    spec, placement, names = case
    checkpoint, where = numbered(expected_tensors(spec, names))
    ops = Noting(max(s.stop for s in where.values()))
    for rank in range(placement.world):
        check_shapes(spec, replace(placement, rank=rank), checkpoint, ops)
    for name, numbers in where.items():
        assert set(ops.counts[numbers]) == {times(name, placement, spec)}, name


def check_shapes(spec: ModelSpec, placement: Placement, checkpoint: MemoryCheckpoint, ops: Noting) -> None:
    """Load one rank: what it packs has the sizes of its local spec."""
    model = load_model(checkpoint, spec, ops, placement=placement)
    local = local_spec(spec, placement)
    assert model.spec == local
    assert model.embedding.out_features == model.head.out_features == local.vocab_size
    a = local.attention
    for layer in model.layers:
        assert layer.attention.qkv.out_features == (a.num_heads + 2 * a.num_kv_heads) * a.head_dim
        assert layer.attention.out.in_features == a.num_heads * a.v_head_dim
    dense, last = model.layers[0].mlp, model.layers[-1].mlp
    assert (dense.gate_up.out_features, dense.down.in_features) == (2 * local.ffn, local.ffn)  # type: ignore[union-attr]
    if spec.moe is not None:
        experts = last.experts  # type: ignore[union-attr]
        assert (experts.num_experts, experts.width) == (len(local_experts(spec, placement)), local.moe_ffn)


def test_heads_go_with_their_key_value_heads() -> None:
    """Rows of q, k and v of one rank, by the numbers of the heads."""
    spec = spec_of("glm-tied-even", num_key_value_heads=4)
    d, hidden = spec.attention.head_dim, spec.hidden
    tensors = dict(random_checkpoint(spec).tensors)
    for part, heads in (("q", 8), ("k", 4), ("v", 4)):
        rows = np.repeat(np.arange(heads, dtype=np.float32), d)
        tensors[f"model.layers.0.self_attn.{part}_proj.weight"] = np.repeat(rows[:, None], hidden, axis=1)

    def held(rank: int, tp: int) -> tuple[list[int], ...]:
        model = load_model(MemoryCheckpoint(tensors), spec, ReferenceOps(), placement=Placement(rank, tp))
        a = model.spec.attention
        of: NDArray[np.int64] = model.layers[0].attention.qkv.data[::d, 0].astype(np.int64)
        return tuple(part.tolist() for part in np.split(of, [a.num_heads, a.num_heads + a.num_kv_heads]))

    assert held(1, 2) == ([4, 5, 6, 7], [2, 3], [2, 3])
    assert held(5, 8) == ([5], [2], [2])


def test_a_rank_is_handed_its_part_and_no_more() -> None:
    """Bytes per rank: a share of what is cut, all of what every rank needs."""
    spec = spec_of("glm4_moe-even")
    checkpoint = random_checkpoint(spec)
    sizes = {name: tensor.nbytes for name, tensor in checkpoint.tensors.items()}
    for placement in (ALONE, Placement(3, tp=4), Placement(1, tp=2, dp=2, ep=4), Placement(2, dp=4, ep=4)):
        ops = Weighing()
        load_model(checkpoint, spec, ops, placement=placement)
        expected = sum(size * times(name, placement, spec) // placement.world for name, size in sizes.items())
        assert ops.handed == expected, placement


class Weighing(ReferenceOps):
    """Adds up the stored bytes of everything that is packed."""

    def __init__(self) -> None:
        self.handed = 0

    def upload(self, array: FloatArray) -> Any:
        self.handed += array.nbytes
        return array

    def pack_linear(self, parts: Sequence[Weight], bias: Sequence[Weight] = (), role: Role = "linear") -> Linear:
        self.handed += sum(part.raw().nbytes for part in (*parts, *bias))
        return Linear(parts[0].shape[1], sum(part.shape[0] for part in parts), None)

    def pack_experts(
        self,
        gate_up: Sequence[Sequence[Weight]],
        down: Sequence[Weight],
        roles: tuple[Role, Role] = ("linear", "linear"),
    ) -> Experts:
        self.handed += sum(part.raw().nbytes for part in (*(part for parts in gate_up for part in parts), *down))
        return Experts(len(down), *down[0].shape, None)


def test_two_equal_matrices_are_tied_on_every_rank_and_two_different_ones_on_none() -> None:
    spec = spec_of("glm-tied-even")
    checkpoint = random_checkpoint(spec)
    checkpoint.tensors["lm_head.weight"] = checkpoint.tensors["model.embed_tokens.weight"].copy()
    for rank in range(2):
        model = load_model(checkpoint, spec, ReferenceOps(), placement=Placement(rank, tp=2))
        assert model.head is model.embedding
    checkpoint.tensors["lm_head.weight"] += 1
    for rank in range(2):
        model = load_model(checkpoint, spec, ReferenceOps(), placement=Placement(rank, tp=2))
        assert model.head is not model.embedding
