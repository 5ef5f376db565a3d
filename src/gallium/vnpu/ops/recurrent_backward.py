"""The gradients of LSTM, GRU and the fused cell of an LSTM, from what the forward functions kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gallium.vnpu.checks import check_dtype
from gallium.vnpu.ops.recurrent import FLOATS, Kept, Network, Tensors
from gallium.vnpu.refusals import Unsupported
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

# One step back: the gradient of the state, what was kept, the state before, the weights of the state; to the gradients
# of the input's gates, of the hidden gates and of the state before.
StepBack = Callable[[Tensors, Tensors, Tensors, Tensor], tuple[Tensor, Tensor, Tensors]]


def lstm_step_back(grad: Tensors, kept: Tensors, before: Tensors, weight: Tensor) -> tuple[Tensor, Tensor, Tensors]:
    """Both parts of the gates have the same gradient."""
    grad_h, grad_c = grad
    i, j, f, o, tanh_c = kept
    grad_c = grad_c + grad_h * o * (1 - tanh_c * tanh_c)
    parts = (
        grad_c * j * i * (1 - i),
        grad_c * before[1] * f * (1 - f),
        grad_c * i * (1 - j * j),
        grad_h * tanh_c * o * (1 - o),
    )
    gates = torch.cat(parts, -1)
    return gates, gates, (gates @ weight, grad_c * f)


def gru_step_back(grad: Tensors, kept: Tensors, before: Tensors, weight: Tensor) -> tuple[Tensor, Tensor, Tensors]:
    """The hidden part of n has its own gradient: it is multiplied by r."""
    (grad_h,) = grad
    r, z, n, hidden_n = kept
    grad_n = grad_h * (1 - z) * (1 - n * n)
    grad_r = grad_n * hidden_n * r * (1 - r)
    grad_z = grad_h * (before[0] - n) * z * (1 - z)
    hidden = torch.cat((grad_r, grad_z, grad_n * r), -1)
    return torch.cat((grad_r, grad_z, grad_n), -1), hidden, (grad_h * z + hidden @ weight,)


RESERVED = {"reserved": "torch_npu always passes a null pointer"}


@op("LstmBackward", unused={**RESERVED, "dropout": "the forward function refuses any that would have an effect"})
def lstm_backward(
    x: Tensor,
    hx: Tensors,
    params: Tensors,
    grad_y: Tensor | None,
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    i_list: Tensors,
    j_list: Tensors,
    f_list: Tensors,
    o_list: Tensors,
    h_list: Tensors,
    c_list: Tensors,
    tanhc_list: Tensors,
    batch_sizes: Tensor | None,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    reserved: int,
    grad_x: Tensor,
    grad_h: Tensor,
    grad_c: Tensor,
    grad_params: Tensors,
) -> None:
    """The gradients of LSTM."""
    if not train:
        raise Unsupported("train", train, "True: without it the forward function keeps nothing for the gradient")
    network = Network(params, has_biases, num_layers, bidirectional, batch_first, batch_sizes)
    kept = (i_list, j_list, f_list, o_list, tanhc_list), (h_list, c_list)
    grads = _Grads(grad_x, (grad_h, grad_c), grad_params)
    _backward(network, lstm_step_back, x, hx, (grad_y, (grad_hy, grad_cy)), kept, grads)


@op("GRUBackward")
def gru_backward(
    x: Tensor,
    params: Tensors,
    hx: Tensor,
    grad_y: Tensor,
    grad_hy: Tensor,
    r_list: Tensors,
    z_list: Tensors,
    n_list: Tensors,
    hn_list: Tensors,
    h_list: Tensors,
    batch_sizes: Tensor | None,
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    grad_x: Tensor,
    grad_h: Tensor,
    grad_params: Tensors,
) -> None:
    """The gradients of GRU."""
    network = Network(params, has_biases, num_layers, bidirectional, batch_first, batch_sizes)
    kept = (r_list, z_list, n_list, hn_list), (h_list,)
    grads = _Grads(grad_x, (grad_h,), grad_params)
    _backward(network, gru_step_back, x, (hx,), (grad_y, (grad_hy,)), kept, grads)


@op("ThnnFusedLstmCellBackward")
def fused_lstm_cell_backward(
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    cx: Tensor,
    cy: Tensor,
    storage: Tensor,
    has_bias: bool,
    grad_gates: Tensor,
    grad_cx: Tensor,
    grad_bias: Tensor,
) -> None:
    """The gradients of ThnnFusedLstmCell; a missing one is zero."""
    check_dtype("workspace", storage, FLOATS)
    i, f, g, o = storage.float().chunk(4, -1)
    tanh_c = cy.float().tanh()
    zero = torch.zeros(cy.shape)
    grad = tuple(zero if t is None else t.float() for t in (grad_hy, grad_cy))
    weight = torch.zeros(storage.shape[-1], cy.shape[-1])
    gates, _, (_, before) = lstm_step_back(grad, (i, g, f, o, tanh_c), (zero, cx.float()), weight)
    write(grad_gates, gates)
    write(grad_cx, before)
    if has_bias:
        write(grad_bias, gates.sum(0))


class _Grads:
    """Where the gradients go."""

    def __init__(self, x: Tensor, states: Tensors, params: Tensors) -> None:
        self.x = x
        self.states = states
        self.params = params
        self.each = len(params) // len(states[0])

    def write(
        self, index: int, x: Tensor, gates: Tensor, hidden_gates: Tensor, states: Tensors, before: Tensor
    ) -> None:
        """Those of one layer and direction; x and `before` are what the two weights were multiplied with."""
        for place, value in zip(self.states, states, strict=True):
            write(place[index], value)
        flat, hidden = gates.flatten(0, 1), hidden_gates.flatten(0, 1)
        weights = flat.T @ x.flatten(0, 1), hidden.T @ before.flatten(0, 1)
        values = (*weights, flat.sum(0), hidden.sum(0))[: self.each]
        for place, value in zip(self.params[index * self.each : (index + 1) * self.each], values, strict=True):
            write(place, value)


def _backward(
    network: Network,
    step: StepBack,
    x: Tensor,
    hx: Sequence[Tensor],
    grads_in: tuple[Tensor | None, Sequence[Tensor | None]],
    kept: Kept,
    out: _Grads,
) -> None:
    """From the last layer to the first."""
    first_input = network.in_time_order(x)
    steps, batch = first_input.shape[:2]
    gate_lists, state_lists = kept
    first = network.initial(hx, len(state_lists), batch)
    alive = network.alive(steps, batch)
    hidden, directions = network.weights[0][1].shape[1], network.directions
    grad_y, ends = grads_in
    grad = torch.zeros(steps, batch, directions * hidden) if grad_y is None else grad_y.float()
    if grad_y is not None and network.batch_first:
        grad = grad.transpose(0, 1)
    for layer in reversed(range(network.layers)):
        below = first_input if layer == 0 else _output(state_lists[0], layer - 1, directions, alive)
        total = torch.zeros_like(below)
        for direction in range(directions):
            index = layer * directions + direction
            gates = [t[index].float().view(steps, batch, hidden) for t in gate_lists]
            after = [t[index].float().view(steps, batch, hidden) for t in state_lists]
            states = [(value, start[index]) for value, start in zip(after, first, strict=True)]
            end = tuple(torch.zeros(batch, hidden) if t is None else t[index].float() for t in ends)
            mine = grad[..., direction * hidden : (direction + 1) * hidden]
            result = _run_back(step, mine, end, gates, states, alive, network.weights[index][1], direction == 1)
            total += result[0] @ network.weights[index][0]
            out.write(index, below, *result)
        grad = total
    if network.batch_sizes is None and network.batch_first:
        grad = grad.transpose(0, 1)
    write(out.x, grad.reshape(out.x.shape))


def _output(h_list: Tensors, layer: int, directions: int, alive: Tensor | None) -> Tensor:
    """What a layer gave to the next, from the states it kept."""
    parts = [h_list[layer * directions + direction].float() for direction in range(directions)]
    together = torch.cat(parts, -1)
    return together if alive is None else together * alive


def _run_back(
    step: StepBack,
    grad: Tensor,
    state_grad: Tensors,
    kept: Sequence[Tensor],
    states: Sequence[tuple[Tensor, Tensor]],
    alive: Tensor | None,
    weight: Tensor,
    backwards: bool,
) -> tuple[Tensor, Tensor, Tensors, Tensor]:
    """Through time: the gradients of all gates, of the first state, and the h before each step."""
    steps = len(grad)
    rows = weight.shape[0]
    gates, hidden_gates = torch.zeros(2, steps, grad.shape[1], rows)
    before_h = torch.empty(steps, *state_grad[0].shape)
    for t in range(steps) if backwards else reversed(range(steps)):
        earlier = t + 1 if backwards else t - 1
        before = tuple(after[earlier] if 0 <= earlier < steps else start for after, start in states)
        before_h[t] = before[0]
        mine = grad[t] if alive is None else grad[t] * alive[t]
        with_output = (state_grad[0] + mine, *state_grad[1:])
        gates[t], hidden_gates[t], new = step(with_output, tuple(k[t] for k in kept), before, weight)
        if alive is not None:
            gates[t] *= alive[t]
            hidden_gates[t] *= alive[t]
            new = tuple(torch.where(alive[t], a, b) for a, b in zip(new, state_grad, strict=True))
        state_grad = new
    return gates, hidden_gates, state_grad, before_h
