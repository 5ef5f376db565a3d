"""Linear attention by the gated delta rule, token by token: the recurrent and the chunked operator.

S becomes a S + b (v - a S k) k^T with a = exp(g) and, per channel of the key, exp(gk); the output is S q * scale.
The chunked operator computes the same in another order on a chip.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.attention.limits import need_chip, need_range
from gallium.vnpu.registry import Illegal, op

RECURRENT = "npu_recurrent_gated_delta_rule"
CHUNKED = "npu_chunk_gated_delta_rule"


@op("RecurrentGatedDeltaRule")
def recurrent_gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    state: Tensor,
    actual_seq_lengths: Tensor | None,
    ssm_state_indices: Tensor | None,
    g: Tensor | None,
    gk: Tensor | None,
    num_accepted_tokens: Tensor | None,
    scale: float,
    out: Tensor,
) -> None:
    """A few tokens per sequence; the state after token i goes to state[ssm_state_indices[i]].

    A sequence begins with the state of its last accepted token, the first one unless told otherwise.
    """
    need_chip(RECURRENT, "910B", "910_93")
    _check(query, key, value, RECURRENT)
    if actual_seq_lengths is None or ssm_state_indices is None:
        raise Illegal("actual_seq_lengths and ssm_state_indices", "one of them", "given")
    lengths, slots = actual_seq_lengths.tolist(), ssm_state_indices.tolist()
    accepted = [1] * len(lengths) if num_accepted_tokens is None else num_accepted_tokens.tolist()
    if sum(lengths) != len(query) or any(not 1 <= n <= 8 for n in lengths):
        raise Illegal(
            "actual_seq_lengths", lengths, f"from 1 to 8, {len(query)} in all ({RECURRENT} page of op-plugin)"
        )
    if any(not 0 <= slot < len(state) for slot in slots) or len(slots) != len(query):
        raise Illegal(
            "ssm_state_indices", slots, f"one per token, 0 to {len(state) - 1} ({RECURRENT} page of op-plugin)"
        )
    first = 0
    for length, count in zip(lengths, accepted, strict=True):
        if not 1 <= count <= length:
            raise Illegal("num_accepted_tokens", count, f"1 to {length} ({RECURRENT} page of op-plugin)")
        memory = state[slots[first + count - 1]].to(torch.float32)
        for token in range(first, first + length):
            memory = _step(memory, query, key, value, beta, g, gk, scale, token, out)
            state[slots[token]] = memory.to(state.dtype)
        first += length


@op("ChunkGatedDeltaRule")
def chunk_gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    initial_state: Tensor | None,
    actual_seq_lengths: Tensor | None,
    scale: float,
    g: Tensor | None,
    out: Tensor,
    final_state: Tensor,
) -> None:
    """Whole sequences, from an initial state [B, Nv, Dv, Dk] to the final one."""
    _check(query, key, value, CHUNKED)
    if beta is None or initial_state is None or actual_seq_lengths is None:
        raise Illegal("beta, initial_state, actual_seq_lengths", "one of them", f"given ({CHUNKED} page of op-plugin)")
    need_range(CHUNKED, "heads of the value", value.shape[1], 1, 64)
    need_range(CHUNKED, "the size of keys and values", max(key.shape[2], value.shape[2]), 1, 128)
    lengths, first = actual_seq_lengths.tolist(), 0
    if sum(lengths) != len(query) or len(lengths) != len(initial_state):
        raise Illegal(
            "actual_seq_lengths", lengths, f"one per state, {len(query)} in all ({CHUNKED} page of op-plugin)"
        )
    for b, length in enumerate(lengths):
        memory = initial_state[b].to(torch.float32)
        for token in range(first, first + length):
            memory = _step(memory, query, key, value, beta, g, None, scale, token, out)
        final_state[b] = memory.to(final_state.dtype)
        first += length


def _step(
    memory: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    g: Tensor | None,
    gk: Tensor | None,
    scale: float,
    token: int,
    out: Tensor,
) -> Tensor:
    """The state [Nv, Dv, Dk] after a token, whose output is written."""
    group = value.shape[1] // key.shape[1]
    k = key[token].to(torch.float32).repeat_interleave(group, 0)[:, None]
    if g is not None:
        memory = memory * g[token].to(torch.float32).exp()[:, None, None]
    if gk is not None:
        memory = memory * gk[token].to(torch.float32).exp()[:, None]
    error = value[token].to(torch.float32) - (memory * k).sum(-1)
    if beta is not None:
        error = error * beta[token].to(torch.float32)[:, None]
    memory = memory + error[..., None] * k
    q = query[token].to(torch.float32).repeat_interleave(group, 0)[:, None]
    out[token] = (memory * q).sum(-1) * scale
    return memory


def _check(query: Tensor, key: Tensor, value: Tensor, page: str) -> None:
    alike = query.dtype == key.dtype == value.dtype == torch.bfloat16
    if not alike or query.shape != key.shape or len(value) != len(key) or value.shape[1] % key.shape[1]:
        raise Illegal("query, key and value", query, f"bfloat16 [T, N, D], heads of the value a multiple ({page} page)")
    need_range(page, "heads", max(key.shape[1], value.shape[1]), 1, 256)
    need_range(page, "the size of a head", max(key.shape[2], value.shape[2]), 1, 512)
