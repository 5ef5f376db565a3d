"""LSTM through CANN's older interface: one layer in one direction over [time, batch, features], and its gradient.

Gates are in the order i, f, j, o, as in PyTorch, and weights are transposed to PyTorch's. DynamicRNN has those of input
and state in one matrix, one above the other; DynamicRNNV2 has two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gallium.vnpu.aclop import aclop
from gallium.vnpu.ops.recurrent import lstm_step
from gallium.vnpu.ops.recurrent_backward import lstm_step_back
from gallium.vnpu.precision import wide
from gallium.vnpu.refusals import Unsupported, only
from gallium.vnpu.writing import write

# In one call op-plugin's text is taken for a bool by C++ (LstmKernelNpu.cpp: Attr("cell_type", "LSTM")).
CELL_TYPES = ("LSTM", True)
GATE_ORDERS = ("ifjo", "ifco")  # j and c are two names of one gate
CELL_DEPTH = {"cell_depth": "torch_npu passes 1 or 0 for the same single cell"}
IS_TRAINING = {"is_training": "all that the gradient needs is written in any case"}
SAME = {"y": "holds the states h, which are an input of their own", "b": "a bias does not change its own gradient"}


@aclop("DynamicRNN", unused={**CELL_DEPTH, **IS_TRAINING})
def dynamic_rnn(
    y: Tensor,
    h: Tensor,
    c: Tensor,
    i: Tensor,
    j: Tensor,
    f: Tensor,
    o: Tensor,
    tanh_c: Tensor,
    /,
    x: Tensor,
    w: Tensor,
    b: Tensor,
    seq_length: Tensor | None,
    init_h: Tensor,
    init_c: Tensor,
    *,
    cell_type: str | bool,
    direction: str,
    cell_depth: int,
    use_peephole: bool,
    keep_prob: float,
    cell_clip: float,
    num_proj: int,
    time_major: bool,
    activation: str,
    forget_bias: float,
    is_training: bool,
    gate_order: str,
) -> None:
    """A layer of torch.nn.LSTM."""
    _only_plain(cell_type, direction, use_peephole, cell_clip, num_proj, time_major, forget_bias, gate_order)
    only("activation", activation, "tanh")
    only("keep_prob", keep_prob, 1.0)
    _no_mask(seq_length)
    split = x.shape[-1]
    steps = _forward(x, w[:split], w[split:], b, init_h, init_c)
    _put((y, h, c, i, j, f, o, tanh_c), steps)


@aclop("DynamicRNNV2", unused=CELL_DEPTH)
def dynamic_rnn_v2(
    y: Tensor,
    h: Tensor,
    c: Tensor,
    i: Tensor,
    j: Tensor,
    f: Tensor,
    o: Tensor,
    tanh_c: Tensor,
    /,
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None,
    seq_length: Tensor | None,
    init_h: Tensor,
    init_c: Tensor,
    *,
    cell_type: str | bool,
    direction: str,
    cell_depth: int,
    use_peephole: bool,
    keep_prob: float,
    cell_clip: float,
    num_proj: int,
    time_major: bool,
    activation: str,
    forget_bias: float,
    gate_order: str,
) -> None:
    """A layer of torch.nn.LSTM; torch_npu uses it for the single step of torch.nn.LSTMCell."""
    _only_plain(cell_type, direction, use_peephole, cell_clip, num_proj, time_major, forget_bias, gate_order)
    only("activation", activation, "tanh")
    only("keep_prob", keep_prob, 1.0)
    _no_mask(seq_length)
    shift = bias if bias is not None else w_ih.new_zeros(w_ih.shape[-1])
    _put((y, h, c, i, j, f, o, tanh_c), _forward(x, w_ih, w_hh, shift, init_h, init_c))


@aclop("DynamicRNNGrad", unused={**CELL_DEPTH, **SAME})
def dynamic_rnn_grad(
    dw: Tensor,
    db: Tensor,
    dx: Tensor,
    dh_before: Tensor,
    dc_before: Tensor,
    /,
    x: Tensor,
    w: Tensor,
    b: Tensor,
    y: Tensor,
    init_h: Tensor,
    init_c: Tensor,
    h: Tensor,
    c: Tensor,
    dy: Tensor,
    dh: Tensor,
    dc: Tensor,
    i: Tensor,
    j: Tensor,
    f: Tensor,
    o: Tensor,
    tanh_c: Tensor,
    seq_length: Tensor | None,
    mask: Tensor | None,
    wci: Tensor | None,
    wcf: Tensor | None,
    wco: Tensor | None,
    *,
    cell_type: str | bool,
    direction: str,
    cell_depth: int,
    use_peephole: bool,
    keep_prob: float,
    cell_clip: float,
    num_proj: int,
    time_major: bool,
    forget_bias: float,
    gate_order: str,
) -> None:
    """The gradients of DynamicRNN. torch_npu passes dh and dc of the last step, and keep_prob -1 for 1."""
    _only_plain(cell_type, direction, use_peephole, cell_clip, num_proj, time_major, forget_bias, gate_order)
    only("keep_prob", keep_prob, 1.0, -1.0)
    _only_placeholders(seq_length=seq_length, mask=mask, wci=wci, wcf=wcf, wco=wco)
    split = x.shape[-1]
    gates, before = _backward(w[split:], (init_h, init_c), (h, c), (dy, dh, dc), (i, j, f, o, tanh_c))
    states = _before(init_h, h)
    write(dx, gates @ wide(w[:split]).T)
    write(dw, torch.cat((wide(x), states), -1).flatten(0, 1).T @ gates.flatten(0, 1))
    write(db, gates.sum((0, 1)))
    _write_state((dh_before, dc_before), before)


@aclop(
    "DynamicRNNV2Grad",
    unused={**CELL_DEPTH, "y": SAME["y"], "merge_mode": "says how two directions are joined, and there is one"},
)
def dynamic_rnn_v2_grad(
    dw_ih: Tensor,
    dw_hh: Tensor,
    db: Tensor,
    dx: Tensor,
    dh_before: Tensor,
    dc_before: Tensor,
    /,
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    y: Tensor,
    init_h: Tensor,
    init_c: Tensor,
    h: Tensor,
    c: Tensor,
    dy: Tensor,
    dh: Tensor,
    dc: Tensor,
    i: Tensor,
    j: Tensor,
    f: Tensor,
    o: Tensor,
    tanh_c: Tensor,
    seq_length: Tensor | None,
    wci: Tensor | None,
    wcf: Tensor | None,
    wco: Tensor | None,
    mask: Tensor | None,
    *,
    cell_type: str | bool,
    direction: str,
    cell_depth: int,
    use_peephole: bool,
    keep_prob: float,
    cell_clip: float,
    num_proj: int,
    time_major: bool,
    activation: str,
    recurrent_activation: str,
    gate_order: str,
    stateful: bool,
    merge_mode: str,
) -> None:
    """The gradients of DynamicRNNV2; a single step may come without its dimension of time."""
    _only_plain(cell_type, direction, use_peephole, cell_clip, num_proj, time_major, 0.0, gate_order)
    only("activation", activation, "tanh")
    only("recurrent_activation", recurrent_activation, "sigmoid")
    only("stateful", stateful, False)
    only("keep_prob", keep_prob, 1.0)
    _only_placeholders(seq_length=seq_length, mask=mask, wci=wci, wcf=wcf, wco=wco)
    gates, before = _backward(w_hh, (init_h, init_c), (h, c), (dy, dh, dc), (i, j, f, o, tanh_c))
    flat = gates.flatten(0, 1)
    write(dx, (flat @ wide(w_ih).T).view(dx.shape))
    write(dw_ih, wide(x).reshape(flat.shape[0], -1).T @ flat)
    write(dw_hh, _before(init_h, h).flatten(0, 1).T @ flat)
    write(db, flat.sum(0))
    _write_state((dh_before, dc_before), before)


def _only_plain(
    cell_type: str | bool,
    direction: str,
    use_peephole: bool,
    cell_clip: float,
    num_proj: int,
    time_major: bool,
    forget_bias: float,
    gate_order: str,
) -> None:
    """Refuse what torch.nn.LSTM does not have."""
    only("cell_type", cell_type, *CELL_TYPES)
    only("direction", direction, "UNIDIRECTIONAL")
    only("use_peephole", use_peephole, False)
    only("cell_clip", cell_clip, -1.0)
    only("num_proj", num_proj, 0)
    only("time_major", time_major, True)
    only("forget_bias", forget_bias, 0.0)
    only("gate_order", gate_order, *GATE_ORDERS)


def _no_mask(seq_length: Tensor | None) -> None:
    if seq_length is not None:
        raise Unsupported("seq_length", seq_length, "leaving it out (sequences of one length)")


def _only_placeholders(**tensors: Tensor | None) -> None:
    """torch_npu passes one number in place of an optional tensor that is not there."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dim() > 0:
            raise Unsupported(name, tensor, "a placeholder without dimensions")


def _forward(
    x: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, init_h: Tensor, init_c: Tensor
) -> list[Sequence[Tensor]]:
    """For each step: h, c, i, j, f, o, tanh(c)."""
    gates = wide(x) @ wide(w_ih) + wide(bias)
    weight, none = wide(w_hh).T, gates.new_zeros(gates.shape[-1])
    state: tuple[Tensor, ...] = (wide(init_h).reshape(x.shape[1], -1), wide(init_c).reshape(x.shape[1], -1))
    steps: list[Sequence[Tensor]] = []
    for row in gates:
        state, kept = lstm_step(row, state, weight, none)
        steps.append((*state, *kept))
    return steps


def _put(outs: Sequence[Tensor], steps: list[Sequence[Tensor]]) -> None:
    """Write y, which is h, and then what each step gave."""
    h, *others = (torch.stack(values) for values in zip(*steps, strict=True))
    for out, value in zip(outs, (h, h, *others), strict=True):
        write(out, value)


def _before(initial: Tensor, states: Tensor) -> Tensor:
    """The state before each step: [time, batch, size]."""
    first = wide(initial).reshape(1, *initial.shape[-2:])
    return torch.cat((first, wide(states).reshape(-1, *initial.shape[-2:])[:-1]))


def _backward(
    w_hh: Tensor,
    initial: tuple[Tensor, Tensor],
    states: tuple[Tensor, Tensor],
    grads: tuple[Tensor, Tensor, Tensor],
    kept: tuple[Tensor, ...],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The gradients of the gates, [time, batch, 4 * size], and of the initial state."""
    shape = initial[0].shape[-2:]
    weight = wide(w_hh).T
    befores = [_before(first, all_) for first, all_ in zip(initial, states, strict=True)]
    by_step = [wide(x).reshape(-1, *shape) for x in kept]
    dy = wide(grads[0]).reshape(-1, *shape)
    grad: tuple[Tensor, ...] = (wide(grads[1]).reshape(shape), wide(grads[2]).reshape(shape))
    gates: list[Tensor] = []
    for t in reversed(range(len(dy))):
        step = tuple(x[t] for x in by_step)
        of_gates, _, grad = lstm_step_back((grad[0] + dy[t], grad[1]), step, tuple(x[t] for x in befores), weight)
        gates.append(of_gates)
    return torch.stack(gates[::-1]), grad


def _write_state(outs: tuple[Tensor, Tensor], grads: tuple[Tensor, ...]) -> None:
    for out, grad in zip(outs, grads, strict=True):
        write(out, grad.view(out.shape))
