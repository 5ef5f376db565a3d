"""Training of lightning indexers: the KL loss towards the attention that they imitate, with its gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gallium.vnpu.attention.batches import Batches, causal
from gallium.vnpu.attention.indexer import index_scores, index_terms
from gallium.vnpu.attention.limits import need_chip
from gallium.vnpu.named import register_named
from gallium.vnpu.ops.sparse_attention import chosen
from gallium.vnpu.registry import Illegal, only, op

DENSE_PAGE = "npu_dense_lightning_indexer_grad_kl_loss"
EVERY = (1 << 63) - 1
SMALLEST = 1e-8  # probabilities are not taken as less within the logarithms of the loss (op-plugin's test)
Ints = tuple[int, ...] | None


@op("DenseLightningIndexerSoftmaxLse", cube=True)
def dense_lightning_indexer_softmax_lse(
    query_index: Tensor,
    key_index: Tensor,
    weights: Tensor,
    actual_seq_qlen: Ints,
    actual_seq_klen: Ints,
    layout: str,
    sparse_mode: int,
    pre_tokens: int,
    next_tokens: int,
    softmax_max: Tensor,
    softmax_sum: Tensor,
) -> None:
    """Maximum and sum of the softmax of the index scores, for the operator below."""
    _check_limits(query_index, key_index, sparse_mode, pre_tokens, next_tokens)
    batches = Batches(query_index, key_index, layout, layout, actual_seq_qlen, actual_seq_klen)
    for b in range(len(batches)):
        scores = _index_scores(batches, query_index, key_index, weights, b)
        top = scores.amax(1)
        batches.stats(softmax_max, b)[0] = top
        batches.stats(softmax_sum, b)[0] = (scores - top[:, None]).exp().sum(1)


def _index_scores(batches: Batches, query: Tensor, key: Tensor, weights: Tensor, sequence: int) -> Tensor:
    rows, weight = batches.of_queries(query, sequence), batches.of_queries(weights, sequence)
    keys = batches.of_keys(key, sequence)[:, 0]
    return index_scores(rows, keys, weight).masked_fill_(causal(len(rows), len(keys)), -torch.inf)


def _check_limits(query: Tensor, key: Tensor, sparse_mode: int, pre_tokens: int, next_tokens: int) -> None:
    need_chip(DENSE_PAGE, "910B", "910_93", "950")
    only("sparse_mode", sparse_mode, 3)
    only("pre_tokens and next_tokens", (pre_tokens, next_tokens), (EVERY, EVERY))
    if query.shape[-1] != 128 or query.shape[-2] not in (8, 16, 32, 64) or key.shape[-2] != 1:
        raise Illegal("query_index", query, f"of 8, 16, 32 or 64 heads of size 128 ({DENSE_PAGE} page of op-plugin)")


@dataclass(frozen=True, kw_only=True)
class IndexerLoss:
    """Loss = sum over queries of KL(p || softmax(index scores)); its gradient by the scores is softmax - p.

    p: the attention probabilities, from their maximum and sum, averaged over all heads.
    """

    query: Tensor
    key: Tensor
    query_index: Tensor
    key_index: Tensor
    weights: Tensor
    softmax_max: Tensor
    softmax_sum: Tensor
    query_rope: Tensor | None
    key_rope: Tensor | None
    actual_seq_qlen: Ints
    actual_seq_klen: Ints
    scale: float
    layout: str
    sparse_mode: int
    pre_tokens: int
    next_tokens: int
    d_query_index: Tensor
    d_key_index: Tensor
    d_weights: Tensor
    loss: Tensor

    def run(self) -> None:
        """Compute and write all outputs."""
        _check_limits(self.query_index, self.key_index, self.sparse_mode, self.pre_tokens, self.next_tokens)
        if (self.query_rope is None) != (self.key_rope is None):
            raise Illegal("query_rope and key_rope", "one of them", "given together")
        lengths = (self.actual_seq_qlen, self.actual_seq_klen)
        batches = Batches(self.query, self.key, self.layout, self.layout, *lengths)
        total = torch.zeros(())
        for target in (self.d_query_index, self.d_key_index, self.d_weights):
            target.zero_()
        for b in range(len(batches)):
            total += self._sequence(batches, b)
        self.loss.copy_(total)

    def _sequence(self, batches: Batches, b: int) -> Tensor:
        hidden, used = self.hidden(batches, b)
        rows = [batches.of_queries(x, b) for x in (self.query_index, self.weights)]
        terms = index_terms(rows[0], batches.of_keys(self.key_index, b)[used, 0], rows[1])
        scores = terms.scores().masked_fill_(hidden, -torch.inf)
        target = self._target(batches, b, hidden, used)
        own = self.probabilities(batches, b, scores)
        grads = terms.backward(own - target)
        batches.of_queries(self.d_query_index, b).copy_(grads[0])
        batches.of_queries(self.d_weights, b).copy_(grads[2])
        batches.of_keys(self.d_key_index, b)[used, 0] = grads[1].to(self.d_key_index.dtype)
        return (target * (target.clamp(min=SMALLEST).log() - own.clamp(min=SMALLEST).log())).sum()

    def hidden(self, batches: Batches, b: int) -> tuple[Tensor, Tensor]:
        """Which of the used keys are not seen [S1, keys], and the numbers of the used keys."""
        raise NotImplementedError

    def probabilities(self, batches: Batches, b: int, scores: Tensor) -> Tensor:
        """The softmax of the index scores."""
        raise NotImplementedError

    def _target(self, batches: Batches, b: int, hidden: Tensor, used: Tensor) -> Tensor:
        query, key = batches.of_queries(self.query, b), batches.of_keys(self.key, b)[used]
        if self.query_rope is not None and self.key_rope is not None:
            query = torch.cat((query, batches.of_queries(self.query_rope, b)), -1)
            key = torch.cat((key, batches.of_keys(self.key_rope, b)[used]), -1)
        total = torch.zeros(hidden.shape)
        heads, group = query.shape[1], query.shape[1] // key.shape[1]
        top, summed = batches.stats(self.softmax_max, b), batches.stats(self.softmax_sum, b)
        for head in range(heads):
            n, g = divmod(head, group)
            scores = query[:, head].to(torch.float32) @ key[:, n].to(torch.float32).t() * self.scale
            scores = scores.masked_fill_(hidden, -torch.inf)
            total += (scores - top[n, :, g, None].to(torch.float32)).exp_() / summed[n, :, g, None].to(torch.float32)
        return total / heads


@dataclass(frozen=True, kw_only=True)
class DenseIndexerLoss(IndexerLoss):
    """Over all keys up to the query's own."""

    softmax_max_index: Tensor
    softmax_sum_index: Tensor

    def hidden(self, batches: Batches, b: int) -> tuple[Tensor, Tensor]:
        """All keys are used; those after the query are not seen."""
        keys = len(batches.keys[b])
        return causal(len(batches.rows[b]), keys), torch.arange(keys)

    def probabilities(self, batches: Batches, b: int, scores: Tensor) -> Tensor:
        """From the given maximum and sum."""
        top, total = (batches.stats(x, b)[0][:, None] for x in (self.softmax_max_index, self.softmax_sum_index))
        return (scores - top).exp() / total


@dataclass(frozen=True, kw_only=True)
class SparseIndexerLoss(IndexerLoss):
    """Over the keys that the indexer chose."""

    sparse_indices: Tensor
    deterministic: bool

    def hidden(self, batches: Batches, b: int) -> tuple[Tensor, Tensor]:
        """Only keys that a query chose are used."""
        only("deterministic", self.deterministic, True, False)  # the result is the same
        indices = batches.of_queries(self.sparse_indices, b)[:, 0]
        seen = chosen(indices, 1, len(batches.keys[b]), causal_too=True)
        used = seen.any(0).nonzero()[:, 0]
        return ~seen[:, used], used

    def probabilities(self, batches: Batches, b: int, scores: Tensor) -> Tensor:
        """The softmax over what was chosen; zeros where nothing was."""
        return torch.nan_to_num(scores.softmax(1), nan=0.0)


register_named("DenseLightningIndexerGradKLLoss", DenseIndexerLoss)
register_named("SparseLightningIndexerGradKLLoss", SparseIndexerLoss)
