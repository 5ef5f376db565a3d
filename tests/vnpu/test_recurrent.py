"""LSTM, GRU and the fused LSTM cell, with gradients, against PyTorch's on the CPU in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.support import called
from torch import Tensor, nn

LIMITS = {torch.float32: 1e-5, torch.float16: 4e-3}
DTYPES = tuple(LIMITS)


def near(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32, scale: float = 1) -> None:
    limit = scale * LIMITS[dtype]
    torch.testing.assert_close(actual.detach().cpu().double(), expected.detach().double(), rtol=limit, atol=limit)


def weights(gates: int, layers: int, directions: int, biased: bool, sizes: tuple[int, int]) -> list[Tensor]:
    inputs, hidden = sizes
    out = []
    for layer in range(layers):
        for _ in range(directions):
            width = inputs if layer == 0 else directions * hidden
            shapes = [(gates * hidden, width), (gates * hidden, hidden), *([(gates * hidden,)] * 2 if biased else [])]
            out += [torch.randn(shape) / 2 for shape in shapes]
    return out


def leaves(tensors: list[Tensor], dtype: torch.dtype, device: str) -> list[Tensor]:
    return [t.to(dtype).to(device).requires_grad_() for t in tensors]


NETWORKS = [
    {"layers": 1, "bidirectional": False, "batch_first": False, "biased": True},
    {"layers": 1, "bidirectional": False, "batch_first": True, "biased": True},
    {"layers": 1, "bidirectional": True, "batch_first": True, "biased": True},
    {"layers": 2, "bidirectional": True, "batch_first": False, "biased": True},
    {"layers": 2, "bidirectional": False, "batch_first": True, "biased": False},
]


def run(kind: str, network: dict[str, Any], x: Tensor, states: list[Tensor], params: list[Tensor], train: bool) -> Any:
    """On the device by torch_npu's own operator, which nn.LSTM reaches for one layer only; on the CPU by PyTorch's."""
    settings = (network["biased"], network["layers"], 0.0, train, network["bidirectional"])
    if x.device.type == "cpu":
        function = torch.lstm if kind == "lstm" else torch.gru
        return function(x, states if kind == "lstm" else states[0], params, *settings, network["batch_first"])
    function = torch_npu._lstm_npu if kind == "lstm" else torch_npu._gru_npu
    return function(x, states if kind == "lstm" else states[0], params, *settings, batch_first=network["batch_first"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("kind", "gates", "states"), [("lstm", 4, 2), ("gru", 3, 1)])
def test_network_and_its_gradient(
    kind: str, gates: int, states: int, network: dict[str, Any], dtype: torch.dtype
) -> None:
    directions = 2 if network["bidirectional"] else 1
    x = torch.randn(*((2, 5) if network["batch_first"] else (5, 2)), 3)
    start = [torch.randn(directions * network["layers"], 2, 4) for _ in range(states)]
    params = weights(gates, network["layers"], directions, network["biased"], (3, 4))
    on_npu = leaves([x, *start, *params], dtype, "npu")
    on_cpu = leaves([x.to(dtype), *[s.to(dtype) for s in start], *[p.to(dtype) for p in params]], torch.float64, "cpu")
    split = 1 + states
    with called() as names:
        results = run(kind, network, on_npu[0], on_npu[1:split], on_npu[split:], True)[: 1 + states]
    assert kind.upper() in names
    expected = run(kind, network, on_cpu[0], on_cpu[1:split], on_cpu[split:], True)
    for actual, wanted in zip(results, expected, strict=True):
        near(actual, wanted, dtype)
    grads = [torch.randn(e.shape).to(dtype) for e in expected]
    with called() as names:
        torch.autograd.backward(results, [g.npu() for g in grads])
    assert names & {"LstmBackward", "GRUBackward"}
    torch.autograd.backward(expected, [g.double() for g in grads])
    for actual, wanted in zip(on_npu, on_cpu, strict=True):
        near(actual.grad, wanted.grad, dtype, 20)


@pytest.mark.parametrize(("kind", "module"), [("LSTM", nn.LSTM), ("GRU", nn.GRU)])
def test_the_modules_in_inference(kind: str, module: type[nn.Module]) -> None:
    network = module(3, 4).eval()
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        expected = network(x)[0]
        with called() as names:
            y = network.npu()(x.npu())[0]
    assert kind in names
    near(y, expected)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("kind", "gates", "states"), [("lstm", 4, 2), ("gru", 3, 1)])
def test_sequences_of_different_lengths(kind: str, gates: int, states: int, bidirectional: bool) -> None:
    """The data of a sequence lie where they lay before packing: torch_npu does not take the padding out."""
    directions, lengths, hidden = (2 if bidirectional else 1), [5, 3, 2], 4
    x = torch.randn(5, 3, 2)
    start = [torch.randn(directions, 3, hidden) for _ in range(states)]
    params = weights(gates, 1, directions, True, (2, hidden))
    alive = torch.tensor([sum(length > t for length in lengths) for t in range(5)])
    on_npu = leaves([x.reshape(15, 2), *start, *params], torch.float32, "npu")
    on_cpu = leaves([x, *start, *params], torch.float64, "cpu")
    split, settings = 1 + states, (True, 1, 0.0, True, bidirectional)
    function = torch_npu._lstm_npu if kind == "lstm" else torch_npu._gru_npu
    first = on_npu[1:split] if kind == "lstm" else on_npu[1]
    results = function(on_npu[0], first, on_npu[split:], *settings, batch_sizes=alive.npu())[: 1 + states]
    packed = nn.utils.rnn.pack_padded_sequence(on_cpu[0], torch.tensor(lengths))
    plain = torch.lstm if kind == "lstm" else torch.gru
    start_cpu = on_cpu[1:split] if kind == "lstm" else on_cpu[1]
    data, *last = plain(packed.data, packed.batch_sizes, start_cpu, on_cpu[split:], *settings)
    y, _ = nn.utils.rnn.pad_packed_sequence(nn.utils.rnn.PackedSequence(data, packed.batch_sizes))
    expected = [y, *last]
    for actual, wanted in zip(results, expected, strict=True):
        near(actual.reshape(wanted.shape), wanted)
    grads = [torch.randn(e.shape) for e in expected]
    torch.autograd.backward(results, [g.npu().reshape(r.shape) for g, r in zip(grads, results, strict=True)])
    torch.autograd.backward(expected, [g.double() for g in grads])
    for actual, wanted in zip(on_npu, on_cpu, strict=True):
        near(actual.grad.reshape(wanted.shape), wanted.grad, scale=10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [True, False])
def test_the_fused_cell_and_its_gradient(biased: bool, dtype: torch.dtype) -> None:
    tensors = [torch.randn(s) for s in ((3, 16), (3, 16), (3, 4), *([(16,), (16,)] if biased else []))]
    on_npu, on_cpu = leaves(tensors, dtype, "npu"), leaves([t.to(dtype) for t in tensors], torch.float64, "cpu")
    with called() as names:
        results = torch.ops.aten._thnn_fused_lstm_cell(*on_npu)[:2]
    assert "ThnnFusedLstmCell" in names
    input_gates, hidden_gates, c, *biases = on_cpu
    i, f, g, o = sum([hidden_gates, *biases], input_gates).chunk(4, 1)
    cell = f.sigmoid() * c + i.sigmoid() * g.tanh()
    expected = o.sigmoid() * cell.tanh(), cell
    for actual, wanted in zip(results, expected, strict=True):
        near(actual, wanted, dtype)
    grads = [torch.randn(3, 4).to(dtype) for _ in range(2)]
    with called() as names:
        torch.autograd.backward(results, [g.npu() for g in grads])
    assert "ThnnFusedLstmCellBackward" in names
    torch.autograd.backward(expected, [g.double() for g in grads])
    for actual, wanted in zip(on_npu, on_cpu, strict=True):
        near(actual.grad, wanted.grad, dtype, 8)


def test_refusals() -> None:
    x, state, params = torch.randn(5, 2, 3).npu(), torch.zeros(2, 2, 4).npu(), weights(4, 2, 1, True, (3, 4))
    params = [p.npu() for p in params]
    with pytest.raises(RuntimeError, match="dropout"):
        torch_npu._lstm_npu(x, [state, state], params, True, 2, 0.5, True, False)
    with pytest.raises(RuntimeError, match="number of params"):
        torch_npu._lstm_npu(x, [state, state], params[:-1], True, 2, 0.0, True, False)
