"""LSTM and GRU with their gradients, and the fused cell of an LSTM.

A layer runs in one direction over [time, batch, features]. `batch_sizes` says how many sequences, from the first on,
are still alive at each step (op-plugin's documentation of _lstm_npu): the others keep their state and give zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gallium.vnpu.checks import check_dtype
from gallium.vnpu.refusals import Illegal
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

Tensors = tuple[Tensor, ...]
FLOATS = (torch.float32, torch.float16)
# One step: gates of the input, state, weights of the state and their bias, to the new state and the gates for backward.
Step = Callable[[Tensor, Tensors, Tensor, Tensor], tuple[Tensors, Tensors]]
# What backward needs of each layer and direction: lists of the gates, and lists of the states.
Kept = tuple[Sequence[Tensors], Sequence[Tensors]]


def lstm_step(gates: Tensor, state: Tensors, weight: Tensor, bias: Tensor) -> tuple[Tensors, Tensors]:
    """State h, c. Kept: i, j, f, o and tanh(c)."""
    h, c = state
    i, f, j, o = (gates + torch.addmm(bias, h, weight.T)).chunk(4, -1)
    i, f, j, o = i.sigmoid(), f.sigmoid(), j.tanh(), o.sigmoid()
    c = f * c + i * j
    tanh_c = c.tanh()
    h = o * tanh_c
    return (h, c), (i, j, f, o, tanh_c)


def gru_step(gates: Tensor, state: Tensors, weight: Tensor, bias: Tensor) -> tuple[Tensors, Tensors]:
    """State h. Kept: r, z, n and the hidden part of n."""
    (h,) = state
    hidden_r, hidden_z, hidden_n = torch.addmm(bias, h, weight.T).chunk(3, -1)
    input_r, input_z, input_n = gates.chunk(3, -1)
    r, z = (input_r + hidden_r).sigmoid(), (input_z + hidden_z).sigmoid()
    n = (input_n + r * hidden_n).tanh()
    h = (1 - z) * n + z * h
    return (h,), (r, z, n, hidden_n)


@op("LSTM")
def lstm(
    x: Tensor,
    params: Tensors,
    hx: Tensors,
    batch_sizes: Tensor | None,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    y: Tensor,
    hy: Tensor,
    cy: Tensor,
    i_list: Tensors,
    j_list: Tensors,
    f_list: Tensors,
    o_list: Tensors,
    h_list: Tensors,
    c_list: Tensors,
    tanh_list: Tensors,
) -> None:
    """torch.nn.LSTM. The lists hold what LstmBackward needs, for each layer and direction; only in training."""
    _check(x, dropout, train, num_layers)
    kept = ((i_list, j_list, f_list, o_list, tanh_list), (h_list, c_list)) if train else None
    network = Network(params, has_biases, num_layers, bidirectional, batch_first, batch_sizes)
    network.forward(lstm_step, x, hx, y, (hy, cy), kept)


@op("GRU")
def gru(
    x: Tensor,
    params: Tensors,
    hx: Tensor,
    batch_sizes: Tensor | None,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    y: Tensor,
    hy: Tensor,
    r_list: Tensors,
    z_list: Tensors,
    n_list: Tensors,
    hn_list: Tensors,
    h_list: Tensors,
) -> None:
    """torch.nn.GRU. The lists hold what GRUBackward needs, for each layer and direction; only in training."""
    _check(x, dropout, train, num_layers)
    kept = ((r_list, z_list, n_list, hn_list), (h_list,)) if train else None
    network = Network(params, has_biases, num_layers, bidirectional, batch_first, batch_sizes)
    network.forward(gru_step, x, (hx,), y, (hy,), kept)


@op("ThnnFusedLstmCell")
def fused_lstm_cell(
    input_gates: Tensor,
    hidden_gates: Tensor,
    c: Tensor,
    input_bias: Tensor | None,
    hidden_bias: Tensor | None,
    hy: Tensor,
    cy: Tensor,
    storage: Tensor,
) -> None:
    """One step of an LSTM from the products with the weights; storage keeps the gates i, f, g, o."""
    check_dtype("input_gates", input_gates, FLOATS)
    gates = input_gates.float() + hidden_gates
    for bias in (input_bias, hidden_bias):
        gates = gates if bias is None else gates + bias
    i, f, g, o = gates.chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    state = f * c + i * g
    write(cy, state)
    write(hy, o * state.tanh())
    write(storage, torch.cat((i, f, g, o), -1))


class Network:
    """The weights of all layers and directions, and the order of the steps."""

    def __init__(
        self,
        params: Tensors,
        has_biases: bool,
        layers: int,
        bidirectional: bool,
        batch_first: bool,
        batch_sizes: Tensor | None,
    ) -> None:
        self.directions = 2 if bidirectional else 1
        self.layers = layers
        self.batch_first = batch_first
        self.batch_sizes = None if batch_sizes is None or batch_sizes.numel() == 0 else batch_sizes.tolist()
        each = 4 if has_biases else 2
        if len(params) != each * layers * self.directions:
            raise Illegal("the number of params", len(params), f"{each * layers * self.directions}")
        wide = [p.float() for p in params]
        self.weights = [(wide[i], wide[i + 1]) for i in range(0, len(wide), each)]
        rows = wide[0].shape[0]
        self.biases = [
            (wide[i + 2], wide[i + 3]) if has_biases else (torch.zeros(rows), torch.zeros(rows))
            for i in range(0, len(wide), each)
        ]

    def in_time_order(self, x: Tensor) -> Tensor:
        """[time, batch, features] in float32."""
        wide = x.float()
        if self.batch_sizes is not None:
            return wide.reshape(len(self.batch_sizes), -1, x.shape[-1])
        return wide.transpose(0, 1) if self.batch_first else wide

    def alive(self, steps: int, batch: int) -> Tensor | None:
        """bool [time, batch, 1], or None if all are."""
        if self.batch_sizes is None:
            return None
        if len(self.batch_sizes) != steps or not all(0 < n <= batch for n in self.batch_sizes):
            raise Illegal("batch_sizes", self.batch_sizes, f"{steps} numbers from 1 to {batch}")
        return torch.arange(batch)[None, :, None] < torch.tensor(self.batch_sizes)[:, None, None]

    def initial(self, hx: Sequence[Tensor], states: int, batch: int) -> list[Tensor]:
        """The first state of every layer and direction; zeros if it is not given."""
        if not hx:
            hidden = self.weights[0][1].shape[1]
            return [torch.zeros(len(self.weights), batch, hidden) for _ in range(states)]
        return [t.float() for t in hx]

    def forward(
        self, step: Step, x: Tensor, hx: Sequence[Tensor], y: Tensor, last: Sequence[Tensor], kept: Kept | None
    ) -> None:
        """Write y and the last states; in `kept`, for each layer and direction, the gates and states of all steps."""
        sequence = self.in_time_order(x)
        first = self.initial(hx, len(last), sequence.shape[1])
        ends: list[Tensors] = []
        for layer in range(self.layers):
            outputs = []
            for direction in range(self.directions):
                index = layer * self.directions + direction
                state = tuple(t[index] for t in first)
                state, output, *records = self._run(step, sequence, state, index, direction == 1)
                ends.append(state)
                outputs.append(output)
                for lists, values in zip(kept or (), records, strict=kept is not None):
                    for places, value in zip(lists, values, strict=True):
                        write(places[index], value)
            sequence = torch.cat(outputs, -1)
        write(y, sequence.transpose(0, 1) if self.batch_first else sequence)
        for out, parts in zip(last, zip(*ends, strict=True), strict=True):
            write(out, torch.stack(parts))

    def _run(
        self, step: Step, sequence: Tensor, state: Tensors, index: int, backwards: bool
    ) -> tuple[Tensors, Tensor, list[Tensor], list[Tensor]]:
        """The last state, the output, the gates and the states after each step."""
        steps, batch = sequence.shape[:2]
        input_weight, hidden_weight = self.weights[index]
        input_bias, hidden_bias = self.biases[index]
        inputs = torch.nn.functional.linear(sequence, input_weight, input_bias)
        alive = self.alive(steps, batch)
        gates: list[Tensors] = [()] * steps
        states: list[Tensors] = [()] * steps
        for t in reversed(range(steps)) if backwards else range(steps):
            new, gates[t] = step(inputs[t], state, hidden_weight, hidden_bias)
            if alive is not None:
                new = tuple(torch.where(alive[t], a, b) for a, b in zip(new, state, strict=True))
            state = states[t] = new
        kept_gates, kept_states = (
            [torch.stack(r) for r in zip(*all_steps, strict=True)] for all_steps in (gates, states)
        )
        output = kept_states[0] if alive is None else kept_states[0] * alive
        return state, output, kept_gates, kept_states


def _check(x: Tensor, dropout: float, train: bool, layers: int) -> None:
    check_dtype("input", x, FLOATS)
    if train and dropout and layers > 1:
        raise Illegal("dropout", dropout, "0: op-plugin's documentation of _lstm_npu says that it is not supported")
