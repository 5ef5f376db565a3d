"""Causal convolutions and hyper-connections, which the 950 family alone has; test_on_950.py runs this file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.support import called
from torch import Tensor

LIMITS = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
HALVES = (torch.float16, torch.bfloat16)


def near(actual: Tensor, expected: Tensor, scale: float = 1) -> None:
    limit = scale * LIMITS[actual.dtype]
    torch.testing.assert_close(actual.detach().cpu().double(), expected.detach().double(), rtol=limit, atol=limit)


def npu(**arguments: Any) -> dict[str, Any]:
    return {name: value.npu() if isinstance(value, Tensor) else value for name, value in arguments.items()}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("masked", [True, False])
def test_masked_causal_convolution(masked: bool, dtype: torch.dtype) -> None:
    x, weight = torch.randn(7, 2, 5).to(dtype), torch.randn(3, 5).to(dtype)
    mask = torch.rand(2, 7) > 0.3 if masked else None
    leaves = [t.double().requires_grad_() for t in (x, weight)]
    expected = torch.zeros(7, 2, 5).double()
    for step in range(7):
        for k in range(3):
            if step - 2 + k >= 0:
                expected[step] = expected[step] + leaves[1][k] * leaves[0][step - 2 + k]
    if mask is not None:
        expected = expected * mask.T[..., None]
    device = [t.npu().requires_grad_() for t in (x, weight)]
    with called() as names:
        y = torch_npu.npu_masked_causal_conv1d(*device, mask=None if mask is None else mask.npu())
    assert "MaskedCausalConv1d" in names
    near(y, expected)
    grad = torch.randn(7, 2, 5).to(dtype)
    with called() as names:
        y.backward(grad.npu())
    assert "MaskedCausalConv1dBackward" in names
    expected.backward(grad.double())
    for actual, wanted in zip(device, leaves, strict=True):
        near(actual.grad, wanted.grad, 4)


def causal(
    x: Tensor,
    weight: Tensor,
    states: Tensor,
    bounds: list[int],
    lines: list[tuple[int, int]],
    accepted: list[int] | None = None,
    computed: list[int] | None = None,
    pangu: bool = False,
    residual: bool = False,
) -> tuple[Tensor, Tensor]:
    """Step by step, from the documentation; without prefix caching."""
    states, out = states.clone(), torch.zeros_like(x)
    steps = states.shape[1]
    for n, (read, written) in enumerate(lines):
        new = x[bounds[n] : bounds[n + 1]]
        if computed is not None and computed[n] == 0:
            history, offset = torch.zeros(2, x.shape[1], dtype=x.dtype), 0
        else:
            offset = steps - 2 if accepted is None else accepted[n] - 1
            history = states[read, : offset + 2]
        padded = torch.cat([history, new])
        kept = min(steps, len(padded))
        states[written, steps - kept :] = padded[len(padded) - kept :]
        padded = padded[offset:]
        result = torch.stack([sum(weight[k] * padded[i + k] for k in range(3)) for i in range(len(new))])
        if pangu and computed is not None:
            result[: min(max(2 - computed[n], 0), len(new))] = 0
        out[bounds[n] : bounds[n + 1]] = result + new if residual else result
    return out, states


def ints(values: list[int] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "case",
    [
        {"steps": 2},
        {"steps": 2, "computed": [10, 5, 0, 1], "residual": True},
        {"steps": 4, "computed": [1, 20, 0, 3], "accepted": [1, 2, 1, 3], "pangu": True},
        {"steps": 4},
    ],
)
def test_cached_causal_convolution(case: dict[str, Any], dtype: torch.dtype, inplace: bool) -> None:
    bounds, indices = [0, 5, 8, 9, 13], [4, 0, 6, 2]
    x, weight = torch.randn(13, 64).to(dtype), torch.randn(3, 64).to(dtype)
    states = torch.randn(8, case["steps"], 64).to(dtype)
    options = {name: value for name, value in case.items() if name != "steps"}
    expected, states_after = causal(
        x.double(), weight.double(), states.double(), bounds, [(i, i) for i in indices], **options
    )
    device, device_states = x.npu(), states.npu()
    arguments = npu(
        query_start_loc=ints(bounds),
        cache_indices=ints(indices),
        num_accepted_tokens=ints(case.get("accepted")),
        num_computed_tokens=ints(case.get("computed")),
        residual_connection=int(case.get("residual", False)),
        conv_mode="pangu" if case.get("pangu") else "default",
    )
    function = torch_npu.npu_fused_causal_conv1d_v2 if inplace else torch_npu.npu_fused_causal_conv1d
    with called() as names:
        y = function(device, weight.npu(), device_states, **arguments)
    assert ("InplaceFusedCausalConv1d" if inplace else "FusedCausalConv1d") in names
    near(device if inplace else y, expected)
    assert torch.equal(device_states.cpu().double(), states_after)


def test_cached_causal_convolution_of_a_batch_skips_padding() -> None:
    x, weight, states = torch.randn(3, 2, 64).half(), torch.randn(3, 64).half(), torch.randn(4, 3, 64).half()
    device_states = states.npu()
    y = torch_npu.npu_fused_causal_conv1d(
        x.npu(), weight.npu(), device_states, cache_indices=ints([3, -1, 1]).npu(), pad_slot_id=-1
    )
    expected, after = causal(
        x[::2].double().reshape(4, 64), weight.double(), states.double(), [0, 2, 4], [(3, 3), (1, 1)]
    )
    near(y.cpu()[::2].reshape(4, 64), expected)
    assert torch.equal(device_states.cpu().double(), after)


def test_cached_causal_convolution_with_prefix_caching() -> None:
    """Blocks of 4; 2 steps are there, in block 0, and 9 come: blocks 0 and 1 are full then, and 2 has 3 steps."""
    x, weight, states = torch.randn(9, 64).half(), torch.randn(3, 64).half(), torch.randn(6, 2, 64).half()
    device_states = states.npu()
    table = torch.tensor([[5, 2, 0]], dtype=torch.int32)
    y = torch_npu.npu_fused_causal_conv1d(
        x.npu(),
        weight.npu(),
        device_states,
        **npu(
            query_start_loc=ints([0, 9]),
            cache_indices=table,
            num_computed_tokens=ints([2]),
            block_idx_first_scheduled_token=ints([0]),
            block_idx_last_scheduled_token=ints([2]),
            initial_state_idx=ints([0]),
            block_size=4,
        ),
    )
    expected, after = causal(x.double(), weight.double(), states.double(), [0, 9], [(5, 0)], computed=[2])
    near(y, expected)
    after[5], after[2] = x[0:2].double(), x[4:6].double()  # the last steps of tokens 0 to 3 and 4 to 7
    assert torch.equal(device_states.cpu().double(), after)


def _causal(**changes: Any) -> object:
    arguments: dict[str, Any] = {
        "x": torch.ones(4, 64).half(),
        "weight": torch.ones(3, 64).half(),
        "conv_states": torch.ones(2, 2, 64).half(),
        "query_start_loc": ints([0, 4]),
    }
    return torch_npu.npu_fused_causal_conv1d(**npu(**(arguments | changes)))


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: _causal(weight=torch.ones(4, 64).half()), "shape of weight"),
        (lambda: _causal(x=torch.ones(4, 8).half(), weight=torch.ones(3, 8).half()), "last dimension of x"),
        (lambda: _causal(query_start_loc=None), "query_start_loc"),
        (lambda: _causal(conv_mode="pangu"), "num_computed_tokens"),
        (lambda: _causal(initial_state_idx=ints([0])), "block indices"),
        (lambda: _causal(residual_connection=2), "residual_connection"),
        (lambda: _causal(num_accepted_tokens=ints([4])), "num_accepted_tokens"),
        (lambda: torch_npu.npu_mhc_sinkhorn(torch.ones(2, 5, 5).npu()), "shape of x"),
        (lambda: torch_npu.npu_mhc_sinkhorn(torch.ones(2, 4, 4).npu(), num_iters=0), "num_iters"),
    ],
)
def test_refusals(call: Callable[[], object], complaint: str) -> None:
    with pytest.raises(RuntimeError, match=complaint):
        call()


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 6, 6), (5, 8, 8)])
@pytest.mark.parametrize("iterations", [1, 5])
def test_sinkhorn_and_its_gradient(iterations: int, shape: tuple[int, ...]) -> None:
    x, grad = torch.randn(shape), torch.randn(shape)
    leaf = x.double().requires_grad_()
    y = torch.softmax(leaf, -1) + 1e-3
    y = y / (y.sum(-2, keepdim=True) + 1e-3)
    for _ in range(iterations - 1):
        y = y / (y.sum(-1, keepdim=True) + 1e-3)
        y = y / (y.sum(-2, keepdim=True) + 1e-3)
    device = x.npu().requires_grad_()
    with called() as names:
        actual = torch_npu.npu_mhc_sinkhorn(device, eps=1e-3, num_iters=iterations, out_flag=1)[0]
    assert "MhcSinkhorn" in names
    near(actual, y)
    near(torch_npu.npu_mhc_sinkhorn(x.npu(), eps=1e-3, num_iters=iterations)[0], y)
    with called() as names:
        actual.backward(grad.npu())
    assert "MhcSinkhornBackward" in names
    y.backward(grad.double())
    near(device.grad, leaf.grad)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("rows", [(3,), (2, 3)])
def test_mapping_after_a_layer(rows: tuple[int, ...], mixed: bool, dtype: torch.dtype) -> None:
    x, h_out = torch.randn(*rows, 4, 16).to(dtype), torch.randn(*rows, 16).to(dtype)
    h_res, h_post = torch.rand(*rows, 4, 4), torch.randn(*rows, 4)
    leaves = [t.double().requires_grad_() for t in (x, h_res, h_out, h_post)]
    streams = torch.einsum("...ij,...id->...jd", leaves[1], leaves[0]) if mixed else leaves[0]
    expected = streams + leaves[3][..., None] * leaves[2][..., None, :]
    device = [t.npu().requires_grad_() for t in (x, h_res, h_out, h_post)]
    with called() as names:
        y = torch_npu.npu_mhc_post(device[0], device[1] if mixed else None, device[2], device[3])
    assert "MhcPost" in names
    near(y, expected)
    grad = torch.randn(y.shape).to(dtype)
    with called() as names:
        y.backward(grad.npu())
    assert "MhcPostBackward" in names
    expected.backward(grad.double())
    for actual, wanted in zip(device, leaves, strict=True):
        if wanted.grad is not None:
            near(actual.grad, wanted.grad, 8)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("with_gamma", [True, False])
@pytest.mark.parametrize("rows", [(3,), (2, 3)])
def test_mappings_before_a_layer(rows: tuple[int, ...], with_gamma: bool, dtype: torch.dtype) -> None:
    n, width = 4, 16
    x, phi = torch.randn(*rows, n, width).to(dtype), torch.randn(n * n + 2 * n, n * width) / 8
    alpha, bias, gamma = torch.rand(3) + 0.5, torch.randn(n * n + 2 * n), torch.rand(n, width) + 0.5
    tensors = [x, phi, alpha, bias, *([gamma] if with_gamma else [])]
    leaves = [t.double().requires_grad_() for t in tensors]
    flat = leaves[0].flatten(-2)
    normal = flat / torch.sqrt(flat.square().mean(-1, keepdim=True) + 1e-6)
    scores = (normal * leaves[4].flatten() if with_gamma else normal) @ leaves[1].T
    pre, post, res = torch.split(scores, [n, n, n * n], -1)
    scale, shift = leaves[2], torch.split(leaves[3], [n, n, n * n])
    weights = torch.sigmoid(scale[0] * pre + shift[0]) + 1e-2
    expected = (
        (weights[..., None] * leaves[0]).sum(-2),
        2 * torch.sigmoid(scale[1] * post + shift[1]),
        (scale[2] * res + shift[2]).view(*rows, n, n),
    )
    device = [t.npu().requires_grad_() for t in tensors]
    with called() as names:
        outputs = torch_npu.npu_mhc_pre(*device[:4], gamma=device[4] if with_gamma else None, hc_eps=1e-2, out_flag=1)
    assert names & {"MhcPre", "MhcPreV2"}
    for actual, wanted in zip(outputs, expected, strict=False):
        near(actual, wanted)
    near(outputs[5], weights)
    grads = [torch.randn(e.shape).to(o.dtype) for o, e in zip(outputs, expected, strict=False)]
    with called() as names:
        torch.autograd.backward(outputs[:3], [g.npu() for g in grads])
    assert names & {"MhcPreBackward", "MhcPreBackwardV2"}
    torch.autograd.backward(expected, [g.double() for g in grads])
    near(device[0].grad, leaves[0].grad, 8)
    for actual, wanted in zip(device[1:], leaves[1:], strict=True):
        near(actual.grad, wanted.grad, 100)
    given = [t.detach() for t in (*device[:3], *[g.npu() for g in grads], *outputs[3:], outputs[1])]
    plain = {"gamma": device[4].detach() if with_gamma else None, "hc_eps": 1e-2}
    with called() as names:
        again = torch_npu.npu_mhc_pre_backward(*given, **plain, inner_precise=1)
    assert "MhcPreBackwardV2" in names
    for actual, tensor in zip(again, device, strict=False):
        near(actual, tensor.grad.cpu())


def test_mappings_before_a_layer_without_mixing() -> None:
    x, phi, alpha, bias = torch.randn(3, 4, 16).half(), torch.randn(8, 64), torch.rand(2), torch.randn(8)
    h_in, h_post, h_res, *rest = torch_npu.npu_mhc_pre(*npu(x=x, phi=phi, alpha=alpha, bias=bias).values())
    flat = x.double().flatten(1)
    scores = flat / torch.sqrt(flat.square().mean(-1, keepdim=True) + 1e-6) @ phi.double().T
    weights = torch.sigmoid(alpha[0] * scores[:, :4] + bias[:4])
    near(h_in, (weights[..., None] * x.double()).sum(1))
    near(h_post, 2 * torch.sigmoid(alpha[1] * scores[:, 4:] + bias[4:]))
    assert torch.equal(h_res.cpu(), torch.zeros(1))
    assert all(output is None or output.numel() == 0 for output in rest)
