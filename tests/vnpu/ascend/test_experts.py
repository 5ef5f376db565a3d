"""Routing and routed experts of the Ascend backend: kernels, ranges of experts, and quantised checkpoints."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import torch
import torch_npu
from numpy.typing import NDArray
from tests.models.memory_checkpoint import weight
from tests.vnpu.ascend.weights import IntegerWeight, integers, product, static
from tests.vnpu.support import called

from gallium.backends.ascend import experts, linear, soc
from gallium.backends.torch import routing
from gallium.errors import BackendError
from gallium.ops.handles import FloatArray, MoeSpec, Precision, Weight

DEVICE = torch.device("npu", 0)
LAST_BIT = 2.0**-7  # of bfloat16
NZ = 29
COUNT, HIDDEN, WIDTH, TOP_K, TOKENS = 6, 64, 64, 3, 9


def setup(precision: Precision, dtype: torch.dtype = torch.bfloat16) -> linear.Setup:
    return linear.Setup(soc.find("Ascend910B2"), DEVICE, precision, dtype)


def floats(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def chosen(seed: int, tokens: int = TOKENS) -> tuple[FloatArray, NDArray[np.int32]]:
    """Weights and ids; expert 4 is never chosen."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.choice([0, 1, 2, 3, 5], TOP_K, replace=False) for _ in range(tokens)]).astype(np.int32)
    return rng.uniform(0.2, 1, (tokens, TOP_K)).astype(np.float32), ids


def integer_experts(width: int, bits: int, groups: int = 1) -> tuple[list[list[Weight]], list[Weight]]:
    up: list[list[Weight]] = [
        [integers(10 * e + part, width, HIDDEN, bits, groups) for part in (1, 2)] for e in range(COUNT)
    ]
    return up, [integers(10 * e + 3, HIDDEN, width, bits, groups) for e in range(COUNT)]


def float_experts(width: int = WIDTH) -> tuple[list[list[Weight]], list[Weight]]:
    up: list[list[Weight]] = [[weight(floats(e, 2 * width, HIDDEN) / 8)] for e in range(COUNT)]
    return up, [weight(floats(100 + e, HIDDEN, width) / 8) for e in range(COUNT)]


def multiply(x: FloatArray, w: Weight) -> NDArray[np.float64]:
    return product(x, w) if isinstance(w, IntegerWeight) else x.astype(np.float64) @ w.float32().T


def wanted(
    x: FloatArray, weights: FloatArray, ids: NDArray[np.int32], up: list[list[Weight]], down: list[Weight], held: range
) -> NDArray[np.float64]:
    """The definition, over the experts in `held` only."""
    out = np.zeros((len(x), HIDDEN))
    for t in range(len(x)):
        for factor, e in zip(weights[t], ids[t], strict=True):
            if e in held:
                gate_up = np.concatenate([multiply(x[t : t + 1], part) for part in up[e]], 1)
                gate, value = np.split(gate_up, 2, 1)
                out[t] += factor * multiply((gate / (1 + np.exp(-gate)) * value).astype(np.float32), down[e])[0]
    return out


def run(
    pair: experts.ExpertPair, x: FloatArray, weights: FloatArray, ids: NDArray[np.int32], held: range
) -> FloatArray:
    given = (torch.from_numpy(x).to(DEVICE, torch.bfloat16), torch.from_numpy(weights).to(DEVICE))
    y = experts.run(*given, torch.from_numpy(ids).to(DEVICE), pair, held.start, len(held), COUNT)
    out: FloatArray = y.float().cpu().numpy()
    return out


def near(got: FloatArray, expected: NDArray[np.float64], tolerance: float) -> None:
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def inputs(seed: int, tokens: int = TOKENS) -> FloatArray:
    return torch.from_numpy(floats(seed, tokens, HIDDEN)).bfloat16().float().numpy()


# -- kernels ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("precision", "width", "extra", "tolerance"),
    [
        ("bfloat16", WIDTH, {"SwiGlu"}, 0.02),
        ("int8", WIDTH, {"DequantSwigluQuant"}, 0.04),
        ("int8", 40, {"SwiGlu", "DynamicQuant"}, 0.04),  # a width that npu_dequant_swiglu_quant refuses with groups
        ("int4", WIDTH, {"SwiGlu"}, 0.2),
        ("int4", 36, {"SwiGlu", "DynamicQuant"}, 0.2),  # no groups of 32: int8
    ],
)
def test_fused_kernels(precision: Precision, width: int, extra: set[str], tolerance: float) -> None:
    up, down = float_experts(width)
    pair = experts.pack(up, down, ("linear", "linear"), setup(precision))
    x, (weights, ids) = inputs(7), chosen(8)
    with called() as names:
        got = run(pair, x, weights, ids, range(COUNT))
    kinds = {"MoeInitRoutingV3", "GroupedMatmul", "MoeFinalizeRouting", *extra}
    assert all(any(name.startswith(kind) for name in names) for kind in kinds), names
    assert ("MoeInitRouting" in names) is False
    near(got, wanted(x, weights, ids, up, down, range(COUNT)), tolerance)


def test_weights_are_stored_in_nz() -> None:
    up, down = float_experts()
    for precision, kind in (("bfloat16", "weight"), ("int8", "codes")):
        pair = experts.pack(up, down, ("linear", "linear"), setup(precision))  # type: ignore[arg-type]
        for side in (pair.gate_up, pair.down):
            assert torch_npu.get_npu_format(getattr(side, kind)) == NZ


def test_weight_bytes() -> None:
    up, down = float_experts()
    values = COUNT * 3 * WIDTH * HIDDEN
    sizes = {p: experts.pack(up, down, ("linear", "linear"), setup(p)).nbytes for p in ("bfloat16", "int8", "int4")}  # type: ignore[arg-type]
    assert sizes["bfloat16"] == 2 * values
    assert sizes["int8"] == values + (4 + 2) * COUNT * (2 * WIDTH + HIDDEN)
    assert sizes["int4"] == values // 2 + 2 * 2 * values // 32


def test_roles_may_differ() -> None:
    up, down = float_experts()
    pair = experts.pack(up, down, ("linear", "sensitive"), setup("int4"))
    assert isinstance(pair.gate_up, experts.Int4Groups)
    assert isinstance(pair.down, experts.Int8Groups)
    x, (weights, ids) = inputs(7), chosen(8)
    near(run(pair, x, weights, ids, range(COUNT)), wanted(x, weights, ids, up, down, range(COUNT)), 0.2)


def test_no_tokens() -> None:
    pair = experts.pack(*float_experts(), ("linear", "linear"), setup("int8"))
    weights, ids = chosen(1, 1)
    assert run(pair, inputs(1, 1)[:0], weights[:0], ids[:0], range(COUNT)).shape == (0, HIDDEN)


# -- ranges of experts ------------------------------------------------------------------------
@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4"])
def test_ranks_parts_add_up(precision: Precision) -> None:
    """Each rank holds some of the experts and adds nothing for the others, whatever lies behind its rows."""
    up, down = float_experts()
    x, (weights, ids) = inputs(7), chosen(8)
    whole = run(experts.pack(up, down, ("linear", "linear"), setup(precision)), x, weights, ids, range(COUNT))
    total = np.zeros_like(whole)
    for held in (range(0, 2), range(2, 4), range(4, 6)):
        part = slice(held.start, held.stop)
        pair = experts.pack(up[part], down[part], ("linear", "linear"), setup(precision))
        total += run(pair, x, weights, ids, held)
    np.testing.assert_allclose(total, whole, rtol=0.03, atol=0.03 * np.abs(whole).max())


def test_a_rank_that_nobody_chose_adds_zeros() -> None:
    up, down = float_experts()
    pair = experts.pack(up[4:5], down[4:5], ("linear", "linear"), setup("bfloat16"))
    x, (weights, ids) = inputs(7), chosen(8)
    np.testing.assert_array_equal(run(pair, x, weights, ids, range(4, 5)), np.zeros_like(x))


def test_the_range_of_experts_does_not_stick() -> None:
    """torch_npu makes the range that is used when none is given once in a process, from the first such call.

    Another caller in this process may have made that call for another number of experts: here for 8, as
    tests/vnpu/test_moe.py does, which may run in this process too.
    """
    x = torch.zeros(2, 32, device=DEVICE)
    first = torch.tensor([[0, 1], [1, 2]], dtype=torch.int32, device=DEVICE)
    with suppress(RuntimeError):  # then it was another caller's number
        torch_npu.npu_moe_init_routing_v2(x, first, active_num=4, expert_num=8, expert_tokens_num_type=1,
                                          expert_tokens_num_flag=True)  # fmt: skip
    up, down = float_experts()
    pair = experts.pack(up, down, ("linear", "linear"), setup("bfloat16"))
    inputs_, (weights, ids) = inputs(7), chosen(8)
    got = run(pair, inputs_, weights, ids, range(COUNT))
    near(got, wanted(inputs_, weights, ids, up, down, range(COUNT)), 0.02)


# -- checkpoints that bring their integers ---------------------------------------------------------
@pytest.mark.parametrize(("bits", "groups"), [(8, 1), (4, 1), (4, 2)])
@pytest.mark.parametrize("width", [WIDTH, 40])
def test_checkpoint_integers(bits: int, groups: int, width: int) -> None:
    up, down = integer_experts(width, bits, groups)
    pair = experts.pack(up, down, ("linear", "linear"), setup("int8" if bits == 8 else "int4"))
    kind = experts.Int8Groups if bits == 8 else experts.EightByFourGroups
    assert isinstance(pair.gate_up, kind)
    assert isinstance(pair.down, kind)
    x, (weights, ids) = inputs(7), chosen(8)
    expected = wanted(x, weights, ids, up, down, range(COUNT))
    near(run(pair, x, weights, ids, range(COUNT)), expected, 0.02)


@pytest.mark.parametrize(("bits", "groups"), [(8, 1), (4, 1), (4, 2)])
def test_one_product_of_integers_is_exact_up_to_its_rounding(bits: int, groups: int) -> None:
    """Rows that are whole already: nothing is left but the scales and the last bit of bfloat16."""
    matrices: list[list[Weight]] = [[integers(e, 48, HIDDEN, bits, groups)] for e in range(3)]
    grouped = experts.pack_groups(matrices, "linear", setup("int4" if bits == 4 else "int8"))
    x = np.random.default_rng(5).integers(-127, 128, (7, HIDDEN)).astype(np.int8)
    x[:, 0] = 127
    scale = np.random.default_rng(6).uniform(0.01, 0.02, 7).astype(np.float32)
    counts = torch.tensor([2, 0, 5], device=DEVICE)
    y = grouped(torch.from_numpy(x).to(DEVICE), torch.from_numpy(scale).to(DEVICE), counts).float().cpu().numpy()
    owners = [0, 0, 2, 2, 2, 2, 2]
    rows = (x * scale[:, None]).astype(np.float32)
    expected = np.concatenate([multiply(rows[i : i + 1], matrices[e][0]) for i, e in enumerate(owners)])
    np.testing.assert_allclose(y, expected, rtol=2 * LAST_BIT, atol=1e-4)


def test_what_cannot_be_packed_is_refused_with_the_reason() -> None:
    up, down = float_experts()
    with pytest.raises(BackendError, match="as many gate_up as down"):
        experts.pack(up[1:], down, ("linear", "linear"), setup("int8"))
    with pytest.raises(BackendError, match="one shape"):
        experts.pack_groups([[weight(floats(1, 8, 32))], [weight(floats(2, 8, 64))]], "linear", setup("int8"))
    with pytest.raises(BackendError, match="several ways"):
        experts.pack_groups([[integers(1, 8, 32)], [weight(floats(2, 8, 32))]], "linear", setup("int8"))
    with pytest.raises(BackendError, match="static"):
        experts.pack_groups([[static(1, 8, 32)]], "linear", setup("int8"))


# -- routing --------------------------------------------------------------------------------------
SPECS = {
    "355b": MoeSpec(160, 8, "sigmoid", True, 2.5),
    "groups": MoeSpec(12, 3, "sigmoid", True, 1.7, num_groups=4, top_groups=2),
    "softmax": MoeSpec(64, 6, "softmax", False, 1.0),
    "softmax-renormalised": MoeSpec(64, 6, "softmax", True, 1.5),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("ties", [False, True])
def test_gating_is_one_kernel_and_chooses_as_defined(name: str, ties: bool) -> None:
    spec = SPECS[name]
    assert experts.gating_refusal(spec) == ""
    logits = torch.from_numpy(floats(1, 21, spec.num_experts))
    logits = (logits * 2).round() if ties else logits
    bias = torch.zeros(spec.num_experts) if ties else torch.from_numpy(floats(2, spec.num_experts) / 4)
    ours = logits.to(DEVICE), bias.to(DEVICE)
    with called() as names:
        weights, ids = experts.route(*ours, spec)
    assert "MoeGatingTopK" in names
    expected_weights, expected_ids = routing.route(logits, bias, spec)
    assert torch.equal(ids.cpu(), expected_ids)
    torch.testing.assert_close(weights.cpu(), expected_weights, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (MoeSpec(5, 1, "sigmoid", False, 1.0), "renormalises"),
        (MoeSpec(6, 2, "sigmoid", True, 1.0, num_groups=6, top_groups=3), "groups"),
        (MoeSpec(4096, 8, "sigmoid", True, 1.0), "limits"),
        (MoeSpec(12, 4, "sigmoid", True, 1.0, num_groups=4, top_groups=1), "top_k"),
    ],
)
def test_gating_says_what_it_cannot_do(spec: MoeSpec, reason: str) -> None:
    assert reason in experts.gating_refusal(spec)
