"""Causal convolutions along a sequence, three wide, channel by channel: masked for training, cached for inference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gallium.vnpu.checks import (
    HALVES,
    check_choice,
    check_dims,
    check_dtype,
    check_family,
    check_not_empty,
    check_same_dtype,
    check_shape,
)
from gallium.vnpu.refusals import Illegal
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

WIDTH = 3
MOST_SEQUENCES = 256
CHANNELS, CHANNEL_MULTIPLE = (64, 16384), 16
NO_EFFECT = "has no effect: docs of op-plugin, torch_npu.npu_fused_causal_conv1d"
UNUSED = dict.fromkeys(("initial_state_mode", "bias", "activation", "run_mode"), NO_EFFECT) | {
    "max_query_len": "tells the kernel how to divide its work; the lengths themselves are in query_start_loc"
}


@op("MaskedCausalConv1d")
def masked_causal_conv1d(x: Tensor, weight: Tensor, mask: Tensor | None, out: Tensor) -> None:
    """out[s] = sum of weight[k] * x[s - 2 + k], zero where the mask is false. x [sequence, batch, channels]."""
    _check_masked(x, weight, mask)
    padded = torch.nn.functional.pad(x.float(), (0, 0, 0, 0, WIDTH - 1, 0))
    result = _convolved(padded, weight.float())
    write(out, result if mask is None else result * mask.T[..., None])


@op("MaskedCausalConv1dBackward")
def masked_causal_conv1d_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, grad_input: Tensor, grad_weight: Tensor
) -> None:
    """The gradients of MaskedCausalConv1d."""
    _check_masked(x, weight, mask)
    check_shape("grad_output", grad_output, x.shape)
    grad = grad_output.float() if mask is None else grad_output * mask.T[..., None].float()
    later = torch.nn.functional.pad(grad, (0, 0, 0, 0, 0, WIDTH - 1))
    write(grad_input, _convolved(later, weight.float().flip(0)))
    padded = torch.nn.functional.pad(x.float(), (0, 0, 0, 0, WIDTH - 1, 0))
    write(grad_weight, torch.stack([(grad * padded[k : k + len(x)]).sum((0, 1)) for k in range(WIDTH)]))


@op("FusedCausalConv1d", unused=UNUSED)
def fused_causal_conv1d(
    x: Tensor,
    weight: Tensor,
    conv_states: Tensor,
    query_start_loc: Tensor | None,
    cache_indices: Tensor | None,
    initial_state_mode: Tensor | None,
    bias: Tensor | None,
    num_accepted_tokens: Tensor | None,
    num_computed_tokens: Tensor | None,
    block_idx_first_scheduled_token: Tensor | None,
    block_idx_last_scheduled_token: Tensor | None,
    initial_state_idx: Tensor | None,
    activation: int,
    pad_slot_id: int,
    run_mode: int,
    max_query_len: int,
    residual_connection: int,
    block_size: int,
    conv_mode: int,
    y: Tensor,
) -> None:
    """The convolution of each sequence after the end of it that conv_states keeps, which is then brought up to date.

    docs of op-plugin: torch_npu.npu_fused_causal_conv1d. Skipped sequences (pad_slot_id) keep what y's memory held.
    """
    blocks = block_idx_first_scheduled_token, block_idx_last_scheduled_token, initial_state_idx
    cache = _Cache(conv_states, cache_indices, num_accepted_tokens, num_computed_tokens, blocks, block_size)
    _run(x, weight, query_start_loc, cache, pad_slot_id, residual_connection, conv_mode, y)


@op("InplaceFusedCausalConv1d", unused=UNUSED)
def inplace_fused_causal_conv1d(
    x: Tensor,
    weight: Tensor,
    conv_states: Tensor,
    query_start_loc: Tensor | None,
    cache_indices: Tensor | None,
    initial_state_mode: Tensor | None,
    bias: Tensor | None,
    num_accepted_tokens: Tensor | None,
    num_computed_tokens: Tensor | None,
    block_idx_first_scheduled_token: Tensor | None,
    block_idx_last_scheduled_token: Tensor | None,
    initial_state_idx: Tensor | None,
    activation: int,
    pad_slot_id: int,
    run_mode: int,
    max_query_len: int,
    residual_connection: int,
    block_size: int,
    conv_mode: int,
) -> None:
    """FusedCausalConv1d that writes into x."""
    blocks = block_idx_first_scheduled_token, block_idx_last_scheduled_token, initial_state_idx
    cache = _Cache(conv_states, cache_indices, num_accepted_tokens, num_computed_tokens, blocks, block_size)
    _run(x, weight, query_start_loc, cache, pad_slot_id, residual_connection, conv_mode, x)


def _convolved(padded: Tensor, weight: Tensor) -> Tensor:
    """[steps + 2, ...] to [steps, ...], along the first dimension."""
    steps = len(padded) - (WIDTH - 1)
    result = padded[:steps] * weight[0]
    for k in range(1, WIDTH):
        result.addcmul_(padded[k : k + steps], weight[k])
    return result


def _check_masked(x: Tensor, weight: Tensor, mask: Tensor | None) -> None:
    check_family("MaskedCausalConv1d", "950")
    check_dtype("input", x, HALVES)
    check_dims("input", x, 3, 3)
    check_same_dtype("weight", weight, "input", x)
    check_shape("weight", weight, (WIDTH, x.shape[2]))
    check_dtype("mask", mask, (torch.bool,))
    check_shape("mask", mask, (x.shape[1], x.shape[0]))


@dataclass(frozen=True)
class _Cache:
    """The last steps of sequences, [lines, steps, channels], and which line is whose.

    blocks, for prefix caching: the index of the first and of the last block that is computed, and of the block whose
    state is the first; cache_indices is [batch, blocks] then.
    """

    states: Tensor
    indices: Tensor | None
    accepted: Tensor | None
    computed: Tensor | None
    blocks: tuple[Tensor | None, Tensor | None, Tensor | None]
    block_size: int

    def check(self, x: Tensor, batch: int, conv_mode: int) -> None:
        """Raise Illegal for what the documentation forbids."""
        check_dims("conv_states", self.states, 3, 3)
        check_same_dtype("conv_states", self.states, "x", x)
        steps, channels = self.states.shape[1:]
        if steps < WIDTH - 1 or channels != x.shape[-1]:
            legal = f"[lines, {WIDTH - 1} or more, {x.shape[-1]}]"
            raise Illegal("the shape of conv_states", list(self.states.shape), legal)
        given = [block is not None for block in self.blocks]
        if any(given) and not (all(given) and self.computed is not None and self.indices is not None):
            raise Illegal("the block indices", given, "all given, with num_computed_tokens and cache_indices, or none")
        if self.block_size < 2:
            raise Illegal("block_size", self.block_size, "at least 2")
        check_choice("conv_mode", conv_mode, (0, 1))
        if conv_mode == 1 and self.computed is None:
            raise Illegal("num_computed_tokens", None, "given, with conv_mode pangu")
        for name, tensor in (("num_accepted_tokens", self.accepted), ("num_computed_tokens", self.computed)):
            check_dtype(name, tensor, (torch.int32,))
            check_shape(name, tensor, (batch,))

    def lines(self, sequence: int) -> tuple[int, int]:
        """The line to read and the line to write."""
        if self.indices is None:
            return sequence, sequence
        _, last, initial = self.blocks
        if last is None or initial is None:
            line = int(self.indices[sequence])
            return line, line
        row = self.indices[sequence]
        return int(row[int(initial[sequence])]), int(row[int(last[sequence])])

    def before(self, sequence: int, line: int) -> tuple[Tensor, int]:
        """The steps before the sequence's new ones, and how many of them the convolution leaves out."""
        if self.computed is not None and int(self.computed[sequence]) == 0:
            return self.states.new_zeros(WIDTH - 1, self.states.shape[2]), 0
        longest = self.states.shape[1] - (WIDTH - 1)
        offset = longest if self.accepted is None else int(self.accepted[sequence]) - 1
        if not 0 <= offset <= longest:
            raise Illegal("num_accepted_tokens", offset + 1, f"1 to {longest + 1}")
        return self.states[line, : offset + WIDTH - 1].clone(), offset

    def update(self, sequence: int, line: int, steps: Tensor, offset: int) -> None:
        """Keep the last steps; with prefix caching, also those at the end of each block that is full now."""
        kept = min(self.states.shape[1], len(steps))
        self.states[line, -kept:] = steps[-kept:]
        first, last, _ = self.blocks
        if first is None or last is None or self.indices is None or self.computed is None:
            return
        length, size = len(steps) - offset - (WIDTH - 1), self.block_size
        rest = (length - (size - int(self.computed[sequence]) % size)) % size
        end = length - rest - (size if rest == 0 else 0)
        begin, count = int(first[sequence]), int(last[sequence]) - int(first[sequence])
        for block in range(count):
            at = offset + end - (count - block - 1) * size
            self.states[int(self.indices[sequence, begin + block]), 1 - WIDTH :] = steps[at : at + WIDTH - 1]


def _run(
    x: Tensor,
    weight: Tensor,
    starts: Tensor | None,
    cache: _Cache,
    pad_slot_id: int,
    residual: int,
    conv_mode: int,
    y: Tensor,
) -> None:
    check_family("FusedCausalConv1d", "950")
    check_dtype("x", x, HALVES)
    check_dims("x", x, 2, 3)
    check_not_empty("x", x)
    check_same_dtype("weight", weight, "x", x)
    check_shape("weight", weight, (WIDTH, x.shape[-1]))
    check_choice("residual_connection", residual, (0, 1))
    low, high = CHANNELS
    if not low <= x.shape[-1] <= high or x.shape[-1] % CHANNEL_MULTIPLE:
        raise Illegal("the last dimension of x", x.shape[-1], f"{low} to {high}, a multiple of {CHANNEL_MULTIPLE}")
    if starts is None and x.dim() == 2:
        raise Illegal("query_start_loc", None, "given, for an x of two dimensions")
    bounds = starts.tolist() if starts is not None else list(range(0, x.shape[:2].numel() + 1, x.shape[1]))
    if len(bounds) - 1 > MOST_SEQUENCES:
        raise Illegal("the number of sequences", len(bounds) - 1, f"at most {MOST_SEQUENCES}")
    cache.check(x, len(bounds) - 1, conv_mode)
    # Reshaping an output must not copy it.
    rows, out, factors = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1]), weight.float()
    for sequence in range(len(bounds) - 1):
        read, written = cache.lines(sequence)
        if read == pad_slot_id:
            continue
        place = slice(bounds[sequence], bounds[sequence + 1])
        before, offset = cache.before(sequence, read)
        steps = torch.cat((before, rows[place]))
        cache.update(sequence, written, steps, offset)
        result = _convolved(steps[offset:].float(), factors)
        if conv_mode == 1 and cache.computed is not None:
            result[: max(WIDTH - 1 - int(cache.computed[sequence]), 0)] = 0
        write(out[place], result + rows[place] if residual else result)
