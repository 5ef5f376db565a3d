"""The score of a lightning indexer, sum over heads of w * relu(q k^T), and its gradient, for one sequence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ELEMENTS = 1 << 22  # of the products that are held at once


class IndexTerms(NamedTuple):
    """query [S1, N, D], key [S2, D], weights [S1, N], and relu(q k^T) [S1, N, S2], all in float32."""

    query: Tensor
    key: Tensor
    weights: Tensor
    relu: Tensor

    def scores(self) -> Tensor:
        """[S1, S2]."""
        return torch.einsum("snk,sn->sk", self.relu, self.weights)

    def backward(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and weights from that of the scores [S1, S2]."""
        weight_grad = torch.einsum("snk,sk->sn", self.relu, grad)
        inner = grad[:, None] * self.weights[..., None] * (self.relu > 0)
        return inner @ self.key, torch.einsum("snk,snd->kd", inner, self.query), weight_grad


def index_terms(query: Tensor, key: Tensor, weights: Tensor) -> IndexTerms:
    """The products of one sequence."""
    query, key, weights = (x.to(torch.float32) for x in (query, key, weights))
    return IndexTerms(query, key, weights, (query @ key.t()).relu_())


def index_scores(query: Tensor, key: Tensor, weights: Tensor) -> Tensor:
    """[S1, S2] of one sequence, some queries at a time."""
    step = max(1, ELEMENTS // max(1, query.shape[1] * len(key)))
    parts = [
        index_terms(query[first : first + step], key, weights[first : first + step]).scores()
        for first in range(0, len(query), step)
    ]
    return torch.cat(parts) if parts else torch.empty(0, len(key))
