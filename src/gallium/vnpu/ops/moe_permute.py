"""Tokens brought into the experts' order and back, for training, with gradients.

Facts: op-plugin's tests test_npu_moe_token_permute_and_unpermute(_backward) and ..._with_routing_map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import FLOATS, check_dims, check_dtype, check_shape
from gallium.vnpu.refusals import Illegal, only
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write


@op("MoeTokenPermute")
def moe_token_permute(
    tokens: Tensor,
    indices: Tensor,
    num_out_tokens: int,
    padded_mode: bool,
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
) -> None:
    """Rows in the order of their experts; sorted_indices[i] is where choice i of the flat `indices` went.

    That is the inverse of the sorting order: the operator sorts twice. The first num_out_tokens rows are kept.
    """
    only("padded_mode", padded_mode, False)
    check_dims("tokens", tokens, 2, 2)
    check_dims("indices", indices, 1, 2)
    order = torch.argsort(indices.reshape(-1), stable=True)
    write(sorted_indices, _inverse(order))
    top_k = 1 if indices.dim() == 1 else indices.shape[1]
    write(permuted_tokens, tokens[order[:num_out_tokens] // top_k])


@op("MoeTokenPermuteGrad")
def moe_token_permute_grad(
    grad_permuted_tokens: Tensor, sorted_indices: Tensor, num_top_k: int, padded_mode: bool, grad_tokens: Tensor
) -> None:
    """A token's gradient is the sum over its copies that were kept."""
    only("padded_mode", padded_mode, False)
    write(grad_tokens, _gather_kept(grad_permuted_tokens, sorted_indices, num_top_k).sum(1))


@op("MoeTokenUnpermute")
def moe_token_unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None,
    padded_mode: bool,
    restore_shape: tuple[int, ...] | None,
    unpermuted_tokens: Tensor,
) -> None:
    """The weighted sum of a token's copies; a copy that was dropped counts as zero."""
    only("padded_mode", padded_mode, False)
    _check_default_shape(restore_shape)
    check_dtype("permuted_tokens", permuted_tokens, FLOATS)
    copies = _gather_kept(permuted_tokens, sorted_indices, _top_k(probs, sorted_indices))
    if probs is not None:
        copies = copies * probs.float().unsqueeze(-1)
    write(unpermuted_tokens, copies.sum(1))


@op("MoeTokenUnpermuteGrad")
def moe_token_unpermute_grad(
    permuted_tokens: Tensor | None,
    grad_unpermuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None,
    padded_mode: bool,
    restore_shape: tuple[int, ...] | None,
    grad_permuted_tokens: Tensor,
    grad_probs: Tensor | None,
) -> None:
    """The gradients of MoeTokenUnpermute; without probs there is none for them."""
    only("padded_mode", padded_mode, False)
    _check_default_shape(restore_shape)
    top_k = _top_k(probs, sorted_indices)
    grad = grad_unpermuted_tokens.float().unsqueeze(1).expand(-1, top_k, -1)
    weighted = grad if probs is None else grad * probs.float().unsqueeze(-1)
    index = sorted_indices.reshape(-1).long()
    kept = index < grad_permuted_tokens.shape[0]
    spread = torch.zeros(grad_permuted_tokens.shape, dtype=torch.float32)
    spread.index_copy_(0, index[kept], weighted.reshape(len(index), -1)[kept])
    write(grad_permuted_tokens, spread)
    if probs is not None and grad_probs is not None:
        if permuted_tokens is None:
            raise Illegal("permuted_tokens", None, "given where probs are")
        write(grad_probs, (_gather_kept(permuted_tokens, sorted_indices, top_k) * grad).sum(-1))


@op("MoeTokenPermuteWithRoutingMap")
def moe_token_permute_with_routing_map(
    tokens: Tensor,
    routing_map: Tensor,
    probs: Tensor | None,
    num_out_tokens: int,
    drop_and_pad: bool,
    permuted_tokens: Tensor,
    permuted_probs: Tensor | None,
    sorted_indices: Tensor,
) -> None:
    """As MoeTokenPermute, with a table of bits [tokens, experts].

    With drop_and_pad every expert gets num_out_tokens / experts rows, its own first, and sorted_indices are the rows'
    tokens. Without, they are the rows' places in the order of tokens.
    """
    by_expert = routing_map.bool().t()
    if drop_and_pad:
        capacity = num_out_tokens // routing_map.shape[1]
        source = by_expert.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices[:, :capacity]
        write(sorted_indices, source.reshape(-1))
        chosen = None if probs is None else probs.t().gather(1, source).reshape(-1)
    else:
        source = torch.arange(tokens.shape[0]).expand_as(by_expert)[by_expert]
        if source.numel() != sorted_indices.numel():
            raise Illegal("num_out_tokens", num_out_tokens, f"the number of set entries of routing_map, {len(source)}")
        write(sorted_indices, torch.argsort(source, stable=True))
        chosen = None if probs is None else probs.t()[by_expert]
    write(permuted_tokens, tokens[source.reshape(-1)])
    if chosen is not None and permuted_probs is not None:
        write(permuted_probs, chosen)


@op("MoeTokenPermuteWithRoutingMapGrad")
def moe_token_permute_with_routing_map_grad(
    grad_permuted_tokens: Tensor,
    grad_permuted_probs: Tensor | None,
    sorted_indices: Tensor,
    routing_map: Tensor,
    experts_num: int,
    tokens_num: int,
    drop_and_pad: bool,
    grad_tokens: Tensor,
    grad_probs: Tensor | None,
) -> None:
    """The gradients of MoeTokenPermuteWithRoutingMap."""
    index = sorted_indices.reshape(-1).long()
    if drop_and_pad:
        total = torch.zeros(tokens_num, grad_permuted_tokens.shape[1])
        write(grad_tokens, total.index_add_(0, index, grad_permuted_tokens.float()))
    else:
        copies = grad_permuted_tokens.float()[index]
        write(grad_tokens, copies.view(tokens_num, -1, copies.shape[1]).sum(1))
    if grad_permuted_probs is None or grad_probs is None:
        return
    by_expert = torch.zeros(experts_num, tokens_num, dtype=grad_permuted_probs.dtype)
    if drop_and_pad:
        by_expert.scatter_(1, index.view(experts_num, -1), grad_permuted_probs.view(experts_num, -1))
    else:
        by_expert.masked_scatter_(routing_map.bool().t(), grad_permuted_probs)
    write(grad_probs, by_expert.t())


@op("MoeTokenUnpermuteWithRoutingMap")
def moe_token_unpermute_with_routing_map(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    routing_map: Tensor | None,
    probs: Tensor | None,
    drop_and_pad: bool,
    restore_shape: tuple[int, ...] | None,
    unpermuted_tokens: Tensor,
    out_index: Tensor,
    permuted_token_id: Tensor,
    permute_probs: Tensor | None,
) -> None:
    """The way back of MoeTokenPermuteWithRoutingMap.

    With drop_and_pad, out_index lists the rows in the order of their tokens and permuted_token_id those tokens;
    without, torch_npu hands sorted_indices to the gradient and both are written with it.
    """
    shape = _restored(restore_shape, unpermuted_tokens)
    index = sorted_indices.reshape(-1).long()
    rows = permuted_tokens.float()
    weights = _row_weights(index, routing_map, probs, drop_and_pad)
    if drop_and_pad:
        if weights is not None:
            rows = rows * weights.float().unsqueeze(-1)
        tokens, order = index.sort(stable=True)
        write(unpermuted_tokens, torch.zeros(shape).index_add_(0, tokens, rows[order]))
        write(out_index, order)
        write(permuted_token_id, tokens)
    else:
        rows = rows[index]
        if weights is not None:
            rows = rows * weights.float().unsqueeze(-1)
        write(unpermuted_tokens, rows.view(shape[0], -1, rows.shape[1]).sum(1))
        write(out_index, index)
        write(permuted_token_id, index)
    if weights is not None and permute_probs is not None:
        write(permute_probs, weights)


@op("MoeTokenUnpermuteWithRoutingMapGrad")
def moe_token_unpermute_with_routing_map_grad(
    grad_unpermuted_tokens: Tensor,
    out_index: Tensor,
    permuted_token_id: Tensor,
    routing_map: Tensor | None,
    permuted_tokens: Tensor | None,
    probs: Tensor | None,
    drop_and_pad: bool,
    restore_shape: tuple[int, ...] | None,
    grad_permuted_tokens: Tensor,
    grad_probs: Tensor | None,
) -> None:
    """The gradients of MoeTokenUnpermuteWithRoutingMap."""
    _restored(restore_shape, grad_unpermuted_tokens)
    index = out_index.reshape(-1).long()
    grad = grad_unpermuted_tokens.float()
    if drop_and_pad:
        tokens = permuted_token_id.reshape(-1).long()
        per_row = grad[tokens]
        at: tuple[Tensor, ...] = () if probs is None else (tokens, index // (len(index) // probs.shape[1]))
    else:
        per_row = grad.repeat_interleave(len(index) // grad.shape[0], 0)
        at = () if probs is None else tuple(_map(routing_map).nonzero().unbind(1))
    spread = torch.zeros(grad_permuted_tokens.shape)
    weighted = per_row if probs is None else per_row * probs[at].float().unsqueeze(-1)
    write(grad_permuted_tokens, spread.index_copy_(0, index, weighted))
    if probs is not None and grad_probs is not None:
        if permuted_tokens is None:
            raise Illegal("permuted_tokens", None, "given where probs are")
        along = (permuted_tokens.float()[index] * per_row).sum(-1)
        write(grad_probs, torch.zeros(probs.shape).index_put_(at, along))


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))


def _top_k(probs: Tensor | None, sorted_indices: Tensor) -> int:
    """How many copies a token has. Raises Illegal if the indices are no whole number of tokens."""
    top_k = 1 if probs is None else probs.shape[1]
    if sorted_indices.numel() % top_k:
        raise Illegal("the length of sorted_indices", sorted_indices.numel(), f"a multiple of {top_k}")
    return top_k


def _gather_kept(rows: Tensor, sorted_indices: Tensor, top_k: int) -> Tensor:
    """[tokens, top_k, hidden] in float32; zero where the row was dropped."""
    index = sorted_indices.reshape(-1).long()
    kept = index < rows.shape[0]
    if bool(kept.all()):
        gathered = rows[index].float()
    else:
        gathered = rows.new_zeros((len(index), rows.shape[1]), dtype=torch.float32)
        gathered[kept] = rows[index[kept]].float()
    return gathered.view(-1, top_k, rows.shape[1])


def _check_default_shape(restore_shape: tuple[int, ...] | None) -> None:
    """The shape is for the padded mode, which is refused; torch_npu passes (1,) for none."""
    if restore_shape not in (None, (), (1,)):
        raise Illegal("restore_shape", restore_shape, "left out without padded_mode")


def _restored(restore_shape: tuple[int, ...] | None, tokens: Tensor) -> tuple[int, ...]:
    if restore_shape is None:
        raise Illegal("restore_shape", None, "given")
    check_shape("unpermuted_tokens", tokens, restore_shape)
    return restore_shape


def _map(routing_map: Tensor | None) -> Tensor:
    if routing_map is None:
        raise Illegal("routing_map", None, "given where probs are")
    return routing_map.bool()


def _row_weights(index: Tensor, routing_map: Tensor | None, probs: Tensor | None, drop_and_pad: bool) -> Tensor | None:
    """The probability of each row, in the order that the caller goes through them."""
    if probs is None:
        return None
    if drop_and_pad:
        return probs.t().gather(1, index.view(probs.shape[1], -1)).reshape(-1)
    return probs[_map(routing_map)]
